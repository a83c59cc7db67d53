//! REINFORCE++ with baseline (arXiv 2501.03262, section 3.2): the group's mean is taken off the reward,
//! and the differences are normalised over the whole batch, which has enough of them for a stable
//! standard deviation where a group of few has not; PPO's clip on tokens, a mean over all of them. The
//! paper's KL term is k2's, in the loss (`algorithm.kl_estimator = "k2"`).

use super::{Aggregation, Policy, Recipe, grpo};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::TokenClip,
    aggregation: Aggregation::TokenMean,
    advantage: Scale::Whitened,
    clip: grpo::RECIPE.clip,
};

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{batch, close},
        *,
    };
    use crate::advantage::advantages;

    #[test]
    fn in_closed_form() {
        // Groups (1, 0) and (3, 1): differences ±1/2 and ±1, unbiased std sqrt(2.5 / 3).
        let rewards = [vec![Some(1.0), Some(0.0)], vec![Some(3.0), Some(1.0)]];
        let std = (2.5f64 / 3.0).sqrt() + 1e-4;
        let found = advantages(&rewards, RECIPE.advantage);
        close(found[0][0], 0.5 / std);
        close(found[1][1], -1.0 / std);
        let (loss, gradients) = batch(&RECIPE, &[(found[0][0], 1, 0.0), (found[1][1], 3, 0.1)]);
        close(loss, (-0.5 + 3.0 * 0.1f64.exp()) / std / 4.0);
        close(gradients[1], 0.1f64.exp() / std / 4.0);
    }
}
