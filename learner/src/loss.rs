//! The loss of one completion and its derivative in every token's log-prob. Pure f64 maths.
//!
//! With `ratio = exp(new - sampled)` and `d = base - new`, a token's loss is
//!
//! ```text
//! -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) + kl_beta * (exp(d) - d - 1)
//! ```
//!
//! (PPO's clipped objective with the group-relative advantage A of `advantage.rs`, and the k3
//! estimate of the KL divergence to the base model). The old log-probs are those recorded at sampling.

use std::fmt;
use std::str::FromStr;

/// A token's |new - sampled| counts as this much at most, so that a token which can no longer be
/// drawn (infinitely far) does not drown the statistics.
const DIFF_CEILING: f64 = 100.0;

/// How token losses become the batch's loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean over a completion's tokens, then over the batch's completions (GRPO).
    SequenceMean,
    /// Mean over all tokens of the batch (DAPO).
    TokenMean,
    /// Sum over all tokens of the batch, divided by what they could be at most: the batch's
    /// completions times the token limit. The divisor is a constant, so that the gradient neither
    /// favours short correct completions nor spares long wrong ones (Dr. GRPO: Liu et al.,
    /// arXiv 2503.20783, section 3, `masked_mean` by `MAX_TOKENS` in its listing; that
    /// paper leaves out the 1/std of the advantage as well, which is
    /// [`crate::advantage::Scale::Unscaled`]).
    Constant,
}

impl FromStr for Aggregation {
    type Err = String;

    /// The config's names: "grpo", "dapo" and "dr_grpo".
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpo" => Ok(Self::SequenceMean),
            "dapo" => Ok(Self::TokenMean),
            "dr_grpo" => Ok(Self::Constant),
            other => Err(format!(
                "unknown loss \"{other}\": \"grpo\", \"dapo\" or \"dr_grpo\""
            )),
        }
    }
}

impl fmt::Display for Aggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SequenceMean => "grpo",
            Self::TokenMean => "dapo",
            Self::Constant => "dr_grpo",
        })
    }
}

/// What the loss is divided by: counted over the whole batch before any forward pass, so that
/// micro-batches add up to the gradient of one big batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normaliser {
    /// Tokens that the batch could have at most: all its completions, whether in the loss or not,
    /// times the token limit.
    pub most_tokens: u64,
    /// Completions in the loss, those with advantage 0 included.
    pub completions: u64,
    /// Their tokens.
    pub tokens: u64,
}

impl Normaliser {
    /// For a batch of `completions`, sampled with a limit of `max_tokens` each; none is counted yet.
    pub fn new(completions: usize, max_tokens: usize) -> Self {
        Self {
            most_tokens: completions as u64 * max_tokens as u64,
            completions: 0,
            tokens: 0,
        }
    }

    /// Counts one completion of `tokens` tokens.
    pub fn count(&mut self, tokens: usize) {
        self.completions += 1;
        self.tokens += tokens as u64;
    }

    /// The weight of each token's loss in a completion of `tokens` tokens.
    fn token_weight(&self, aggregation: Aggregation, tokens: usize) -> f64 {
        match aggregation {
            Aggregation::SequenceMean => 1.0 / (self.completions as f64 * tokens as f64),
            Aggregation::TokenMean => 1.0 / self.tokens as f64,
            Aggregation::Constant => 1.0 / self.most_tokens as f64,
        }
    }
}

/// The loss's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// How token losses become the batch's loss.
    pub aggregation: Aggregation,
    /// The ratio is clipped below at `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio is clipped above at `1 + clip_high`.
    pub clip_high: f64,
    /// Weight of the KL estimate; 0: the base model is never computed.
    pub kl_beta: f64,
}

/// One completion, token by token; the slices are equally long.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The completion's advantage.
    pub advantage: f64,
    /// Log-probs recorded at sampling.
    pub sampled: &'a [f32],
    /// Log-probs under the adapter that is being trained.
    pub new: &'a [f32],
    /// Log-probs of the base model; `None` where `kl_beta` is 0.
    pub base: Option<&'a [f32]>,
}

/// Sums over the tokens that went through the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossStats {
    /// The batch's loss (already weighted).
    pub loss: f64,
    /// Tokens seen.
    pub tokens: u64,
    /// Sum of the k3 estimates.
    pub kl: f64,
    /// Sum of the ratios, before clipping.
    pub ratio: f64,
    /// The largest ratio.
    pub ratio_max: f64,
    /// Tokens whose gradient the clip cut off.
    pub clipped: u64,
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
}

impl Loss {
    /// Adds one completion to `stats` and returns d loss / d new log-prob for each of its tokens.
    ///
    /// A token that the distribution of today can no longer draw (new log-prob of minus infinity:
    /// top-k and its like moved on) has ratio 0, no KL and no gradient.
    pub fn completion(
        &self,
        terms: &Terms<'_>,
        normaliser: &Normaliser,
        stats: &mut LossStats,
    ) -> Vec<f32> {
        let weight = normaliser.token_weight(self.aggregation, terms.new.len());
        let mut gradient = Vec::with_capacity(terms.new.len());
        for (token, (&new, &sampled)) in terms.new.iter().zip(terms.sampled).enumerate() {
            let base = terms.base.map(|base| f64::from(base[token]));
            let new = f64::from(new);
            let policy = self.policy(terms.advantage, new - f64::from(sampled), stats);
            let kl = base.map_or(Term::ZERO, |base| k3(base, new));
            stats.kl += kl.value;
            stats.loss += weight * (policy.value + self.kl_beta * kl.value);
            gradient.push((weight * (policy.slope + self.kl_beta * kl.slope)) as f32);
        }
        stats.tokens += terms.new.len() as u64;
        gradient
    }

    /// `-min(ratio * A, clip(ratio) * A)` as a function of `diff = new - sampled`.
    fn policy(&self, advantage: f64, diff: f64, stats: &mut LossStats) -> Term {
        let ratio = diff.exp();
        stats.ratio += ratio;
        stats.ratio_max = stats.ratio_max.max(ratio);
        let distance = diff.abs().min(DIFF_CEILING);
        stats.diff += distance;
        stats.diff_max = stats.diff_max.max(distance);

        let clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high);
        if clipped * advantage < ratio * advantage {
            stats.clipped += 1;
            Term {
                value: -clipped * advantage,
                slope: 0.0,
            }
        } else {
            Term {
                value: -ratio * advantage,
                slope: -ratio * advantage,
            }
        }
    }
}

/// A value and its derivative in the new log-prob.
struct Term {
    value: f64,
    slope: f64,
}

impl Term {
    const ZERO: Term = Term {
        value: 0.0,
        slope: 0.0,
    };
}

/// `exp(d) - d - 1` with `d = base - new`: never negative, unbiased under the new distribution.
fn k3(base: f64, new: f64) -> Term {
    let d = base - new;
    if !d.is_finite() {
        return Term::ZERO;
    }
    Term {
        value: d.exp_m1() - d,
        slope: -d.exp_m1(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::Scale;

    const LOSS: Loss = Loss {
        aggregation: Aggregation::SequenceMean,
        clip_low: 0.2,
        clip_high: 0.28,
        kl_beta: 0.0,
    };

    /// Of a batch whose completions are all in the loss, sampled with a limit of 10 tokens.
    fn normaliser(lengths: &[usize]) -> Normaliser {
        let mut normaliser = Normaliser::new(lengths.len(), 10);
        lengths.iter().for_each(|length| normaliser.count(*length));
        normaliser
    }

    /// Loss and gradient of a batch of one completion with one token.
    fn single(loss: Loss, advantage: f64, ratio: f64) -> (f64, f64, u64) {
        let mut stats = LossStats::default();
        let new = ratio.ln() as f32;
        let terms = Terms {
            advantage,
            sampled: &[0.0],
            new: &[new],
            base: None,
        };
        let gradient = loss.completion(&terms, &normaliser(&[1]), &mut stats);
        (stats.loss, f64::from(gradient[0]), stats.clipped)
    }

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-6, "{actual} != {expected}");
    }

    #[test]
    fn on_policy_the_loss_is_minus_the_advantage_and_so_is_the_gradient() {
        let (loss, gradient, clipped) = single(LOSS, 1.5, 1.0);
        assert_eq!((loss, gradient, clipped), (-1.5, -1.5, 0));
    }

    #[test]
    fn a_good_token_is_clipped_above_and_only_there() {
        let (loss, gradient, clipped) = single(LOSS, 2.0, 1.5);
        close(loss, -1.28 * 2.0);
        assert_eq!((gradient, clipped), (0.0, 1));
        let (loss, gradient, clipped) = single(LOSS, 2.0, 0.5);
        close(loss, -1.0);
        close(gradient, -1.0);
        assert_eq!(clipped, 0);
    }

    #[test]
    fn a_bad_token_is_clipped_below_and_only_there() {
        let (loss, gradient, clipped) = single(LOSS, -2.0, 0.5);
        close(loss, 0.8 * 2.0);
        assert_eq!((gradient, clipped), (0.0, 1));
        let (loss, gradient, clipped) = single(LOSS, -2.0, 1.5);
        close(loss, 3.0);
        close(gradient, 3.0);
        assert_eq!(clipped, 0);
    }

    #[test]
    fn the_kl_estimate_is_k3_of_base_to_new() {
        let loss = Loss {
            kl_beta: 0.04,
            ..LOSS
        };
        let mut stats = LossStats::default();
        let terms = Terms {
            advantage: 0.0,
            sampled: &[-1.0, -2.0],
            new: &[-1.0, -2.0],
            base: Some(&[-0.5, -3.0]),
        };
        let gradient = loss.completion(&terms, &normaliser(&[2]), &mut stats);
        let k3 = [0.5f64.exp() - 1.5, (-1f64).exp()];
        close(stats.kl, k3[0] + k3[1]);
        close(stats.loss, 0.04 * (k3[0] + k3[1]) / 2.0);
        close(f64::from(gradient[0]), 0.04 * (1.0 - 0.5f64.exp()) / 2.0);
        close(f64::from(gradient[1]), 0.04 * (1.0 - (-1f64).exp()) / 2.0);
    }

    #[test]
    fn grpo_weighs_completions_alike_dapo_and_dr_grpo_tokens() {
        let lengths = [1, 3];
        for (aggregation, expected) in [
            (Aggregation::SequenceMean, [-1.0 / 2.0, -1.0 / 6.0]),
            (Aggregation::TokenMean, [-1.0 / 4.0, -1.0 / 4.0]),
            (Aggregation::Constant, [-1.0 / 20.0, -1.0 / 20.0]),
        ] {
            let loss = Loss {
                aggregation,
                ..LOSS
            };
            for (length, expected) in lengths.iter().zip(expected) {
                let logprobs = vec![-0.5f32; *length];
                let terms = Terms {
                    advantage: 1.0,
                    sampled: &logprobs,
                    new: &logprobs,
                    base: None,
                };
                let mut stats = LossStats::default();
                let gradient = loss.completion(&terms, &normaliser(&lengths), &mut stats);
                assert_eq!(gradient, vec![expected as f32; *length]);
                close(stats.loss, expected * *length as f64);
            }
        }
    }

    /// Two completions of one prompt, rewards 1 and 0, limit 10: advantages 1/2 and -1/2. The loss is
    /// -(1/2 * 2 tokens) / 20 + (1/2 * 6 tokens) / 20, and a token's gradient is -A * ratio / 20.
    #[test]
    fn dr_grpo_in_closed_form() {
        let advantages =
            crate::advantage::group_advantages(&[Some(1.0), Some(0.0)], Scale::Unscaled);
        assert_eq!(advantages, [0.5, -0.5]);
        let loss = Loss {
            aggregation: Aggregation::Constant,
            ..LOSS
        };
        let normaliser = normaliser(&[2, 6]);
        let mut stats = LossStats::default();
        for (length, advantage) in [2, 6].into_iter().zip(&advantages) {
            let logprobs = vec![-1.0f32; length];
            let terms = Terms {
                advantage: *advantage,
                sampled: &logprobs,
                new: &logprobs,
                base: None,
            };
            let gradient = loss.completion(&terms, &normaliser, &mut stats);
            assert_eq!(gradient, vec![(-advantage / 20.0) as f32; length]);
        }
        close(stats.loss, 2.0 / 20.0);

        // Off policy: ratio e^0.1, and the KL term under the same divisor.
        let loss = Loss {
            kl_beta: 0.04,
            ..loss
        };
        let mut stats = LossStats::default();
        let terms = Terms {
            advantage: 0.5,
            sampled: &[-1.0],
            new: &[-0.9],
            base: Some(&[-1.1]),
        };
        let gradient = loss.completion(&terms, &normaliser, &mut stats);
        let (ratio, k3) = (0.1f64.exp(), (-0.2f64).exp() - 1.0 + 0.2);
        close(stats.loss, (-0.5 * ratio + 0.04 * k3) / 20.0);
        let slope = -0.5 * ratio + 0.04 * (1.0 - (-0.2f64).exp());
        close(f64::from(gradient[0]), slope / 20.0);
    }

    /// What is left out of the loss (not judged, truncated) leaves Dr. GRPO's divisor as it is.
    #[test]
    fn dr_grpo_divides_by_a_constant() {
        let mut normaliser = Normaliser::new(4, 100);
        normaliser.count(7);
        assert_eq!(
            normaliser.token_weight(Aggregation::Constant, 7),
            1.0 / 400.0
        );
    }

    #[test]
    fn the_gradient_is_the_finite_difference_of_the_loss() {
        let sampled = [-0.3f32, -1.7, -0.9, -2.5, -0.05];
        let base = [-0.2f32, -1.1, -1.4, -2.0, -0.3];
        let new = [-0.25f32, -2.1, -0.85, -2.1, -0.4];
        let lengths = [5, 2, 9];
        for aggregation in [
            Aggregation::SequenceMean,
            Aggregation::TokenMean,
            Aggregation::Constant,
        ] {
            for (advantage, kl_beta) in [(0.8, 0.0), (-1.3, 0.0), (0.8, 0.1), (-1.3, 0.1)] {
                let loss = Loss {
                    aggregation,
                    kl_beta,
                    ..LOSS
                };
                let value = |new: &[f32]| {
                    let mut stats = LossStats::default();
                    let terms = Terms {
                        advantage,
                        sampled: &sampled,
                        new,
                        base: Some(base.as_slice()),
                    };
                    let gradient = loss.completion(&terms, &normaliser(&lengths), &mut stats);
                    (stats.loss, gradient)
                };
                let (_, gradient) = value(&new);
                for token in 0..new.len() {
                    let (mut above, mut below) = (new, new);
                    above[token] += 1e-3;
                    below[token] -= 1e-3;
                    // What f32 made of the step, not what was asked for.
                    let step = f64::from(above[token]) - f64::from(below[token]);
                    let numeric = (value(&above).0 - value(&below).0) / step;
                    close(f64::from(gradient[token]), numeric);
                }
            }
        }
    }

    #[test]
    fn statistics_are_taken_before_clipping() {
        let mut stats = LossStats::default();
        let (sampled, new) = ([-1.0f32, -1.0, -1.0], [-1.0f32, -0.5, -2.0]);
        let terms = Terms {
            advantage: 1.0,
            sampled: &sampled,
            new: &new,
            base: None,
        };
        LOSS.completion(&terms, &normaliser(&[3]), &mut stats);
        assert_eq!((stats.tokens, stats.clipped), (3, 1));
        close(stats.ratio, 1.0 + 0.5f64.exp() + (-1f64).exp());
        close(stats.ratio_max, 0.5f64.exp());
        close(stats.diff, 1.5);
        close(stats.diff_max, 1.0);
    }

    #[test]
    fn a_token_that_can_no_longer_be_drawn_gives_no_gradient() {
        let loss = Loss {
            kl_beta: 0.1,
            ..LOSS
        };
        for advantage in [1.0, -1.0] {
            let mut stats = LossStats::default();
            let terms = Terms {
                advantage,
                sampled: &[-1.0],
                new: &[f32::NEG_INFINITY],
                base: Some(&[-1.0]),
            };
            let gradient = loss.completion(&terms, &normaliser(&[1]), &mut stats);
            assert_eq!(gradient, vec![0.0]);
            assert!(stats.loss.is_finite() && stats.kl == 0.0);
            assert_eq!(stats.diff_max, DIFF_CEILING);
        }
    }

    #[test]
    fn losses_are_named_as_in_the_config() {
        for name in ["grpo", "dapo", "dr_grpo"] {
            assert_eq!(name.parse::<Aggregation>().unwrap().to_string(), name);
        }
        assert!("ppo".parse::<Aggregation>().unwrap_err().contains("grpo"));
    }
}
