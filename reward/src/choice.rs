//! The letter of a multiple-choice answer.

use std::sync::LazyLock;

use regex::Regex;

use crate::Verdict;

/// Ways to say a letter, at the end of which it stands: behind the word "answer" (`Answer: B`, `the
/// answer is (B)`, `**Answer:** $B$`), or in a box.
static SAID: LazyLock<Option<Regex>> = LazyLock::new(|| {
    const DRESS: &str = r"(?:\\(?:text|mathrm|mathbf|textbf|boxed)\{|[\s:*$({\\\[])*";
    let behind = format!(
        r"(?i:\banswer\b){DRESS}(?i:is\b)?{DRESS}(?i:option\b|choice\b)?{DRESS}([A-J])(?:[^A-Za-z0-9]|$)"
    );
    let boxed = format!(r"\\boxed\{{{DRESS}([A-J])[\s).}}]*\}}");
    Regex::new(&format!("{behind}|{boxed}")).ok()
});

/// True when the gold answer is a choice: one capital letter.
pub(crate) fn is_choice(gold: &str) -> bool {
    matches!(gold.trim().as_bytes(), [b'A'..=b'J'])
}

/// 1 where the letter that the text says last is the gold one; without any, what a last line says
/// that is nothing but a letter.
pub(crate) fn score(text: &str, gold: &str) -> Verdict {
    let said = SAID.as_ref().and_then(|said| {
        let last = said.captures_iter(text).last()?;
        last.iter()
            .skip(1)
            .flatten()
            .next()
            .map(|letter| letter.as_str())
    });
    let alone = || {
        let line = text.trim_end().lines().next_back()?;
        let line = line.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        is_choice(line).then_some(line)
    };
    Verdict::right(said.or_else(alone) == Some(gold.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_found_however_it_is_dressed() {
        for text in [
            "A is wrong.\nAnswer: B",
            "**Answer:** B",
            "Answer: $B$.",
            "the answer is (B), not C",
            "The correct answer is option B",
            "Answer: \\boxed{\\text{B}}",
            "so \\boxed{B}",
            "so $\\boxed{\\mathrm{(B)}}$ it is",
            "Answer: A? No. Answer: B",
            "Answer: \n\nB",
            "I choose\n(B)",
            "B",
        ] {
            assert_eq!(score(text, "B"), Verdict::Scored(1.0), "{text}");
            assert_eq!(score(text, "D"), Verdict::Scored(0.0), "{text}");
        }
        for text in [
            "",
            "Beta",
            "Answer: Beta",
            "B or C",
            "\\boxed{BC}",
            "answer B2",
        ] {
            assert_eq!(score(text, "B"), Verdict::Scored(0.0), "{text}");
        }
        assert!(is_choice("B") && is_choice(" D\n"));
        assert!(!is_choice("b") && !is_choice("AB") && !is_choice("7") && !is_choice("Z"));
    }
}
