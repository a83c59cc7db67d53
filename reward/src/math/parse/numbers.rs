//! Numbers: their digits, separators, points, periods and exponents.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::{ParseError, token::Kind};

/// Digits that a number may have, its exponent's size included.
pub(super) const MAX_DIGITS: usize = 5_000;

/// Reads the number at `start`, which is a digit, or a point before a digit. Gives the token and the
/// index behind it; `None` when no number stands there.
pub(super) fn number(chars: &[char], start: usize) -> Result<Option<(Kind, usize)>, ParseError> {
    let mut digits = String::new();
    let mut at = take_digits(chars, start, &mut digits);
    let first_group = at - start;
    if (1..=3).contains(&first_group) {
        while let Some(next) = thousands(chars, at, &digits) {
            at = take_digits(chars, next, &mut digits);
        }
    }
    if digits.len() > MAX_DIGITS {
        return Err(ParseError::TooLarge);
    }
    let (fraction_start, is_point) = match point(chars, at) {
        Some(next) => (next, true),
        None => (at, false),
    };
    if !is_point {
        if digits.is_empty() {
            return Ok(None);
        }
        if let Some((value, end)) = exponent(chars, at, &digits, "")? {
            return Ok(Some((Kind::Decimal(value), end)));
        }
        return Ok(Some((Kind::Digits(digits), at)));
    }
    let mut fraction = String::new();
    let end = take_digits(chars, fraction_start, &mut fraction);
    if digits.len() + fraction.len() > MAX_DIGITS {
        return Err(ParseError::TooLarge);
    }
    if let Some((period, end)) = period(chars, end) {
        if digits.len() + fraction.len() + period.len() > MAX_DIGITS {
            return Err(ParseError::TooLarge);
        }
        let value = repeating(&digits, &fraction, &period);
        return Ok(Some((
            Kind::Exact {
                value,
                vulgar: false,
            },
            end,
        )));
    }
    if fraction.is_empty() {
        if digits.is_empty() {
            return Ok(None);
        }
        // `335.`: the point ends a sentence or says nothing; `1...` leaves its dots.
        let end = if chars.get(at + 1) == Some(&'.') {
            at
        } else {
            fraction_start
        };
        return Ok(Some((Kind::Digits(digits), end)));
    }
    if let Some((value, end)) = exponent(chars, end, &digits, &fraction)? {
        return Ok(Some((Kind::Decimal(value), end)));
    }
    Ok(Some((Kind::Decimal(decimal(&digits, &fraction)), end)))
}

/// The value of digits; empty is zero.
pub(super) fn integer(digits: &str) -> BigInt {
    BigInt::parse_bytes(digits.as_bytes(), 10).unwrap_or_default()
}

/// The value of `digits.fraction`.
pub(super) fn decimal(digits: &str, fraction: &str) -> BigRational {
    let whole = integer(&format!("{digits}{fraction}"));
    BigRational::new(whole, power_of_ten(fraction.len()))
}

fn power_of_ten(exponent: usize) -> BigInt {
    BigInt::from(10u32).pow(exponent as u64)
}

fn repeating(digits: &str, fraction: &str, period: &str) -> BigRational {
    let nines = power_of_ten(period.len()) - BigInt::one();
    let tail = BigRational::new(integer(period), nines * power_of_ten(fraction.len()));
    decimal(digits, fraction) + tail
}

fn take_digits(chars: &[char], mut at: usize, into: &mut String) -> usize {
    while let Some(c) = chars.get(at).filter(|c| c.is_ascii_digit()) {
        into.push(*c);
        at += 1;
    }
    at
}

/// Behind a separator of thousands that can be nothing else (`{,}`, `,\!`, a space of any kind),
/// with exactly three digits after it. A bare comma is for the parser, who sees what is around.
fn thousands(chars: &[char], at: usize, digits: &str) -> Option<usize> {
    const SEPARATORS: [&str; 7] = [",\\!", "\\,", "\\ ", "\\;", "\\:", "~", " "];
    if digits.starts_with('0') {
        return None;
    }
    let spaced = || {
        SEPARATORS.iter().find_map(|separator| {
            let len = separator.chars().count();
            let here = chars.get(at..at + len)?;
            let mut end = here
                .iter()
                .copied()
                .eq(separator.chars())
                .then_some(at + len)?;
            // `11,\! 111`: this space is taken back.
            while separator.ends_with('!') && chars.get(end) == Some(&' ') {
                end += 1;
            }
            Some(end)
        })
    };
    let behind = braced_comma(chars, at).or_else(spaced)?;
    let group = chars.get(behind..behind + 3)?;
    let ends = !chars.get(behind + 3).is_some_and(char::is_ascii_digit);
    (ends && group.iter().all(char::is_ascii_digit)).then_some(behind)
}

/// Behind `{,}`, with space or `\!` in or around it.
fn braced_comma(chars: &[char], at: usize) -> Option<usize> {
    let mut rest = chars
        .iter()
        .enumerate()
        .skip(at)
        .filter(|(_, c)| !c.is_whitespace() && **c != '!');
    // What `\!` leaves is a backslash.
    let mut next = || rest.find(|(_, c)| **c != '\\');
    let open = next().filter(|(_, c)| **c == '{');
    let comma = open.and_then(|_| next()).filter(|(_, c)| **c == ',');
    let (close, _) = comma.and_then(|_| next()).filter(|(_, c)| **c == '}')?;
    let negative = chars
        .get(close + 1..close + 3)
        .is_some_and(|c| c == ['\\', '!']);
    Some(close + 1 + if negative { 2 } else { 0 })
}

/// Behind a decimal point, or a comma in braces that separates no thousands.
fn point(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at) == Some(&'.') {
        return Some(at + 1);
    }
    let braced = chars.get(at..at + 3)? == ['{', ',', '}'];
    (braced && chars.get(at + 3).is_some_and(char::is_ascii_digit)).then_some(at + 3)
}

/// `\overline{3}`, `\bar{3}`, `\dot{3}`, `(3)`: the period and the index behind it.
fn period(chars: &[char], at: usize) -> Option<(String, usize)> {
    const OPENERS: [(&str, char); 8] = [
        ("\\overline{", '}'),
        ("\\overline {", '}'),
        ("{\\overline{", '}'),
        ("\\bar{", '}'),
        ("\\dot{", '}'),
        ("\\overline", ' '),
        ("\\bar", ' '),
        ("(", ')'),
    ];
    for (opener, closer) in OPENERS {
        let len = opener.chars().count();
        let Some(here) = chars.get(at..at + len) else {
            continue;
        };
        if !here.iter().copied().eq(opener.chars()) {
            continue;
        }
        let mut digits = String::new();
        if closer == ' ' {
            let mut next = at + len;
            while chars.get(next) == Some(&' ') {
                next += 1;
            }
            let digit = chars.get(next).filter(|c| c.is_ascii_digit())?;
            return Some((digit.to_string(), next + 1));
        }
        let end = take_digits(chars, at + len, &mut digits);
        if digits.is_empty() || chars.get(end) != Some(&closer) {
            return None;
        }
        let extra = usize::from(opener.starts_with("{\\") && chars.get(end + 1) == Some(&'}'));
        // `0.\dot{1}4\dot{2}` is rare enough to be left alone.
        return Some((digits, end + 1 + extra));
    }
    None
}

/// `e5`, `E-7` directly behind digits.
fn exponent(
    chars: &[char],
    at: usize,
    digits: &str,
    fraction: &str,
) -> Result<Option<(BigRational, usize)>, ParseError> {
    if !matches!(chars.get(at), Some('e' | 'E')) {
        return Ok(None);
    }
    let sign = match chars.get(at + 1) {
        Some('-') => -1i64,
        _ => 1,
    };
    let start = at + 1 + usize::from(matches!(chars.get(at + 1), Some('+' | '-')));
    let mut size = String::new();
    let end = take_digits(chars, start, &mut size);
    if size.is_empty() {
        return Ok(None);
    }
    let size: usize = match size.parse() {
        Ok(size) if size <= MAX_DIGITS => size,
        _ => return Err(ParseError::TooLarge),
    };
    let value = decimal(digits, fraction);
    let scale = BigRational::from_integer(power_of_ten(size));
    let value = if sign < 0 {
        value / scale
    } else {
        value * scale
    };
    Ok(Some((value, end)))
}

/// The value of digits in a base of 2 to 36; `None` when a digit is too large.
pub(super) fn in_base(digits: &str, base: u32) -> Option<BigInt> {
    if !(2..=36).contains(&base) {
        return None;
    }
    BigInt::parse_bytes(digits.as_bytes(), base)
}

/// Whether a rational is an integer other than zero.
pub(super) fn is_nonzero_integer(value: &BigRational) -> bool {
    value.is_integer() && !value.is_zero()
}
