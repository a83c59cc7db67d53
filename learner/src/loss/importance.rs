//! Corrections for tokens that another policy sampled than the one that is trained: an older one
//! (`algorithm.max_staleness`), or the same one computed by other arithmetic.
//!
//! The objective is decoupled (Hilton et al., arXiv 2110.00641, section 3.2; AReaL, arXiv 2505.24298,
//! equation 5): the loss's ratio, and so its clip, is taken against the *proximal* policy, the
//! learner's own at the start of the step; how far that is from the *behaviour* policy, which
//! sampled, is a constant weight on the token,
//!
//! ```text
//! w = exp(proximal - behaviour)    of each token, or of the completion's tokens together
//! ```
//!
//! Raw, it has unbounded variance: it is cut at C (truncated importance sampling), or what lies
//! outside of [1/C, C] is left out (masking, as IcePop and MIS do: what is that far off is rather an
//! error than a sample).

use std::str::FromStr;

/// Whose ratio is the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Each token's own.
    Token,
    /// The product over the completion's tokens: unbiased, and of high variance in long ones.
    Sequence,
}

/// What becomes of a weight that is too far off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `min(w, C)`.
    Truncate,
    /// 0 outside of `[1/C, C]`.
    Mask,
}

/// A correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Importance {
    /// Whose ratio.
    pub level: Level,
    /// C, 1 or more.
    pub cap: f64,
    /// What becomes of the rest.
    pub mode: Mode,
}

impl FromStr for Level {
    type Err = String;

    /// The config's names.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "token" => Ok(Self::Token),
            "sequence" => Ok(Self::Sequence),
            other => Err(format!(
                "unknown correction \"{other}\": \"none\", \"token\" or \"sequence\""
            )),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    /// The config's names.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "truncate" => Ok(Self::Truncate),
            "mask" => Ok(Self::Mask),
            other => Err(format!(
                "unknown mode \"{other}\": \"truncate\" or \"mask\""
            )),
        }
    }
}

/// Log-ratios beyond this say no more.
const LOG_CEILING: f64 = 50.0;

impl Importance {
    /// The weight of each token, from `proximal - behaviour`, and how many were cut or left out.
    pub(super) fn weights(&self, diffs: &[f64]) -> (Vec<f64>, u64) {
        let raw: Vec<f64> = match self.level {
            Level::Token => diffs.to_vec(),
            Level::Sequence => vec![diffs.iter().sum(); diffs.len()],
        };
        let mut cut = 0;
        let weigh = |log: f64| {
            let weight = log.clamp(-LOG_CEILING, LOG_CEILING).exp();
            let low = match self.mode {
                Mode::Truncate => 0.0,
                Mode::Mask => 1.0 / self.cap,
            };
            if (low..=self.cap).contains(&weight) {
                return weight;
            }
            cut += 1;
            match self.mode {
                Mode::Truncate => self.cap,
                Mode::Mask => 0.0,
            }
        };
        (raw.into_iter().map(weigh).collect(), cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(level: Level, mode: Mode, ratios: &[f64]) -> (Vec<f64>, u64) {
        let diffs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let cap = 2.0;
        let (weights, cut) = Importance { level, cap, mode }.weights(&diffs);
        let rounded = weights.iter().map(|w| (w * 1e9).round() / 1e9).collect();
        (rounded, cut)
    }

    #[test]
    fn weights_in_closed_form() {
        let ratios = [1.0, 1.5, 4.0, 0.25];
        let token = |mode| weights(Level::Token, mode, &ratios);
        assert_eq!(token(Mode::Truncate), (vec![1.0, 1.5, 2.0, 0.25], 1));
        assert_eq!(token(Mode::Mask), (vec![1.0, 1.5, 0.0, 0.0], 2));
        // The product is 1.5.
        for mode in [Mode::Truncate, Mode::Mask] {
            assert_eq!(weights(Level::Sequence, mode, &ratios), (vec![1.5; 4], 0));
        }
        let far = [3.0, 3.0];
        assert_eq!(
            weights(Level::Sequence, Mode::Truncate, &far),
            (vec![2.0; 2], 2)
        );
        assert_eq!(
            weights(Level::Sequence, Mode::Mask, &far),
            (vec![0.0; 2], 2)
        );
    }

    #[test]
    fn a_token_that_can_no_longer_be_drawn_weighs_nothing() {
        let importance = |mode| Importance {
            level: Level::Token,
            cap: 2.0,
            mode,
        };
        let (weights, _) = importance(Mode::Truncate).weights(&[f64::NEG_INFINITY]);
        assert!(weights[0] < 1e-20);
        assert_eq!(
            importance(Mode::Mask).weights(&[f64::NEG_INFINITY]).0,
            [0.0]
        );
    }
}
