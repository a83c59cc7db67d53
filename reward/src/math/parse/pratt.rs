//! Expressions by binding power: sums, products, quotients, powers, operations on sets.

use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::{
    ParseError, Repairs, numbers,
    token::{Kind, Token},
};
use crate::math::{
    expr::{Constant, Expr, Function, SetOperation},
    fuel::Fuel,
};

/// Levels that brackets, powers and functions may be nested.
const MAX_NESTING: u32 = 64;

/// Steps of a chain that nests to the left (`a/b/c`, `n!!!`).
const MAX_CHAIN: u32 = 16;

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
    pos: usize,
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
        let literal = matches!(self.peek(0), Some(Kind::Digits(_)));
        let start = self.pos;
        let mut left = self.prefix()?;
        // An integer that nothing has joined yet: a fraction after it makes a mixed number.
        let mut mixable = literal && self.pos == start + 1;
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
                Step::Divide | Step::Ratio | Step::Modulo | Step::PlusMinus(_)
            ) {
                nested += 1;
                if nested > MAX_CHAIN {
                    return Err(ParseError::TooDeep);
                }
            }
            left = self.join(step, left, &mut chain, mixable)?;
            mixable = false;
        }
    }

    fn join(
        &mut self,
        step: Step,
        left: Expr,
        chain: &mut Chain,
        mixable: bool,
    ) -> Result<Expr, ParseError> {
        let before = std::mem::replace(chain, Chain::None);
        Ok(match step {
            Step::Sum => {
                // The sign was passed.
                let minus = self.tokens.get(self.pos - 1).map(|t| &t.kind) == Some(&Kind::Minus);
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
                let next_is_fraction = matches!(
                    self.peek(0),
                    Some(Kind::Fraction | Kind::Exact { vulgar: true, .. })
                );
                let right = self.expr(power::JUXTAPOSITION + 1)?;
                if mixable
                    && next_is_fraction
                    && let (Expr::Number(whole), Expr::Number(part)) = (&left, &right)
                    && part.is_positive()
                    && part < &BigRational::one()
                {
                    return Ok(Expr::Number(whole + part));
                }
                *chain = Chain::Product;
                push_factor(left, right, before)
            }
            Step::Divide => quotient(left, self.expr(power::PRODUCT + 1)?),
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
                let before = self.pos.checked_sub(1).and_then(|i| self.tokens.get(i));
                matches!(kind, Kind::Exact { vulgar: true, .. })
                    || !digits(before.map(|token| &token.kind))
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
            Kind::Bar => !matches!(self.inside, Inside::Bars | Inside::Set | Inside::Brace),
            Kind::Begin(name) => name != "cases",
            _ => false,
        }
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

    /// An atom with what follows it: powers, `!`, `%`, degrees, units.
    pub(super) fn postfix(&mut self) -> Result<Expr, ParseError> {
        let mut base = self.atom()?;
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
                    self.pos += usize::from(double);
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
                    let name = Expr::Text("prime".to_string());
                    base = Expr::Call(Function::Named, vec![name, base]);
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

    fn degrees(&self, base: Expr) -> Expr {
        if !self.angles {
            return base;
        }
        let half_turn = Expr::Number(BigRational::from_integer(180.into()));
        let radian = Expr::Quotient(Box::new(Expr::Constant(Constant::Pi)), Box::new(half_turn));
        Expr::Product(vec![base, radian])
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

    /// A number's subscript is the base of its digits.
    fn based(&mut self, digits: Expr) -> Result<Expr, ParseError> {
        let refused = self.error("a subscript that is no base of a number");
        let base = if self.peek(0) == Some(&Kind::BraceOpen) {
            self.argument()?
        } else {
            self.atom()?
        };
        let base = match &base {
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
        match (digits, base) {
            (Expr::Number(written), Some(base)) if written.is_integer() => {
                let digits = written.to_integer().to_string();
                self.pay((digits.len() * digits.len() / 64) as u64)?;
                match numbers::in_base(&digits, base) {
                    Some(value) => Ok(Expr::Number(BigRational::from_integer(value))),
                    None => Err(refused),
                }
            }
            _ => Err(refused),
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

fn is_ordinal(word: &str) -> bool {
    matches!(word, "th" | "st" | "nd" | "rd")
}

/// `-a`; a number takes its sign.
pub(super) fn negated(expr: Expr) -> Expr {
    match expr {
        Expr::Number(value) if !value.is_zero() => Expr::Number(-value),
        Expr::Decimal(value) if !value.is_zero() => Expr::Decimal(-value),
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
