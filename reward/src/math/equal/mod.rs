//! Whether two answers are the same.
//!
//! What the answers are (a number, a set, a relation …) decides who compares them: [`compare`]
//! unwraps equations and pairs kinds up, as the reference's `sympy_expr_eq` does; `list` compares
//! sets, points and intervals item by item; `line` compares sets of reals by where they are, with
//! `condition` for inequalities; `relation` equations and inequalities; `matrix` entry by entry. All
//! end at `scalar`: exact rationals (`exact`), then residues in a finite field (`modular` over
//! `residue`, `code` for what has no value there), then evaluation at random points with error bounds
//! (`numeric` over `evaluate`, `complex`, `real`, `elementary`, `series`).

mod code;
mod compare;
mod complex;
mod condition;
mod elementary;
mod evaluate;
mod exact;
mod line;
mod list;
mod matrix;
mod modular;
mod numeric;
#[cfg(test)]
mod properties;
mod real;
mod relation;
mod residue;
mod scalar;
mod series;
mod shape;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_kinds;

use super::{
    expr::Expr,
    fuel::{Fuel, OutOfFuel},
};

/// How strictly answers are compared: the reference's parameters of `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Decimals at which numbers compare when one side is a decimal.
    pub float_rounding: u32,
    /// Variables' names matter, and a set is not a tuple.
    pub strict: bool,
    /// An interval gold accepts an inequality.
    pub set_relation: bool,
}

/// Why two answers could not be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJudged {
    /// Fuel is out, or a number would be too large.
    #[error("{0}")]
    TooMuchWork(String),
}

impl From<OutOfFuel> for NotJudged {
    fn from(error: OutOfFuel) -> Self {
        Self::TooMuchWork(error.to_string())
    }
}

type Result<T> = std::result::Result<T, NotJudged>;

/// Levels of nesting that are compared; no answer has as many, and the stack bears them.
const DEEPEST: usize = 120;

/// Whether `answer` is what `gold` asks for. Not symmetric where the reference is not: a set gold
/// takes any order, an inequality gold an interval.
///
/// # Errors
/// It would cost more work than it may.
pub fn equal(gold: &Expr, answer: &Expr, comparison: Comparison, fuel: &mut Fuel) -> Result<bool> {
    if shape::deeper_than(gold, DEEPEST, fuel)? || shape::deeper_than(answer, DEEPEST, fuel)? {
        return Err(NotJudged::TooMuchWork(format!(
            "more than {DEEPEST} levels of nesting"
        )));
    }
    if gold == answer {
        return Ok(true);
    }
    let mut judge = Judge { comparison, fuel };
    if !comparison.strict {
        return judge.equal_but_for_names(gold, answer);
    }
    judge.answers(gold, answer)
}

/// What a comparison needs at every step.
#[derive(Debug)]
struct Judge<'a> {
    comparison: Comparison,
    fuel: &'a mut Fuel,
}
