//! Verdicts on text: pure functions from a completion and a gold answer to a number.
//!
//! - [`Reward`]: one reward, made from a [`RewardSpec`]; [`Reward::score`] gives a [`Verdict`].
//! - [`number`]: exact decimal and fractional numbers, found in and read from text.
//! - `numeric`, `boxed`, `format`: one file a kind.
//!
//! Every verdict takes work linear in the length of the text, whatever the text is.

mod boxed;
mod format;
pub mod math;
pub mod number;
mod numeric;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// What a reward says of a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Judged; 1 is right, 0 is wrong.
    Scored(f64),
    /// Could not be judged, and why: not the same as 0.
    NotJudged(String),
}

impl Verdict {
    fn right(right: bool) -> Self {
        Self::Scored(if right { 1.0 } else { 0.0 })
    }
}

/// A reward as plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardSpec {
    /// What journal and metrics call it.
    pub name: String,
    /// Its weight in the sum of a completion's rewards.
    pub weight: f64,
    /// What it looks at.
    pub kind: RewardKind,
}

/// What a reward looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardKind {
    /// The last number of the completion equals the gold answer.
    Numeric,
    /// The last `\boxed{…}` of the completion equals the gold answer.
    Boxed,
    /// A regular expression matches somewhere in the completion.
    Format {
        /// In Rust's regex syntax.
        pattern: String,
    },
}

/// Why a reward can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// The weight is infinite or not a number.
    #[error("reward {name:?}: weight {weight} is not finite")]
    Weight {
        /// The reward's name.
        name: String,
        /// The weight.
        weight: f64,
    },
    /// The pattern is not a regular expression, or too big.
    #[error("reward {name:?}: the pattern can't be used: {source}")]
    Pattern {
        /// The reward's name.
        name: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
}

/// A reward, ready to score.
#[derive(Clone, Debug)]
pub struct Reward {
    name: String,
    weight: f64,
    judge: Judge,
}

#[derive(Clone, Debug)]
enum Judge {
    Numeric,
    Boxed,
    Format(Regex),
}

impl Reward {
    /// Makes the reward.
    ///
    /// # Errors
    /// A weight that is not finite; a pattern that is no regular expression.
    pub fn from_spec(spec: &RewardSpec) -> Result<Self, RewardError> {
        let name = spec.name.clone();
        if !spec.weight.is_finite() {
            return Err(RewardError::Weight {
                name,
                weight: spec.weight,
            });
        }
        let judge = match &spec.kind {
            RewardKind::Numeric => Judge::Numeric,
            RewardKind::Boxed => Judge::Boxed,
            RewardKind::Format { pattern } => match format::compile(pattern) {
                Ok(regex) => Judge::Format(regex),
                Err(source) => {
                    return Err(RewardError::Pattern {
                        name,
                        source: Box::new(source),
                    });
                }
            },
        };
        Ok(Self {
            name,
            weight: spec.weight,
            judge,
        })
    }

    /// What journal and metrics call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its weight in the sum of a completion's rewards.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The verdict on one completion's text; `gold` is the problem's answer.
    pub fn score(&self, completion: &str, gold: &str) -> Verdict {
        match &self.judge {
            Judge::Numeric => numeric::score(completion, gold),
            Judge::Boxed => boxed::score(completion, gold),
            Judge::Format(regex) => format::score(regex, completion),
        }
    }
}
