//! `cosine`: a right answer is worth less the longer it is, and a wrong one costs less ("Demystifying
//! Long Chain-of-Thought Reasoning", arXiv 2502.03373, appendix C.1).
//!
//! `r = end + (start - end) / 2 * (1 + cos(π * min(1, len / max_len)))`, where `start` is the value
//! at length 0 and `end` that from `max_len` on: `max_correct` to `min_correct` for a right answer,
//! `min_wrong` to `max_wrong` for a wrong one. Lengths are in tokens; TRL's
//! `get_cosine_scaled_reward` is the same.
//!
//! The published code (Tina and Open-R1) counts characters against a limit of tokens and does not
//! clip, so that the curve rises again beyond `max_len`; it gives 1 where the gold answer can't be
//! read; and its configured defaults for wrong answers (0 and -0.5) make a long wrong answer cost
//! more, against its own docstring.

use crate::{
    Verdict,
    completion::{Known, Unit},
    correct::{AnswerJudge, Correctness, Judge},
};

/// How `cosine` judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cosine {
    pub(crate) judge: AnswerJudge,
    pub(crate) published: bool,
    /// In tokens; in characters as published.
    pub(crate) max_len: u64,
    /// Of a wrong answer: without length, and at `max_len`.
    pub(crate) min_wrong: f64,
    pub(crate) max_wrong: f64,
    /// Of a right answer: at `max_len`, and without length.
    pub(crate) min_correct: f64,
    pub(crate) max_correct: f64,
}

pub(crate) fn score(rule: &Cosine, known: &Known<'_>) -> Verdict {
    let (unit, right) = if rule.published {
        match known.correctness(Judge::reversed(rule.judge)) {
            Correctness::NoGold(_) => return Verdict::Scored(1.0),
            other => (Unit::Characters, Ok(other == Correctness::Right)),
        }
    } else {
        let correctness = known.correctness(Judge::of(rule.judge));
        (Unit::Tokens, correctness.decided())
    };
    match (known.length(unit), right) {
        (Ok(length), Ok(right)) => Verdict::Scored(value(rule, length, right)),
        (Err(reason), _) | (_, Err(reason)) => Verdict::NotJudged(reason),
    }
}

fn value(rule: &Cosine, length: u64, right: bool) -> f64 {
    let mut progress = length as f64 / rule.max_len as f64;
    if !rule.published {
        progress = progress.min(1.0);
    }
    let (end, start) = if right {
        (rule.min_correct, rule.max_correct)
    } else {
        (rule.max_wrong, rule.min_wrong)
    };
    end + 0.5 * (start - end) * (1.0 + (progress * std::f64::consts::PI).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_middle_of_the_curve() {
        let rule = Cosine {
            judge: AnswerJudge::Boxed,
            published: false,
            max_len: 100,
            min_wrong: -1.0,
            max_wrong: -0.5,
            min_correct: 0.5,
            max_correct: 1.0,
        };
        let published = Cosine {
            published: true,
            ..rule
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        for (length, right, wrong, unclipped) in [
            (0, 1.0, -1.0, 1.0),
            (50, 0.75, -0.75, 0.75),
            (100, 0.5, -0.5, 0.5),
            (200, 0.5, -0.5, 1.0),
            (250, 0.5, -0.5, 0.75),
        ] {
            near(value(&rule, length, true), right);
            near(value(&rule, length, false), wrong);
            near(value(&published, length, true), unclipped);
        }
        near(value(&rule, 25, true), 0.75 + 0.25 * 0.5f64.sqrt());
    }
}
