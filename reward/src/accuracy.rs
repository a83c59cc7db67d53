//! `accuracy`: 1 where the answer equals the gold answer, else 0.
//!
//! Source: Open-R1 `src/open_r1/rewards.py`, `accuracy_reward`, which Tina's is a copy of; `after` is
//! TRL's `trl/rewards/accuracy_rewards.py`, `reasoning_accuracy_reward`. A gold answer that can't be
//! read is not judged; Open-R1's base commit (7041fbc) gave 1 for it, and compared the other way
//! round.

use crate::{
    Verdict,
    completion::Known,
    correct::{AnswerJudge, Correctness, Judge, judge},
};

/// How `accuracy` judges.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Accuracy {
    pub(crate) judge: AnswerJudge,
    /// Only what follows the last of the first of these that is there is judged; without any of
    /// them the answer is wrong. Empty: all of the text is.
    pub(crate) after: Vec<String>,
    /// As published: an answer that can't be judged though there is a gold answer is wrong.
    pub(crate) published: bool,
    /// As at Open-R1's base commit.
    pub(crate) base: bool,
}

pub(crate) fn score(rule: &Accuracy, known: &Known<'_>) -> Verdict {
    let by = if rule.base {
        Judge::reversed(rule.judge)
    } else {
        Judge::of(rule.judge)
    };
    let (text, gold) = (known.completion.text, known.completion.gold);
    let correctness = if rule.after.is_empty() {
        known.correctness(by)
    } else {
        let end = rule
            .after
            .iter()
            .find_map(|end| text.rsplit_once(end.as_str()));
        match end {
            Some((_, rest)) => judge(by, gold, rest),
            None => Correctness::Wrong,
        }
    };
    match correctness {
        _ if rule.base => Verdict::right(correctness.published()),
        Correctness::NotJudged(_) if rule.published => Verdict::right(false),
        correctness => correctness.verdict(),
    }
}
