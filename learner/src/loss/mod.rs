//! The loss of one completion and its derivative in every token's log-prob. Pure f64 maths.
//!
//! A loss is a combination of parts, each of which can be chosen by itself:
//!
//! - what a token (or a completion) costs: [`Policy`], in the file of the loss that brought it up
//! - how that becomes the batch's loss: [`aggregation`]
//! - the advantage: [`crate::advantage`]
//! - the divergence from the base model: [`kl`]
//! - what corrects for tokens that another policy sampled: [`importance`]
//!
//! The losses by name, one a file: `grpo`, `dr_grpo`, `bnpo`, `dapo`, `gspo`, `cispo`, `rloo`,
//! `reinforce_pp`. `docs/algorithms.md` says when to use which.

pub mod aggregation;
mod bnpo;
mod cispo;
mod dapo;
mod dr_grpo;
mod grpo;
mod gspo;
pub mod importance;
pub mod kl;
mod reinforce_pp;
mod rloo;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

pub use self::{
    aggregation::{Aggregation, Normaliser},
    importance::Importance,
    kl::Estimator,
};
use crate::advantage::Scale;

/// A token's |new - sampled| counts as this much at most, so that a token which can no longer be
/// drawn (infinitely far) does not drown the statistics.
const DIFF_CEILING: f64 = 100.0;

/// What a token costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The clipped objective with each token's ratio: `grpo`.
    TokenClip,
    /// The same with the completion's ratio: `gspo`.
    SequenceClip,
    /// The log-prob with a clipped weight: `cispo`.
    WeightClip,
    /// The log-prob: `rloo`.
    Reinforce,
}

/// The ratio is clipped at `1 - low` and `1 + high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// See the type.
    pub low: f64,
    /// See the type.
    pub high: f64,
}

/// What a loss of a certain name is, where a config says nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// What a token costs.
    pub policy: Policy,
    /// How that becomes the batch's loss.
    pub aggregation: Aggregation,
    /// How rewards become advantages.
    pub advantage: Scale,
    /// Where ratios are clipped.
    pub clip: Clip,
}

/// The losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// See its file.
    Grpo,
    /// See its file.
    DrGrpo,
    /// See its file.
    Bnpo,
    /// See its file.
    Dapo,
    /// See its file.
    Gspo,
    /// See its file.
    Cispo,
    /// See its file.
    Rloo,
    /// See its file.
    ReinforcePp,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Grpo,
        Self::DrGrpo,
        Self::Bnpo,
        Self::Dapo,
        Self::Gspo,
        Self::Cispo,
        Self::Rloo,
        Self::ReinforcePp,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::DrGrpo => "dr_grpo",
            Self::Bnpo => "bnpo",
            Self::Dapo => "dapo",
            Self::Gspo => "gspo",
            Self::Cispo => "cispo",
            Self::Rloo => "rloo",
            Self::ReinforcePp => "reinforce_pp",
        }
    }

    /// What it is.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::Grpo => grpo::RECIPE,
            Self::DrGrpo => dr_grpo::RECIPE,
            Self::Bnpo => bnpo::RECIPE,
            Self::Dapo => dapo::RECIPE,
            Self::Gspo => gspo::RECIPE,
            Self::Cispo => cispo::RECIPE,
            Self::Rloo => rloo::RECIPE,
            Self::ReinforcePp => reinforce_pp::RECIPE,
        }
    }
}

impl FromStr for Name {
    type Err = String;

    /// The config's names.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|name| name.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("unknown loss \"{text}\": one of {names}")
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The divergence from the base model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kl {
    /// Its weight; 0: the base model is never computed.
    pub beta: f64,
    /// How it is estimated.
    pub estimator: Estimator,
    /// It is taken off the reward, before advantages, instead of being a term of the loss.
    pub in_reward: bool,
}

impl Kl {
    /// Whether the loss has a term of it.
    pub fn in_loss(&self) -> bool {
        self.beta > 0.0 && !self.in_reward
    }
}

/// A loss with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// What a token costs.
    pub policy: Policy,
    /// How that becomes the batch's loss.
    pub aggregation: Aggregation,
    /// Where ratios are clipped.
    pub clip: Clip,
    /// The divergence from the base model.
    pub kl: Kl,
    /// What corrects for tokens that another policy sampled; `None`: the ratio is taken against
    /// whoever sampled, and the clip is all.
    pub importance: Option<Importance>,
}

/// One completion, token by token; the slices are equally long.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The completion's advantage.
    pub advantage: f64,
    /// The weight of each of its tokens in the batch's loss ([`Normaliser::token_weight`]).
    pub weight: f64,
    /// Log-probs recorded at sampling.
    pub sampled: &'a [f32],
    /// Log-probs of the learner's policy at the start of the step.
    pub start: &'a [f32],
    /// Log-probs under the adapter that is being trained.
    pub new: &'a [f32],
    /// Log-probs of the base model; `None` where the loss has no term of them.
    pub base: Option<&'a [f32]>,
}

/// Sums over the tokens that went through the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossStats {
    /// The batch's loss (already weighted).
    pub loss: f64,
    /// Tokens seen.
    pub tokens: u64,
    /// Sum of the KL estimates.
    pub kl: f64,
    /// Sum of the ratios of new to sampled, before anything is clipped.
    pub ratio: f64,
    /// Sum of their squares.
    pub ratio_squared: f64,
    /// The largest ratio.
    pub ratio_max: f64,
    /// Tokens whose gradient or weight the clip cut.
    pub clipped: u64,
    /// Tokens whose importance weight was cut, or which were left out.
    pub corrected: u64,
    /// Sum of |new - sampled|.
    pub diff: f64,
    /// The largest |new - sampled|.
    pub diff_max: f64,
}

impl LossStats {
    /// `sum` a token; 0 where no token was seen.
    pub fn per_token(&self, sum: f64) -> f64 {
        if self.tokens == 0 {
            0.0
        } else {
            sum / self.tokens as f64
        }
    }

    /// The share of tokens that as many samples of the new policy would be worth:
    /// `(sum of ratios)² / (tokens * sum of squares)`, 1 on policy (Kish's effective sample size).
    pub fn effective_share(&self) -> f64 {
        if self.ratio_squared > 0.0 {
            self.ratio * self.ratio / (self.tokens as f64 * self.ratio_squared)
        } else {
            0.0
        }
    }

    /// Adds the sums over other tokens.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.tokens += other.tokens;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.ratio_squared += other.ratio_squared;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.clipped += other.clipped;
        self.corrected += other.corrected;
        self.diff += other.diff;
        self.diff_max = self.diff_max.max(other.diff_max);
    }

    /// Adds one token's ratio.
    fn compare(&mut self, new: f64, sampled: f64) {
        let diff = new - sampled;
        let ratio = diff.exp();
        self.ratio += ratio;
        self.ratio_squared += ratio * ratio;
        self.ratio_max = self.ratio_max.max(ratio);
        let distance = diff.abs().min(DIFF_CEILING);
        self.diff += distance;
        self.diff_max = self.diff_max.max(distance);
    }
}

/// A value and its derivative in the new log-prob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) value: f64,
    pub(crate) slope: f64,
}

impl Term {
    pub(crate) const ZERO: Term = Term {
        value: 0.0,
        slope: 0.0,
    };
}

impl Loss {
    /// The loss of a recipe, without divergence or corrections.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            policy: recipe.policy,
            aggregation: recipe.aggregation,
            clip: recipe.clip,
            kl: Kl {
                beta: 0.0,
                estimator: Estimator::K3,
                in_reward: false,
            },
            importance: None,
        }
    }

    /// Adds one completion to `stats` and returns d loss / d new log-prob for each of its tokens.
    ///
    /// A token that the distribution of today can no longer draw (new log-prob of minus infinity:
    /// top-k and its like moved on) has ratio 0, no KL and no gradient.
    pub fn completion(&self, terms: &Terms<'_>, stats: &mut LossStats) -> Vec<f32> {
        let (count, weight) = (terms.new.len(), terms.weight);
        let pairs = terms.new.iter().zip(terms.sampled);
        pairs.for_each(|(new, sampled)| stats.compare(f64::from(*new), f64::from(*sampled)));
        let (old, corrections) = match self.importance {
            None => (terms.sampled, None),
            Some(importance) => {
                let (mut weights, cut) =
                    importance.weights(&differences(terms.start, terms.sampled));
                stats.corrected += cut;
                if self.policy == Policy::SequenceClip {
                    // All tokens share one term, so it counts with the mean of their weights.
                    let mean = weights.iter().sum::<f64>() / count.max(1) as f64;
                    weights.fill(mean);
                }
                (terms.start, Some(weights))
            }
        };
        let policy = self.policy(terms.advantage, terms.new, old, stats);
        let mut gradient = Vec::with_capacity(count);
        for (token, (&new, policy)) in terms.new.iter().zip(policy).enumerate() {
            let correction = corrections.as_ref().map_or(1.0, |weights| weights[token]);
            let base = terms.base.map(|base| f64::from(base[token]));
            let kl = base.map_or(Term::ZERO, |base| {
                self.kl.estimator.of(base, f64::from(new))
            });
            stats.kl += kl.value;
            stats.loss += weight * (correction * policy.value + self.kl.beta * kl.value);
            let slope = correction * policy.slope + self.kl.beta * kl.slope;
            gradient.push((weight * slope) as f32);
        }
        stats.tokens += count as u64;
        gradient
    }

    /// What each token costs.
    fn policy(&self, advantage: f64, new: &[f32], old: &[f32], stats: &mut LossStats) -> Vec<Term> {
        let diffs = differences(new, old);
        let mut count = |(term, clipped): (Term, bool), tokens: usize| {
            stats.clipped += if clipped { tokens as u64 } else { 0 };
            term
        };
        if self.policy == Policy::SequenceClip {
            let term = count(gspo::each_token(advantage, &diffs, self.clip), new.len());
            return vec![term; new.len()];
        }
        let token = |(diff, new): (&f64, &f32)| {
            let new = f64::from(*new);
            match self.policy {
                _ if !new.is_finite() => Term::ZERO,
                Policy::WeightClip => count(cispo::token(advantage, *diff, new, self.clip), 1),
                Policy::Reinforce => rloo::token(advantage, new),
                Policy::TokenClip | Policy::SequenceClip => {
                    count(grpo::token(advantage, *diff, self.clip), 1)
                }
            }
        };
        diffs.iter().zip(new).map(token).collect()
    }
}

/// `a - b` of log-probs; 0 where both are the same infinity. A token that `b` can't draw and `a` can
/// (top-k and its like moved on since the step's start) counts with ratio 0, not with an infinite one.
fn differences(a: &[f32], b: &[f32]) -> Vec<f64> {
    let pairs = a.iter().zip(b);
    pairs
        .map(|(a, b)| {
            if a == b {
                0.0
            } else if *b == f32::NEG_INFINITY {
                f64::NEG_INFINITY
            } else {
                f64::from(*a) - f64::from(*b)
            }
        })
        .collect()
}
