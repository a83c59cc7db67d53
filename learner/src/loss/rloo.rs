//! RLOO (Ahmadian et al., arXiv 2402.14740, equation 8): REINFORCE on whole completions, against the
//! mean reward of the group's others as a baseline,
//!
//! ```text
//! -(R_i - mean of R_j, j != i) log new(completion)
//! ```
//!
//! summed over a completion's tokens, a mean over completions. Nothing is clipped: what an older
//! policy sampled is corrected for by `algorithm.importance`, or not at all.

use super::{Aggregation, Clip, Policy, Recipe, Term};
use crate::advantage::Scale;

pub(super) const RECIPE: Recipe = Recipe {
    policy: Policy::Reinforce,
    aggregation: Aggregation::SequenceSum,
    advantage: Scale::LeaveOneOut,
    clip: Clip {
        low: 1.0,
        high: f64::INFINITY,
    },
};

/// One token's loss.
pub(super) fn token(advantage: f64, new: f64) -> Term {
    Term {
        value: -advantage * new,
        slope: -advantage,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{batch, close},
        *,
    };

    #[test]
    fn in_closed_form() {
        // Rewards 1 and 0: advantages 1 and -1; `batch` has log-probs of -1 at sampling.
        let (loss, gradients) = batch(&RECIPE, &[(1.0, 2, 0.0), (-1.0, 3, 0.5)]);
        close(loss, (2.0 - 3.0 * 0.5) / 2.0);
        close(gradients[0], -1.0 / 2.0);
        close(gradients[1], 1.0 / 2.0);
    }
}
