//! `tag_count`: part marks for each tag that stands in the text exactly once.

use crate::Verdict;

/// Which tags count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagRule {
    /// A half each for `<think>\n` and `\n</think>\n` (Tina `tina/post_train_hf/rewards.py`,
    /// `tag_count_reward`).
    #[default]
    Tina,
    /// A quarter each for `<think>\n`, `\n</think>\n`, `\n<answer>\n` and `\n</answer>` (Open-R1
    /// `src/open_r1/rewards.py`, `tag_count_reward`).
    OpenR1,
}

/// The number of tags that stand in `text` exactly once, over the number of tags.
pub(crate) fn score(rule: TagRule, text: &str) -> Verdict {
    let tags: &[&str] = match rule {
        TagRule::Tina => &["<think>\n", "\n</think>\n"],
        TagRule::OpenR1 => &["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"],
    };
    let once = tags.iter().filter(|tag| text.matches(**tag).count() == 1);
    Verdict::Scored(once.count() as f64 / tags.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_counts_when_it_stands_there_once() {
        let all = "<think>\na\n</think>\n<answer>\nb\n</answer>";
        for (text, tina, open_r1) in [
            (all, 1.0, 1.0),
            ("a\n</think>\nb", 0.5, 0.25),
            ("<think>\n<think>\na\n</think>\n", 0.5, 0.25),
            ("", 0.0, 0.0),
        ] {
            assert_eq!(
                score(TagRule::Tina, text),
                Verdict::Scored(tina),
                "{text:?}"
            );
            assert_eq!(
                score(TagRule::OpenR1, text),
                Verdict::Scored(open_r1),
                "{text:?}"
            );
        }
    }
}
