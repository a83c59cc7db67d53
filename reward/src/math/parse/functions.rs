//! Functions and their arguments.

use num_rational::BigRational;
use num_traits::One;

use super::{
    ParseError,
    list::List,
    pratt::{Inside, Parser, negated, power, quotient},
    token::Kind,
};
use crate::math::expr::{Constant, Expr, Function};

impl Parser<'_> {
    /// A function whose name was passed.
    pub(super) fn function(&mut self, function: Function) -> Result<Expr, ParseError> {
        let mut raised = None;
        let mut base = None;
        // `\log_2^3 x`, `\log^3_2 x`.
        for _ in 0..2 {
            if raised.is_none() && self.take(&Kind::Caret) {
                raised = Some(self.exponent_of_name()?);
            } else if base.is_none() && self.take(&Kind::Underscore) {
                base = Some(self.subscript()?);
            }
        }
        let call = match function {
            Function::Gcd | Function::Lcm | Function::Min | Function::Max => {
                let mut arguments = self.arguments()?;
                if let Some(base) = base {
                    // `\max_{x} f(x)` is over a variable.
                    let name = if function == Function::Max {
                        "maxover"
                    } else {
                        "minover"
                    };
                    arguments.insert(0, Expr::Text(name.to_string()));
                    arguments.insert(1, base);
                    Expr::Call(Function::Named, arguments)
                } else {
                    Expr::Call(function, arguments)
                }
            }
            Function::Log => {
                let ten = Expr::Number(BigRational::from_integer(10.into()));
                let argument = self.function_argument(false)?;
                // As in the reference, `\log` alone has base 10.
                Expr::Call(Function::Log, vec![argument, base.unwrap_or(ten)])
            }
            _ => {
                if base.is_some() {
                    return Err(self.error("a subscript of a function that takes none"));
                }
                let inverted =
                    matches!(&raised, Some(Expr::Number(n)) if *n == -BigRational::one());
                let function = match inverse(function).filter(|_| inverted) {
                    Some(inverse) => {
                        raised = None;
                        inverse
                    }
                    None => function,
                };
                let argument = self.function_argument(is_trigonometric(function))?;
                Expr::Call(function, vec![argument])
            }
        };
        Ok(match raised {
            Some(exponent) => Expr::Power(Box::new(call), Box::new(exponent)),
            None => call,
        })
    }

    /// `\lg x`.
    pub(super) fn common_logarithm(&mut self) -> Result<Expr, ParseError> {
        self.function(Function::Log)
    }

    fn exponent_of_name(&mut self) -> Result<Expr, ParseError> {
        if self.peek(0) == Some(&Kind::BraceOpen) {
            return self.argument();
        }
        let minus = self.take(&Kind::Minus);
        let inside = self.inside;
        let exponent = self.within(inside, Parser::atom)?;
        Ok(if minus { negated(exponent) } else { exponent })
    }

    fn subscript(&mut self) -> Result<Expr, ParseError> {
        if self.peek(0) == Some(&Kind::BraceOpen) {
            return self.argument();
        }
        // `\log_28`: one digit, as LaTeX has it.
        if let Some(Kind::Digits(digits)) = self.peek(0)
            && digits.len() > 1
        {
            return Ok(self.first_digit());
        }
        let inside = self.inside;
        self.within(inside, Parser::atom)
    }

    /// What a function is of: what brackets hold, or without brackets the factors that follow up to
    /// the next function.
    fn function_argument(&mut self, angle: bool) -> Result<Expr, ParseError> {
        let outside = std::mem::replace(&mut self.angles, angle);
        let argument = self.argument_of_function(angle);
        self.angles = outside;
        match argument? {
            Expr::Delimited { .. } | Expr::Set(_) => {
                Err(self.error("a list in the place of one argument"))
            }
            argument => Ok(argument),
        }
    }

    fn argument_of_function(&mut self, angle: bool) -> Result<Expr, ParseError> {
        let inside = self.inside;
        if matches!(
            self.peek(0),
            Some(Kind::RoundOpen | Kind::SquareOpen | Kind::BraceOpen)
        ) {
            return self.within(inside, Parser::atom);
        }
        if self.take(&Kind::Minus) {
            return Ok(negated(self.factors(angle)?));
        }
        self.factors(angle)
    }

    fn factors(&mut self, angle: bool) -> Result<Expr, ParseError> {
        let inside = self.inside;
        self.within(inside, |parser| {
            let mut factors = vec![parser.postfix()?];
            while parser.continues_argument() {
                factors.push(parser.postfix()?);
            }
            let turns = factors
                .iter()
                .any(|f| matches!(f, Expr::Constant(Constant::Pi)));
            let argument = match (factors.pop(), factors.is_empty()) {
                (Some(single), true) => single,
                (Some(last), false) => {
                    factors.push(last);
                    Expr::Product(factors)
                }
                (None, _) => return Err(parser.error("a function's argument is missing")),
            };
            // `\sin \pi / 4`: what divides an angle belongs to it.
            if angle
                && turns
                && parser.peek(0) == Some(&Kind::Divide)
                && matches!(parser.peek(1), Some(Kind::Digits(_)))
            {
                parser.skip();
                return Ok(quotient(argument, parser.postfix()?));
            }
            Ok(argument)
        })
    }

    fn continues_argument(&self) -> bool {
        matches!(
            self.peek(0),
            Some(
                Kind::Symbol { .. }
                    | Kind::Constant(_)
                    | Kind::Fraction
                    | Kind::Root { .. }
                    | Kind::Binomial
                    | Kind::BraceOpen
                    | Kind::BarOpen,
            )
        )
    }

    /// Several arguments: `(a, b)`, `\{a, b\}` or what stands there.
    fn arguments(&mut self) -> Result<Vec<Expr>, ParseError> {
        if matches!(
            self.peek(0),
            Some(Kind::RoundOpen | Kind::SetOpen | Kind::BraceOpen | Kind::SquareOpen)
        ) {
            return self.bracketed_arguments();
        }
        Ok(vec![self.function_argument(false)?])
    }

    /// The list in the bracket that opens here, whichever it is.
    fn bracketed_arguments(&mut self) -> Result<Vec<Expr>, ParseError> {
        self.within(Inside::Bracket, |parser| {
            parser.skip();
            let List { items, .. } = parser.list()?;
            match parser.peek(0) {
                Some(Kind::RoundClose | Kind::SetClose | Kind::BraceClose | Kind::SquareClose) => {
                    parser.skip();
                    Ok(items)
                }
                _ => Err(parser.error("a function's bracket is not closed here")),
            }
        })
    }

    /// A variable, or where brackets follow that hold arguments, a function by that name.
    pub(super) fn symbol(&mut self, name: String, capital: bool) -> Result<Expr, ParseError> {
        let letter = name.trim_end_matches('\'');
        let letter = letter.split('_').next().unwrap_or(letter);
        let usual = matches!(letter, "f" | "g" | "h" | "phi" | "psi");
        let inverted = usual
            && self.peek(0) == Some(&Kind::Caret)
            && self.peek(1) == Some(&Kind::BraceOpen)
            && self.peek(2) == Some(&Kind::Minus)
            && matches!(self.peek(3), Some(Kind::Digits(one)) if one == "1")
            && self.peek(4) == Some(&Kind::BraceClose)
            && self.peek(5) == Some(&Kind::RoundOpen);
        if inverted {
            for _ in 0..5 {
                self.skip();
            }
            return self.named(format!("{name}^-1"));
        }
        if self.peek(0) == Some(&Kind::RoundOpen) && self.applies(0, usual, capital) {
            return self.named(name);
        }
        // `f{\left(t\right)}`, as computer algebra prints it.
        if self.peek(0) == Some(&Kind::BraceOpen)
            && self.peek(1) == Some(&Kind::RoundOpen)
            && self.applies(1, usual, capital)
        {
            self.skip();
            let call = self.named(name)?;
            self.take(&Kind::BraceClose);
            return Ok(call);
        }
        Ok(Expr::Symbol(name))
    }

    /// Whether the bracket behind a letter holds arguments. As in the reference, one letter alone
    /// or a list does (`x(t)`, `P(1, 2)`); sums are factors (`n(n-1)`), but for the usual names of
    /// functions.
    fn applies(&self, bracket: usize, usual: bool, capital: bool) -> bool {
        if usual {
            return true;
        }
        match (self.peek(bracket + 1), self.peek(bracket + 2)) {
            (Some(Kind::Symbol { .. }), Some(Kind::RoundClose)) => return true,
            (Some(Kind::Digits(_)), Some(Kind::RoundClose)) => return capital,
            _ => {}
        }
        let mut depth = 0;
        for ahead in 1..32 {
            match self.peek(bracket + ahead) {
                Some(
                    Kind::RoundOpen
                    | Kind::BraceOpen
                    | Kind::SquareOpen
                    | Kind::SetOpen
                    | Kind::Begin(_),
                ) => depth += 1,
                Some(Kind::RoundClose) if depth == 0 => return false,
                Some(
                    Kind::RoundClose
                    | Kind::BraceClose
                    | Kind::SquareClose
                    | Kind::SetClose
                    | Kind::End(_),
                ) => depth -= 1,
                Some(Kind::Comma) if depth == 0 => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }

    fn named(&mut self, name: String) -> Result<Expr, ParseError> {
        let mut arguments = vec![Expr::Text(name.replace(['{', '}'], ""))];
        arguments.extend(self.bracketed_arguments()?);
        Ok(Expr::Call(Function::Named, arguments))
    }

    /// `\operatorname{name}`: of what follows in brackets, or a name alone.
    pub(super) fn operator(&mut self, name: String) -> Result<Expr, ParseError> {
        let raised = if self.take(&Kind::Caret) {
            Some(self.exponent_of_name()?)
        } else {
            None
        };
        let call = match self.peek(0) {
            Some(Kind::RoundOpen | Kind::SetOpen) => {
                let arguments = self.bracketed_arguments()?;
                match (name.as_str(), arguments.len()) {
                    ("mod", 2) => Expr::Call(Function::Mod, arguments),
                    ("conj", 1) => Expr::Call(Function::Conjugate, arguments),
                    ("binomial", 2) => Expr::Call(Function::Binomial, arguments),
                    _ => {
                        let mut named = vec![Expr::Text(name)];
                        named.extend(arguments);
                        Expr::Call(Function::Named, named)
                    }
                }
            }
            Some(Kind::Symbol { .. } | Kind::Digits(_) | Kind::Begin(_) | Kind::BraceOpen)
            | Some(Kind::Fraction | Kind::Root { .. } | Kind::Constant(_)) => {
                let argument = self.function_argument(false)?;
                Expr::Call(Function::Named, vec![Expr::Text(name), argument])
            }
            _ => Expr::Text(name),
        };
        Ok(match raised {
            Some(exponent) => Expr::Power(Box::new(call), Box::new(exponent)),
            None => call,
        })
    }

    /// A sum, product, integral or limit, by name and in parts: below, above, of what.
    pub(super) fn big(&mut self, name: &str) -> Result<Expr, ParseError> {
        let inside = self.inside;
        self.within(inside, |parser| {
            let mut parts = vec![Expr::Text(name.to_string())];
            let (mut below, mut above) = (None, None);
            for _ in 0..2 {
                if below.is_none() && parser.take(&Kind::Underscore) {
                    below = Some(parser.bound()?);
                } else if above.is_none() && parser.take(&Kind::Caret) {
                    above = Some(parser.bound()?);
                }
            }
            parts.extend(below);
            parts.extend(above);
            let least = if name == "int" {
                power::SUM
            } else {
                power::PRODUCT
            };
            parts.push(parser.expr(least)?);
            Ok(Expr::Call(Function::Named, parts))
        })
    }

    fn bound(&mut self) -> Result<Expr, ParseError> {
        if self.peek(0) == Some(&Kind::BraceOpen) {
            return self.argument();
        }
        let inside = self.inside;
        self.within(inside, |parser| {
            let minus = parser.take(&Kind::Minus);
            let bound = parser.atom()?;
            Ok(if minus { negated(bound) } else { bound })
        })
    }
}

fn is_trigonometric(function: Function) -> bool {
    matches!(
        function,
        Function::Sin
            | Function::Cos
            | Function::Tan
            | Function::Cot
            | Function::Sec
            | Function::Csc
    )
}

/// What `\sin^{-1}` inverts.
fn inverse(function: Function) -> Option<Function> {
    match function {
        Function::Sin => Some(Function::Asin),
        Function::Cos => Some(Function::Acos),
        Function::Tan => Some(Function::Atan),
        _ => None,
    }
}
