//! Group-relative advantages: how much better a completion is than the others of its prompt.

use std::fmt;
use std::str::FromStr;

/// Added to the standard deviation, so that a group of nearly equal rewards does not explode.
const STD_EPSILON: f64 = 1e-4;

/// What a reward's distance from the group's mean is divided by.
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
}

impl FromStr for Scale {
    type Err = String;

    /// The config's names: "group" and "unscaled".
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "group" => Ok(Self::GroupStd),
            "unscaled" => Ok(Self::Unscaled),
            other => Err(format!(
                "unknown advantage \"{other}\": \"group\" or \"unscaled\""
            )),
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GroupStd => "group",
            Self::Unscaled => "unscaled",
        })
    }
}

/// The advantage of every completion of one group; see [`Scale`]. Mean and standard deviation are
/// over the judged completions.
///
/// `rewards` has one entry a completion; `None` is one that could not be judged: it takes no part
/// in the statistics and its advantage is 0. A group with fewer than two judged completions, or
/// whose judged rewards are all equal, has no signal: every advantage is exactly 0.
pub fn group_advantages(rewards: &[Option<f64>], scale: Scale) -> Vec<f64> {
    let judged: Vec<f64> = rewards.iter().flatten().copied().collect();
    // Compared rather than computed: the mean of equal rewards may differ from them by a rounding,
    // which dividing by 1e-4 would turn into signal.
    if judged.len() < 2 || judged.iter().all(|reward| *reward == judged[0]) {
        return vec![0.0; rewards.len()];
    }
    let count = judged.len() as f64;
    let mean = judged.iter().sum::<f64>() / count;
    let divisor = match scale {
        Scale::GroupStd => {
            let squares: f64 = judged.iter().map(|reward| (reward - mean).powi(2)).sum();
            (squares / (count - 1.0)).sqrt() + STD_EPSILON
        }
        Scale::Unscaled => 1.0,
    };
    rewards
        .iter()
        .map(|reward| reward.map_or(0.0, |reward| (reward - mean) / divisor))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Scale::GroupStd;
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
        for name in ["group", "unscaled"] {
            assert_eq!(name.parse::<Scale>().unwrap().to_string(), name);
        }
        assert!("none".parse::<Scale>().unwrap_err().contains("unscaled"));
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
