//! `length`: shorter than the others of the group is better (Kimi k1.5, arXiv 2501.12599, section
//! 2.3.3, "length penalty").
//!
//! `λ = 0.5 - (len - min_len) / (max_len - min_len)` over the completions of one prompt; a right
//! answer gets `λ`, a wrong one `min(0, λ)`; where all are equally long, all get 0.
//!
//! Lengths are in tokens, and a completion whose answer could not be judged takes no part. The
//! published code (Tina and Open-R1, `len_reward`) takes characters, takes every answer for right
//! where the gold answer can't be read, and takes min and max over whatever one process holds: one
//! group only because its batch is as large as a group.

use crate::{
    Verdict,
    completion::{Known, Unit},
    correct::{AnswerJudge, Judge},
    reward::{Finding, Share},
};

/// How `length` judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Length {
    pub(crate) judge: AnswerJudge,
    pub(crate) published: bool,
}

/// What the group needs to know of one completion: its length, and 1 or 0 for right or wrong.
pub(crate) fn share(rule: &Length, known: &Known<'_>) -> Finding {
    let (unit, right) = if rule.published {
        let correctness = known.correctness(Judge::reversed(rule.judge));
        (Unit::Characters, Ok(correctness.published()))
    } else {
        let correctness = known.correctness(Judge::of(rule.judge));
        (Unit::Tokens, correctness.decided())
    };
    match (known.length(unit), right) {
        (Ok(length), Ok(right)) => Finding::Share(Share {
            length,
            value: if right { 1.0 } else { 0.0 },
        }),
        (Err(reason), _) | (_, Err(reason)) => Finding::Verdict(Verdict::NotJudged(reason)),
    }
}

/// The values of a group.
pub(crate) fn finish(shares: &[Share]) -> Vec<f64> {
    let Some((min, max)) = crate::reward::range(shares) else {
        return vec![0.0; shares.len()];
    };
    shares
        .iter()
        .map(|share| {
            let lambda = 0.5 - (share.length - min) as f64 / (max - min) as f64;
            if share.value >= 1.0 {
                lambda
            } else {
                lambda.min(0.0)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_is_better_and_wrong_is_never_above_zero() {
        let share = |length, value| Share { length, value };
        let group = [
            share(10, 1.0),
            share(20, 1.0),
            share(30, 1.0),
            share(10, 0.0),
            share(25, 0.0),
        ];
        assert_eq!(finish(&group), [0.5, 0.0, -0.5, 0.0, -0.25]);
        assert_eq!(finish(&[share(7, 1.0), share(7, 0.0)]), [0.0, 0.0]);
        assert_eq!(finish(&[share(7, 1.0)]), [0.0]);
        assert!(finish(&[]).is_empty());
    }
}
