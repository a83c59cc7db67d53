//! Group-relative advantages: how much better a completion is than the others of its prompt.

use std::fmt;
use std::str::FromStr;

/// Added to the standard deviation, so that a group of nearly equal rewards does not explode.
const STD_EPSILON: f64 = 1e-4;

/// What a reward is compared with, and by what the distance is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// `A = (r - mean) / (std + 1e-4)` with the unbiased standard deviation: GRPO (DeepSeekMath,
    /// arXiv 2402.03300, section 4.1.2), with the constants of TRL 0.15.2, which Tina's recipe is
    /// built on.
    GroupStd,
    /// `A = r - mean`: dividing by the standard deviation gives prompts that are almost always, or
    /// almost never, solved more weight than others (Dr. GRPO: Liu et al., arXiv 2503.20783,
    /// section 3).
    Unscaled,
    /// `A = (r - mean) / (std + 1e-4)` with the mean of the group and the standard deviation of all
    /// rewards of the batch, which a few completions can't throw off (Liu et al., arXiv 2508.08221,
    /// section 4.1; TRL's `scale_rewards = "batch"`).
    Batch,
    /// `A = r - mean of the others`, which is `n / (n - 1)` times the distance from the mean: RLOO
    /// (arXiv 2402.14740, equation 8).
    LeaveOneOut,
    /// `r - mean` of the group, divided by the standard deviation of these differences over the
    /// batch (their mean is 0): REINFORCE++ with baseline (arXiv 2501.03262, section 3.2).
    Whitened,
}

impl Scale {
    const ALL: [Self; 5] = [
        Self::GroupStd,
        Self::Unscaled,
        Self::Batch,
        Self::LeaveOneOut,
        Self::Whitened,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::GroupStd => "group",
            Self::Unscaled => "unscaled",
            Self::Batch => "batch",
            Self::LeaveOneOut => "leave_one_out",
            Self::Whitened => "whitened",
        }
    }
}

impl FromStr for Scale {
    type Err = String;

    /// The config's names.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|scale| scale.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("unknown advantage \"{text}\": one of {names}")
        })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The advantage of every completion of a batch; see [`Scale`]. Means and standard deviations are
/// over the judged completions.
///
/// `rewards` has one entry a group and in it one a completion; `None` is one that could not be judged:
/// it takes no part in the statistics and its advantage is 0. A group with fewer than two judged
/// completions, or whose judged rewards are all equal, has no signal: every advantage is exactly 0.
pub fn advantages(rewards: &[Vec<Option<f64>>], scale: Scale) -> Vec<Vec<f64>> {
    let judged = |group: &[Option<f64>]| -> Vec<f64> { group.iter().flatten().copied().collect() };
    let divisor = match scale {
        Scale::GroupStd | Scale::Unscaled | Scale::LeaveOneOut => 1.0,
        Scale::Batch => {
            let all: Vec<f64> = rewards.iter().flat_map(|group| judged(group)).collect();
            std(&all) + STD_EPSILON
        }
        Scale::Whitened => {
            let differences = |group: &Vec<Option<f64>>| {
                let own = judged(group);
                let mean = mean(&own);
                own.into_iter().map(move |reward| reward - mean)
            };
            let all: Vec<f64> = rewards.iter().flat_map(differences).collect();
            std(&all) + STD_EPSILON
        }
    };
    let of_group = |group: &Vec<Option<f64>>| {
        let own = judged(group);
        // Compared rather than computed: the mean of equal rewards may differ from them by a
        // rounding, which dividing by 1e-4 would turn into signal.
        if own.len() < 2 || own.iter().all(|reward| *reward == own[0]) {
            return vec![0.0; group.len()];
        }
        let mean = mean(&own);
        let divisor = match scale {
            Scale::GroupStd => std(&own) + STD_EPSILON,
            Scale::LeaveOneOut => (own.len() - 1) as f64 / own.len() as f64,
            Scale::Unscaled | Scale::Batch | Scale::Whitened => divisor,
        };
        let advantage =
            |reward: &Option<f64>| reward.map_or(0.0, |reward| (reward - mean) / divisor);
        group.iter().map(advantage).collect()
    };
    rewards.iter().map(of_group).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The unbiased standard deviation; 0 of fewer than two.
fn std(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::Scale::GroupStd;
    use super::*;

    fn group_advantages(rewards: &[Option<f64>], scale: Scale) -> Vec<f64> {
        advantages(&[rewards.to_vec()], scale).remove(0)
    }

    fn close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{actual:?} != {expected:?}");
        }
    }

    #[test]
    fn rewards_are_centred_and_divided_by_the_unbiased_std() {
        // mean 0.25, squares 0.5625 + 3 * 0.0625 = 0.75, unbiased std sqrt(0.75 / 3) = 0.5
        let advantages = group_advantages(&[Some(1.0), Some(0.0), Some(0.0), Some(0.0)], GroupStd);
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
    fn unscaled_rewards_are_centred_and_no_more() {
        let rewards = [Some(1.0), None, Some(0.0), Some(0.25), Some(0.25)];
        let advantages = group_advantages(&rewards, Scale::Unscaled);
        assert_eq!(advantages, [0.625, 0.0, -0.375, -0.125, -0.125]);
        assert_eq!(
            group_advantages(&[Some(0.1); 3], Scale::Unscaled),
            vec![0.0; 3]
        );
    }

    #[test]
    fn advantages_are_named_as_in_the_config() {
        for scale in Scale::ALL {
            assert_eq!(scale.to_string().parse(), Ok(scale));
        }
        assert!("none".parse::<Scale>().unwrap_err().contains("unscaled"));
    }

    #[test]
    fn each_is_compared_with_the_mean_of_the_others() {
        let rewards = [Some(1.0), Some(0.0), None, Some(0.5)];
        let found = group_advantages(&rewards, Scale::LeaveOneOut);
        close(&found, &[1.0 - 0.25, 0.0 - 0.75, 0.0, 0.5 - 0.5]);
    }

    #[test]
    fn the_batchs_spread_divides_by_rewards_or_by_differences() {
        let rewards = [
            vec![Some(1.0), Some(0.0)],
            vec![Some(3.0), Some(1.0)],
            vec![Some(2.0); 2],
        ];
        // Rewards 1, 0, 3, 1, 2, 2: mean 1.5, squares 5.5; differences 0.5, 0.5, 1, 1, 0, 0: 2.5.
        for (scale, std) in [
            (Scale::Batch, (5.5f64 / 5.0).sqrt()),
            (Scale::Whitened, (2.5f64 / 5.0).sqrt()),
        ] {
            let divisor = std + STD_EPSILON;
            let found = advantages(&rewards, scale);
            close(&found[0], &[0.5 / divisor, -0.5 / divisor]);
            close(&found[1], &[1.0 / divisor, -1.0 / divisor]);
            assert_eq!(found[2], [0.0, 0.0], "{scale}");
        }
    }

    #[test]
    fn a_completion_that_was_not_judged_changes_nothing_for_the_others() {
        let without = group_advantages(&[Some(2.0), Some(0.0), Some(1.0)], GroupStd);
        let with = group_advantages(&[Some(2.0), None, Some(0.0), Some(1.0)], GroupStd);
        close(&without, &[1.0 / 1.0001, -1.0 / 1.0001, 0.0]);
        close(&with, &[without[0], 0.0, without[1], without[2]]);
    }

    #[test]
    fn equal_rewards_have_exactly_no_signal() {
        assert_eq!(group_advantages(&[Some(0.1); 3], GroupStd), vec![0.0; 3]);
        assert_eq!(
            group_advantages(&[Some(0.7), None, Some(0.7)], GroupStd),
            vec![0.0; 3]
        );
    }

    #[test]
    fn fewer_than_two_judged_completions_have_no_signal() {
        assert_eq!(
            group_advantages(&[Some(3.0), None, None], GroupStd),
            vec![0.0; 3]
        );
        assert_eq!(group_advantages(&[None, None], GroupStd), vec![0.0; 2]);
        assert_eq!(group_advantages(&[], GroupStd), Vec::<f64>::new());
    }
}
