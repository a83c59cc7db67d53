//! From an answer's text to its tree.
//!
//! - `normalise`: what stands around an answer and says nothing. `lexer` (with `numbers`, `words`
//!   and `commands`): characters to tokens, LaTeX, Unicode and typed text alike.
//! - `list`, `pratt`, `atoms`, `functions`, `environments`: tokens to a tree, in one pass without
//!   going back, so that the work is linear in the text.
//!
//! What the reference understands by an answer is `latex2sympy2-extended`'s grammar behind
//! `math_normalization.py`; where it misreads (`1 1/4`, `7.02e5`, `12\,345`, `0.\overline{3}`), this
//! reads what was meant.

mod atoms;
mod commands;
mod environments;
mod functions;
mod lexer;
mod list;
mod names;
mod normalise;
mod numbers;
mod postfix;
mod pratt;
mod reader;
mod token;
mod words;

#[cfg(test)]
mod tests;

use super::{
    expr::Expr,
    fuel::{Fuel, OutOfFuel},
};
use pratt::Parser;

/// In which language an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// LaTeX, without its `$`.
    Latex,
    /// As typed: `3/4`, `2^10`, `1,000`.
    Plain,
}

/// Which slips are mended: the reference's `NormalizationConfig`. Where the reference needs a flag to
/// understand what this parser understands anyway, the flag changes nothing; `malformed_operators`
/// does, as the paper's configuration refuses `\frac12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repairs {
    /// `\dfrac` is `\frac`, spacing commands go, and so on: always so here.
    pub basic_latex: bool,
    /// Units and `\text` suffixes go.
    pub units: bool,
    /// `\frac12`, `\sqrt3` and the like are given their braces.
    pub malformed_operators: bool,
    /// Small slips: `x =` and `= x` with nothing on the other side. (`.5` and closing punctuation are
    /// read without it.)
    pub nits: bool,
    /// `a = b = c` keeps only the last side.
    pub equations: bool,
}

/// Why a text has no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing is left of it.
    #[error("there is nothing to read")]
    Empty,
    /// It is not in the language.
    #[error("not understood at character {at}: {message}")]
    Malformed {
        /// Counted from 0 in the text that was given.
        at: usize,
        /// What is wrong.
        message: String,
    },
    /// Nested deeper than answers are.
    #[error("nested too deeply")]
    TooDeep,
    /// A number longer than answers are.
    #[error("a number with too many digits")]
    TooLarge,
    /// Fuel is out.
    #[error(transparent)]
    OutOfFuel(#[from] OutOfFuel),
}

/// Levels that a tree may have.
const MAX_LEVELS: usize = 100;

/// Reads an answer.
///
/// # Errors
/// See [`ParseError`].
pub fn parse(
    text: &str,
    syntax: Syntax,
    repairs: Repairs,
    fuel: &mut Fuel,
) -> Result<Expr, ParseError> {
    fuel.spend(text.len() as u64)?;
    let chars: Vec<char> = text.chars().collect();
    let range = normalise::inside(&chars);
    let inside = chars.get(range.clone()).unwrap_or(&[]);
    if inside.is_empty() {
        return Err(ParseError::Empty);
    }
    let whole: String = inside.iter().collect();
    if words::is_prose(&whole) {
        return Ok(Expr::Text(normalise::words(&whole)));
    }
    if syntax == Syntax::Plain
        && let Some(decimal) = normalise::decimal_comma(&whole)
    {
        return Ok(decimal);
    }
    let last = normalise::last_side(inside).map(|at| range.start + at..range.end);
    if repairs.equations
        && let Some(last) = last
    {
        return read(&chars, last, repairs, fuel);
    }
    match read(&chars, range, repairs, fuel) {
        // As the reference does: what can't be read is not needed when only the last side counts.
        Err(ParseError::Malformed { at, message }) => match last {
            Some(last) => {
                read(&chars, last, repairs, fuel).map_err(|_| ParseError::Malformed { at, message })
            }
            None => Err(ParseError::Malformed { at, message }),
        },
        other => other,
    }
}

fn read(
    chars: &[char],
    range: std::ops::Range<usize>,
    repairs: Repairs,
    fuel: &mut Fuel,
) -> Result<Expr, ParseError> {
    let end = range.end;
    let tokens = lexer::tokens(chars.get(range.clone()).unwrap_or(&[]), range.start, fuel)?;
    if tokens.is_empty() {
        return Err(ParseError::Empty);
    }
    let expr = Parser::new(tokens, end, repairs, fuel).answer()?;
    if levels(&expr, 0) > MAX_LEVELS {
        return Err(ParseError::TooDeep);
    }
    Ok(expr)
}

/// Levels of a tree. The parser bounds them to a few thousand on its own (nesting times chains).
fn levels(expr: &Expr, above: usize) -> usize {
    let of = |items: &[Expr]| {
        items
            .iter()
            .map(|child| levels(child, above + 1))
            .max()
            .unwrap_or(above + 1)
    };
    let both = |a: &Expr, b: &Expr| levels(a, above + 1).max(levels(b, above + 1));
    match expr {
        Expr::Number(_)
        | Expr::Decimal(_)
        | Expr::Constant(_)
        | Expr::Symbol(_)
        | Expr::Text(_) => above + 1,
        Expr::Sum(items)
        | Expr::Product(items)
        | Expr::Call(_, items)
        | Expr::Set(items)
        | Expr::Delimited { items, .. }
        | Expr::SetOperation(_, items)
        | Expr::Relation { sides: items, .. }
        | Expr::And(items)
        | Expr::Or(items) => of(items),
        Expr::Quotient(a, b) | Expr::Power(a, b) => both(a, b),
        Expr::PlusMinus { left, right, .. } => both(left, right),
        Expr::SetBuilder { element, condition } => both(element, condition),
        Expr::Negated(inner) | Expr::Percent(inner) => levels(inner, above + 1),
        Expr::Matrix(rows) => rows.iter().map(|row| of(row)).max().unwrap_or(above + 1),
    }
}
