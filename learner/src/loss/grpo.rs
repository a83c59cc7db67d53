//! GRPO (DeepSeekMath, arXiv 2402.03300, equation 3, with PPO's clip of arXiv 1707.06347, equation
//! 7): of each token
//!
//! ```text
//! -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),    r = exp(new - old)
//! ```
//!
//! A mean over a completion's tokens, then over completions; A is normalised in its group.

use super::{Aggregation, Clip, Policy, Recipe, Term};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::TokenClip,
    aggregation: Aggregation::SequenceMean,
    advantage: Scale::GroupStd,
    clip: Clip {
        low: 0.2,
        high: 0.2,
    },
};

/// One token's loss as a function of `diff = new - old`, and whether the clip cut its gradient off.
pub(super) fn token(advantage: f64, diff: f64, clip: Clip) -> (Term, bool) {
    let ratio = diff.exp();
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high);
    if clipped * advantage < ratio * advantage {
        let value = -clipped * advantage;
        (Term { value, slope: 0.0 }, true)
    } else {
        let value = -ratio * advantage;
        (
            Term {
                value,
                slope: value,
            },
            false,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::single, *};

    #[test]
    fn on_policy_the_loss_is_minus_the_advantage_and_so_is_the_gradient() {
        assert_eq!(single(&RECIPE, 1.5, 1.0), (-1.5, -1.5, 0));
    }

    #[test]
    fn a_good_token_is_clipped_above_and_a_bad_one_below_and_only_there() {
        for (advantage, ratio, loss, slope, clipped) in [
            (2.0, 1.5, -2.4, 0.0, 1),
            (2.0, 0.5, -1.0, -1.0, 0),
            (-2.0, 0.5, 1.6, 0.0, 1),
            (-2.0, 1.5, 3.0, 3.0, 0),
        ] {
            let found = single(&RECIPE, advantage, ratio);
            assert!(
                (found.0 - loss).abs() < 1e-6 && (found.1 - slope).abs() < 1e-6,
                "{found:?}"
            );
            assert_eq!(found.2, clipped);
        }
    }
}
