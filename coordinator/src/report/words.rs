//! Numbers as a page writes them (a dash where there is none), and foreign text made harmless.

/// Text for a table's cell, or a line: no line breaks, and nothing that Markdown or HTML takes for
/// its own.
pub(super) fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut spaced = false;
    for character in text.chars() {
        let space = character.is_whitespace() || character.is_control();
        match character {
            _ if space => {
                if !spaced {
                    safe.push(' ');
                }
            }
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '|' | '*' | '_' | '\\' | '[' | ']' | '$' | '#' => {
                safe.push('\\');
                safe.push(character);
            }
            other => safe.push(other),
        }
        spaced = space;
    }
    safe.trim().to_owned()
}

/// A code block that the text can't end.
pub(super) fn fenced(text: &str) -> String {
    let (mut longest, mut run) = (0, 0);
    for character in text.chars() {
        run = if character == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat((longest + 1).max(3));
    let text = text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', " ");
    format!("{fence}text\n{}\n{fence}", text.trim_end_matches('\n'))
}

/// At most so many characters: the beginning and the end, where the answer is.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let head: String = text.chars().take(most / 2).collect();
    let tail: String = text.chars().skip(count - most / 2).collect();
    format!("{head} […] {tail}")
}

/// With so many decimals.
pub(super) fn figure(value: f64, decimals: usize) -> String {
    if value.is_finite() {
        format!("{value:.decimals$}")
    } else {
        "-".to_owned()
    }
}

/// A share, with one decimal.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{:.1} %", 100.0 * share)
    } else {
        "-".to_owned()
    }
}

/// For shares that may be small.
pub(super) fn percent_fine(share: f64) -> String {
    if share.is_finite() {
        format!("{:.2} %", 100.0 * share)
    } else {
        "-".to_owned()
    }
}

/// `$0.0123` below a dollar, `$12.34` above.
pub(super) fn dollars(usd: f64) -> String {
    if usd < 1.0 {
        format!("${usd:.4}")
    } else {
        format!("${usd:.2}")
    }
}

/// In seconds, minutes or hours.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        "-".to_owned()
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 7200.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_wrote_does_not_become_markup() {
        assert_eq!(cell(" a|b\n\n<x> *c* \u{7}"), "a\\|b &lt;x&gt; \\*c\\*");
        assert_eq!(fenced("a\n```\nb\n"), "````text\na\n```\nb\n````");
        assert_eq!(fenced(""), "```text\n\n```");
        assert_eq!(shortened("0123456789", 4), "01 […] 89");
        assert_eq!(shortened("äöü", 3), "äöü");
    }

    #[test]
    fn numbers_that_are_none_are_a_dash() {
        assert_eq!(figure(f64::NAN, 2), "-");
        assert_eq!(percent(f64::INFINITY), "-");
        assert_eq!(duration(f64::NAN), "-");
        assert_eq!(
            [5.04, 125.0, 7300.0].map(duration),
            ["5.0 s", "2.1 min", "2.0 h"]
        );
    }
}
