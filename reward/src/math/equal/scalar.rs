//! Whether two numbers, or two expressions in variables, are the same.

use super::{
    super::expr::{Constant, Expr, Function},
    Judge, Result, exact,
    modular::Modular,
    numeric::{self, Outcome},
    series::FloorDivision,
    shape,
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Digits that are compared of decimals that rounding would make zero.
const SIGNIFICANT: i64 = 3;
/// Bits of an exponent whose powers are not computed, by one more than `real` says.
const HUGE_EXPONENT: i64 = 42;

impl Judge<'_> {
    /// Numbers and expressions; words too.
    pub(super) fn scalars(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        self.fuel.spend(2)?;
        if gold == answer {
            return Ok(true);
        }
        match (hundredfold(gold), hundredfold(answer)) {
            (Some(a), Some(b)) => return self.scalars(&a, &b),
            // 9% is also 9, as the reference has it; 9.5% is not 9.5.
            (Some(a), None) if self.same_percents(&a, answer)? => return Ok(true),
            (None, Some(b)) if self.same_percents(&b, gold)? => return Ok(true),
            _ => {}
        }
        match (gold, answer) {
            (Expr::Text(_), _) | (_, Expr::Text(_)) => return Ok(same_word(gold, answer)),
            (Expr::Symbol(_), other) | (other, Expr::Symbol(_))
                if matches!(
                    other,
                    Expr::Symbol(_) | Expr::Constant(_) | Expr::Product(_)
                ) && same_word(gold, answer) =>
            {
                return Ok(true);
            }
            _ => {}
        }
        if (shape::is_decimal(gold) || shape::is_decimal(answer))
            && shape::is_constant(gold)
            && shape::is_constant(answer)
        {
            return self.rounded(gold, answer);
        }
        self.same_value(gold, answer)
    }

    fn same_percents(&mut self, percents: &Expr, number: &Expr) -> Result<bool> {
        Ok(!shape::is_decimal(percents)
            && !shape::is_decimal(number)
            && self.same_value(percents, number)?)
    }

    /// Without the rules for decimals and percents.
    pub(super) fn same_value(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        if gold == answer {
            return Ok(true);
        }
        if let (Some(a), Some(b)) = (
            exact::rational(gold, self.fuel)?,
            exact::rational(answer, self.fuel)?,
        ) {
            return Ok(a == b);
        }
        match (infinity(gold), infinity(answer)) {
            (Some(a), Some(b)) => return Ok(a == b),
            (Some(_), None) | (None, Some(_)) => return Ok(false),
            (None, None) => {}
        }
        let mut modular = Modular::new(0, self.fuel);
        let values = (modular.value(gold)?, modular.value(answer)?);
        if let (Some(a), Some(b)) = values {
            if a == b {
                return Ok(true);
            }
            if !modular.opaque {
                return Ok(false);
            }
        }
        // Towers of powers: too large for anything else.
        if let (Expr::Power(base, exponent), Expr::Power(other, another)) = (gold, answer)
            && base == other
            && let Some(base) = exact::rational(base, self.fuel)?
            && base.is_positive()
            && !base.is_one()
            && shape::is_constant(exponent)
            && shape::is_constant(another)
        {
            return self.same_value(exponent, another);
        }
        // One beyond all that can be computed, the other not: `9^(9^(9^9))` and 7.
        if shape::is_constant(gold)
            && shape::is_constant(answer)
            && (self.is_huge(gold)? && numeric::has_value(answer, self.fuel)?
                || self.is_huge(answer)? && numeric::has_value(gold, self.fuel)?)
        {
            return Ok(false);
        }
        match numeric::compare(gold, answer, self.fuel)? {
            Outcome::Same => Ok(true),
            Outcome::Different | Outcome::Undefined => Ok(false),
        }
    }

    /// Whether a constant's size is past 2^(2^40): a power with such an exponent, or a negative one of
    /// it.
    fn is_huge(&mut self, constant: &Expr) -> Result<bool> {
        self.fuel.spend(1)?;
        match constant {
            Expr::Negated(inner) => self.is_huge(inner),
            Expr::Power(base, exponent) => {
                let two = BigRational::from_integer(BigInt::from(2));
                let base = exact::rational(base, self.fuel)?;
                Ok(base.is_some_and(|base| base >= two)
                    && (self.is_huge(exponent)?
                        || numeric::is_at_least(exponent, HUGE_EXPONENT, self.fuel)?))
            }
            Expr::Call(Function::Factorial, items) => match items.as_slice() {
                [n] => Ok(self.is_huge(n)? || numeric::is_at_least(n, HUGE_EXPONENT, self.fuel)?),
                _ => Ok(false),
            },
            _ => Ok(false),
        }
    }

    /// Both rounded to the decimals that the comparison asks for; where that leaves nothing, to
    /// some significant digits, so that 0.0000001 is not 0.0000002.
    fn rounded(&mut self, gold: &Expr, answer: &Expr) -> Result<bool> {
        let (Some(a), Some(b)) = (self.approximation(gold)?, self.approximation(answer)?) else {
            return Ok(false);
        };
        if a == b {
            return Ok(true);
        }
        let largest = a.abs().max(b.abs());
        // Below 10^(-leading): so many zeros are after the point.
        let leading =
            (largest.denom().bits() as i64 - largest.numer().bits() as i64 - 1) * 30_103 / 100_000;
        let rounding = i64::from(self.comparison.float_rounding);
        let decimals = if leading >= rounding {
            leading + SIGNIFICANT
        } else {
            rounding
        };
        let Some(decimals) = decimals.to_u32().filter(|decimals| *decimals < 2_000) else {
            return Ok(false);
        };
        let bits = u64::from(decimals) / 15
            + (a.numer().bits() + a.denom().bits() + b.numer().bits() + b.denom().bits()) / 64;
        self.fuel.spend(bits * bits + 20)?;
        let scale = Pow::pow(BigInt::from(10), decimals);
        Ok(nearest(&a, &scale) == nearest(&b, &scale))
    }

    /// A rational within 2⁻²⁰⁰ or so of a real constant.
    fn approximation(&mut self, constant: &Expr) -> Result<Option<BigRational>> {
        if let Some(value) = exact::rational(constant, self.fuel)? {
            return Ok(Some(value));
        }
        numeric::real_value(constant, self.fuel)
    }
}

/// To the nearest whole multiple of 1/scale, ties to even.
fn nearest(value: &BigRational, scale: &BigInt) -> BigInt {
    let scaled = value.numer() * scale;
    let doubled: BigInt = scaled * 2 + value.denom();
    let below: BigInt = value.denom() * 2;
    let floor = doubled.div_floor_by(&below);
    let tie = &floor * &below == doubled;
    if tie && floor.bit(0) {
        floor - 1
    } else {
        floor
    }
}

/// `a` of `a%`, with its sign.
fn hundredfold(expression: &Expr) -> Option<Expr> {
    match expression {
        Expr::Percent(inner) => Some((**inner).clone()),
        Expr::Negated(inner) => hundredfold(inner).map(|inner| Expr::Negated(Box::new(inner))),
        _ => None,
    }
}

fn same_word(gold: &Expr, answer: &Expr) -> bool {
    matches!((shape::word(gold), shape::word(answer)), (Some(a), Some(b)) if a == b)
}

/// Plus or minus infinity: true for plus.
pub(super) fn infinity(expression: &Expr) -> Option<bool> {
    match expression {
        Expr::Constant(Constant::Infinity) => Some(true),
        Expr::Negated(inner) => infinity(inner).map(|plus| !plus),
        Expr::Sum(items) => match items.as_slice() {
            [one] => infinity(one),
            several => {
                let mut signs = several.iter().filter_map(infinity);
                let first = signs.next()?;
                signs.all(|sign| sign == first).then_some(first)
            }
        },
        Expr::Product(items) => {
            let (mut plus, mut met) = (true, false);
            for item in items {
                match (infinity(item), item) {
                    (Some(sign), _) => {
                        met = true;
                        plus = plus == sign;
                    }
                    (None, Expr::Number(value)) if !value.is_zero() => {
                        plus = plus == value.is_positive();
                    }
                    _ => return None,
                }
            }
            met.then_some(plus)
        }
        Expr::Call(Function::Exp | Function::Ln | Function::Root, items) => {
            match items.as_slice() {
                [one] => infinity(one).filter(|plus| *plus),
                _ => None,
            }
        }
        _ => None,
    }
}
