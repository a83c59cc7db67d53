//! Complex numbers in high precision: principal branches, a real number's imaginary part exactly zero.

use super::real::{Fault, Real};
use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};
use std::cmp::Ordering;

type Result<T> = std::result::Result<T, Fault>;

/// re + im · i.
#[derive(Clone, Debug)]
pub(super) struct Complex {
    pub(super) re: Real,
    pub(super) im: Real,
}

/// Whole exponents up to which powers are multiplied out.
const MULTIPLIED: i64 = 4096;

impl Complex {
    pub(super) fn real(re: Real) -> Self {
        Self {
            re,
            im: Real::zero(),
        }
    }

    pub(super) fn integer(value: i64) -> Self {
        Self::real(Real::integer(value))
    }

    pub(super) fn i() -> Self {
        Self {
            re: Real::zero(),
            im: Real::integer(1),
        }
    }

    pub(super) fn is_real(&self) -> bool {
        self.im.is_exact_zero()
    }

    fn is_exact_zero(&self) -> bool {
        self.re.is_exact_zero() && self.im.is_exact_zero()
    }

    /// Its size is below 2 to this.
    pub(super) fn magnitude(&self) -> i64 {
        self.re.magnitude().max(self.im.magnitude()) + 1
    }

    pub(super) fn error(&self) -> i64 {
        self.re.error().max(self.im.error())
    }

    pub(super) fn negated(&self) -> Self {
        Self {
            re: self.re.negated(),
            im: self.im.negated(),
        }
    }

    pub(super) fn conjugate(&self) -> Self {
        Self {
            re: self.re.clone(),
            im: self.im.negated(),
        }
    }

    pub(super) fn plus(&self, other: &Self, bits: u64) -> Self {
        Self {
            re: self.re.plus(&other.re, bits),
            im: self.im.plus(&other.im, bits),
        }
    }

    pub(super) fn minus(&self, other: &Self, bits: u64) -> Self {
        self.plus(&other.negated(), bits)
    }

    pub(super) fn times(&self, other: &Self, bits: u64) -> Result<Self> {
        let (a, b, c, d) = (&self.re, &self.im, &other.re, &other.im);
        Ok(Self {
            re: a.times(c, bits)?.minus(&b.times(d, bits)?, bits),
            im: a.times(d, bits)?.plus(&b.times(c, bits)?, bits),
        })
    }

    fn times_real(&self, factor: &Real, bits: u64) -> Result<Self> {
        Ok(Self {
            re: self.re.times(factor, bits)?,
            im: self.im.times(factor, bits)?,
        })
    }

    fn times_i(&self) -> Self {
        Self {
            re: self.im.negated(),
            im: self.re.clone(),
        }
    }

    fn half(&self) -> Self {
        Self {
            re: self.re.doubled(-1),
            im: self.im.doubled(-1),
        }
    }

    pub(super) fn over(&self, other: &Self, bits: u64) -> Result<Self> {
        if other.is_real() {
            return Ok(Self {
                re: self.re.over(&other.re, bits)?,
                im: self.im.over(&other.re, bits)?,
            });
        }
        let product = self.times(&other.conjugate(), bits)?;
        let norm = other.norm(bits)?;
        Ok(Self {
            re: product.re.over(&norm, bits)?,
            im: product.im.over(&norm, bits)?,
        })
    }

    fn norm(&self, bits: u64) -> Result<Real> {
        Ok(self
            .re
            .times(&self.re, bits)?
            .plus(&self.im.times(&self.im, bits)?, bits))
    }

    pub(super) fn modulus(&self, bits: u64) -> Result<Real> {
        if self.is_real() {
            return Ok(self.re.absolute());
        }
        self.norm(bits)?.root(bits)
    }

    pub(super) fn root(&self, bits: u64) -> Result<Self> {
        if self.is_real() {
            return Ok(match self.re.likely_sign() {
                Ordering::Less if self.re.sign().is_some() => Self {
                    re: Real::zero(),
                    im: self.re.negated().root(bits)?,
                },
                _ => Self::real(self.re.root(bits)?),
            });
        }
        let modulus = self.modulus(bits)?;
        if self.re.likely_sign().is_ge() {
            let re = modulus.plus(&self.re, bits).doubled(-1).root(bits)?;
            let im = self.im.over(&re.doubled(1), bits)?;
            return Ok(Self { re, im });
        }
        let size = modulus.minus(&self.re, bits).doubled(-1).root(bits)?;
        let re = self.im.absolute().over(&size.doubled(1), bits)?;
        // On the cut, as far as the error tells, the upper side counts.
        let im = if self.im.sign() == Some(Ordering::Less) {
            size.negated()
        } else {
            size
        };
        Ok(Self { re, im })
    }

    pub(super) fn exp(&self, bits: u64) -> Result<Self> {
        let size = self.re.exp(bits)?;
        if self.is_real() {
            return Ok(Self::real(size));
        }
        let (sin, cos) = self.im.sin_cos(bits)?;
        Ok(Self {
            re: size.times(&cos, bits)?,
            im: size.times(&sin, bits)?,
        })
    }

    pub(super) fn ln(&self, bits: u64) -> Result<Self> {
        let re = if self.is_real() {
            self.re.absolute().ln(bits)?
        } else {
            self.norm(bits)?.ln(bits)?.doubled(-1)
        };
        Ok(Self {
            re,
            im: self.argument(bits)?,
        })
    }

    fn argument(&self, bits: u64) -> Result<Real> {
        let down = self.im.sign() == Some(Ordering::Less);
        match self.re.sign() {
            Some(Ordering::Greater) => {
                if self.is_real() {
                    return Ok(Real::zero());
                }
                self.im.over(&self.re, bits)?.atan(bits)
            }
            Some(Ordering::Less) => {
                let pi = Real::pi(bits);
                if self.is_real() {
                    return Ok(pi);
                }
                let angle = self.im.over(&self.re, bits)?.atan(bits)?;
                Ok(angle.plus(&if down { pi.negated() } else { pi }, bits))
            }
            _ => {
                let half = Real::pi(bits).doubled(-1);
                let rest = self.re.over(&self.im, bits)?.atan(bits)?;
                Ok(if down { half.negated() } else { half }.minus(&rest, bits))
            }
        }
    }

    pub(super) fn power(&self, exponent: &Self, bits: u64) -> Result<Self> {
        if exponent.is_exact_zero() {
            return Ok(Self::integer(1));
        }
        if exponent.is_real()
            && let Some(whole) = exponent.re.whole()
        {
            return self.whole_power(&whole, bits);
        }
        if self.is_exact_zero() {
            return if exponent.re.sign() == Some(Ordering::Greater) {
                Ok(Self::integer(0))
            } else {
                Err(Fault::Undefined)
            };
        }
        self.ln(bits)?.times(exponent, bits)?.exp(bits)
    }

    fn whole_power(&self, exponent: &BigInt, bits: u64) -> Result<Self> {
        if exponent.is_zero() {
            return Ok(Self::integer(1));
        }
        let small = exponent.to_i64().filter(|n| n.abs() <= MULTIPLIED);
        let Some(small) = small else {
            if self.is_exact_zero() {
                return if exponent.is_negative() {
                    Err(Fault::Undefined)
                } else {
                    Ok(Self::integer(0))
                };
            }
            // The factor's bits are lost.
            let bits = bits + exponent.bits().min(512);
            let times = Real::rational(&exponent.clone().into(), bits)?;
            if self.is_real() {
                let size = self
                    .re
                    .absolute()
                    .ln(bits)?
                    .times(&times, bits)?
                    .exp(bits)?;
                let odd = exponent.bit(0);
                let negative = self.re.likely_sign().is_lt();
                return Ok(Self::real(if odd && negative {
                    size.negated()
                } else {
                    size
                }));
            }
            return self.ln(bits)?.times_real(&times, bits)?.exp(bits);
        };
        let mut left = small.unsigned_abs();
        let mut base = self.clone();
        let mut total = Self::integer(1);
        loop {
            if left & 1 == 1 {
                total = total.times(&base, bits)?;
            }
            left >>= 1;
            if left == 0 {
                break;
            }
            base = base.times(&base, bits)?;
        }
        if small < 0 {
            total = Self::integer(1).over(&total, bits)?;
        }
        Ok(total)
    }

    /// Hyperbolic sine and cosine of a real number.
    fn sinh_cosh_real(value: &Real, bits: u64) -> Result<(Real, Real)> {
        let up = value.exp(bits)?;
        let down = Real::integer(1).over(&up, bits)?;
        Ok((
            up.minus(&down, bits).doubled(-1),
            up.plus(&down, bits).doubled(-1),
        ))
    }

    pub(super) fn sin_cos(&self, bits: u64) -> Result<(Self, Self)> {
        let (sin, cos) = self.re.sin_cos(bits)?;
        if self.is_real() {
            return Ok((Self::real(sin), Self::real(cos)));
        }
        let (sinh, cosh) = Self::sinh_cosh_real(&self.im, bits)?;
        Ok((
            Self {
                re: sin.times(&cosh, bits)?,
                im: cos.times(&sinh, bits)?,
            },
            Self {
                re: cos.times(&cosh, bits)?,
                im: sin.times(&sinh, bits)?.negated(),
            },
        ))
    }

    pub(super) fn sinh_cosh(&self, bits: u64) -> Result<(Self, Self)> {
        let up = self.exp(bits)?;
        let down = Self::integer(1).over(&up, bits)?;
        Ok((up.minus(&down, bits).half(), up.plus(&down, bits).half()))
    }

    pub(super) fn asin(&self, bits: u64) -> Result<Self> {
        let one = Self::integer(1);
        let square = one.minus(&self.times(self, bits)?, bits);
        if self.is_real() && square.re.likely_sign().is_ge() {
            let cosine = square.re.root(bits)?;
            return Ok(Self::real(match cosine.sign() {
                Some(Ordering::Greater) => self.re.over(&cosine, bits)?.atan(bits)?,
                // At the ends: one half turn less what the cosine is.
                _ => {
                    let half = Real::pi(bits).doubled(-1);
                    let half = if self.re.likely_sign().is_lt() {
                        half.negated()
                    } else {
                        half
                    };
                    half.minus(&cosine, bits)
                }
            }));
        }
        // −i ln(iz + √(1 − z²))
        let inside = self.times_i().plus(&square.root(bits)?, bits);
        Ok(inside.ln(bits)?.times_i().negated())
    }

    pub(super) fn acos(&self, bits: u64) -> Result<Self> {
        let half = Self::real(Real::pi(bits).doubled(-1));
        Ok(half.minus(&self.asin(bits)?, bits))
    }

    pub(super) fn atan(&self, bits: u64) -> Result<Self> {
        if self.is_real() {
            return Ok(Self::real(self.re.atan(bits)?));
        }
        // (i / 2) (ln(1 − iz) − ln(1 + iz))
        let (one, turned) = (Self::integer(1), self.times_i());
        let difference = one
            .minus(&turned, bits)
            .ln(bits)?
            .minus(&one.plus(&turned, bits).ln(bits)?, bits);
        Ok(difference.times_i().half())
    }
}
