//! Elementary functions in fixed point: a number x as the whole number x · 2^width. All errors are a few
//! units of the last place; the callers count 2²⁰ of them.

use super::real::Fault;
use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};
use std::sync::OnceLock;

/// Bits of the constants that are kept.
const CONSTANT_BITS: u64 = 1600;

/// Times a power of two, rounded down.
pub(super) fn shift(value: BigInt, by: i64) -> BigInt {
    if by >= 0 { value << by } else { value >> -by }
}

/// Division that rounds down, which `num-bigint` has only in another crate's trait.
pub(super) trait FloorDivision {
    fn div_floor_by(&self, other: &BigInt) -> BigInt;
}

impl FloorDivision for BigInt {
    fn div_floor_by(&self, other: &BigInt) -> BigInt {
        let quotient = self / other;
        if self.is_negative() != other.is_negative() && &quotient * other != *self {
            quotient - 1
        } else {
            quotient
        }
    }
}

/// How often an argument is halved before its Taylor series: what makes the series' terms and the
/// doublings afterwards about as many. A doubling loses a bit.
fn halvings(width: u64) -> u64 {
    (width.isqrt() / 2).min(14)
}

/// e to a number of size at most 1: (Taylor of x/2ᵏ)^(2ᵏ).
pub(super) fn exp_fixed(value: BigInt, width: u64) -> BigInt {
    let halvings = halvings(width);
    let inside = value >> halvings;
    let one = BigInt::one() << width;
    let (mut total, mut term) = (one.clone(), one);
    for k in 1_u32.. {
        term = ((term * &inside) >> width) / k;
        if term.magnitude().bits() <= 1 {
            break;
        }
        total += &term;
    }
    for _ in 0..halvings {
        total = (&total * &total) >> width;
    }
    total
}

/// The logarithm of a number in [1/2, 1], by Halley's iteration on the exponential.
pub(super) fn ln_fixed(value: &BigInt, width: u64) -> Result<BigInt, Fault> {
    let top = (value >> width.saturating_sub(60))
        .to_f64()
        .ok_or(Fault::Undefined)?;
    let guess = (top / (1_u64 << width.min(60)) as f64).ln();
    let mut result = BigInt::from((guess * (1_u64 << 52) as f64) as i64);
    // `result` has `have` bits after the point, of which `right` are right.
    let (mut have, mut right) = (52, 45);
    while right < width {
        // y + 2 (x − e^y) / (x + e^y), of which the error is cubed.
        right *= 3;
        let now = width.min(right + 16);
        result = shift(result, now as i64 - have as i64);
        let (value, power) = (value >> (width - now), exp_fixed(result.clone(), now));
        let step: BigInt = ((&value - &power) << (now + 1)) / (&value + &power);
        result += step;
        have = now;
    }
    Ok(shift(result, width as i64 - have as i64))
}

/// Sine and cosine of a number of size at most 0.8: of x/2ᵏ, doubled k times.
pub(super) fn sin_cos_fixed(value: &BigInt, width: u64) -> (BigInt, BigInt) {
    let halvings = halvings(width);
    let one = BigInt::one() << width;
    let inside = value >> halvings;
    let square = (&inside * &inside) >> width;
    let (mut sin, mut cos) = (inside.clone(), one.clone());
    let (mut odd, mut even) = (inside, one.clone());
    for k in 1_u32.. {
        even = -((even * &square) >> width) / (2 * k * (2 * k - 1));
        odd = -((odd * &square) >> width) / (2 * k * (2 * k + 1));
        cos += &even;
        sin += &odd;
        if even.magnitude().bits() <= 1 {
            break;
        }
    }
    for _ in 0..halvings {
        let doubled = (&sin * &cos) >> (width - 1);
        cos = &one - ((&sin * &sin) >> (width - 1));
        sin = doubled;
    }
    (sin, cos)
}

/// The arctangent of a number of size at most 2: three times x to x / (1 + √(1 + x²)), then Taylor.
pub(super) fn atan_fixed(mut value: BigInt, width: u64) -> BigInt {
    const HALVINGS: u64 = 3;
    let one = BigInt::one() << width;
    for _ in 0..HALVINGS {
        let square = (&value * &value) >> width;
        let root = ((&one + square) << width).sqrt();
        value = (value << width) / (&one + root);
    }
    let square = (&value * &value) >> width;
    let (mut total, mut power) = (value.clone(), value);
    for k in 1_u32.. {
        power = -((power * &square) >> width);
        if power.magnitude().bits() <= 1 {
            break;
        }
        total += &power / (2 * k + 1);
    }
    total << HALVINGS
}

/// Sum of 1 / (k n^k) over odd k: the inverse hyperbolic tangent of 1/n, or with alternating signs its
/// inverse tangent.
fn inverse_tangent(n: u32, alternating: bool, width: u64) -> BigInt {
    let square = BigInt::from(u64::from(n) * u64::from(n));
    let mut power = (BigInt::one() << width) / n;
    let mut total = power.clone();
    for k in 1_u32.. {
        power /= &square;
        if power.is_zero() {
            break;
        }
        let term = &power / (2 * k + 1);
        if alternating && k % 2 == 1 {
            total -= term;
        } else {
            total += term;
        }
    }
    total
}

/// π by Machin's formula.
pub(super) fn pi_fixed(width: u64) -> BigInt {
    fn compute(width: u64) -> BigInt {
        let width = width + 16;
        (inverse_tangent(5, true, width) * 16 - inverse_tangent(239, true, width) * 4) >> 16
    }
    static KEPT: OnceLock<BigInt> = OnceLock::new();
    if width > CONSTANT_BITS {
        return compute(width);
    }
    KEPT.get_or_init(|| compute(CONSTANT_BITS)) >> (CONSTANT_BITS - width)
}

/// The logarithm of 2: 18 artanh(1/26) − 2 artanh(1/4801) + 8 artanh(1/8749).
pub(super) fn ln2(width: u64) -> BigInt {
    fn compute(width: u64) -> BigInt {
        let width = width + 16;
        (inverse_tangent(26, false, width) * 18 - inverse_tangent(4801, false, width) * 2
            + inverse_tangent(8749, false, width) * 8)
            >> 16
    }
    static KEPT: OnceLock<BigInt> = OnceLock::new();
    if width > CONSTANT_BITS {
        return compute(width);
    }
    KEPT.get_or_init(|| compute(CONSTANT_BITS)) >> (CONSTANT_BITS - width)
}
