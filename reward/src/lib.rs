//! Verdicts on text: pure functions from a completion and a gold answer to a number.
//!
//! - [`Reward`]: one reward, made from a [`RewardKind`]; [`Reward::score`] looks at one completion,
//!   [`Reward::score_group`] at all of one prompt. Where the verdict depends on the whole group
//!   ([`Reward::is_relative`]), `score` gives a [`Share`] and [`Reward::finish`] the values.
//! - [`Completion`]: what is judged; [`Known`] remembers what several rewards ask.
//! - `accuracy`, `format`, `tag_count`, `reasoning_steps`, `length`, `cosine`, `repetition`, `l1`,
//!   `soft_overlong`, `boxed`, `numeric`, `pattern`: one file a reward, with its formula and source.
//! - `correct`: whether an answer is right. [`math`]: the verifier of mathematics.
//! - [`number`]: exact decimal and fractional numbers, found in and read from text.
//!
//! Every verdict takes bounded work, whatever the text is, and none depends on a clock or on chance.

mod accuracy;
mod boxed;
mod choice;
mod completion;
mod correct;
mod cosine;
mod format;
mod l1;
mod length;
pub mod math;
pub mod number;
mod numeric;
mod pattern;
mod reasoning_steps;
mod repetition;
mod reward;
mod soft_overlong;
mod spec;
mod tag_count;

pub use completion::{Completion, Known, Tokens};
pub use correct::AnswerJudge;
pub use format::FormatRule;
pub use reward::{Finding, Needs, Reward, Share};
pub use spec::{Compat, RewardError, RewardKind};
pub use tag_count::TagRule;

/// What a reward says of a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Judged.
    Scored(f64),
    /// Could not be judged, and why: not the same as 0.
    NotJudged(String),
}

impl Verdict {
    fn right(right: bool) -> Self {
        Self::Scored(if right { 1.0 } else { 0.0 })
    }
}
