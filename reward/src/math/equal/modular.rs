//! An expression's value in a finite field, for random values of its variables: equal residues mean
//! identical expressions (Schwartz–Zippel), and where nothing is opaque, different ones different
//! expressions.
//!
//! π, e and the logarithms of primes are variables too, for no algebraic relation between them is
//! known. A square root of a number has its place in the field. What has none (sin x, 2^x, √x)
//! becomes a random element that depends on the function and on the argument's residue: `sin(x + 1)`
//! and `sin(1 + x)` are the same element, but `sin² x + cos² x` isn't 1. Then a difference says
//! nothing, and [`Modular::opaque`] tells.

use super::{
    super::{
        expr::{Constant, Expr, Function},
        fuel::{Fuel, OutOfFuel},
    },
    exact,
    residue::{Residue, Scrambler},
    shape,
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive};
use std::collections::BTreeMap;

/// Largest n of n!, and of the smaller k of a binomial, that are multiplied out.
const LONGEST_PRODUCT: u64 = 200_000;
/// Primes up to which numbers under a root or in a logarithm are taken apart.
const LARGEST_DIVISOR: u64 = 1 << 12;

// Sorts of things that become random elements.
const SYMBOL: u64 = 1;
const CONSTANT: u64 = 2;
const LOGARITHM: u64 = 3;
const FUNCTION: u64 = 4;
const POWER: u64 = 5;
pub(super) const STRUCTURE: u64 = 6;
pub(super) const TEXT: u64 = 7;

/// An assignment of random values, and what was met under it.
#[derive(Debug)]
pub(super) struct Modular<'a> {
    pub(super) fuel: &'a mut Fuel,
    /// Which assignment.
    salt: u64,
    /// Something had no place in the field: a difference of residues proves nothing.
    pub(super) opaque: bool,
}

type Value = Result<Option<Residue>, OutOfFuel>;

impl<'a> Modular<'a> {
    /// The assignment number `salt`.
    pub(super) fn new(salt: u64, fuel: &'a mut Fuel) -> Self {
        Self {
            fuel,
            salt,
            opaque: false,
        }
    }

    pub(super) fn scramble(&self, kind: u64) -> Scrambler {
        Scrambler::new(kind).word(self.salt)
    }

    /// The residue; None where it is undefined (division by zero, infinity).
    pub(super) fn value(&mut self, expression: &Expr) -> Value {
        self.fuel.spend(2)?;
        Ok(Some(match expression {
            Expr::Number(value) | Expr::Decimal(value) => {
                self.fuel
                    .spend((value.numer().bits() + value.denom().bits()) / 64)?;
                return Ok(Residue::rational(value));
            }
            Expr::Constant(Constant::I) => Residue::I,
            Expr::Constant(Constant::Infinity) => return Ok(None),
            Expr::Constant(Constant::Pi) => Scrambler::new(CONSTANT).word(1).real_element(),
            Expr::Constant(Constant::E) => Scrambler::new(CONSTANT).word(2).real_element(),
            Expr::Symbol(name) => self.scramble(SYMBOL).text(name).element(),
            Expr::Sum(items) => {
                let mut total = Residue::ZERO;
                for item in items {
                    let Some(value) = self.value(item)? else {
                        return Ok(None);
                    };
                    total = total.plus(value);
                }
                total
            }
            Expr::Product(items) => {
                let mut total = Residue::ONE;
                for item in items {
                    let Some(value) = self.value(item)? else {
                        return Ok(None);
                    };
                    total = total.times(value);
                }
                total
            }
            Expr::Quotient(above, below) => {
                let (Some(above), Some(below)) = (self.value(above)?, self.value(below)?) else {
                    return Ok(None);
                };
                return Ok(below.inverse().map(|inverse| above.times(inverse)));
            }
            Expr::Negated(inner) => return Ok(self.value(inner)?.map(Residue::negated)),
            Expr::Percent(inner) => {
                let hundredth = Residue::small(100).inverse();
                return Ok(self.value(inner)?.zip(hundredth).map(|(a, b)| a.times(b)));
            }
            Expr::Power(base, exponent) => return self.power(base, exponent),
            Expr::Call(function, arguments) => return self.call(*function, arguments),
            other => return self.structure(other).map(Some),
        }))
    }

    fn power(&mut self, base: &Expr, exponent: &Expr) -> Value {
        if let Some(exact) = exact::rational(exponent, self.fuel)? {
            if exact.is_integer() {
                self.fuel.spend(10 + exact.numer().bits().min(122))?;
                return Ok(self
                    .value(base)?
                    .and_then(|base| base.raised(exact.numer())));
            }
            return self.rational_power(base, &exact);
        }
        let Some(base_value) = self.value(base)? else {
            return Ok(None);
        };
        self.opaque = true;
        self.opaque_power(base_value, exponent)
    }

    /// b^(u + v) is b^u b^v and b^(2u) is (b^u)², whatever they are.
    fn opaque_power(&mut self, base: Residue, exponent: &Expr) -> Value {
        self.fuel.spend(4)?;
        match exponent {
            Expr::Sum(items) => {
                let mut total = Residue::ONE;
                for item in items {
                    let Some(value) = self.opaque_power(base, item)? else {
                        return Ok(None);
                    };
                    total = total.times(value);
                }
                return Ok(Some(total));
            }
            Expr::Negated(inner) => {
                return Ok(self.opaque_power(base, inner)?.and_then(Residue::inverse));
            }
            Expr::Product(items) => {
                let mut times = BigInt::one();
                let mut rest = Vec::new();
                for item in items {
                    match item {
                        Expr::Number(value) if value.is_integer() && times.bits() < 1000 => {
                            times *= value.numer();
                        }
                        other => rest.push(other),
                    }
                }
                let mut inner = Residue::ONE;
                for item in rest {
                    let Some(value) = self.value(item)? else {
                        return Ok(None);
                    };
                    inner = inner.times(value);
                }
                self.fuel.spend(122)?;
                let unit = Scrambler::new(POWER).residue(base).residue(inner).element();
                return Ok(unit.raised(&times));
            }
            _ => {}
        }
        if let Some(value) = exact::rational(exponent, self.fuel)?
            && value.is_integer()
        {
            self.fuel.spend(122)?;
            return Ok(base.raised(value.numer()));
        }
        let Some(exponent) = self.value(exponent)? else {
            return Ok(None);
        };
        if exponent.is_zero() {
            return Ok(Some(Residue::ONE));
        }
        Ok(Some(
            Scrambler::new(POWER)
                .residue(base)
                .residue(exponent)
                .element(),
        ))
    }

    /// A power with an exponent that is a fraction.
    fn rational_power(&mut self, base: &Expr, exponent: &BigRational) -> Value {
        if exponent.denom() == &BigInt::from(2)
            && let Some(number) = exact::rational(base, self.fuel)?
            && let Some(root) = self.root_of_rational(&number)?
        {
            return Ok(root.raised(exponent.numer()));
        }
        let Some(base) = self.value(base)? else {
            return Ok(None);
        };
        self.opaque = true;
        let unit = BigRational::new_raw(BigInt::one(), exponent.denom().clone());
        let Some(unit) = Residue::rational(&unit) else {
            return Ok(None);
        };
        self.fuel.spend(122)?;
        let root = Scrambler::new(POWER).residue(base).residue(unit).element();
        Ok(root.raised(exponent.numer()))
    }

    /// √(a/b) = √(ab) / b, in the field.
    fn root_of_rational(&mut self, value: &BigRational) -> Value {
        let Some(inside) = (value.numer() * value.denom()).abs().to_u64() else {
            return Ok(None);
        };
        if inside == 0 {
            return Ok(Some(Residue::ZERO));
        }
        let Some(factors) = self.factors(inside)? else {
            return Ok(None);
        };
        let mut root = Residue::ONE;
        for (prime, times) in factors {
            self.fuel.spend(60)?;
            root = root.times(
                Residue::small(prime)
                    .raised(&BigInt::from(times / 2))
                    .unwrap_or(Residue::ONE),
            );
            if times % 2 == 1 {
                root = root.times(Residue::root_of_prime(prime));
            }
        }
        if value.is_negative() {
            root = root.times(Residue::I);
        }
        Ok(Residue::integer(value.denom())
            .inverse()
            .map(|below| root.times(below)))
    }

    /// Primes and how often; None where a factor is too large to tell that it is prime.
    fn factors(&mut self, mut value: u64) -> Result<Option<Vec<(u64, u32)>>, OutOfFuel> {
        let mut factors = Vec::new();
        let mut divisor = 2;
        while divisor * divisor <= value && divisor <= LARGEST_DIVISOR {
            let mut times = 0;
            while value.is_multiple_of(divisor) {
                value /= divisor;
                times += 1;
            }
            if times > 0 {
                factors.push((divisor, times));
            }
            divisor += if divisor == 2 { 1 } else { 2 };
        }
        self.fuel.spend(divisor / 16)?;
        if value > 1 {
            if value > LARGEST_DIVISOR * LARGEST_DIVISOR {
                let root = value.isqrt();
                if root * root == value && root <= LARGEST_DIVISOR * LARGEST_DIVISOR {
                    factors.push((root, 2));
                    return Ok(Some(factors));
                }
                return Ok(None);
            }
            factors.push((value, 1));
        }
        Ok(Some(factors))
    }

    fn call(&mut self, function: Function, arguments: &[Expr]) -> Value {
        match (function, arguments) {
            (Function::Root, [inner]) => {
                return self
                    .rational_power(inner, &BigRational::new_raw(BigInt::one(), BigInt::from(2)));
            }
            (Function::Root, [inner, degree]) => {
                return match exact::rational(degree, self.fuel)? {
                    Some(degree) if degree.is_one() => self.value(inner),
                    Some(degree) if degree.is_positive() => {
                        self.rational_power(inner, &degree.recip())
                    }
                    _ => self.opaque_call(function, arguments),
                };
            }
            (Function::Exp, [exponent]) => {
                return self.power(&Expr::Constant(Constant::E), exponent);
            }
            (Function::Tan, [_]) => {
                return self.quotient(Function::Sin, Function::Cos, arguments);
            }
            (Function::Cot, [_]) => {
                return self.quotient(Function::Cos, Function::Sin, arguments);
            }
            (Function::Sec, [_]) => {
                let value = self.opaque_call(Function::Cos, arguments)?;
                return Ok(value.and_then(Residue::inverse));
            }
            (Function::Csc, [_]) => {
                let value = self.opaque_call(Function::Sin, arguments)?;
                return Ok(value.and_then(Residue::inverse));
            }
            (Function::Ln, [inner]) => return self.logarithm(inner),
            (Function::Log, [inner, base]) => {
                let (Some(above), Some(below)) = (self.logarithm(inner)?, self.logarithm(base)?)
                else {
                    return Ok(None);
                };
                return Ok(below.inverse().map(|below| above.times(below)));
            }
            (Function::Named, _) if shape::series(arguments).is_some() => {
                return self.series(arguments);
            }
            (Function::Named, _) => {
                return self.opaque_arguments(function, arguments);
            }
            (Function::Factorial, [n]) => {
                if let Some(n) = self.small(n)? {
                    self.fuel.spend(n / 8)?;
                    return Ok(Some((2..=n).fold(Residue::ONE, |product, k| {
                        product.times(Residue::small(k))
                    })));
                }
            }
            (Function::DoubleFactorial, [n]) => {
                if let Some(n) = self.small(n)? {
                    self.fuel.spend(n / 16)?;
                    return Ok(Some(
                        (1..=n)
                            .rev()
                            .step_by(2)
                            .fold(Residue::ONE, |product, k| product.times(Residue::small(k))),
                    ));
                }
            }
            (Function::Binomial, [n, k]) => {
                let (n, k) = (
                    exact::rational(n, self.fuel)?.and_then(|n| whole(&n)),
                    exact::rational(k, self.fuel)?.and_then(|k| whole(&k)),
                );
                if let (Some(n), Some(k)) = (n, k) {
                    if k > n {
                        return Ok(Some(Residue::ZERO));
                    }
                    let k = k.min(n - k);
                    if k <= LONGEST_PRODUCT && n < 1 << 60 {
                        self.fuel.spend(k / 4)?;
                        let (above, below) =
                            (0..k).fold((Residue::ONE, Residue::ONE), |(above, below), j| {
                                (
                                    above.times(Residue::small(n - j)),
                                    below.times(Residue::small(j + 1)),
                                )
                            });
                        return Ok(below.inverse().map(|below| above.times(below)));
                    }
                }
            }
            _ => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    match exact::rational(argument, self.fuel)? {
                        Some(value) => values.push(value),
                        None => break,
                    }
                }
                if values.len() == arguments.len()
                    && let Some(value) = exact::call(function, &values, self.fuel)?
                {
                    return Ok(Residue::rational(&value));
                }
            }
        }
        self.opaque_call(function, arguments)
    }

    fn small(&mut self, n: &Expr) -> Result<Option<u64>, OutOfFuel> {
        Ok(exact::rational(n, self.fuel)?
            .and_then(|n| whole(&n))
            .filter(|n| *n <= LONGEST_PRODUCT))
    }

    fn quotient(&mut self, above: Function, below: Function, arguments: &[Expr]) -> Value {
        let above = self.opaque_call(above, arguments)?;
        let below = self.opaque_call(below, arguments)?;
        Ok(above
            .zip(below.and_then(Residue::inverse))
            .map(|(a, b)| a.times(b)))
    }

    /// Of a positive rational number: the sum over its primes.
    fn logarithm(&mut self, inner: &Expr) -> Value {
        if inner == &Expr::Constant(Constant::E) {
            return Ok(Some(Residue::ONE));
        }
        if let Some(number) = exact::rational(inner, self.fuel)?
            && number.is_positive()
            && let (Some(above), Some(below)) = (number.numer().to_u64(), number.denom().to_u64())
            && let (Some(above), Some(below)) = (self.factors(above)?, self.factors(below)?)
        {
            let sum = |factors: &[(u64, u32)]| {
                factors.iter().fold(Residue::ZERO, |sum, (prime, times)| {
                    let one = Scrambler::new(LOGARITHM).word(*prime).real_element();
                    sum.plus(one.times(Residue::small(u64::from(*times))))
                })
            };
            return Ok(Some(sum(&above).minus(sum(&below))));
        }
        self.opaque_call(Function::Ln, std::slice::from_ref(inner))
    }

    /// A sum over k is the same sum over j.
    fn series(&mut self, arguments: &[Expr]) -> Value {
        let Some(series) = shape::series(arguments) else {
            return Ok(None);
        };
        // No variable has an empty name.
        let bound = BTreeMap::from([(series.variable.to_owned(), Expr::Symbol(String::new()))]);
        shape::deeper_than(series.term, usize::MAX, self.fuel)?;
        let term = shape::substitute(series.term, &bound);
        self.opaque = true;
        let state = Scrambler::new(STRUCTURE)
            .word(18)
            .word(u64::from(series.product))
            .residue(self.code(series.low)?)
            .residue(self.code(series.high)?);
        Ok(Some(state.residue(self.code(&term)?).element()))
    }

    fn opaque_call(&mut self, function: Function, arguments: &[Expr]) -> Value {
        self.opaque = true;
        self.opaque_arguments(function, arguments)
    }

    fn opaque_arguments(&mut self, function: Function, arguments: &[Expr]) -> Value {
        // A named function varies; the others are what they are under every assignment.
        let state = if function == Function::Named {
            self.scramble(FUNCTION)
        } else {
            Scrambler::new(FUNCTION)
        };
        let mut state = state.word(function as u64).word(arguments.len() as u64);
        for argument in arguments {
            state = state.residue(self.code(argument)?);
        }
        Ok(Some(state.element()))
    }

    /// A value's residue, or for what has none a code of its structure.
    pub(super) fn code(&mut self, expression: &Expr) -> Result<Residue, OutOfFuel> {
        match self.value(expression)? {
            Some(value) => Ok(value),
            None => self.structure(expression),
        }
    }
}

/// A whole number that is not negative.
fn whole(value: &BigRational) -> Option<u64> {
    value.is_integer().then(|| value.numer().to_u64()).flatten()
}
