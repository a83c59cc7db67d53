//! Elementary functions of a real number, with the bound on the result's error.

use super::{
    real::{EXACT, Fault, Real, join, shifted_error},
    series::{FloorDivision, atan_fixed, exp_fixed, ln_fixed, ln2, pi_fixed, shift, sin_cos_fixed},
};
use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};
use std::cmp::Ordering;

/// Bits more than asked for in fixed-point series.
const GUARD: u64 = 40;

type Result<T> = std::result::Result<T, Fault>;

impl Real {
    pub(super) fn exp(&self, bits: u64) -> Result<Self> {
        if self.magnitude() > 40 {
            return Err(Fault::TooLarge);
        }
        if self.error != EXACT && self.error > 0 {
            return Err(Fault::Undefined);
        }
        let width = bits + GUARD + self.magnitude().max(0) as u64;
        let ln2 = ln2(width);
        let value = if self.magnitude() < -(width as i64) {
            BigInt::zero()
        } else {
            self.fixed(width)
        };
        let times = (&value / &ln2).to_i64().ok_or(Fault::TooLarge)?;
        let rest = value - ln2 * times;
        let result = Self {
            mantissa: exp_fixed(rest, width),
            exponent: times - width as i64,
            error: times - width as i64 + 30,
        };
        let error = shifted_error(self.error, times + 3);
        Ok(Self {
            error: join(result.error, error),
            ..result
        }
        .rounded(bits))
    }

    /// Of a positive number.
    pub(super) fn ln(&self, bits: u64) -> Result<Self> {
        if self.sign() != Some(Ordering::Greater) || self.magnitude() - 2 <= self.error {
            return Err(Fault::Undefined);
        }
        let size = self.magnitude();
        let width = bits + GUARD;
        // In [1/2, 1).
        let fraction = shift(
            self.mantissa.clone(),
            width as i64 - self.mantissa.bits() as i64,
        );
        let value = ln_fixed(&fraction, width)? + ln2(width) * size;
        let error = join(
            -(width as i64) + 20 + 64 - size.unsigned_abs().leading_zeros() as i64,
            shifted_error(self.error, -(size - 2)),
        );
        Ok(Self::fixed_point(value, width, error, bits))
    }

    /// Sine and cosine.
    pub(super) fn sin_cos(&self, bits: u64) -> Result<(Self, Self)> {
        let size = self.magnitude().max(0) as u64;
        if size > 512 {
            return Err(Fault::TooLarge);
        }
        if self.error != EXACT && self.error > 0 {
            return Err(Fault::Undefined);
        }
        let width = bits + GUARD + size;
        let half = pi_fixed(width) >> 1;
        let value = if self.magnitude() < -(width as i64) {
            BigInt::zero()
        } else {
            self.fixed(width)
        };
        let turned: BigInt = &value * 2 + &half;
        let turns = turned.div_floor_by(&(&half * 2));
        let rest = value - &half * &turns;
        let (sin, cos) = sin_cos_fixed(&rest, width);
        let (sin, cos) = match (turns.bit(0), turns.bit(1)) {
            (false, false) => (sin, cos),
            (true, false) => (cos, -sin),
            (false, true) => (-sin, -cos),
            (true, true) => (-cos, sin),
        };
        let error = join(-(width as i64) + 20 + size as i64, self.error);
        Ok((
            Self::fixed_point(sin, width, error, bits),
            Self::fixed_point(cos, width, error, bits),
        ))
    }

    pub(super) fn atan(&self, bits: u64) -> Result<Self> {
        if self.magnitude() > 1 {
            let inverse = Self::integer(1).over(self, bits)?.atan(bits)?;
            let half = Self::pi(bits).doubled(-1);
            return Ok(if self.mantissa.is_negative() {
                half.negated().minus(&inverse, bits)
            } else {
                half.minus(&inverse, bits)
            });
        }
        let width = bits + GUARD;
        let value = if self.magnitude() < -(width as i64) {
            BigInt::zero()
        } else {
            self.fixed(width)
        };
        let result = atan_fixed(value, width);
        Ok(Self::fixed_point(
            result,
            width,
            join(-(width as i64) + 20, self.error),
            bits,
        ))
    }

    pub(super) fn pi(bits: u64) -> Self {
        Self::fixed_point(pi_fixed(bits + 8), bits + 8, -(bits as i64), bits + 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_rational::BigRational;

    const BITS: u64 = 256;

    fn close(value: &Real, expected: f64) {
        let value = value.to_rational().unwrap().to_f64().unwrap();
        assert!(
            (value - expected).abs() <= 1e-14 * expected.abs().max(1.0),
            "{value} is not {expected}"
        );
    }

    fn real(value: f64) -> Real {
        Real::rational(&BigRational::from_float(value).unwrap(), BITS).unwrap()
    }

    #[test]
    fn elementary_functions_agree_with_f64() {
        for x in [
            -30.5, -2.0, -0.75, -1e-9, 0.0, 1e-12, 0.3, 0.9, 1.0, 2.5, 17.0, 300.25,
        ] {
            let value = real(x);
            close(&value.exp(BITS).unwrap(), x.exp());
            let (sin, cos) = value.sin_cos(BITS).unwrap();
            close(&sin, x.sin());
            close(&cos, x.cos());
            close(&value.atan(BITS).unwrap(), x.atan());
            if x > 0.0 {
                close(&value.ln(BITS).unwrap(), x.ln());
                close(&value.root(BITS).unwrap(), x.sqrt());
            }
        }
        close(&Real::pi(BITS), std::f64::consts::PI);
    }

    #[test]
    fn identities_hold_within_the_bound_and_the_bound_is_small() {
        for x in [0.1, 0.7, 1.3, 5.0, 123.456] {
            let value = real(x);
            let (sin, cos) = value.sin_cos(BITS).unwrap();
            let one = sin
                .times(&sin, BITS)
                .unwrap()
                .plus(&cos.times(&cos, BITS).unwrap(), BITS)
                .minus(&Real::integer(1), BITS);
            assert!(one.sign().is_none() && one.error() < -230, "{one:?}");
            let back = value
                .ln(BITS)
                .unwrap()
                .exp(BITS)
                .unwrap()
                .minus(&value, BITS);
            assert!(back.sign().is_none() && back.error() < -210, "{back:?}");
            let (sin, cos) = value.atan(BITS).unwrap().sin_cos(BITS).unwrap();
            let back = sin.over(&cos, BITS).unwrap().minus(&value, BITS);
            assert!(back.sign().is_none() && back.error() < -200, "{back:?}");
        }
    }

    #[test]
    fn tiny_differences_are_seen() {
        let tiny = real(1.0).doubled(-99);
        assert_eq!(
            tiny.minus(&real(1.0).doubled(-98), BITS).sign(),
            Some(Ordering::Less)
        );
        let far = Real::integer(-3000).exp(BITS).unwrap();
        assert_eq!(far.sign(), Some(Ordering::Greater));
        assert_eq!(
            Real::integer(1)
                .plus(&far, BITS)
                .minus(&Real::integer(1), BITS)
                .sign(),
            None
        );
    }

    #[test]
    fn whole_numbers_are_known() {
        let root = Real::integer(2).root(BITS).unwrap();
        let two = root.times(&root, BITS).unwrap();
        assert_eq!(two.whole(), Some(BigInt::from(2)));
        assert_eq!(root.whole(), None);
        assert_eq!(
            root.negated().floor().unwrap().whole(),
            Some(BigInt::from(-2))
        );
    }
}
