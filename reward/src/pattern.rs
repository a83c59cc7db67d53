//! `regex`: a regular expression matches somewhere in the completion. The engine has no
//! backtracking: a match takes time linear in the text.

use regex::{Regex, RegexBuilder};

use crate::Verdict;

/// Bytes that a compiled pattern may take; `(a{1000}){1000}` is refused, not built.
const SIZE_LIMIT: usize = 1 << 20;

pub(crate) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(SIZE_LIMIT)
        .build()
}

pub(crate) fn score(regex: &Regex, completion: &str) -> Verdict {
    Verdict::right(regex.is_match(completion))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_anywhere_is_right() {
        let regex = compile(r"(?s)<think>.*</think>\s*<answer>.*</answer>").expect("compiles");
        let good = "<think>\nhm\n</think>\n<answer>4</answer>";
        assert_eq!(score(&regex, good), Verdict::Scored(1.0));
        assert_eq!(score(&regex, "<answer>4</answer>"), Verdict::Scored(0.0));
    }

    #[test]
    fn a_huge_pattern_is_refused() {
        assert!(compile("((a{500}){500}){500}").is_err());
        assert!(compile("(").is_err());
    }

    #[test]
    fn a_pattern_that_makes_others_explode_is_answered() {
        let regex = compile(r"(a+)+$").expect("compiles");
        let text = format!("{}b", "a".repeat(200_000));
        assert_eq!(score(&regex, &text), Verdict::Scored(0.0));
    }
}
