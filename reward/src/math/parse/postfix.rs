//! What follows an atom: powers, `!`, `%`, degrees, units, a number's base.

use num_rational::BigRational;
use num_traits::One;

use super::{
    ParseError, numbers,
    pratt::{MAX_CHAIN, Parser, negated},
    token::Kind,
};
use crate::math::expr::{Constant, Expr, Function};

impl Parser<'_> {
    /// An atom with what follows it: powers, `!`, `%`, degrees, units.
    pub(super) fn postfix(&mut self) -> Result<Expr, ParseError> {
        let literal = matches!(self.peek(0), Some(Kind::Digits(_)));
        let mut base = self.atom()?;
        if literal && self.is_fraction_of_digits() {
            // An integer before a proper fraction makes a mixed number.
            let part = self.atom()?;
            base = match (base, part) {
                (Expr::Number(whole), Expr::Number(part)) if part < BigRational::one() => {
                    Expr::Number(whole + part)
                }
                (base, part) => Expr::Product(vec![base, part]),
            };
        }
        let mut steps = 0;
        loop {
            steps += 1;
            if steps > MAX_CHAIN {
                return Err(ParseError::TooDeep);
            }
            match self.peek(0) {
                Some(Kind::Bang) => {
                    self.skip();
                    let double = self.peek(0) == Some(&Kind::Bang) && !self.spaced(0);
                    if double {
                        self.skip();
                    }
                    let function = if double {
                        Function::DoubleFactorial
                    } else {
                        Function::Factorial
                    };
                    base = Expr::Call(function, vec![base]);
                }
                Some(Kind::Percent) => {
                    self.skip();
                    base = Expr::Percent(Box::new(base));
                }
                Some(Kind::Degree) => {
                    self.skip();
                    base = self.degrees(base);
                }
                Some(Kind::Prime) => {
                    self.skip();
                    // `15'`: feet or minutes of arc.
                    if !matches!(base, Expr::Number(_) | Expr::Decimal(_)) {
                        let name = Expr::Text("prime".to_string());
                        base = Expr::Call(Function::Named, vec![name, base]);
                    }
                }
                Some(Kind::Caret) => {
                    self.skip();
                    base = self.power(base)?;
                }
                Some(Kind::Underscore) => {
                    self.skip();
                    base = self.based(base)?;
                }
                Some(Kind::Text(_)) if self.repairs.units => self.unit(),
                _ => return Ok(base),
            }
        }
    }

    /// `\frac{1}{2}`, `\frac12`, `½`.
    fn is_fraction_of_digits(&self) -> bool {
        let digits = |ahead| matches!(self.peek(ahead), Some(Kind::Digits(_)));
        let braced = |ahead| {
            self.peek(ahead) == Some(&Kind::BraceOpen)
                && digits(ahead + 1)
                && self.peek(ahead + 2) == Some(&Kind::BraceClose)
        };
        match self.peek(0) {
            Some(Kind::Exact { vulgar, .. }) => *vulgar,
            Some(Kind::Fraction) if braced(1) => braced(4) || digits(4),
            Some(Kind::Fraction) => match self.peek(1) {
                Some(Kind::Digits(both)) => both.len() > 1 || digits(2) || braced(2),
                _ => false,
            },
            _ => false,
        }
    }

    fn degrees(&self, base: Expr) -> Expr {
        if !self.angles {
            return base;
        }
        let half_turn = Expr::Number(BigRational::from_integer(180.into()));
        let radian = Expr::Quotient(Box::new(Expr::Constant(Constant::Pi)), Box::new(half_turn));
        Expr::Product(vec![base, radian])
    }

    /// `12 m`: as the reference has it, a lone number's letter for metres, seconds or grams is its
    /// unit. Other letters, and these beside anything else, are variables.
    pub(super) fn drop_bare_unit(&mut self) {
        let sign = usize::from(matches!(self.peek(0), Some(Kind::Minus | Kind::Plus)));
        let number = matches!(self.peek(sign), Some(Kind::Digits(_) | Kind::Decimal(_)));
        let unit = match self.peek(sign + 1) {
            Some(Kind::Symbol {
                name,
                capital: false,
            }) => {
                matches!(name.as_str(), "m" | "s" | "g")
            }
            _ => false,
        };
        if number && unit && self.peek(sign + 2).is_none() {
            self.drop_last();
        }
    }

    /// Passes a unit: words, their powers, and what they are divided by.
    fn unit(&mut self) {
        loop {
            self.skip();
            if self.peek(0) == Some(&Kind::Caret) {
                let raised = |kind: Option<&Kind>| matches!(kind, Some(Kind::Digits(_)));
                let braced = self.peek(1) == Some(&Kind::BraceOpen);
                let sign = usize::from(braced && self.peek(2) == Some(&Kind::Minus));
                if raised(self.peek(1)) {
                    self.pos += 2;
                } else if braced
                    && raised(self.peek(2 + sign))
                    && self.peek(3 + sign) == Some(&Kind::BraceClose)
                {
                    self.pos += 4 + sign;
                }
            }
            match (self.peek(0), self.peek(1)) {
                (Some(Kind::Text(_)), _) => {}
                (Some(Kind::Divide | Kind::Times), Some(Kind::Text(_))) => self.skip(),
                _ => return,
            }
        }
    }

    fn power(&mut self, base: Expr) -> Result<Expr, ParseError> {
        if matches!(self.peek(0), Some(Kind::Circle | Kind::Degree)) {
            self.skip();
            return Ok(self.degrees(base));
        }
        if self.peek(0) == Some(&Kind::BraceOpen) && self.peek(2) == Some(&Kind::BraceClose) {
            match self.peek(1) {
                Some(Kind::Circle | Kind::Degree) => {
                    self.pos += 3;
                    return Ok(self.degrees(base));
                }
                // `5^{\text{th}}`.
                Some(Kind::Text(word)) if is_ordinal(word) => {
                    self.pos += 3;
                    return Ok(base);
                }
                _ => {}
            }
        }
        if self.ordinal() {
            return Ok(base);
        }
        let transposes = matches!(base, Expr::Matrix(_))
            && match self.peek(0) {
                Some(Kind::Transpose) => Some(1),
                Some(Kind::Symbol {
                    name,
                    capital: true,
                }) if name == "t" => Some(1),
                Some(Kind::BraceOpen) => match self.peek(1) {
                    Some(Kind::Transpose) => Some(3),
                    Some(Kind::Symbol {
                        name,
                        capital: true,
                    }) if name == "t" => Some(3),
                    _ => None,
                },
                _ => None,
            }
            .is_some_and(|length| {
                self.pos += length;
                true
            });
        if transposes {
            let Expr::Matrix(rows) = base else {
                return Ok(base);
            };
            return Ok(Expr::Matrix(transposed(rows)));
        }
        let exponent = self.exponent()?;
        Ok(Expr::Power(Box::new(base), Box::new(exponent)))
    }

    /// `^{th}` in letters.
    fn ordinal(&mut self) -> bool {
        let letter = |kind: Option<&Kind>| match kind {
            Some(Kind::Symbol { name, .. }) if name.len() == 1 => name.chars().next(),
            _ => None,
        };
        if self.peek(0) == Some(&Kind::BraceOpen)
            && let (Some(a), Some(b)) = (letter(self.peek(1)), letter(self.peek(2)))
            && is_ordinal(&format!("{a}{b}"))
            && self.peek(3) == Some(&Kind::BraceClose)
        {
            self.pos += 4;
            return true;
        }
        false
    }

    /// What stands behind `^`: a group, or what binds tighter than any operator.
    fn exponent(&mut self) -> Result<Expr, ParseError> {
        if self.peek(0) == Some(&Kind::BraceOpen) {
            return self.argument();
        }
        let inside = self.inside;
        self.within(inside, |parser| {
            if parser.take(&Kind::Minus) {
                return Ok(negated(parser.exponent()?));
            }
            parser.take(&Kind::Plus);
            let base = parser.atom()?;
            if parser.take(&Kind::Caret) {
                return parser.power(base);
            }
            Ok(base)
        })
    }

    /// A number's subscript is the base of its digits; any other subscript stays by name.
    fn based(&mut self, digits: Expr) -> Result<Expr, ParseError> {
        let subscript = if self.peek(0) == Some(&Kind::BraceOpen) {
            self.argument()?
        } else {
            self.atom()?
        };
        let base = match &subscript {
            Expr::Number(base) if base.is_integer() => u32::try_from(base.to_integer()).ok(),
            Expr::Text(word) => match word.trim_start_matches("base") {
                "two" | "2" => Some(2),
                "three" | "3" => Some(3),
                "four" | "4" => Some(4),
                "five" | "5" => Some(5),
                "six" | "6" => Some(6),
                "seven" | "7" => Some(7),
                "eight" | "8" => Some(8),
                "nine" | "9" => Some(9),
                "ten" | "10" => Some(10),
                "twelve" | "12" => Some(12),
                "sixteen" | "16" => Some(16),
                _ => None,
            },
            _ => None,
        };
        if let (Expr::Number(written), Some(base)) = (&digits, base)
            && written.is_integer()
        {
            let written = written.to_integer().to_string();
            self.pay((written.len() * written.len() / 64) as u64)?;
            if let Some(value) = numbers::in_base(&written, base) {
                return Ok(Expr::Number(BigRational::from_integer(value)));
            }
        }
        // No base, or digits that it has not: no number, and not the plain one.
        let name = Expr::Text("subscript".to_string());
        Ok(Expr::Call(Function::Named, vec![name, digits, subscript]))
    }
}

fn is_ordinal(word: &str) -> bool {
    matches!(word, "th" | "st" | "nd" | "rd")
}

/// Rows to columns.
fn transposed(rows: Vec<Vec<Expr>>) -> Vec<Vec<Expr>> {
    let width = rows.first().map_or(0, Vec::len);
    let mut columns: Vec<Vec<Expr>> = (0..width).map(|_| Vec::new()).collect();
    for row in rows {
        for (column, cell) in columns.iter_mut().zip(row) {
            column.push(cell);
        }
    }
    columns
}
