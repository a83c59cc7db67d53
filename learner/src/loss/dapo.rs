//! DAPO (arXiv 2503.14476, equation 8): GRPO's token loss as a mean over all tokens of the batch (3.3),
//! clipped higher above than below so that unlikely tokens may grow (3.1). Its other two parts stand
//! where they belong: groups without spread give way to others (3.2, `algorithm.max_resamples`), and
//! overlong completions are penalised softly (3.4, the reward `soft_overlong`).

use super::{Aggregation, Clip, Policy, Recipe};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::TokenClip,
    aggregation: Aggregation::TokenMean,
    advantage: Scale::GroupStd,
    clip: Clip {
        low: 0.2,
        high: 0.28,
    },
};

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{batch, close, single},
        *,
    };

    #[test]
    fn in_closed_form() {
        let (loss, gradients) = batch(&RECIPE, &[(1.0, 2, 0.0), (-0.5, 6, -0.1)]);
        close(loss, (-2.0 + 3.0 * (-0.1f64).exp()) / 8.0);
        close(gradients[0], -1.0 / 8.0);
        close(gradients[1], 0.5 * (-0.1f64).exp() / 8.0);
    }

    #[test]
    fn it_clips_higher() {
        let (loss, slope, clipped) = single(&RECIPE, 1.0, 1.25);
        close(loss, -1.25);
        close(slope, -1.25);
        assert_eq!(clipped, 0);
        close(single(&RECIPE, 1.0, 1.5).0, -1.28);
    }
}
