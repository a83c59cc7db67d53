//! What stands around an answer and says nothing.

use num_rational::BigRational;

use super::numbers;
use crate::math::expr::Expr;

/// The range of what matters in a text: without space, `**` and closing punctuation around it, and
/// without a pair of `$` or `\[ \]` that wraps the whole.
pub(super) fn inside(chars: &[char]) -> std::ops::Range<usize> {
    let mut start = 0;
    let mut end = chars.len();
    let at = |i: usize| chars.get(i).copied().unwrap_or(' ');
    loop {
        let before = (start, end);
        while start < end && at(start).is_whitespace() {
            start += 1;
        }
        while start < end && at(end - 1).is_whitespace() {
            end -= 1;
        }
        // `\ ` at the end: its space is gone.
        if start < end && at(end - 1) == '\\' && (end < start + 2 || at(end - 2) != '\\') {
            end -= 1;
        }
        if start + 2 <= end && at(start) == '*' && at(start + 1) == '*' {
            start += 2;
        }
        if start + 2 <= end && at(end - 1) == '*' && at(end - 2) == '*' {
            end -= 2;
        }
        if start < end && ".,;:".contains(at(end - 1)) {
            // `\,` and its kin are space; `a.m.` keeps its point; `\right.` has none to lose.
            let command = end >= start + 2 && at(end - 2) == '\\';
            let closes = ends_with(chars, start, end, "right.");
            let abbreviates = at(end - 1) == '.'
                && end >= start + 3
                && at(end - 2).is_alphabetic()
                && at(end - 3) == '.';
            let dots = at(end - 1) == '.' && end >= start + 2 && at(end - 2) == '.';
            if command {
                end -= 2;
            } else if !closes && !abbreviates && !dots {
                end -= 1;
            }
        }
        for (open, close) in [("$", "$"), ("\\[", "\\]")] {
            let length = open.len();
            let wraps = end - start >= 2 * length
                && starts_with(chars, start, open)
                && ends_with(chars, start, end, close);
            let inner = chars
                .get(start + length..end.saturating_sub(length))
                .unwrap_or(&[]);
            if wraps && !inner.contains(&'$') {
                start += length;
                end -= length;
            }
        }
        // `\( … \)` around an equation sets it as a formula; else its brackets may be meant.
        let inner = chars.get(start + 2..end.saturating_sub(2)).unwrap_or(&[]);
        if starts_with(chars, start, "\\(")
            && ends_with(chars, start, end, "\\)")
            && inner.contains(&'=')
            && !inner
                .windows(2)
                .any(|pair| pair == ['\\', '('] || pair == ['\\', ')'])
        {
            start += 2;
            end -= 2;
        }
        if (start, end) == before {
            return start..end;
        }
    }
}

fn starts_with(chars: &[char], start: usize, what: &str) -> bool {
    chars
        .get(start..start + what.len())
        .is_some_and(|here| here.iter().copied().eq(what.chars()))
}

fn ends_with(chars: &[char], start: usize, end: usize, what: &str) -> bool {
    end >= start + what.len() && starts_with(chars, end - what.len(), what)
}

/// Words as [`Expr::Text`] has them.
pub(super) fn words(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// `1000,99` and `0,111` as typed: a decimal, unless three digits make it a thousand.
pub(super) fn decimal_comma(text: &str) -> Option<Expr> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once(',')?;
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let fits = all_digits(whole)
        && all_digits(fraction)
        && whole.len() + fraction.len() <= numbers::MAX_DIGITS
        && (fraction.len() != 3 || whole.len() > 3 || whole.starts_with('0'));
    let value: BigRational = fits.then(|| numbers::decimal(whole, fraction))?;
    Some(Expr::Decimal(if sign { -value } else { value }))
}

/// Where the last side starts of a chain with more than one `=` and no lists in it.
pub(super) fn last_side(chars: &[char]) -> Option<usize> {
    let letter = |at: Option<usize>| {
        at.and_then(|at| chars.get(at))
            .is_some_and(char::is_ascii_alphabetic)
    };
    let joins = |at: usize, word: &str| {
        starts_with(chars, at, word)
            && !letter(at.checked_sub(1))
            && !letter(at.checked_add(word.len()))
    };
    let lists = |(at, c): (usize, &char)| match c {
        ',' | ';' => true,
        'a' => joins(at, "and"),
        'o' => joins(at, "or"),
        _ => false,
    };
    if chars.iter().enumerate().any(lists) {
        return None;
    }
    let mut count = 0;
    let mut last = None;
    for (at, c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|i| chars.get(i));
        if *c == '=' && !before.is_some_and(|c| "\\<>!".contains(*c)) {
            count += 1;
            last = Some(at + 1);
        }
    }
    last.filter(|_| count > 1)
}
