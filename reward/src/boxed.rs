//! `boxed`: the last `\boxed{…}` of the completion equals the gold answer, as a number where both
//! are numbers, else as text without its layout.

use crate::{Verdict, number::Number};

pub(crate) fn score(completion: &str, gold: &str) -> Verdict {
    let gold = normalise(last_boxed(gold).unwrap_or(gold));
    if gold.is_empty() {
        return Verdict::NotJudged("the gold answer is empty".to_owned());
    }
    let Some(answer) = last_boxed(completion).map(normalise) else {
        return Verdict::Scored(0.0);
    };
    Verdict::right(match (Number::parse(&answer), Number::parse(&gold)) {
        (Some(answer), Some(gold)) => answer == gold,
        _ => answer == gold,
    })
}

/// What stands inside the last complete `\boxed{…}` or `\fbox{…}`; braces inside it may nest. One
/// pass over the text.
fn last_boxed(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    // Open braces: where the inside starts, and whether it is a box.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut last: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let rest = &bytes[at + 1..];
                let word = ["boxed", "fbox"]
                    .iter()
                    .find(|word| rest.starts_with(word.as_bytes()));
                let after = at + 1 + word.map_or(1, |word| word.len());
                let space = bytes
                    .get(after..)
                    .map_or(0, |b| b.iter().take_while(|b| **b == b' ').count());
                if word.is_some() && bytes.get(after + space) == Some(&b'{') {
                    open.push((after + space + 1, true));
                    at = after + space + 1;
                } else {
                    // The brace of `\{` is text.
                    at = after;
                }
                continue;
            }
            b'{' => open.push((at + 1, false)),
            b'}' => {
                if let Some((start, true)) = open.pop()
                    && last.is_none_or(|(before, _)| start > before)
                {
                    last = Some((start, at));
                }
            }
            _ => {}
        }
        at += 1;
    }
    last.and_then(|(start, end)| text.get(start..end))
}

/// Text without what only concerns its layout.
fn normalise(text: &str) -> String {
    let mut text: String = text.trim().trim_end_matches('.').to_owned();
    for (from, to) in [
        ("{,}", ","),
        ("\\left", ""),
        ("\\right", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", ""),
        ("\\:", ""),
        ("\\ ", ""),
        ("\\$", ""),
        ("$", ""),
    ] {
        text = text.replace(from, to);
    }
    text.retain(|c| !c.is_whitespace());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_box_decides() {
        for (completion, gold, right) in [
            ("so \\boxed{42}.", "42", 1.0),
            ("\\boxed{1} or rather \\boxed{2}", "2", 1.0),
            ("\\boxed{1} or rather \\boxed{2}", "1", 0.0),
            ("\\boxed{7} and then \\boxed{8", "7", 1.0),
            ("\\boxed{\\frac{1}{2}}", "0.5", 1.0),
            ("\\boxed {\\dfrac{ x+1 }{2}}", "\\frac{x+1}{2}", 1.0),
            ("\\boxed{\\{1, 2\\}}", "\\{1,2\\}", 1.0),
            ("\\boxed{\\boxed{5}}", "5", 1.0),
            ("} { \\boxed{5}", "5", 1.0),
            ("\\boxed{1{,}234}", "1234", 1.0),
            ("\\boxed{1,234}", "\\boxed{1234}", 1.0),
            ("42", "42", 0.0),
            ("\\boxed{}", "42", 0.0),
        ] {
            assert_eq!(
                score(completion, gold),
                Verdict::Scored(right),
                "{completion} | {gold}"
            );
        }
    }

    #[test]
    fn an_empty_gold_is_not_judged() {
        assert!(matches!(score("\\boxed{}", " "), Verdict::NotJudged(_)));
    }

    #[test]
    fn many_open_boxes_are_answered_at_once() {
        let text = "\\boxed{".repeat(200_000);
        assert_eq!(score(&text, "1"), Verdict::Scored(0.0));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_panic(text in "(\\\\boxed|\\\\fbox|[ {}\\\\é1]|\\PC)*") {
            let _ = score(&text, &text);
        }
    }
}
