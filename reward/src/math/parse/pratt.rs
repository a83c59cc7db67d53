//! Expressions by binding power: sums, products, quotients, powers, operations on sets.

use num_rational::BigRational;
use num_traits::Zero;

use super::{
    ParseError, Repairs, numbers,
    token::{Kind, Token},
};
use crate::math::{
    expr::{Expr, Function, SetOperation},
    fuel::Fuel,
};

/// Levels that brackets, powers and functions may be nested.
const MAX_NESTING: u32 = 128;

/// Steps of a chain that nests to the left (`a/b/c`, `n!!!`).
pub(super) const MAX_CHAIN: u32 = 16;

/// How tightly operators bind. What is written without an operator binds tighter than `/`, as in
/// the reference: `1/2x` is `1/(2x)`.
pub(super) mod power {
    pub(in super::super) const ANY: u8 = 0;
    pub(in super::super) const DIFFERENCE: u8 = 1;
    pub(in super::super) const UNION: u8 = 2;
    pub(in super::super) const INTERSECTION: u8 = 3;
    pub(in super::super) const SUM: u8 = 4;
    pub(in super::super) const PRODUCT: u8 = 6;
    pub(in super::super) const JUXTAPOSITION: u8 = 8;
    pub(in super::super) const POWER: u8 = 10;
}

/// What the innermost bracket is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Inside {
    /// None: commas may separate thousands.
    Top,
    /// A command's argument: as none.
    Argument,
    /// Braces that may be a set.
    Brace,
    /// `\{`, before its bar.
    Set,
    /// Round, square or angle brackets, or a set behind its bar.
    Bracket,
    /// `]` that opens.
    Reversed,
    /// Bars.
    Bars,
    /// A cell of a matrix.
    Cell,
}

/// The tokens and where in them the parser is.
pub(super) struct Parser<'a> {
    tokens: Vec<Token>,
    pub(super) pos: usize,
    end: usize,
    nesting: u32,
    /// What the innermost bracket is.
    pub(super) inside: Inside,
    /// Whether degrees are angles here, to become radians.
    pub(super) angles: bool,
    /// Which slips are mended.
    pub(super) repairs: Repairs,
    fuel: &'a mut Fuel,
}

impl<'a> Parser<'a> {
    /// A parser of tokens whose text ends at `end`.
    pub(super) fn new(
        tokens: Vec<Token>,
        end: usize,
        repairs: Repairs,
        fuel: &'a mut Fuel,
    ) -> Self {
        let (pos, nesting, inside) = (0, 0, Inside::Top);
        Self {
            tokens,
            pos,
            end,
            nesting,
            inside,
            angles: false,
            repairs,
            fuel,
        }
    }

    /// The token `ahead` of the current one.
    pub(super) fn peek(&self, ahead: usize) -> Option<&Kind> {
        self.tokens.get(self.pos + ahead).map(|token| &token.kind)
    }

    /// The token `back` before the current one.
    pub(super) fn behind(&self, back: usize) -> Option<&Kind> {
        self.pos
            .checked_sub(back)
            .and_then(|i| self.tokens.get(i))
            .map(|token| &token.kind)
    }

    /// Whether space stands before the token `ahead`.
    pub(super) fn spaced(&self, ahead: usize) -> bool {
        self.tokens
            .get(self.pos + ahead)
            .is_some_and(|token| token.spaced)
    }

    /// Goes on by a token.
    pub(super) fn skip(&mut self) {
        self.pos += 1;
    }

    /// Takes the token if it is this.
    pub(super) fn take(&mut self, kind: &Kind) -> bool {
        let here = self.peek(0) == Some(kind);
        self.pos += usize::from(here);
        here
    }

    /// Replaces the current token.
    pub(super) fn replace(&mut self, kind: Kind) {
        if let Some(token) = self.tokens.get_mut(self.pos) {
            token.kind = kind;
            token.spaced = false;
        }
    }

    /// Takes the last token away.
    pub(super) fn drop_last(&mut self) {
        self.tokens.pop();
    }

    /// An error at the current token.
    pub(super) fn error(&self, message: &str) -> ParseError {
        let at = self.tokens.get(self.pos).map_or(self.end, |token| token.at);
        ParseError::Malformed {
            at,
            message: message.to_string(),
        }
    }

    /// Pays for a node.
    pub(super) fn pay(&mut self, units: u64) -> Result<(), ParseError> {
        Ok(self.fuel.spend(units)?)
    }

    /// Runs `read` one level deeper, inside of a bracket.
    pub(super) fn within<T>(
        &mut self,
        inside: Inside,
        read: impl FnOnce(&mut Self) -> Result<T, ParseError>,
    ) -> Result<T, ParseError> {
        if self.nesting >= MAX_NESTING {
            return Err(ParseError::TooDeep);
        }
        self.nesting += 1;
        let outside = std::mem::replace(&mut self.inside, inside);
        let result = read(self);
        self.inside = outside;
        self.nesting -= 1;
        result
    }

    /// An expression whose operators bind at least as tightly as `least`.
    pub(super) fn expr(&mut self, least: u8) -> Result<Expr, ParseError> {
        let inside = self.inside;
        self.within(inside, |parser| parser.climb(least))
    }

    fn climb(&mut self, least: u8) -> Result<Expr, ParseError> {
        self.pay(4)?;
        let mut left = self.prefix()?;
        let mut chain = Chain::None;
        let mut nested = 0;
        loop {
            let Some(kind) = self.peek(0) else {
                return Ok(left);
            };
            let step = match kind {
                Kind::Plus | Kind::Minus if least <= power::SUM => Step::Sum,
                Kind::PlusMinus(plus_first) if least <= power::SUM => Step::PlusMinus(*plus_first),
                Kind::Times if least <= power::PRODUCT => Step::Times,
                Kind::Divide if least <= power::PRODUCT => Step::Divide,
                Kind::Colon
                    if least <= power::PRODUCT
                        && self.inside != Inside::Set
                        && self.inside != Inside::Brace =>
                {
                    Step::Ratio
                }
                Kind::Modulo if least <= power::PRODUCT => Step::Modulo,
                Kind::Circle if least <= power::PRODUCT => Step::Compose,
                Kind::Set(operation) => {
                    let binds = match operation {
                        SetOperation::Difference => power::DIFFERENCE,
                        SetOperation::Union => power::UNION,
                        SetOperation::Intersection => power::INTERSECTION,
                    };
                    if binds < least {
                        return Ok(left);
                    }
                    Step::Set(*operation, binds)
                }
                Kind::Dots if self.dots_end() => {
                    self.skip();
                    continue;
                }
                Kind::BraceOpen if self.peek(1) == Some(&Kind::BraceClose) => {
                    self.pos += 2;
                    continue;
                }
                _ if least <= power::JUXTAPOSITION && self.starts_factor() => Step::Juxtaposition,
                _ => return Ok(left),
            };
            if !matches!(step, Step::Juxtaposition) {
                self.skip();
            }
            if matches!(
                step,
                Step::Divide | Step::Ratio | Step::Modulo | Step::Compose | Step::PlusMinus(_)
            ) {
                nested += 1;
                if nested > MAX_CHAIN {
                    return Err(ParseError::TooDeep);
                }
            }
            left = self.join(step, left, &mut chain)?;
        }
    }

    fn join(&mut self, step: Step, left: Expr, chain: &mut Chain) -> Result<Expr, ParseError> {
        let before = std::mem::replace(chain, Chain::None);
        Ok(match step {
            Step::Sum => {
                // The sign was passed.
                let minus = self.behind(1) == Some(&Kind::Minus);
                let right = self.expr(power::SUM + 1)?;
                let right = if minus { negated(right) } else { right };
                *chain = Chain::Sum;
                if minus && is_set(&left) && matches!(&right, Expr::Negated(set) if is_set(set)) {
                    let Expr::Negated(set) = right else {
                        return Ok(left);
                    };
                    *chain = Chain::None;
                    Expr::SetOperation(SetOperation::Difference, vec![left, *set])
                } else {
                    match left {
                        Expr::Sum(mut items) if before == Chain::Sum => {
                            items.push(right);
                            Expr::Sum(items)
                        }
                        left => Expr::Sum(vec![left, right]),
                    }
                }
            }
            Step::PlusMinus(plus_first) => {
                let right = Box::new(self.expr(power::SUM + 1)?);
                Expr::PlusMinus {
                    left: Box::new(left),
                    right,
                    plus_first,
                }
            }
            Step::Times => {
                let right = self.expr(power::PRODUCT + 1)?;
                *chain = Chain::Product;
                push_factor(left, right, before)
            }
            Step::Juxtaposition => {
                let right = self.expr(power::JUXTAPOSITION + 1)?;
                *chain = Chain::Product;
                push_factor(left, right, before)
            }
            Step::Divide => {
                let right = self.expr(power::PRODUCT + 1)?;
                self.fraction(left, right)
            }
            Step::Compose => {
                let right = self.expr(power::PRODUCT + 1)?;
                Expr::Call(
                    Function::Named,
                    vec![Expr::Text("compose".into()), left, right],
                )
            }
            Step::Ratio => {
                let right_text = match self.peek(0) {
                    Some(Kind::Digits(digits)) => digits.clone(),
                    _ => String::new(),
                };
                let right = self.expr(power::PRODUCT + 1)?;
                // `4:05`: minutes have two digits, the numbers of a ratio no zero before them.
                if right_text.len() == 2 && right_text.starts_with('0') {
                    Expr::Call(
                        Function::Named,
                        vec![Expr::Text("time".into()), left, right],
                    )
                } else {
                    quotient(left, right)
                }
            }
            Step::Modulo => {
                let right = self.expr(power::PRODUCT + 1)?;
                Expr::Call(Function::Mod, vec![left, right])
            }
            Step::Set(operation, binds) => {
                let right = self.expr(binds + 1)?;
                *chain = Chain::Set(operation);
                match left {
                    Expr::SetOperation(_, mut items)
                        if before == Chain::Set(operation)
                            && operation != SetOperation::Difference =>
                    {
                        items.push(right);
                        Expr::SetOperation(operation, items)
                    }
                    left => Expr::SetOperation(operation, vec![left, right]),
                }
            }
        })
    }

    /// Whether dots end what stands here: `2015.318 \ldots`.
    fn dots_end(&self) -> bool {
        !matches!(
            self.peek(1),
            Some(
                Kind::Plus
                    | Kind::Minus
                    | Kind::Times
                    | Kind::Digits(_)
                    | Kind::Symbol { .. }
                    | Kind::RoundOpen
            )
        )
    }

    /// Whether the token can be a factor with no sign before it.
    fn starts_factor(&self) -> bool {
        let Some(kind) = self.peek(0) else {
            return false;
        };
        match kind {
            Kind::Decimal(_) | Kind::Digits(_) | Kind::Exact { .. } => {
                // `3 4` is no product.
                let digits = |kind: Option<&Kind>| {
                    matches!(
                        kind,
                        Some(Kind::Digits(_) | Kind::Decimal(_) | Kind::Exact { .. })
                    )
                };
                matches!(kind, Kind::Exact { vulgar: true, .. }) || !digits(self.behind(1))
            }
            Kind::Symbol { .. }
            | Kind::Constant(_)
            | Kind::Text(_)
            | Kind::Function(_)
            | Kind::CommonLogarithm
            | Kind::Operator(_)
            | Kind::Big(_)
            | Kind::Overline
            | Kind::Fraction
            | Kind::Root { .. }
            | Kind::Binomial
            | Kind::BarOpen
            | Kind::BraceOpen
            | Kind::FloorOpen
            | Kind::CeilOpen
            | Kind::Dots => true,
            Kind::RoundOpen => self.peek(1) != Some(&Kind::Modulo),
            Kind::SquareOpen => self.inside != Inside::Reversed,
            Kind::Bar => {
                !matches!(self.inside, Inside::Bars | Inside::Set | Inside::Brace)
                    && self.bar_is_paired()
            }
            Kind::Begin(name) => name != "cases",
            _ => false,
        }
    }

    /// Whether another bar closes the one here: alone it says `divides`.
    fn bar_is_paired(&self) -> bool {
        (1..64)
            .map_while(|ahead| self.peek(ahead))
            .any(|kind| *kind == Kind::Bar)
    }

    fn prefix(&mut self) -> Result<Expr, ParseError> {
        match self.peek(0) {
            Some(Kind::Minus) => {
                self.skip();
                Ok(negated(self.expr(power::PRODUCT + 1)?))
            }
            Some(Kind::Plus) => {
                self.skip();
                self.expr(power::PRODUCT + 1)
            }
            Some(Kind::PlusMinus(plus_first)) => {
                let plus_first = *plus_first;
                self.skip();
                let right = Box::new(self.expr(power::SUM + 1)?);
                let left = Box::new(Expr::Number(BigRational::zero()));
                Ok(Expr::PlusMinus {
                    left,
                    right,
                    plus_first,
                })
            }
            Some(_) => self.postfix(),
            None => Err(self.error("an expression is missing")),
        }
    }
}

/// What the loop does next.
enum Step {
    Sum,
    PlusMinus(bool),
    Times,
    Juxtaposition,
    Divide,
    Ratio,
    Modulo,
    Compose,
    Set(SetOperation, u8),
}

/// What the left side is that this loop has built, which it may add to; a group is no such.
#[derive(Clone, Copy, PartialEq)]
enum Chain {
    None,
    Sum,
    Product,
    Set(SetOperation),
}

fn push_factor(left: Expr, right: Expr, chain: Chain) -> Expr {
    match left {
        Expr::Product(mut items) if chain == Chain::Product => {
            items.push(right);
            Expr::Product(items)
        }
        left => Expr::Product(vec![left, right]),
    }
}

fn is_set(expr: &Expr) -> bool {
    match expr {
        Expr::Set(_) | Expr::SetOperation(..) | Expr::SetBuilder { .. } => true,
        Expr::Symbol(name) => name.starts_with("mathbb{"),
        _ => false,
    }
}

/// `-a`; a number takes its sign.
pub(super) fn negated(expr: Expr) -> Expr {
    match expr {
        Expr::Number(value) if !value.is_zero() => Expr::Number(-value),
        Expr::Decimal(value) if !value.is_zero() => Expr::Decimal(-value),
        // `-5\%` is minus five, in percent.
        Expr::Percent(inner) if matches!(*inner, Expr::Number(_) | Expr::Decimal(_)) => {
            Expr::Percent(Box::new(negated(*inner)))
        }
        other => Expr::Negated(Box::new(other)),
    }
}

/// `a / b`; of two integers their number, unless the lower one is zero.
pub(super) fn quotient(upper: Expr, lower: Expr) -> Expr {
    match (&upper, &lower) {
        (Expr::Number(a), Expr::Number(b)) if a.is_integer() && numbers::is_nonzero_integer(b) => {
            Expr::Number(a / b)
        }
        _ => Expr::Quotient(Box::new(upper), Box::new(lower)),
    }
}
