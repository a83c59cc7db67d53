//! Rational values, computed exactly while they stay small.

use super::super::{
    expr::{Expr, Function},
    fuel::{Fuel, OutOfFuel},
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Bits of a numerator or denominator up to which rationals are computed; larger ones are compared
/// modulo a prime.
const BITS: u64 = 4096;
/// Largest n of which n! is computed here.
const FACTORIAL: u64 = 500;

fn fits(value: &BigRational) -> bool {
    value.numer().bits() <= BITS && value.denom().bits() <= BITS
}

/// Work of one operation on rationals: the greatest common divisor's steps are what costs.
fn cost(value: &BigRational) -> u64 {
    let words = (value.numer().bits() + value.denom().bits()) / 64;
    2 + words * words / 2
}

/// The value of an expression that is a rational number by arithmetic alone; None where it is not,
/// is not known to be, is undefined, or is too large.
pub(super) fn rational(
    expression: &Expr,
    fuel: &mut Fuel,
) -> Result<Option<BigRational>, OutOfFuel> {
    fuel.spend(1)?;
    Ok(match expression {
        Expr::Number(value) | Expr::Decimal(value) => fits(value).then(|| value.clone()),
        Expr::Sum(items) => fold(items, BigRational::zero(), |a, b| a + b, fuel)?,
        Expr::Product(items) => fold(items, BigRational::one(), |a, b| a * b, fuel)?,
        Expr::Quotient(above, below) => {
            let (Some(above), Some(below)) = (rational(above, fuel)?, rational(below, fuel)?)
            else {
                return Ok(None);
            };
            fuel.spend(cost(&above) + cost(&below))?;
            (!below.is_zero()).then(|| above / below).filter(fits)
        }
        Expr::Negated(inner) => rational(inner, fuel)?.map(|value| -value),
        Expr::Percent(inner) => rational(inner, fuel)?.map(|value| value / BigInt::from(100)),
        Expr::Power(base, exponent) => {
            let (Some(base), Some(exponent)) = (rational(base, fuel)?, rational(exponent, fuel)?)
            else {
                return Ok(None);
            };
            power(&base, &exponent, fuel)?
        }
        Expr::Call(function, arguments) => {
            let mut values = Vec::with_capacity(arguments.len());
            for argument in arguments {
                match rational(argument, fuel)? {
                    Some(value) => values.push(value),
                    None => return Ok(None),
                }
            }
            call(*function, &values, fuel)?
        }
        _ => None,
    })
}

fn fold(
    items: &[Expr],
    start: BigRational,
    operation: impl Fn(BigRational, BigRational) -> BigRational,
    fuel: &mut Fuel,
) -> Result<Option<BigRational>, OutOfFuel> {
    let mut total = start;
    for item in items {
        let Some(value) = rational(item, fuel)? else {
            return Ok(None);
        };
        fuel.spend(cost(&total) + cost(&value))?;
        total = operation(total, value);
        if !fits(&total) {
            return Ok(None);
        }
    }
    Ok(Some(total))
}

/// A power with a rational exponent, where it is rational.
fn power(
    base: &BigRational,
    exponent: &BigRational,
    fuel: &mut Fuel,
) -> Result<Option<BigRational>, OutOfFuel> {
    let Some(degree) = exponent.denom().to_u32() else {
        return Ok(None);
    };
    let base = match degree {
        1 => base.clone(),
        // An even or odd root of a negative number has several readings; those are not for here.
        _ if base.is_negative() => return Ok(None),
        _ => match root(base, degree, fuel)? {
            Some(root) => root,
            None => return Ok(None),
        },
    };
    if base.is_one() || exponent.is_zero() {
        return Ok(Some(BigRational::one()));
    }
    if base.is_zero() {
        return Ok(exponent.is_positive().then(BigRational::zero));
    }
    let Some(times) = exponent.numer().magnitude().to_u32() else {
        // Minus one is the only other base whose powers stay small.
        let minus_one = -BigRational::one();
        return Ok((base == minus_one).then(|| {
            if exponent.numer().bit(0) {
                minus_one
            } else {
                BigRational::one()
            }
        }));
    };
    let bits = base.numer().bits().max(base.denom().bits());
    // One bit less: a power of two grows by its exponent alone.
    if bits.saturating_sub(1).saturating_mul(u64::from(times)) > BITS {
        return Ok(None);
    }
    let bits = bits.saturating_mul(u64::from(times)) / 64;
    fuel.spend(4 + bits.saturating_mul(bits))?;
    let (above, below) = (Pow::pow(base.numer(), times), Pow::pow(base.denom(), times));
    let raised = if exponent.is_negative() {
        BigRational::new(below, above)
    } else {
        BigRational::new_raw(above, below)
    };
    Ok(Some(raised).filter(fits))
}

/// The root of a non-negative rational, where it is rational.
fn root(
    value: &BigRational,
    degree: u32,
    fuel: &mut Fuel,
) -> Result<Option<BigRational>, OutOfFuel> {
    if degree == 0 || value.is_negative() {
        return Ok(None);
    }
    if u64::from(degree) > BITS {
        let trivial = value.is_zero() || value.is_one();
        return Ok(trivial.then(|| value.clone()));
    }
    fuel.spend(20 + 4 * cost(value))?;
    let (above, below) = (
        value.numer().nth_root(degree),
        value.denom().nth_root(degree),
    );
    let whole =
        Pow::pow(&above, degree) == *value.numer() && Pow::pow(&below, degree) == *value.denom();
    Ok(whole.then(|| BigRational::new_raw(above, below)))
}

pub(super) fn call(
    function: Function,
    values: &[BigRational],
    fuel: &mut Fuel,
) -> Result<Option<BigRational>, OutOfFuel> {
    Ok(match (function, values) {
        (Function::Root, [value]) => root(value, 2, fuel)?,
        (Function::Root, [value, degree]) => {
            match degree.is_integer().then(|| degree.to_u32()).flatten() {
                Some(degree) => root(value, degree, fuel)?,
                None => None,
            }
        }
        (Function::Abs, [value]) => Some(value.abs()),
        (Function::Conjugate, [value]) => Some(value.clone()),
        (Function::Floor, [value]) => Some(value.floor()),
        (Function::Ceil, [value]) => Some(value.ceil()),
        (Function::Factorial, [value]) => match small(value) {
            Some(n) if n <= FACTORIAL => {
                fuel.spend(n * (n / 16 + 1) / 4)?;
                Some((2..=n).fold(BigInt::one(), |product, k| product * k).into())
            }
            _ => None,
        },
        (Function::DoubleFactorial, [value]) => match small(value) {
            Some(n) if n <= FACTORIAL => {
                fuel.spend(n * (n / 16 + 1) / 8)?;
                let product = (1..=n)
                    .rev()
                    .step_by(2)
                    .fold(BigInt::one(), |product, k| product * k);
                Some(product.into())
            }
            _ => None,
        },
        (Function::Binomial, [n, k]) => match (small(n), small(k)) {
            (Some(n), Some(k)) if k > n => Some(BigRational::zero()),
            (Some(n), Some(k)) if k.min(n - k) <= FACTORIAL && n <= 4 * FACTORIAL => {
                let k = k.min(n - k);
                fuel.spend(k * (k / 16 + 1))?;
                let value = (0..k).fold(BigInt::one(), |product, j| product * (n - j) / (j + 1));
                Some(value.into())
            }
            _ => None,
        },
        (Function::Exp, [value]) if value.is_zero() => Some(BigRational::one()),
        (Function::Ln, [value]) if value.is_one() => Some(BigRational::zero()),
        (Function::Gcd | Function::Lcm, values) if !values.is_empty() => {
            if !values.iter().all(BigRational::is_integer) {
                return Ok(None);
            }
            let mut total = BigInt::zero();
            for (at, value) in values.iter().enumerate() {
                fuel.spend(2 * cost(value))?;
                let value = value.numer().abs();
                total = if at == 0 {
                    value
                } else if value.is_zero() || total.is_zero() {
                    if function == Function::Gcd {
                        total + value
                    } else {
                        BigInt::zero()
                    }
                } else {
                    // In lowest terms, both are divided by their greatest common divisor.
                    let lowest = BigRational::new(total.clone(), value);
                    if function == Function::Gcd {
                        total / lowest.numer()
                    } else {
                        total * lowest.denom()
                    }
                };
                if total.bits() > BITS {
                    return Ok(None);
                }
            }
            Some(total.into())
        }
        (Function::Min, values) => values.iter().min().cloned(),
        (Function::Max, values) => values.iter().max().cloned(),
        (Function::Mod, [a, n]) if !n.is_zero() => {
            fuel.spend(cost(a) + cost(n))?;
            Some(a - n * (a / n).floor())
        }
        _ => None,
    }
    .filter(fits))
}

pub(super) fn small(value: &BigRational) -> Option<u64> {
    value
        .is_integer()
        .then(|| value.to_integer().to_u64())
        .flatten()
}
