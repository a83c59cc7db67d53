//! `reasoning_steps`: signs of step-by-step reasoning, `min(1, signs / steps)`.
//!
//! Source: Open-R1 `src/open_r1/rewards.py`, `reasoning_steps_reward`; Tina's is a copy. A sign is
//! `Step 3:`, a numbered line (`3.`), a bullet (`-` or `*` after a line's end) or one of `First,`
//! `Second,` `Next,` `Finally,`. The published pattern lacks the flag that lets `^` match at every
//! line, against its own docstring: there a number counts at the text's start only.

use regex::Regex;

use crate::{Verdict, pattern};

const SIGNS: &str = r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,";

/// The pattern: as meant, or as published.
pub(crate) fn compile(published: bool) -> Result<Regex, regex::Error> {
    let flags = if published { "" } else { "(?m)" };
    pattern::compile(&format!("{flags}{SIGNS}"))
}

pub(crate) fn score(signs: &Regex, steps: u32, text: &str) -> Verdict {
    let found = signs.find_iter(text).take(steps as usize).count();
    Verdict::Scored((found as f64 / f64::from(steps)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_counted_up_to_the_steps_asked_for() {
        let (meant, published) = (compile(false).expect("ok"), compile(true).expect("ok"));
        for (text, by_meaning, as_published) in [
            ("Step 1: a\nStep 2: b", 2.0 / 3.0, 2.0 / 3.0),
            ("1. a\n2. b\n3. c\n4. d", 1.0, 1.0 / 3.0),
            ("First, a\n- b\n* c", 1.0, 1.0),
            ("plain", 0.0, 0.0),
        ] {
            assert_eq!(
                score(&meant, 3, text),
                Verdict::Scored(by_meaning),
                "{text}"
            );
            assert_eq!(
                score(&published, 3, text),
                Verdict::Scored(as_published),
                "{text}"
            );
        }
    }
}
