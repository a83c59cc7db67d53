//! A tree as LaTeX that reads back to an equal tree.

use std::fmt::{self, Display, Formatter, Write as _};

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::expr::{Constant, Delimiter, Expr, Function, Relation, SetOperation};

/// The tree as LaTeX.
pub fn render(expr: &Expr) -> String {
    expr.to_string()
}

impl Display for Expr {
    /// LaTeX that [`parse`](super::parse::parse) reads back to an equal tree, for every tree that it
    /// makes.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Number(value) => number(f, value),
            Expr::Decimal(value) => decimal(f, value),
            Expr::Constant(Constant::Pi) => f.write_str("\\pi"),
            Expr::Constant(Constant::E) => f.write_str("e"),
            Expr::Constant(Constant::I) => f.write_str("i"),
            Expr::Constant(Constant::Infinity) => f.write_str("\\infty"),
            Expr::Symbol(name) => symbol(f, name),
            Expr::Sum(items) => sum(f, items),
            Expr::Product(items) => separated(f, items, " \\cdot ", factor),
            Expr::Quotient(upper, lower) => write!(f, "\\frac{{{upper}}}{{{lower}}}"),
            Expr::Power(base, exponent) => {
                atom(f, base)?;
                write!(f, "^{{{exponent}}}")
            }
            Expr::Negated(inner) => {
                f.write_char('-')?;
                atom(f, inner)
            }
            Expr::Call(function, arguments) => call(f, *function, arguments),
            Expr::Percent(inner) => {
                atom(f, inner)?;
                f.write_str("\\%")
            }
            Expr::PlusMinus {
                left,
                right,
                plus_first,
            } => {
                let sign = if *plus_first { "\\pm " } else { "\\mp " };
                match left.as_ref() {
                    Expr::Number(zero) if zero.is_zero() => f.write_str(sign)?,
                    // The sign takes all of a sum before it.
                    left @ (Expr::Sum(_) | Expr::Number(_) | Expr::Decimal(_)) => {
                        write!(f, "{left} {sign}")?;
                    }
                    left => {
                        term(f, left)?;
                        write!(f, " {sign}")?;
                    }
                }
                term(f, right)
            }
            Expr::Set(items) if items.is_empty() => f.write_str("\\emptyset"),
            Expr::Set(items) => {
                f.write_str("\\{")?;
                separated(f, items, ", ", item)?;
                f.write_str("\\}")
            }
            Expr::Delimited { open, close, items } => {
                f.write_str(match open {
                    Delimiter::Round => "(",
                    Delimiter::Square => "[",
                    Delimiter::Angle => "\\langle ",
                })?;
                separated(f, items, ", ", item)?;
                f.write_str(match close {
                    Delimiter::Round => ")",
                    Delimiter::Square => "]",
                    Delimiter::Angle => "\\rangle ",
                })
            }
            Expr::SetOperation(operation, items) => {
                let sign = match operation {
                    SetOperation::Union => " \\cup ",
                    SetOperation::Intersection => " \\cap ",
                    SetOperation::Difference => " \\setminus ",
                };
                separated(f, items, sign, atom)
            }
            Expr::Relation { sides, operators } => {
                for (index, item) in sides.iter().enumerate() {
                    if let Some(operator) = index.checked_sub(1).and_then(|i| operators.get(i)) {
                        write!(f, " {} ", relation(*operator))?;
                    }
                    side(f, item)?;
                }
                Ok(())
            }
            Expr::SetBuilder { element, condition } => {
                f.write_str("\\{")?;
                item(f, element)?;
                f.write_str(" \\mid ")?;
                item(f, condition)?;
                f.write_str("\\}")
            }
            Expr::And(items) => separated(f, items, " \\text{ and } ", item),
            Expr::Or(items) => separated(f, items, " \\text{ or } ", item),
            Expr::Matrix(rows) => {
                f.write_str("\\begin{pmatrix} ")?;
                for (index, row) in rows.iter().enumerate() {
                    if index > 0 {
                        f.write_str(" \\\\ ")?;
                    }
                    separated(f, row, " & ", item)?;
                }
                f.write_str(" \\end{pmatrix}")
            }
            Expr::Text(words) if words == "..." => f.write_str("\\ldots"),
            Expr::Text(words) => write!(f, "\\text{{{words}}}"),
        }
    }
}

type Write = fn(&mut Formatter<'_>, &Expr) -> fmt::Result;

fn separated(f: &mut Formatter<'_>, items: &[Expr], by: &str, write: Write) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(by)?;
        }
        write(f, item)?;
    }
    Ok(())
}

fn bracketed(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    write!(f, "({expr})")
}

/// An integer, a proper or improper fraction.
fn number(f: &mut Formatter<'_>, value: &BigRational) -> fmt::Result {
    if value.is_integer() {
        return write!(f, "{}", value.numer());
    }
    let sign = if value.is_negative() { "-" } else { "" };
    write!(
        f,
        "{sign}\\frac{{{}}}{{{}}}",
        value.numer().abs(),
        value.denom()
    )
}

/// With its point, however long: the denominator divides a power of ten.
fn decimal(f: &mut Formatter<'_>, value: &BigRational) -> fmt::Result {
    let ten = BigInt::from(10);
    let mut scaled = value.numer().abs();
    let mut rest = value.denom().clone();
    let mut places = 0usize;
    let (two, five) = (BigInt::from(2), BigInt::from(5));
    while !rest.is_one() {
        let both = (&rest % &two).is_zero() && (&rest % &five).is_zero();
        if both {
            rest /= &ten;
        } else if (&rest % &two).is_zero() {
            rest /= &two;
            scaled *= &five;
        } else if (&rest % &five).is_zero() {
            rest /= &five;
            scaled *= &two;
        } else {
            // No decimal: the parser makes none such.
            return number(f, value);
        }
        places += 1;
    }
    let digits = format!("{:0>width$}", scaled.to_string(), width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    let fraction = if fraction.is_empty() { "0" } else { fraction };
    let sign = if value.is_negative() { "-" } else { "" };
    write!(f, "{sign}{whole}.{fraction}")
}

fn symbol(f: &mut Formatter<'_>, name: &str) -> fmt::Result {
    let unprimed = name.trim_end_matches('\'');
    let (base, subscript) = match unprimed.split_once('_') {
        Some((base, subscript)) => (base, Some(subscript)),
        None => (unprimed, None),
    };
    match base {
        // The small letters are constants.
        "e" | "i" if subscript.is_none() => f.write_str(&base.to_uppercase())?,
        "capitalpi" => f.write_str("\\Pi ")?,
        _ if base.chars().count() == 1 => f.write_str(base)?,
        _ => match base.split_once('{') {
            Some(("bar", inner)) => write!(f, "\\overline{{{inner}")?,
            Some(("mathbb", inner)) => write!(f, "\\mathbb{{{}", inner.to_uppercase())?,
            _ if base.contains('{') => write!(f, "\\{base}")?,
            // Not a space before a prime: the prime would be no part of the name.
            _ if subscript.is_none() && unprimed.len() < name.len() => write!(f, "\\{base}")?,
            _ => write!(f, "\\{base} ")?,
        },
    }
    if let Some(subscript) = subscript {
        write!(f, "_{{{subscript}}}")?;
    }
    f.write_str(name.get(unprimed.len()..).unwrap_or_default())
}

fn sum(f: &mut Formatter<'_>, items: &[Expr]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index == 0 {
            match item {
                // What a sign `±` has taken, its sum goes on with.
                Expr::PlusMinus { .. } => write!(f, "{item}")?,
                Expr::Number(_) | Expr::Decimal(_) | Expr::Negated(_) => write!(f, "{item}")?,
                item => term(f, item)?,
            }
            continue;
        }
        match item {
            Expr::Negated(inner) => {
                f.write_str(" - ")?;
                factor(f, inner)?;
            }
            Expr::Number(value) if value.is_negative() => {
                f.write_str(" - ")?;
                number(f, &-value)?;
            }
            Expr::Decimal(value) if value.is_negative() => {
                f.write_str(" - ")?;
                decimal(f, &-value)?;
            }
            item => {
                f.write_str(" + ")?;
                term(f, item)?;
            }
        }
    }
    Ok(())
}

/// What may stand between `+` as it is.
fn term(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    match expr {
        Expr::Product(_) => write!(f, "{expr}"),
        Expr::Negated(_) => bracketed(f, expr),
        other => factor(f, other),
    }
}

/// What may stand between `\cdot` as it is.
fn factor(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    match expr {
        Expr::Power(..) | Expr::Percent(_) => write!(f, "{expr}"),
        Expr::Quotient(..) => write!(f, "{expr}"),
        Expr::Call(Function::Factorial | Function::DoubleFactorial, _) => write!(f, "{expr}"),
        Expr::Number(value) | Expr::Decimal(value) if !value.is_negative() => write!(f, "{expr}"),
        other => atom(f, other),
    }
}

/// What may be raised as it is.
fn atom(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    let plain = match expr {
        Expr::Number(value) => value.is_integer() && !value.is_negative(),
        Expr::Decimal(value) => !value.is_negative(),
        Expr::Constant(_)
        | Expr::Symbol(_)
        | Expr::Set(_)
        | Expr::SetBuilder { .. }
        | Expr::Delimited { .. }
        | Expr::Text(_) => true,
        // `m^{t}` after a matrix transposes it.
        Expr::Matrix(_) => false,
        Expr::Call(function, _) => {
            !matches!(function, Function::Factorial | Function::DoubleFactorial)
        }
        _ => false,
    };
    if plain {
        write!(f, "{expr}")
    } else {
        bracketed(f, expr)
    }
}

/// What may stand between commas as it is.
fn item(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    match expr {
        Expr::And(_) | Expr::Or(_) => bracketed(f, expr),
        other => write!(f, "{other}"),
    }
}

/// What may be a side of a relation as it is.
fn side(f: &mut Formatter<'_>, expr: &Expr) -> fmt::Result {
    match expr {
        Expr::And(_) | Expr::Or(_) | Expr::Relation { .. } => bracketed(f, expr),
        other => write!(f, "{other}"),
    }
}

fn relation(operator: Relation) -> &'static str {
    match operator {
        Relation::Equal => "=",
        Relation::NotEqual => "\\ne",
        Relation::Less => "<",
        Relation::LessEqual => "\\le",
        Relation::Greater => ">",
        Relation::GreaterEqual => "\\ge",
        Relation::In => "\\in",
        Relation::NotIn => "\\notin",
        Relation::Approximate => "\\approx",
    }
}

fn call(f: &mut Formatter<'_>, function: Function, arguments: &[Expr]) -> fmt::Result {
    let name = match (function, arguments) {
        (Function::Root, [x]) => return write!(f, "\\sqrt{{{x}}}"),
        (Function::Root, [x, n]) => return write!(f, "\\sqrt[{n}]{{{x}}}"),
        (Function::Abs, [x]) => return write!(f, "\\left|{x}\\right|"),
        (Function::Floor, [x]) => return write!(f, "\\lfloor {x}\\rfloor "),
        (Function::Ceil, [x]) => return write!(f, "\\lceil {x}\\rceil "),
        (Function::Binomial, [n, k]) => return write!(f, "\\binom{{{n}}}{{{k}}}"),
        (Function::Log, [x, base]) => return write!(f, "\\log_{{{base}}}({x})"),
        (Function::Factorial, [x]) => {
            atom(f, x)?;
            return f.write_char('!');
        }
        (Function::DoubleFactorial, [x]) => {
            atom(f, x)?;
            return f.write_str("!!");
        }
        (Function::Named, [Expr::Text(name), rest @ ..]) => {
            match name.as_str() {
                "f" | "g" | "h" => write!(f, "{name}(")?,
                _ => write!(f, "\\operatorname{{{name}}}(")?,
            }
            separated(f, rest, ", ", item)?;
            return f.write_char(')');
        }
        (Function::Ln, _) => "\\ln",
        (Function::Exp, _) => "\\exp",
        (Function::Sin, _) => "\\sin",
        (Function::Cos, _) => "\\cos",
        (Function::Tan, _) => "\\tan",
        (Function::Cot, _) => "\\cot",
        (Function::Sec, _) => "\\sec",
        (Function::Csc, _) => "\\csc",
        (Function::Asin, _) => "\\arcsin",
        (Function::Acos, _) => "\\arccos",
        (Function::Atan, _) => "\\arctan",
        (Function::Sinh, _) => "\\sinh",
        (Function::Cosh, _) => "\\cosh",
        (Function::Tanh, _) => "\\tanh",
        (Function::Gcd, _) => "\\gcd",
        (Function::Lcm, _) => "\\operatorname{lcm}",
        (Function::Min, _) => "\\min",
        (Function::Max, _) => "\\max",
        (Function::Conjugate, _) => "\\operatorname{conj}",
        (Function::Mod, _) => "\\operatorname{mod}",
        (Function::Root, _) => "\\operatorname{root}",
        (Function::Abs, _) => "\\operatorname{abs}",
        (Function::Floor, _) => "\\operatorname{floor}",
        (Function::Ceil, _) => "\\operatorname{ceil}",
        (Function::Binomial, _) => "\\operatorname{binomial}",
        (Function::Log, _) => "\\log",
        (Function::Factorial | Function::DoubleFactorial, _) => "\\operatorname{factorial}",
        (Function::Named, _) => "\\operatorname{named}",
    };
    f.write_str(name)?;
    f.write_char('(')?;
    separated(f, arguments, ", ", item)?;
    f.write_char(')')
}
