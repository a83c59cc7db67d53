//! Atoms: numbers, names, and what brackets hold.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Zero};

use super::{
    ParseError,
    list::{List, bare},
    numbers,
    pratt::{Inside, Parser, power, quotient},
    token::Kind,
};
use crate::math::expr::{Delimiter, Expr, Function};

/// Groups of thousands that a number with commas may have.
const MAX_GROUPS: usize = 12;

impl Parser<'_> {
    /// The smallest expression that starts here.
    pub(super) fn atom(&mut self) -> Result<Expr, ParseError> {
        let Some(kind) = self.peek(0) else {
            return Err(self.error("an expression is missing"));
        };
        match kind.clone() {
            Kind::Digits(digits) => self.number(&digits),
            Kind::Decimal(value) => {
                self.skip();
                Ok(Expr::Decimal(value))
            }
            Kind::Exact { value, .. } => {
                self.skip();
                Ok(Expr::Number(value))
            }
            Kind::Symbol { name, capital } => {
                self.skip();
                self.symbol(name, capital)
            }
            Kind::Constant(constant) => {
                self.skip();
                Ok(Expr::Constant(constant))
            }
            Kind::Text(words) => {
                self.skip();
                let mut letters = words.chars();
                Ok(match (letters.next(), letters.next()) {
                    // One letter in text is that letter: `\text{(C)}` answers as `C` does.
                    (Some(letter), None) if letter.is_alphabetic() => {
                        Expr::Symbol(letter.to_string())
                    }
                    _ => Expr::Text(words),
                })
            }
            Kind::Dots => {
                self.skip();
                Ok(Expr::Text("...".to_string()))
            }
            Kind::Empty => {
                self.skip();
                Ok(Expr::Set(Vec::new()))
            }
            Kind::Fraction => {
                self.skip();
                let upper = self.command_argument(false)?;
                let lower = self.command_argument(true)?;
                Ok(self.fraction(upper, lower))
            }
            Kind::Binomial => {
                self.skip();
                let upper = self.command_argument(false)?;
                let lower = self.command_argument(false)?;
                Ok(Expr::Call(Function::Binomial, vec![upper, lower]))
            }
            Kind::Root { latex } => {
                self.skip();
                self.root(latex)
            }
            Kind::Overline => {
                self.skip();
                let inner = self.argument()?;
                Ok(Expr::Call(Function::Conjugate, vec![inner]))
            }
            Kind::Function(function) => {
                self.skip();
                self.function(function)
            }
            Kind::CommonLogarithm => {
                self.skip();
                self.common_logarithm()
            }
            Kind::Operator(name) => {
                self.skip();
                self.operator(name)
            }
            Kind::Big(name) => {
                self.skip();
                self.big(name)
            }
            Kind::RoundOpen => self.bracket(Delimiter::Round),
            Kind::SquareOpen => self.bracket(Delimiter::Square),
            Kind::AngleOpen => self.bracket(Delimiter::Angle),
            Kind::SquareClose => self.reversed(),
            Kind::BraceOpen => self.braces(),
            Kind::SetOpen => self.set(),
            Kind::Bar | Kind::BarOpen => self.bars(),
            Kind::FloorOpen => self.enclosed(&Kind::FloorClose, Function::Floor),
            Kind::CeilOpen => self.enclosed(&Kind::CeilClose, Function::Ceil),
            Kind::Begin(name) => {
                self.skip();
                self.within(Inside::Cell, |parser| parser.environment(&name))
            }
            _ => Err(self.error("an expression can't start so")),
        }
    }

    fn number(&mut self, digits: &str) -> Result<Expr, ParseError> {
        if let Some(value) = self.with_commas(digits) {
            return Ok(value);
        }
        self.skip();
        let whole = BigRational::from_integer(numbers::integer(digits));
        // `2 2/3`, `2-2/3` is a difference.
        if let (Some(Kind::Digits(upper)), Some(Kind::Divide), Some(Kind::Digits(lower))) =
            (self.peek(0), self.peek(1), self.peek(2))
            && self.spaced(0)
        {
            let (upper, lower) = (numbers::integer(upper), numbers::integer(lower));
            if upper < lower && !lower.is_zero() {
                for _ in 0..3 {
                    self.skip();
                }
                return Ok(Expr::Number(whole + BigRational::new(upper, lower)));
            }
        }
        Ok(Expr::Number(whole))
    }

    /// `1,000` where no list is: every group after the first has three digits, nothing has spaces.
    fn with_commas(&mut self, digits: &str) -> Option<Expr> {
        if !matches!(self.inside, Inside::Top | Inside::Argument | Inside::Bars)
            || digits.len() > 3
            || self.peek(1) != Some(&Kind::Comma)
            || self.continues_list()
        {
            return None;
        }
        let mut written = digits.to_string();
        let mut ahead = 1;
        let mut last = None;
        while self.peek(ahead) == Some(&Kind::Comma) && !self.spaced(ahead) {
            if ahead > 2 * MAX_GROUPS || last.is_some() {
                return None;
            }
            match self.peek(ahead + 1) {
                Some(Kind::Digits(group)) if !self.spaced(ahead + 1) && group.len() == 3 => {
                    written.push_str(group);
                }
                Some(Kind::Decimal(value)) if !self.spaced(ahead + 1) => {
                    // `1,000.5`: the lexer has kept the value, whose integer part tells the group.
                    let whole = value.to_integer();
                    if whole >= BigInt::from(1000) {
                        return None;
                    }
                    written.push_str(&format!("{whole:03}"));
                    last = Some(value.fract());
                }
                // A space after the comma: a list goes on behind this number.
                Some(_) if self.spaced(ahead + 1) && ahead > 1 => break,
                _ => return None,
            }
            ahead += 2;
        }
        if ahead == 1 {
            return None;
        }
        let single = ahead == 3;
        for _ in 0..ahead {
            self.skip();
        }
        if digits.starts_with('0') {
            // `0,111` is a decimal.
            if single && digits == "0" && last.is_none() {
                let fraction = written.get(1..).unwrap_or_default();
                return Some(Expr::Decimal(numbers::decimal("0", fraction)));
            }
        }
        let whole = BigRational::from_integer(numbers::integer(&written));
        Some(match last {
            Some(fraction) => Expr::Decimal(whole + fraction),
            None => Expr::Number(whole),
        })
    }

    /// Whether the number here stands right behind a number and a comma.
    fn continues_list(&self) -> bool {
        !self.spaced(0)
            && self.behind(1) == Some(&Kind::Comma)
            && matches!(self.behind(2), Some(Kind::Digits(_)))
    }

    /// A command's argument: a group, or without braces a single digit or a small expression. With
    /// `whole` a number without braces is taken with all its digits.
    pub(super) fn command_argument(&mut self, whole: bool) -> Result<Expr, ParseError> {
        if self.peek(0) == Some(&Kind::BraceOpen) {
            return self.argument();
        }
        if !self.repairs.malformed_operators {
            return Err(self.error("the braces of an argument are missing"));
        }
        if let Some(Kind::Digits(digits)) = self.peek(0)
            && digits.len() > 1
            && !whole
        {
            return Ok(self.first_digit());
        }
        if let Some(Kind::Digits(digits)) = self.peek(0) {
            let value = Expr::Number(BigRational::from_integer(numbers::integer(digits)));
            self.skip();
            return Ok(value);
        }
        let inside = self.inside;
        self.within(inside, Parser::atom)
    }

    /// The first of the digits here, the others left in their place.
    pub(super) fn first_digit(&mut self) -> Expr {
        let Some(Kind::Digits(digits)) = self.peek(0) else {
            return Expr::Number(BigRational::zero());
        };
        let (first, rest) = digits.split_at(1.min(digits.len()));
        let value = Expr::Number(BigRational::from_integer(numbers::integer(first)));
        let rest = rest.to_string();
        self.replace(Kind::Digits(rest));
        value
    }

    /// `{…}` as a command's argument.
    pub(super) fn argument(&mut self) -> Result<Expr, ParseError> {
        self.within(Inside::Argument, |parser| {
            parser.skip();
            parser.group_rest()
        })
    }

    /// `{…}` as it stands: a group, or a set without its backslashes.
    fn braces(&mut self) -> Result<Expr, ParseError> {
        self.within(Inside::Brace, |parser| {
            parser.skip();
            parser.group_rest()
        })
    }

    fn group_rest(&mut self) -> Result<Expr, ParseError> {
        let mut list = self.list()?;
        let over = match self.peek(0) {
            Some(Kind::Choose) => Some(true),
            Some(Kind::Over) => Some(false),
            _ => None,
        };
        if let Some(choose) = over {
            self.skip();
            let lower = self.list()?;
            let (Some(upper), Some(lower)) = (bare(list, false), bare(lower, false)) else {
                return Err(self.error("one of two parts is missing"));
            };
            self.close_brace()?;
            return Ok(if choose {
                Expr::Call(Function::Binomial, vec![upper, lower])
            } else {
                quotient(upper, lower)
            });
        }
        if self.inside == Inside::Brace
            && matches!(self.peek(0), Some(Kind::Bar | Kind::Mid | Kind::Colon))
            && list.items.len() == 1
            && let Some(element) = list.items.pop()
        {
            let built = self.set_builder(element)?;
            self.close_brace()?;
            return Ok(built);
        }
        self.close_brace()?;
        match bare(list, true) {
            Some(expr) => Ok(expr),
            None => Err(self.error("empty braces")),
        }
    }

    /// A brace that the text's end leaves open is taken as closed: a completion cut short.
    fn close_brace(&mut self) -> Result<(), ParseError> {
        if self.take(&Kind::BraceClose) || self.peek(0).is_none() {
            return Ok(());
        }
        // `\{…}`'s counterpart.
        if self.inside == Inside::Brace && self.take(&Kind::SetClose) {
            return Ok(());
        }
        Err(self.error("a brace is not closed here"))
    }

    fn root(&mut self, latex: bool) -> Result<Expr, ParseError> {
        let mut arguments = Vec::new();
        let mut degree = None;
        if latex && self.peek(0) == Some(&Kind::SquareOpen) {
            degree = Some(self.within(Inside::Bracket, |parser| {
                parser.skip();
                let degree = parser.expr(power::ANY)?;
                if !parser.take(&Kind::SquareClose) {
                    return Err(parser.error("a root's degree is not closed"));
                }
                Ok(degree)
            })?);
        }
        let radicand = if self.peek(0) == Some(&Kind::BraceOpen) {
            self.argument()?
        } else if !latex
            || self.peek(0) == Some(&Kind::RoundOpen) && self.repairs.malformed_operators
        {
            let inside = self.inside;
            self.within(inside, Parser::atom)?
        } else {
            self.command_argument(false)?
        };
        arguments.push(radicand);
        arguments.extend(degree);
        Ok(Expr::Call(Function::Root, arguments))
    }

    /// `( … )` and its kin: a group, a point, a list or an interval.
    fn bracket(&mut self, open: Delimiter) -> Result<Expr, ParseError> {
        self.within(Inside::Bracket, |parser| {
            parser.skip();
            let list = parser.list()?;
            let close = match parser.peek(0) {
                Some(Kind::RoundClose) => Delimiter::Round,
                Some(Kind::SquareClose) => Delimiter::Square,
                Some(Kind::SquareOpen) if open == Delimiter::Square => Delimiter::Round,
                Some(Kind::AngleClose) => Delimiter::Angle,
                // `\left( … \right.`
                Some(Kind::NoDelimiter) => open,
                _ => return Err(parser.error("a bracket is not closed here")),
            };
            parser.skip();
            parser.bracketed(open, close, list)
        })
    }

    fn bracketed(
        &self,
        open: Delimiter,
        close: Delimiter,
        mut list: List,
    ) -> Result<Expr, ParseError> {
        use super::list::Separator::{And, Or};
        let connected = list.separators.iter().any(|s| matches!(s, And | Or));
        if list.items.len() > 1 && !(connected && open == close && open == Delimiter::Round) {
            return Ok(Expr::Delimited {
                open,
                close,
                items: list.items,
            });
        }
        if list.items.len() == 1 {
            return list.items.pop().ok_or(ParseError::Empty);
        }
        bare(list, true).ok_or_else(|| self.error("empty brackets"))
    }

    /// `]a, b[`: an open interval.
    fn reversed(&mut self) -> Result<Expr, ParseError> {
        self.within(Inside::Reversed, |parser| {
            parser.skip();
            let list = parser.list()?;
            let close = match parser.peek(0) {
                Some(Kind::SquareOpen | Kind::RoundClose) => Delimiter::Round,
                Some(Kind::SquareClose) => Delimiter::Square,
                _ => return Err(parser.error("an interval is not closed here")),
            };
            parser.skip();
            if list.items.len() != 2 {
                return Err(parser.error("an interval has two ends"));
            }
            Ok(Expr::Delimited {
                open: Delimiter::Round,
                close,
                items: list.items,
            })
        })
    }

    /// `\{ … \}`.
    fn set(&mut self) -> Result<Expr, ParseError> {
        self.within(Inside::Set, |parser| {
            parser.skip();
            let mut list = parser.list()?;
            let built = if matches!(parser.peek(0), Some(Kind::Bar | Kind::Mid | Kind::Colon))
                && list.items.len() == 1
                && let Some(element) = list.items.pop()
            {
                Some(parser.set_builder(element)?)
            } else {
                None
            };
            match parser.peek(0) {
                Some(Kind::SetClose | Kind::BraceClose) => parser.skip(),
                // `\left\{ … \right.`: a system.
                Some(Kind::NoDelimiter) => {
                    parser.skip();
                    return bare(list, true).ok_or_else(|| parser.error("an empty system"));
                }
                None => {}
                _ => return Err(parser.error("a set is not closed here")),
            }
            Ok(built.unwrap_or(Expr::Set(list.items)))
        })
    }

    fn set_builder(&mut self, element: Expr) -> Result<Expr, ParseError> {
        self.skip();
        let condition = self.within(Inside::Bracket, Parser::list)?;
        match bare(condition, true) {
            Some(condition) => Ok(Expr::SetBuilder {
                element: Box::new(element),
                condition: Box::new(condition),
            }),
            None => Err(self.error("a set's condition is missing")),
        }
    }

    fn bars(&mut self) -> Result<Expr, ParseError> {
        self.within(Inside::Bars, |parser| {
            parser.skip();
            let inner = parser.expr(power::ANY)?;
            if !parser.take(&Kind::Bar) && !parser.take(&Kind::BarClose) {
                return Err(parser.error("a bar is not closed here"));
            }
            Ok(Expr::Call(Function::Abs, vec![inner]))
        })
    }

    fn enclosed(&mut self, close: &Kind, function: Function) -> Result<Expr, ParseError> {
        self.within(Inside::Bracket, |parser| {
            parser.skip();
            let inner = parser.expr(power::ANY)?;
            if !parser.take(close) {
                return Err(parser.error("a bracket is not closed here"));
            }
            Ok(Expr::Call(function, vec![inner]))
        })
    }

    /// `\frac`, which may be a derivative.
    pub(super) fn fraction(&self, upper: Expr, lower: Expr) -> Expr {
        match derivative(&upper, &lower) {
            Some(derivative) => derivative,
            None => quotient(upper, lower),
        }
    }
}

/// `\frac{dy}{dx}`, `\frac{d^2 y}{dx^2}`, `\frac{\partial f}{\partial x}` by name: as a quotient its
/// `d` would cancel. `None` for a quotient.
fn derivative(upper: &Expr, lower: &Expr) -> Option<Expr> {
    let is_d = |expr: &Expr| matches!(expr, Expr::Symbol(name) if name == "d" || name == "partial");
    let Expr::Product(below) = lower else {
        return None;
    };
    let [d, variable] = below.as_slice() else {
        return None;
    };
    let names = match variable {
        Expr::Symbol(_) => true,
        Expr::Power(base, _) => matches!(base.as_ref(), Expr::Symbol(_)),
        _ => false,
    };
    if !is_d(d) || !names {
        return None;
    }
    let raised = |expr: &Expr| match expr {
        Expr::Power(base, _) => is_d(base),
        other => is_d(other),
    };
    let of = match upper {
        Expr::Product(above) => match above.split_first() {
            Some((first, [single])) if raised(first) => single.clone(),
            Some((first, rest)) if raised(first) => Expr::Product(rest.to_vec()),
            _ => return None,
        },
        other if raised(other) => Expr::Number(BigRational::one()),
        _ => return None,
    };
    Some(Expr::Call(
        Function::Named,
        vec![Expr::Text("derivative".to_string()), of, variable.clone()],
    ))
}
