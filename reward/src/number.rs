//! Exact numbers in text: whole numbers, decimals, thousands separators and simple fractions.
//! Nothing goes through floats, so `0.1` is not `0.1000000000000000055`.

/// Digits of a number, or of each side of a fraction, up to which arithmetic is done; a longer
/// decimal still equals itself, digit by digit.
const DIGITS: usize = 18;

/// An exact number. Equal values are equal, however they were written: `1,234.50` is `1234.5`,
/// and `1/2` is `0.5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    negative: bool,
    magnitude: Magnitude,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Magnitude {
    /// In lowest terms.
    Ratio(u128, u128),
    /// More than [`DIGITS`] digits: before the point, without leading zeros, and after it, without
    /// trailing ones.
    Long(String, String),
}

impl Number {
    /// Reads text that is a number and nothing else, apart from space around it, dollar signs, a
    /// percent sign or a full stop. `\frac{1}{2}` is read too.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text
            .trim()
            .trim_matches('$')
            .trim_start_matches("\\$")
            .trim();
        let text = text
            .strip_suffix('%')
            .map_or(text, |t| t.trim_end_matches('\\'))
            .trim_end();
        let text = text.strip_suffix('.').unwrap_or(text);
        let (negative, body) = match text.strip_prefix(['-', '−']) {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text.strip_prefix('+').unwrap_or(text).trim_start()),
        };
        if let Some(fraction) = parse_frac(body) {
            let negative = fraction.negative != negative;
            return Some(fraction.signed(negative));
        }
        let (number, length) = scan(body.as_bytes())?;
        (length == body.len()).then(|| number.signed(negative))
    }

    /// The last number in a text. A minus sign belongs to it unless it stands between two things
    /// (`9-5` ends in 5, `= -5` in -5).
    pub fn last_in(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (mut at, mut last) = (0, None);
        while at < bytes.len() {
            let leading_point = bytes[at] == b'.'
                && !at.checked_sub(1).is_some_and(|before| {
                    bytes[before] == b'.' || bytes[before].is_ascii_alphanumeric()
                });
            let found = if bytes[at].is_ascii_digit() || leading_point {
                scan(&bytes[at..])
            } else {
                None
            };
            match found {
                Some((number, length)) => {
                    last = Some(number.signed(has_minus(&text[..at])));
                    at += length;
                }
                None => at += 1,
            }
        }
        last
    }

    fn signed(mut self, negative: bool) -> Self {
        self.negative = negative && self.magnitude != Magnitude::Ratio(0, 1);
        self
    }
}

/// Whether the number that follows `before` has a minus sign.
fn has_minus(before: &str) -> bool {
    let Some(rest) = before.strip_suffix(['-', '−']) else {
        return false;
    };
    let operand = |c: char| c.is_alphanumeric() || matches!(c, ')' | ']' | '}');
    !rest.chars().next_back().is_some_and(operand)
}

/// A number without sign at the start of `bytes`, and its length.
fn scan(bytes: &[u8]) -> Option<(Number, usize)> {
    let (whole, fraction, length) = scan_decimal(bytes)?;
    if let Some((below, more)) = bytes
        .get(length)
        .filter(|byte| **byte == b'/')
        .and_then(|_| scan_decimal(&bytes[length + 1..]))
        .and_then(|(w, f, more)| Some((digits(&w, &f)?, more)))
        && let Some(above) = digits(&whole, &fraction)
        && let Some(number) = ratio(above, below)
    {
        return Some((number, length + 1 + more));
    }
    let number = match digits(&whole, &fraction) {
        Some(value) => ratio(value, (1, 0))?,
        None => Number {
            negative: false,
            magnitude: Magnitude::Long(whole, fraction),
        },
    };
    Some((number, length))
}

/// Digits before and after the point of a decimal at the start of `bytes`, stripped of zeros that
/// mean nothing, and its length.
fn scan_decimal(bytes: &[u8]) -> Option<(String, String, usize)> {
    let run = |from: usize| {
        bytes
            .get(from..)
            .map_or(0, |b| b.iter().take_while(|b| b.is_ascii_digit()).count())
    };
    let mut at = run(0);
    let mut whole = bytes[..at].to_vec();
    if (1..=3).contains(&at) {
        while bytes.get(at) == Some(&b',') && run(at + 1) == 3 {
            whole.extend(&bytes[at + 1..at + 4]);
            at += 4;
        }
    }
    let after = if bytes.get(at) == Some(&b'.') {
        run(at + 1)
    } else {
        0
    };
    let fraction = if after > 0 {
        &bytes[at + 1..=at + after]
    } else {
        &[]
    };
    at += if after > 0 { after + 1 } else { 0 };
    if at == 0 {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((
        text(&whole).trim_start_matches('0').to_owned(),
        text(fraction).trim_end_matches('0').to_owned(),
        at,
    ))
}

/// All digits as one number, and how many of them stand after the point.
fn digits(whole: &str, fraction: &str) -> Option<(u128, u32)> {
    if whole.len() + fraction.len() > DIGITS {
        return None;
    }
    let all = format!("0{whole}{fraction}").parse().ok()?;
    Some((all, u32::try_from(fraction.len()).ok()?))
}

/// `above / below`, each digits and places after the point.
fn ratio(above: (u128, u32), below: (u128, u32)) -> Option<Number> {
    // At most 18 digits and 18 places a side: the products stay below 10^36.
    let numerator = above.0 * 10u128.pow(below.1);
    let denominator = below.0 * 10u128.pow(above.1);
    if denominator == 0 {
        return None;
    }
    let divisor = gcd(numerator, denominator);
    let magnitude = Magnitude::Ratio(numerator / divisor, denominator / divisor);
    Some(Number {
        negative: false,
        magnitude,
    })
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// `\frac{1}{2}`, `\dfrac{1}{2}` or `\tfrac{1}{2}`, and nothing else.
fn parse_frac(text: &str) -> Option<Number> {
    let rest = ["\\frac{", "\\dfrac{", "\\tfrac{"]
        .iter()
        .find_map(|p| text.strip_prefix(p))?;
    let (above, below) = rest.strip_suffix('}')?.split_once("}{")?;
    let side = |text: &str| {
        let (negative, text) = match text.trim().strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.trim()),
        };
        let (whole, fraction, length) = scan_decimal(text.as_bytes())?;
        (length == text.len()).then_some(())?;
        Some((negative, digits(&whole, &fraction)?))
    };
    let ((above_negative, above), (below_negative, below)) = (side(above)?, side(below)?);
    let mut number = ratio(above, below)?;
    number = number.signed(above_negative != below_negative);
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_equal_however_written() {
        for (a, b) in [
            ("1,234.50", "1234.5"),
            ("007", "7"),
            ("-0", "0"),
            ("+3", "3.000"),
            ("1/2", "0.5"),
            ("2/4", "\\frac{1}{2}"),
            ("-\\dfrac{3}{4}", "-0.75"),
            ("\\frac{-3}{4}", "-0.75"),
            ("$42$", "42."),
            ("12345678901234567890123.50", "012345678901234567890123.5"),
        ] {
            assert_eq!(
                Number::parse(a).expect(a),
                Number::parse(b).expect(b),
                "{a} {b}"
            );
        }
    }

    #[test]
    fn different_values_are_different() {
        for (a, b) in [
            ("0.1", "0.10000000000000001"),
            ("1", "-1"),
            ("12345678901234567890123", "12345678901234567890124"),
            ("1/3", "0.333333333333333333"),
        ] {
            assert_ne!(
                Number::parse(a).expect(a),
                Number::parse(b).expect(b),
                "{a} {b}"
            );
        }
    }

    #[test]
    fn text_that_is_no_number_is_none() {
        for text in [
            "",
            " ",
            "x",
            "1 2",
            "3/0",
            "1,23",
            "12a",
            "\\frac{1}{0}",
            "--5",
            ".",
        ] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_last_number_of_a_text() {
        for (text, last) in [
            ("7 + 5 = 12.", Some("12")),
            ("The answer is -5", Some("-5")),
            ("9-5", Some("5")),
            ("x = −3!", Some("-3")),
            ("costs $1,234.50 today", Some("1234.5")),
            ("1,2,3", Some("3")),
            ("1,2345", Some("2345")),
            ("so it is 3/4", Some("0.75")),
            ("it is .5", Some("0.5")),
            ("wait...5", Some("5")),
            ("version 1.2.3", Some("3")),
            ("none at all", None),
            ("", None),
        ] {
            let expected = last.map(|n| Number::parse(n).expect(n));
            assert_eq!(Number::last_in(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", digits in "[-0-9.,/−}{a\\\\]*") {
            for text in [text, digits] {
                let _ = Number::last_in(&text);
                let _ = Number::parse(&text);
            }
        }

        #[test]
        fn a_number_in_a_sentence_is_found_exactly(n in proptest::prelude::any::<i64>()) {
            let gold = Number::parse(&n.to_string());
            proptest::prop_assert!(gold.is_some());
            proptest::prop_assert_eq!(Number::last_in(&format!("2 of them: {n}, I think.")), gold);
        }
    }
}
