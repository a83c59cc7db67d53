//! Group-normalised advantages, as in the GRPO paper and Tina's recipe.

/// Added to the standard deviation, so that a group of nearly equal rewards does not explode.
const STD_EPSILON: f64 = 1e-4;

/// The advantage of every completion of one group: `(r - mean) / (std + 1e-4)`, with the unbiased
/// standard deviation over the judged completions.
///
/// `rewards` has one entry a completion; `None` is one that could not be judged: it takes no part
/// in the statistics and its advantage is 0. A group with fewer than two judged completions, or
/// whose judged rewards are all equal, has no signal: every advantage is exactly 0.
pub fn group_advantages(rewards: &[Option<f64>]) -> Vec<f64> {
    let judged: Vec<f64> = rewards.iter().flatten().copied().collect();
    // Compared rather than computed: the mean of equal rewards may differ from them by a rounding,
    // which dividing by 1e-4 would turn into signal.
    if judged.len() < 2 || judged.iter().all(|reward| *reward == judged[0]) {
        return vec![0.0; rewards.len()];
    }
    let count = judged.len() as f64;
    let mean = judged.iter().sum::<f64>() / count;
    let squares: f64 = judged.iter().map(|reward| (reward - mean).powi(2)).sum();
    let std = (squares / (count - 1.0)).sqrt();
    rewards
        .iter()
        .map(|reward| reward.map_or(0.0, |reward| (reward - mean) / (std + STD_EPSILON)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{actual:?} != {expected:?}");
        }
    }

    #[test]
    fn rewards_are_centred_and_divided_by_the_unbiased_std() {
        // mean 0.25, squares 0.5625 + 3 * 0.0625 = 0.75, unbiased std sqrt(0.75 / 3) = 0.5
        let advantages = group_advantages(&[Some(1.0), Some(0.0), Some(0.0), Some(0.0)]);
        close(
            &advantages,
            &[
                0.75 / 0.5001,
                -0.25 / 0.5001,
                -0.25 / 0.5001,
                -0.25 / 0.5001,
            ],
        );
    }

    #[test]
    fn a_completion_that_was_not_judged_changes_nothing_for_the_others() {
        let without = group_advantages(&[Some(2.0), Some(0.0), Some(1.0)]);
        let with = group_advantages(&[Some(2.0), None, Some(0.0), Some(1.0)]);
        close(&without, &[1.0 / 1.0001, -1.0 / 1.0001, 0.0]);
        close(&with, &[without[0], 0.0, without[1], without[2]]);
    }

    #[test]
    fn equal_rewards_have_exactly_no_signal() {
        assert_eq!(group_advantages(&[Some(0.1); 3]), vec![0.0; 3]);
        assert_eq!(
            group_advantages(&[Some(0.7), None, Some(0.7)]),
            vec![0.0; 3]
        );
    }

    #[test]
    fn fewer_than_two_judged_completions_have_no_signal() {
        assert_eq!(group_advantages(&[Some(3.0), None, None]), vec![0.0; 3]);
        assert_eq!(group_advantages(&[None, None]), vec![0.0; 2]);
        assert_eq!(group_advantages(&[]), Vec::<f64>::new());
    }
}
