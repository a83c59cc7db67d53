//! `format`: 1 where the completion keeps to a form, else 0. Four published rules, by name.

use regex::Regex;

use crate::{Verdict, pattern};

/// A published rule of form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FormatRule {
    /// `\n</think>\n` stands in it exactly once; occurrences don't overlap. `<think>` is part of the
    /// paper's prompt, so it is not asked for (Tina `tina/post_train_hf/rewards.py`,
    /// `format_reward`; the same in Open-RS).
    #[default]
    Tina,
    /// `^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$` at the start of the text; `$` is any
    /// line's end, so a new line may follow (Open-R1 `src/open_r1/rewards.py`, `format_reward`).
    OpenR1,
    /// `^<think>.*?</think>\s*<answer>.*?</answer>$` (the same at the commit that Tina starts from,
    /// 7041fbc).
    OpenR1Base,
    /// `<think>` at the start and nowhere else, and `</think>` after it (TRL
    /// `trl/rewards/format_rewards.py`, `think_format_reward`).
    Think,
    /// As `OpenR1`, with a fenced block of the language in the answer (Open-R1,
    /// `get_code_format_reward`).
    Code,
}

/// A rule, ready to use.
#[derive(Clone, Debug)]
pub(crate) enum Format {
    Tina,
    Think,
    Matches(Regex),
}

impl Format {
    /// `language` is for [`FormatRule::Code`].
    pub(crate) fn new(rule: FormatRule, language: &str) -> Result<Self, regex::Error> {
        let matches = |pattern: &str| pattern::compile(pattern).map(Self::Matches);
        match rule {
            FormatRule::Tina => Ok(Self::Tina),
            FormatRule::Think => Ok(Self::Think),
            FormatRule::OpenR1 => {
                matches(r"(?sm)\A<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$")
            }
            FormatRule::OpenR1Base => matches(r"(?sm)\A<think>.*?</think>\s*<answer>.*?</answer>$"),
            FormatRule::Code => matches(&format!(
                r"(?sm)\A<think>\n.*?\n</think>\n<answer>\n.*?```{}.*?```.*?\n</answer>$",
                regex::escape(language)
            )),
        }
    }
}

pub(crate) fn score(format: &Format, text: &str) -> Verdict {
    Verdict::right(match format {
        Format::Tina => text.matches("\n</think>\n").count() == 1,
        Format::Think => text
            .strip_prefix("<think>")
            .is_some_and(|rest| !rest.contains("<think>") && rest.contains("</think>")),
        Format::Matches(regex) => regex.is_match(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_its_own_form() {
        let texts = [
            "<think>\na\n</think>\n<answer>\nb\n</answer>",
            "<think>a</think> <answer>b</answer>",
            "a\n</think>\nb",
            "<think>a</think>b",
            "<think>\na\n</think>\n<answer>\n```rust\nb\n```\n</answer>",
            "x<think>\na\n</think>\n<answer>\nb\n</answer>",
            "<think>\na\n</think>\n<answer>\nb\n</answer>\nmore",
            "<think>\na\n</think>\n<answer>\nb\n</answer> more",
        ];
        for (rule, expected) in [
            (FormatRule::Tina, [1, 0, 1, 0, 1, 1, 1, 1]),
            (FormatRule::OpenR1, [1, 0, 0, 0, 1, 0, 1, 0]),
            (FormatRule::OpenR1Base, [1, 1, 0, 0, 1, 0, 1, 0]),
            (FormatRule::Think, [1, 1, 0, 1, 1, 0, 1, 1]),
            (FormatRule::Code, [0, 0, 0, 0, 1, 0, 0, 0]),
        ] {
            let format = Format::new(rule, "rust").expect("compiles");
            for (text, expected) in texts.iter().zip(expected) {
                let expected = Verdict::Scored(f64::from(expected));
                assert_eq!(score(&format, text), expected, "{rule:?} {text:?}");
            }
        }
    }

    #[test]
    fn a_language_is_text_and_no_pattern() {
        let format = Format::new(FormatRule::Code, "c++").expect("compiles");
        let text = "<think>\na\n</think>\n<answer>\n```c++\nb\n```\n</answer>";
        assert_eq!(score(&format, text), Verdict::Scored(1.0));
    }
}
