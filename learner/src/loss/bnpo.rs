//! "bnpo", as TRL calls it: GRPO's token loss as a mean over the tokens of the local batch. There that
//! is whatever completions share a device's pass; here it is the group, so that the loss does not
//! depend on how passes are cut: a mean over a group's tokens, then over groups.

use super::{Aggregation, Policy, Recipe, grpo};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::TokenClip,
    aggregation: Aggregation::GroupTokenMean,
    advantage: Scale::GroupStd,
    clip: grpo::RECIPE.clip,
};

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{batch, close},
        *,
    };

    #[test]
    fn in_closed_form() {
        // One group of 2 + 6 tokens.
        let (loss, gradients) = batch(&RECIPE, &[(1.0, 2, 0.0), (-0.5, 6, 0.0)]);
        close(loss, (-2.0 + 3.0) / 8.0);
        close(gradients[0], -1.0 / 8.0);
        close(gradients[1], 0.5 / 8.0);
    }
}
