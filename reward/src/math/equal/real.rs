//! Real numbers in high precision with a bound on their error.
//!
//! Written over `num-bigint` because the pure-Rust big floats of a permissive licence round correctly
//! and pay for it: at 256 bits astro-float takes 85 µs for a logarithm and 50 µs for an exponential,
//! where a verdict may take 1 ms. The bound is what is needed here: a difference larger than its
//! bound is proved to be one, however small it is.

use super::series::shift;
use num_bigint::{BigInt, Sign};
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};
use std::cmp::Ordering;

/// The exponent of an error that is none.
pub(super) const EXACT: i64 = i64::MIN / 4;
/// The magnitude of zero.
const NOTHING: i64 = i64::MIN / 4;
/// Exponents up to which numbers are computed; what is larger is too large.
const LARGEST: i64 = 1 << 40;

/// m · 2^e, off by at most 2^error.
#[derive(Clone, Debug)]
pub(super) struct Real {
    pub(super) mantissa: BigInt,
    pub(super) exponent: i64,
    pub(super) error: i64,
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Division by zero, the logarithm of zero and so on; or the error hides whether it is that.
    Undefined,
    /// An exponent beyond bounds.
    TooLarge,
}

type Result<T> = std::result::Result<T, Fault>;

/// The exponent of a sum of two errors.
pub(super) fn join(a: i64, b: i64) -> i64 {
    if a == EXACT {
        b
    } else if b == EXACT {
        a
    } else {
        a.max(b) + 1
    }
}

pub(super) fn shifted_error(error: i64, by: i64) -> i64 {
    if error == EXACT {
        EXACT
    } else {
        error.saturating_add(by)
    }
}

impl Real {
    pub(super) fn zero() -> Self {
        Self::integer(0)
    }

    pub(super) fn integer(value: i64) -> Self {
        Self {
            mantissa: value.into(),
            exponent: 0,
            error: EXACT,
        }
    }

    pub(super) fn rational(value: &BigRational, bits: u64) -> Result<Self> {
        let of = |value: &BigInt| {
            Self {
                mantissa: value.clone(),
                exponent: 0,
                error: EXACT,
            }
            .rounded(bits + 8)
        };
        if value.is_integer() {
            return Ok(of(value.numer()));
        }
        of(value.numer()).over(&of(value.denom()), bits)
    }

    pub(super) fn fixed_point(value: BigInt, width: u64, error: i64, bits: u64) -> Self {
        Self {
            mantissa: value,
            exponent: -(width as i64),
            error,
        }
        .rounded(bits)
    }

    pub(super) fn is_exact_zero(&self) -> bool {
        self.mantissa.is_zero() && self.error == EXACT
    }

    /// Its size is below 2 to this.
    pub(super) fn magnitude(&self) -> i64 {
        if self.mantissa.is_zero() {
            NOTHING
        } else {
            self.mantissa.bits() as i64 + self.exponent
        }
    }

    /// The exponent of the error's bound; very small for exact numbers.
    pub(super) fn error(&self) -> i64 {
        self.error
    }

    /// The sign where the error leaves no doubt.
    pub(super) fn sign(&self) -> Option<Ordering> {
        if self.mantissa.is_zero() {
            return (self.error == EXACT).then_some(Ordering::Equal);
        }
        (self.magnitude() - 1 > self.error).then(|| {
            if self.mantissa.is_negative() {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        })
    }

    /// The sign of the middle of the error's range.
    pub(super) fn likely_sign(&self) -> Ordering {
        match self.mantissa.sign() {
            Sign::Minus => Ordering::Less,
            Sign::NoSign => Ordering::Equal,
            Sign::Plus => Ordering::Greater,
        }
    }

    /// The middle of the error's range; None where its exponent is out of hand.
    pub(super) fn to_rational(&self) -> Option<BigRational> {
        if self.exponent.abs() > 10_000 {
            return None;
        }
        let power = BigInt::one() << self.exponent.unsigned_abs();
        Some(if self.exponent >= 0 {
            BigRational::from_integer(&self.mantissa * power)
        } else {
            BigRational::new(self.mantissa.clone(), power)
        })
    }

    /// The whole number it is or is taken to be: within its error, which is below 2⁻²⁰.
    pub(super) fn whole(&self) -> Option<BigInt> {
        if self.magnitude() > 4096 || (self.error != EXACT && self.error > -20) {
            return None;
        }
        if self.magnitude() < -1 {
            // Nothing, or a fraction that may have any number of digits.
            return self.sign().is_none_or(Ordering::is_eq).then(BigInt::zero);
        }
        let nearest = self.nearest();
        let distance = self.minus(
            &Self {
                mantissa: nearest.clone(),
                exponent: 0,
                error: EXACT,
            },
            1 << 14,
        );
        distance
            .sign()
            .is_none_or(Ordering::is_eq)
            .then_some(nearest)
    }

    fn nearest(&self) -> BigInt {
        if self.exponent >= 0 {
            return &self.mantissa << self.exponent.unsigned_abs();
        }
        let half = BigInt::one() << (self.exponent.unsigned_abs() - 1);
        (&self.mantissa + half) >> self.exponent.unsigned_abs()
    }

    /// The largest whole number not above.
    pub(super) fn floor(&self) -> Result<Self> {
        if self.magnitude() > 4096 {
            return Err(Fault::TooLarge);
        }
        let whole = match self.whole() {
            Some(whole) => whole,
            None => shift(self.mantissa.clone(), self.exponent),
        };
        Ok(Self {
            mantissa: whole,
            exponent: 0,
            error: EXACT,
        })
    }

    pub(super) fn rounded(mut self, bits: u64) -> Self {
        let have = self.mantissa.bits();
        if have > bits {
            let by = have - bits;
            let exact = self.error == EXACT && self.mantissa.trailing_zeros().unwrap_or(0) >= by;
            self.mantissa >>= by;
            self.exponent += by as i64;
            if !exact {
                self.error = join(self.error, self.exponent);
            }
        }
        self
    }

    pub(super) fn negated(&self) -> Self {
        Self {
            mantissa: -&self.mantissa,
            ..*self
        }
    }

    pub(super) fn absolute(&self) -> Self {
        Self {
            mantissa: self.mantissa.abs(),
            ..*self
        }
    }

    /// Times 2^by.
    pub(super) fn doubled(&self, by: i64) -> Self {
        Self {
            mantissa: self.mantissa.clone(),
            exponent: self.exponent + by,
            error: shifted_error(self.error, by),
        }
    }

    pub(super) fn plus(&self, other: &Self, bits: u64) -> Self {
        let error = join(self.error, other.error);
        if self.mantissa.is_zero() {
            return Self {
                error,
                mantissa: other.mantissa.clone(),
                exponent: other.exponent,
            };
        }
        if other.mantissa.is_zero() {
            return Self {
                error,
                mantissa: self.mantissa.clone(),
                exponent: self.exponent,
            };
        }
        let (a, b) = (self.magnitude(), other.magnitude());
        let far = bits as i64 + 64;
        if (a - b).abs() > far {
            let (large, small) = if a > b { (self, b) } else { (other, a) };
            return Self {
                error: join(error, small),
                mantissa: large.mantissa.clone(),
                exponent: large.exponent,
            };
        }
        let exponent = self.exponent.min(other.exponent);
        let mantissa = (&self.mantissa << (self.exponent - exponent).unsigned_abs())
            + (&other.mantissa << (other.exponent - exponent).unsigned_abs());
        Self {
            mantissa,
            exponent,
            error,
        }
        .rounded(bits)
    }

    pub(super) fn minus(&self, other: &Self, bits: u64) -> Self {
        self.plus(&other.negated(), bits)
    }

    pub(super) fn times(&self, other: &Self, bits: u64) -> Result<Self> {
        if self.is_exact_zero() || other.is_exact_zero() {
            return Ok(Self::zero());
        }
        // |x| may be as large as its magnitude or its error.
        let error = [
            shifted_error(other.error, self.magnitude().max(self.error) + 1),
            shifted_error(self.error, other.magnitude().max(other.error) + 1),
        ];
        let error = error.into_iter().fold(EXACT, join);
        let product = Self {
            mantissa: &self.mantissa * &other.mantissa,
            exponent: self.exponent + other.exponent,
            error,
        }
        .rounded(bits);
        product.bounded()
    }

    fn bounded(self) -> Result<Self> {
        if self.magnitude() > LARGEST || (self.magnitude() < -LARGEST && !self.mantissa.is_zero()) {
            return Err(Fault::TooLarge);
        }
        Ok(self)
    }

    pub(super) fn over(&self, other: &Self, bits: u64) -> Result<Self> {
        let least = other.magnitude() - 2;
        if other.mantissa.is_zero() || least <= other.error {
            return Err(Fault::Undefined);
        }
        if self.is_exact_zero() {
            return Ok(Self::zero());
        }
        let up = (bits + 2 + other.mantissa.bits()).saturating_sub(self.mantissa.bits());
        let above = &self.mantissa << up;
        let quotient = &above / &other.mantissa;
        let exact = &quotient * &other.mantissa == above;
        let exponent = self.exponent - up as i64 - other.exponent;
        let mut value = Self {
            mantissa: quotient,
            exponent,
            error: if exact { EXACT } else { exponent },
        };
        let size = (value.magnitude() + 1).max(shifted_error(self.error, -least));
        value.error = [
            shifted_error(self.error, -least),
            shifted_error(other.error, size - least),
        ]
        .into_iter()
        .fold(value.error, join);
        value.rounded(bits).bounded()
    }

    /// Of a number that is not negative, as far as its error tells.
    pub(super) fn root(&self, bits: u64) -> Result<Self> {
        if self.mantissa.is_zero() || self.magnitude() - 2 <= self.error {
            // |√(x + d) − √x| is at most √|d|.
            let error = if self.error == EXACT {
                EXACT
            } else {
                self.error.max(self.magnitude()) / 2 + 2
            };
            return Ok(Self {
                mantissa: BigInt::zero(),
                exponent: 0,
                error,
            });
        }
        if self.mantissa.is_negative() {
            return Err(Fault::Undefined);
        }
        let mut up = (2 * bits + 4).saturating_sub(self.mantissa.bits()) as i64;
        if (self.exponent - up) % 2 != 0 {
            up += 1;
        }
        let inside = &self.mantissa << up.unsigned_abs();
        let root = inside.sqrt();
        let exact = &root * &root == inside;
        let exponent = (self.exponent - up) / 2;
        let value = Self {
            mantissa: root,
            exponent,
            error: join(
                if exact { EXACT } else { exponent },
                shifted_error(self.error, -((self.magnitude() - 2).div_euclid(2))),
            ),
        };
        Ok(value.rounded(bits))
    }

    /// In fixed point with that many bits after the point.
    pub(super) fn fixed(&self, width: u64) -> BigInt {
        shift(self.mantissa.clone(), self.exponent + width as i64)
    }
}
