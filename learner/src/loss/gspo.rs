//! GSPO (arXiv 2507.18071, equations 5 to 7): the ratio, and its clip, are the completion's, since that
//! is what was rewarded:
//!
//! ```text
//! -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),    s = exp(mean over tokens of (new - old))
//! ```
//!
//! The gradient of s in one of T log-probs is s / T. The clip is tighter than a token's by orders of
//! magnitude (the paper: 3e-4 and 4e-4, section 5.1), since the mean of many moves less.

use super::{Aggregation, Clip, Policy, Recipe, Term, grpo};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::SequenceClip,
    aggregation: Aggregation::SequenceMean,
    advantage: Scale::GroupStd,
    clip: Clip {
        low: 3e-4,
        high: 4e-4,
    },
};

/// What each token of a completion with these `new - old` adds: the loss is the completion's, so each
/// has the same, and its slope is that of all T of them together, T (s / T) A.
pub(super) fn each_token(advantage: f64, diffs: &[f64], clip: Clip) -> (Term, bool) {
    let mean = diffs.iter().sum::<f64>() / diffs.len().max(1) as f64;
    grpo::token(advantage, mean, clip)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{close, completion},
        *,
    };

    #[test]
    fn in_closed_form() {
        // s = exp((2e-4 + 4e-4) / 2): inside of the clip.
        let s = 3e-4f64.exp();
        let (loss, gradient, clipped) = completion(&RECIPE, 2.0, &[2e-4, 4e-4]);
        close(loss, -2.0 * s);
        close(gradient[0], -2.0 * s / 2.0);
        close(gradient[1], -2.0 * s / 2.0);
        assert_eq!(clipped, 0);
        // One token is far off, and another brings the completion back: nothing is clipped.
        let (_, gradient, clipped) = completion(&RECIPE, 1.0, &[0.5, -0.5]);
        close(gradient[0], -0.5);
        assert_eq!(clipped, 0);
        let (loss, gradient, clipped) = completion(&RECIPE, 1.0, &[0.5, -0.4]);
        close(loss, -1.0004);
        assert_eq!((gradient, clipped), (vec![0.0, 0.0], 2));
    }
}
