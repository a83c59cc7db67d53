//! CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): REINFORCE with a clipped importance weight
//! that has no gradient of its own,
//!
//! ```text
//! -sg(min(r, 1 + clip_high)) A log new,    r = exp(new - old)
//! ```
//!
//! so that no token's gradient is ever cut off, only weighed less: the rare ones on which reasoning
//! turns (however, wait) are those that PPO's clip drops first. There is no clip below. A mean over all
//! tokens of the batch.

use super::{Aggregation, Clip, Policy, Recipe, Term};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::WeightClip,
    aggregation: Aggregation::TokenMean,
    advantage: Scale::GroupStd,
    clip: Clip {
        low: 1.0,
        high: 4.0,
    },
};

/// One token's loss, and whether its weight was cut.
pub(super) fn token(advantage: f64, diff: f64, new: f64, clip: Clip) -> (Term, bool) {
    let ratio = diff.exp();
    let weight = ratio.min(1.0 + clip.high);
    let slope = -weight * advantage;
    (
        Term {
            value: slope * new,
            slope,
        },
        weight < ratio,
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{close, single},
        *,
    };

    #[test]
    fn in_closed_form() {
        // `single` has an old log-prob of 0, so the new one is the ratio's logarithm.
        let (loss, slope, clipped) = single(&RECIPE, 2.0, 0.5);
        close(loss, -0.5 * 2.0 * 0.5f64.ln());
        close(slope, -1.0);
        assert_eq!(clipped, 0);
        let (loss, slope, clipped) = single(&RECIPE, 2.0, 8.0);
        close(loss, -5.0 * 2.0 * 8f64.ln());
        close(slope, -10.0);
        assert_eq!(clipped, 1);
    }
}
