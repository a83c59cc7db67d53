//! Whether two answers are the same.

use super::{expr::Expr, fuel::Fuel};

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

/// Whether `answer` is what `gold` asks for. Not symmetric where the reference is not: a set gold
/// takes any order, an inequality gold an interval.
///
/// # Errors
/// It would cost more work than it may.
pub fn equal(
    gold: &Expr,
    answer: &Expr,
    comparison: Comparison,
    fuel: &mut Fuel,
) -> Result<bool, NotJudged> {
    let _ = (gold, answer, comparison, fuel);
    Ok(false)
}
