//! What is inside of boxes: `extract_boxed_content` of latex2sympy2_extended 1.11.

use std::borrow::Cow;

use super::{BoxedContent, text::is_space};

const BOXED: &str = "\\boxed";
const FBOX: &str = "\\fbox";

/// The text that `which` boxes of `text` hold, joined by commas; all of `text` if it has no box.
///
/// From the last box back. A box that is not closed, or has no brace, holds the rest of the text,
/// and counts only if it is the last. [`BoxedContent::Last`] takes an earlier box in if fewer than
/// 10 characters lie between; or fewer than 70 with a comma, semicolon, "and" or "or" among them,
/// if it holds something else. Equal neighbours count once.
pub(super) fn contents(text: &str, which: BoxedContent) -> Cow<'_, str> {
    if which == BoxedContent::Whole {
        return Cow::Borrowed(text);
    }
    // Last to first.
    let mut found: Vec<&str> = Vec::new();
    let mut boxed = text.rfind(BOXED);
    let mut fbox = text.rfind(FBOX);
    // Where the box after this one starts: what lies behind belongs to that one.
    let mut limit = text.len();
    while let Some(start) = boxed.max(fbox) {
        let inside = &text[..start];
        let command = if boxed > fbox {
            boxed = inside.rfind(BOXED);
            BOXED
        } else {
            fbox = inside.rfind(FBOX);
            FBOX
        };
        let after = &text[start + command.len()..limit];
        let open = limit - after.trim_start_matches(is_space).len();
        if open >= limit {
            break;
        }
        let closed = text[open..limit]
            .starts_with('{')
            .then(|| closing_brace(&text[open..limit]))
            .flatten();
        let Some(close) = closed.map(|length| open + length) else {
            if found.is_empty() {
                found.push(&text[open..]);
            }
            break;
        };
        let content = text[open + 1..close].trim_matches(is_space);
        if which == BoxedContent::Last
            && let Some(next) = found.last()
            && !belongs(content, next, &text[close + 1..limit])
        {
            break;
        }
        if found.last() != Some(&content) {
            found.push(content);
        }
        limit = start;
    }
    match found.as_slice() {
        [] => Cow::Borrowed(text),
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.iter().rev().copied().collect::<Vec<_>>().join(",")),
    }
}

/// Where the brace that `text` starts with is closed.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether a box belongs to the one after it.
fn belongs(content: &str, next: &str, between: &str) -> bool {
    let shorter = |characters: usize| between.chars().nth(characters - 1).is_none();
    shorter(10) || (shorter(70) && content != next && has_separator(between))
}

fn has_separator(text: &str) -> bool {
    text.contains([',', ';'])
        || text
            .split(|char: char| !char.is_alphanumeric() && char != '_')
            .any(|word| matches!(word, "and" | "or"))
}
