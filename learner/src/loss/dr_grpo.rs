//! Dr. GRPO (arXiv 2503.20783, section 3): GRPO's token loss, summed and divided by a constant, so
//! that the length of a completion says nothing about how much a token of it counts (`masked_mean`
//! by `MAX_TOKENS` in the paper's listing), and advantages that are not divided by the standard
//! deviation, so that prompts that are almost always or almost never solved don't count more.

use super::{Aggregation, Policy, Recipe, grpo};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::TokenClip,
    aggregation: Aggregation::Constant,
    advantage: Scale::Unscaled,
    clip: grpo::RECIPE.clip,
};

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{batch, close},
        *,
    };

    /// Two completions of one prompt, rewards 1 and 0, limit 10: advantages 1/2 and -1/2. The loss is
    /// -(1/2 * 2 tokens) / 20 + (1/2 * 6 tokens) / 20, and a token's gradient is -A * ratio / 20.
    #[test]
    fn in_closed_form() {
        let (loss, gradients) = batch(&RECIPE, &[(0.5, 2, 0.0), (-0.5, 6, 0.0)]);
        close(loss, 2.0 / 20.0);
        close(gradients[0], -0.5 / 20.0);
        close(gradients[1], 0.5 / 20.0);
        let (loss, gradients) = batch(&RECIPE, &[(0.5, 2, 0.1), (-0.5, 6, 0.0)]);
        close(loss, (-0.1f64.exp() + 3.0) / 20.0);
        close(gradients[0], -0.5 * 0.1f64.exp() / 20.0);
    }
}
