//! An expression's value at a point, in high precision.

use super::{
    super::{
        expr::{Constant, Expr, Function},
        fuel::{Fuel, OutOfFuel},
    },
    complex::Complex,
    exact,
    modular::Modular,
    real::{Fault, Real},
    residue::Scrambler,
    shape,
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive, Zero};
use std::cmp::Ordering;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Undefined or too large.
    Fault(Fault),
    OutOfFuel,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<OutOfFuel> for Stop {
    fn from(_: OutOfFuel) -> Self {
        Self::OutOfFuel
    }
}

type Value = Result<Complex, Stop>;

const SYMBOL: u64 = 101;
const NAMED: u64 = 102;
/// Factors of a factorial or a binomial up to which it is multiplied out.
const LONGEST_PRODUCT: u64 = 5_000;
/// Terms of a sum up to which it is added up; each may cost the error a bit.
const LONGEST_SERIES: u64 = 50;

/// Where variables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    /// In (0, 1).
    Unit,
    /// In (1, 4).
    Small,
    /// In (4, 30).
    Large,
    /// In (−3, 3), some of them negative.
    Signed,
    /// Whole numbers from 2 on, for factorials.
    Whole,
}

/// One evaluation.
#[derive(Debug)]
pub(super) struct Evaluator<'a> {
    bits: u64,
    region: Region,
    /// The number of the point in its region.
    salt: u64,
    /// Odd roots of negative numbers are real: ∛−8 = −2.
    real_roots: bool,
    /// A number that isn't real was met: branches of roots and logarithms are a convention then.
    pub(super) left_reals: bool,
    /// An odd root of a negative number was met.
    pub(super) odd_root: bool,
    /// Variables of sums, innermost last.
    bound: Vec<(String, u64)>,
    fuel: &'a mut Fuel,
}

impl<'a> Evaluator<'a> {
    /// At a numbered point of a region.
    pub(super) fn new(
        bits: u64,
        (region, salt): (Region, u64),
        real_roots: bool,
        fuel: &'a mut Fuel,
    ) -> Self {
        Self {
            bits,
            region,
            salt,
            real_roots,
            left_reals: false,
            odd_root: false,
            bound: Vec::new(),
            fuel,
        }
    }

    /// The value at the point.
    pub(super) fn value(&mut self, expression: &Expr) -> Value {
        let value = self.evaluate(expression)?;
        if !value.is_real() {
            self.left_reals = true;
        }
        Ok(value)
    }

    /// Fuel for one elementary function, or for one multiplication.
    fn pay(&mut self, elementary: bool) -> Result<(), OutOfFuel> {
        let words = self.bits / 64;
        self.fuel.spend(if elementary {
            30 * words + 2 * words * words
        } else {
            4 + words
        })
    }

    fn evaluate(&mut self, expression: &Expr) -> Value {
        let bits = self.bits;
        self.pay(false)?;
        Ok(match expression {
            Expr::Number(value) | Expr::Decimal(value) => {
                self.fuel
                    .spend((value.numer().bits() + value.denom().bits()) / 32)?;
                Complex::real(Real::rational(value, bits)?)
            }
            Expr::Constant(Constant::Pi) => Complex::real(Real::pi(bits)),
            Expr::Constant(Constant::E) => {
                self.pay(true)?;
                Complex::real(Real::integer(1).exp(bits)?)
            }
            Expr::Constant(Constant::I) => Complex::i(),
            Expr::Constant(Constant::Infinity) => return Err(Fault::Undefined.into()),
            Expr::Symbol(name) => match self.bound.iter().rev().find(|(bound, _)| bound == name) {
                Some((_, value)) => Complex::real(Real::rational(
                    &BigRational::from_integer((*value).into()),
                    bits,
                )?),
                None => Complex::real(self.variable(Scrambler::new(SYMBOL).text(name))?),
            },
            Expr::Sum(items) => {
                let mut total = Complex::integer(0);
                for item in items {
                    total = total.plus(&self.value(item)?, bits);
                }
                total
            }
            Expr::Product(items) => {
                let mut total = Complex::integer(1);
                for item in items {
                    total = total.times(&self.value(item)?, bits)?;
                }
                total
            }
            Expr::Quotient(above, below) => {
                let above = self.value(above)?;
                above.over(&self.value(below)?, bits)?
            }
            Expr::Negated(inner) => self.value(inner)?.negated(),
            Expr::Percent(inner) => self.value(inner)?.over(&Complex::integer(100), bits)?,
            Expr::Power(base, exponent) => self.power(base, exponent)?,
            Expr::Call(Function::Named, arguments) if shape::series(arguments).is_some() => {
                self.series(arguments)?
            }
            // Of a sum's variable it isn't known what it is.
            Expr::Call(Function::Named, _) if !self.bound.is_empty() => {
                return Err(Fault::Undefined.into());
            }
            Expr::Call(Function::Named, _) | Expr::Text(_) => {
                let code = Modular::new(0, self.fuel).code(expression)?;
                Complex::real(self.variable(Scrambler::new(NAMED).residue(code))?)
            }
            Expr::Call(function, arguments) => self.call(*function, arguments)?,
            // Not a number.
            _ => return Err(Fault::Undefined.into()),
        })
    }

    /// A number that looks random, in the region.
    fn variable(&mut self, state: Scrambler) -> Result<Real, Stop> {
        let bits = state.word(self.salt).word(self.region as u64).bits();
        // Odd over a power of two: no accident makes it special.
        let fraction = |low: i64, wide: i64| {
            let part = BigRational::new(BigInt::from((bits >> 24) | 1), BigInt::from(1_u64 << 40));
            part * BigInt::from(wide) + BigInt::from(low)
        };
        let value = match self.region {
            Region::Unit => fraction(0, 1),
            Region::Small => fraction(1, 3),
            Region::Large => fraction(4, 26),
            Region::Signed => fraction(-3, 6),
            // Small first: there a small difference shows beside a factorial.
            Region::Whole => {
                BigRational::from_integer(BigInt::from(2 + bits % (5 + 6 * self.salt)))
            }
        };
        Ok(Real::rational(&value, self.bits)?)
    }

    fn power(&mut self, base: &Expr, exponent: &Expr) -> Value {
        self.pay(true)?;
        self.pay(true)?;
        if let Some(exact) = exact::rational(exponent, self.fuel)? {
            let base = self.value(base)?;
            return self.rational_power(&base, &exact);
        }
        if base == &Expr::Constant(Constant::E) {
            return Ok(self.value(exponent)?.exp(self.bits)?);
        }
        let base = self.value(base)?;
        let exponent = self.value(exponent)?;
        Ok(base.power(&exponent, self.bits)?)
    }

    fn rational_power(&mut self, base: &Complex, exponent: &BigRational) -> Value {
        let bits = self.bits;
        if exponent.denom() == &BigInt::from(2) && exponent.numer().bits() < 12 {
            let whole = BigRational::from_integer(exponent.numer().clone());
            let whole = Complex::real(Real::rational(&whole, bits)?);
            return Ok(base.root(bits)?.power(&whole, bits)?);
        }
        let odd = exponent.denom().bit(0) && !exponent.is_integer();
        if odd && base.is_real() && base.re.likely_sign().is_lt() {
            self.odd_root = true;
            if self.real_roots {
                let exponent_value = Complex::real(Real::rational(exponent, bits)?);
                let value = base.negated().power(&exponent_value, bits)?;
                return Ok(if exponent.numer().bit(0) {
                    value.negated()
                } else {
                    value
                });
            }
        }
        Ok(base.power(&Complex::real(Real::rational(exponent, bits)?), bits)?)
    }

    fn call(&mut self, function: Function, arguments: &[Expr]) -> Value {
        let bits = self.bits;
        self.pay(true)?;
        match (function, arguments) {
            (Function::Root, [inner]) => Ok(self.value(inner)?.root(bits)?),
            (Function::Root, [inner, degree]) => match exact::rational(degree, self.fuel)? {
                Some(degree) if !degree.is_zero() => {
                    let inner = self.value(inner)?;
                    self.rational_power(&inner, &degree.recip())
                }
                Some(_) => Err(Fault::Undefined.into()),
                None => {
                    let inner = self.value(inner)?;
                    let degree = self.value(degree)?;
                    let exponent = Complex::integer(1).over(&degree, bits)?;
                    Ok(inner.power(&exponent, bits)?)
                }
            },
            (Function::Log, [inner, base]) => {
                let above = self.value(inner)?.ln(bits)?;
                self.pay(true)?;
                let below = self.value(base)?.ln(bits)?;
                Ok(above.over(&below, bits)?)
            }
            (Function::Factorial | Function::DoubleFactorial, [n]) => {
                let n = self.whole(n)?;
                let step = if function == Function::Factorial {
                    1
                } else {
                    2
                };
                Ok(Complex::real(self.product((1..=n).rev().step_by(step))?))
            }
            (Function::Binomial, [n, k]) => {
                let (n, k) = (self.whole(n)?, self.whole(k)?);
                if k > n {
                    return Ok(Complex::integer(0));
                }
                let k = k.min(n - k);
                let above = self.product((0..k).map(|j| n - j))?;
                let below = self.product(1..=k)?;
                Ok(Complex::real(above.over(&below, bits)?))
            }
            (Function::Gcd | Function::Lcm | Function::Min | Function::Max | Function::Mod, _) => {
                self.of_reals(function, arguments)
            }
            (_, [inner]) => {
                let value = self.value(inner)?;
                self.of_one(function, &value)
            }
            _ => Err(Fault::Undefined.into()),
        }
    }

    fn of_one(&mut self, function: Function, value: &Complex) -> Value {
        let bits = self.bits;
        let one = Complex::integer(1);
        Ok(match function {
            Function::Abs => Complex::real(value.modulus(bits)?),
            Function::Conjugate => value.conjugate(),
            Function::Ln => value.ln(bits)?,
            Function::Exp => value.exp(bits)?,
            Function::Floor | Function::Ceil => {
                if !value.is_real() {
                    return Err(Fault::Undefined.into());
                }
                Complex::real(if function == Function::Floor {
                    value.re.floor()?
                } else {
                    value.re.negated().floor()?.negated()
                })
            }
            Function::Sin => value.sin_cos(bits)?.0,
            Function::Cos => value.sin_cos(bits)?.1,
            Function::Tan => {
                let (sin, cos) = value.sin_cos(bits)?;
                sin.over(&cos, bits)?
            }
            Function::Cot => {
                let (sin, cos) = value.sin_cos(bits)?;
                cos.over(&sin, bits)?
            }
            Function::Sec => one.over(&value.sin_cos(bits)?.1, bits)?,
            Function::Csc => one.over(&value.sin_cos(bits)?.0, bits)?,
            Function::Asin => value.asin(bits)?,
            Function::Acos => value.acos(bits)?,
            Function::Atan => value.atan(bits)?,
            Function::Sinh => value.sinh_cosh(bits)?.0,
            Function::Cosh => value.sinh_cosh(bits)?.1,
            Function::Tanh => {
                let (sinh, cosh) = value.sinh_cosh(bits)?;
                sinh.over(&cosh, bits)?
            }
            _ => return Err(Fault::Undefined.into()),
        })
    }

    /// Of real arguments, by what they are to each other.
    fn of_reals(&mut self, function: Function, arguments: &[Expr]) -> Value {
        let bits = self.bits;
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let value = self.value(argument)?;
            if !value.is_real() {
                return Err(Fault::Undefined.into());
            }
            values.push(value.re);
        }
        let mut values = values.into_iter();
        let Some(mut total) = values.next() else {
            return Err(Fault::Undefined.into());
        };
        for value in values {
            total = match function {
                Function::Min | Function::Max => {
                    let order = total.minus(&value, bits).likely_sign();
                    if (order == Ordering::Greater) == (function == Function::Max) {
                        total
                    } else {
                        value
                    }
                }
                Function::Mod => {
                    let times = total.over(&value, bits)?.floor()?;
                    total.minus(&value.times(&times, bits)?, bits)
                }
                _ => {
                    let (Some(a), Some(b)) = (total.whole(), value.whole()) else {
                        return Err(Fault::Undefined.into());
                    };
                    let pair = [a, b].map(|value| Expr::Number(BigRational::from_integer(value)));
                    let call = Expr::Call(function, pair.to_vec());
                    match exact::rational(&call, self.fuel)? {
                        Some(value) => Real::rational(&value, bits)?,
                        None => return Err(Fault::TooLarge.into()),
                    }
                }
            };
        }
        Ok(Complex::real(total))
    }

    /// A sum or a product, term by term.
    fn series(&mut self, arguments: &[Expr]) -> Value {
        let Some(series) = shape::series(arguments) else {
            return Err(Fault::Undefined.into());
        };
        let (low, high) = (self.whole(series.low)?, self.whole(series.high)?);
        if high.saturating_sub(low) > LONGEST_SERIES {
            return Err(Fault::TooLarge.into());
        }
        let mut total = Complex::integer(i64::from(series.product));
        for k in low..=high {
            self.bound.push((series.variable.to_owned(), k));
            let term = self.value(series.term);
            self.bound.pop();
            total = if series.product {
                total.times(&term?, self.bits)?
            } else {
                total.plus(&term?, self.bits)
            };
        }
        Ok(total)
    }

    /// A whole number that is not negative.
    fn whole(&mut self, expression: &Expr) -> Result<u64, Stop> {
        let value = self.value(expression)?;
        let whole = if value.is_real() {
            value.re.whole()
        } else {
            None
        };
        match whole {
            Some(whole) if whole.is_negative() => Err(Fault::Undefined.into()),
            Some(whole) => whole.to_u64().ok_or(Fault::TooLarge.into()),
            None => Err(Fault::Undefined.into()),
        }
    }

    fn product(&mut self, factors: impl Iterator<Item = u64>) -> Result<Real, Stop> {
        // As many factors at once as a word holds.
        let mut words = Vec::new();
        let mut word = 1_u64;
        for (count, factor) in factors.enumerate() {
            if count as u64 > LONGEST_PRODUCT {
                return Err(Fault::TooLarge.into());
            }
            word = match word.checked_mul(factor) {
                Some(longer) => longer,
                None => {
                    words.push(word);
                    factor
                }
            };
        }
        words.push(word);
        // The error's bound may double with every product.
        let bits = self.bits + 2 * words.len() as u64 + 16;
        self.fuel.spend(words.len() as u64 * (8 + bits / 128))?;
        let mut total = Real::integer(1);
        for word in words {
            total = total.times(&Real::rational(&BigInt::from(word).into(), bits)?, bits)?;
        }
        Ok(total)
    }
}
