//! `l1_exact` and `l1_max`: right, and as long as asked for ("L1: Controlling How Long A Reasoning
//! Model Thinks", arXiv 2503.04697, equations 1 and 2).
//!
//! - exact: `right - alpha * |target - len|`
//! - max: `right * clip(alpha * (target - len) + delta, 0, 1)`
//!
//! with `alpha` 0.0003 and `delta` 0.5, lengths in tokens. The target is a number of the config, or
//! stands in the prompt ("Think for 1024 tokens."). The published code (Tina,
//! `len_reward_l1_exact` and `len_reward_l1_max`) takes characters, every answer for right where the
//! gold answer can't be read, and gives 0 to all where all of a group are equally long.

use regex::Regex;

use crate::{
    Verdict,
    completion::{Known, Unit},
    correct::{AnswerJudge, Judge},
    reward::{Finding, Share},
};

/// Finds the target in a prompt.
pub(crate) const TARGET: &str = r"Think for (?:a maximum of |maximum )?(\d+) tokens";

/// Where the target length comes from.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Fixed(u64),
    /// The first group of the last match in the prompt.
    Prompt(Regex),
}

/// How `l1_exact` (`max` false) and `l1_max` judge.
#[derive(Clone, Debug)]
pub(crate) struct L1 {
    pub(crate) judge: AnswerJudge,
    pub(crate) published: bool,
    pub(crate) target: Target,
    pub(crate) alpha: f64,
    /// Of `l1_max`.
    pub(crate) delta: f64,
    pub(crate) max: bool,
}

pub(crate) fn score(rule: &L1, known: &Known<'_>) -> Finding {
    let (unit, right) = if rule.published {
        let correctness = known.correctness(Judge::reversed(rule.judge));
        (Unit::Characters, Ok(correctness.published()))
    } else {
        let correctness = known.correctness(Judge::of(rule.judge));
        (Unit::Tokens, correctness.decided())
    };
    let target = target(rule, known.completion.prompt);
    match (known.length(unit), right, target) {
        (Ok(length), Ok(right), Ok(target)) => {
            let value = value(rule, length as f64, target as f64, right);
            if rule.published {
                Finding::Share(Share { length, value })
            } else {
                Finding::Verdict(Verdict::Scored(value))
            }
        }
        (Err(reason), ..) | (_, Err(reason), _) | (.., Err(reason)) => {
            Finding::Verdict(Verdict::NotJudged(reason))
        }
    }
}

fn target(rule: &L1, prompt: &str) -> Result<u64, String> {
    match &rule.target {
        Target::Fixed(target) => Ok(*target),
        Target::Prompt(pattern) => pattern
            .captures_iter(prompt)
            .last()
            .and_then(|found| found.get(1)?.as_str().parse().ok())
            .ok_or_else(|| format!("the prompt names no length (pattern {pattern})")),
    }
}

fn value(rule: &L1, length: f64, target: f64, right: bool) -> f64 {
    if rule.max {
        let room = (rule.alpha * (target - length) + rule.delta).clamp(0.0, 1.0);
        if right { room } else { 0.0 }
    } else {
        f64::from(right) - rule.alpha * (target - length).abs()
    }
}

/// The values of a group, as published.
pub(crate) fn finish(shares: &[Share]) -> Vec<f64> {
    let same = crate::reward::range(shares).is_none();
    shares
        .iter()
        .map(|share| if same { 0.0 } else { share.value })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    fn rule(max: bool) -> L1 {
        L1 {
            judge: AnswerJudge::Boxed,
            published: false,
            target: Target::Prompt(pattern::compile(TARGET).expect("compiles")),
            alpha: 0.0003,
            delta: 0.5,
            max,
        }
    }

    #[test]
    fn the_formulas_in_closed_form() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(value(&rule(false), 1000.0, 1000.0, true), 1.0);
        near(value(&rule(false), 2000.0, 1000.0, true), 0.7);
        near(value(&rule(false), 500.0, 1000.0, false), -0.15);
        near(value(&rule(true), 1000.0, 1000.0, true), 0.5);
        near(value(&rule(true), 500.0, 1000.0, true), 0.65);
        near(value(&rule(true), 100.0, 4000.0, true), 1.0);
        near(value(&rule(true), 4000.0, 1000.0, true), 0.0);
        near(value(&rule(true), 10.0, 1000.0, false), 0.0);
    }

    #[test]
    fn the_target_stands_in_the_prompt() {
        let of = |prompt| target(&rule(false), prompt);
        assert_eq!(of("2+2?\nThink for 1024 tokens."), Ok(1024));
        assert_eq!(of("Think for a maximum of 300 tokens."), Ok(300));
        assert_eq!(of("Think for 1 tokens. Think for 2 tokens."), Ok(2));
        assert!(of("2+2?").is_err());
    }
}
