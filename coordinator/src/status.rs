//! Records of steps and evaluations, and the report that a person or a dashboard gets.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tina_proto::v1;

use crate::{
    journal::Counters,
    scheduler::{
        Snapshot,
        types::{EvalDone, Scored, StepDone},
    },
    statistics::{self, Estimate, Tally},
};

/// Steps that a report shows.
const TAIL: usize = 32;
/// Steps whose mean time the estimate of the time left is made from.
const ESTIMATE: usize = 8;

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// What a step was, for journal, metrics and people. The counters are those at the record of the
/// step `before` and `now`; `cost_usd` is the run's so far.
pub fn step_record(
    done: &StepDone,
    before: &Counters,
    now: &Counters,
    cost_usd: f64,
) -> v1::StepRecord {
    let since = |of: fn(&Counters) -> Duration| of(now).saturating_sub(of(before)).as_secs_f64();
    let all = || done.groups.iter().flatten();
    // Statistics are over completions that could be judged; the others took no part.
    let judged = || {
        all()
            .filter(|scored| scored.judged)
            .map(|scored| scored.reward)
    };
    let reward_mean = mean(judged());
    let variance = mean(judged().map(|reward| (reward - reward_mean).powi(2)));
    let tokens = done.tokens;
    let timings = &done.timings;
    v1::StepRecord {
        step: done.version.step,
        reward_mean,
        reward_std: variance.sqrt(),
        rewards: reward_records(all()),
        groups_without_signal: mean(done.groups.iter().map(|group| f64::from(is_flat(group)))),
        completion_tokens_mean: mean(all().map(|scored| scored.completion.tokens.len() as f64)),
        truncated_share: truncated_share(all()),
        tokens_sampled: tokens,
        seconds_sample: timings.sample.as_secs_f64(),
        seconds_score: timings.score.as_secs_f64(),
        seconds_learn: timings.learn.as_secs_f64(),
        seconds_sync: timings.sync.as_secs_f64(),
        seconds_total: timings.total.as_secs_f64(),
        tokens_per_second: if timings.sample.is_zero() {
            0.0
        } else {
            tokens as f64 / timings.sample.as_secs_f64()
        },
        cost_usd,
        learner: Some(done.metrics),
        version: Some(done.version.to_wire()),
        seconds_coordinator: since(|counters| counters.coordinator),
        seconds_learner_wait: since(|counters| counters.learner_wait),
        seconds_rollout_wait: since(|counters| counters.rollout_wait),
        groups_resampled: done.resampled,
        groups_outdated: done.outdated,
    }
}

/// A group whose judged completions all got the same reward: no advantage, nothing to learn.
fn is_flat(group: &[Arc<Scored>]) -> bool {
    let mut rewards = group
        .iter()
        .filter(|scored| scored.judged)
        .map(|scored| scored.reward);
    let first = rewards.next();
    rewards.all(|reward| Some(reward) == first)
}

fn truncated_share<'a>(all: impl Iterator<Item = &'a Arc<Scored>>) -> f64 {
    mean(all.map(|scored| f64::from(scored.completion.finish_reason() == v1::FinishReason::Length)))
}

fn reward_records<'a>(all: impl Iterator<Item = &'a Arc<Scored>>) -> Vec<v1::RewardRecord> {
    let mut sums: Vec<(Arc<str>, f64, u32, u32)> = Vec::new();
    for scored in all {
        for (at, reward) in scored.rewards.iter().enumerate() {
            if at == sums.len() {
                sums.push((reward.name.clone(), 0.0, 0, 0));
            }
            match reward.value {
                Some(value) => {
                    sums[at].1 += value;
                    sums[at].2 += 1;
                }
                None => sums[at].3 += 1,
            }
        }
    }
    sums.into_iter()
        .map(|(name, sum, judged, not_judged)| v1::RewardRecord {
            name: name.to_string(),
            mean: if judged == 0 {
                0.0
            } else {
                sum / f64::from(judged)
            },
            not_judged,
        })
        .collect()
}

/// What an evaluation was; `reward` is the one that said what is right. A completion that it could
/// not judge counts as wrong, and apart.
pub fn eval_record(done: &EvalDone, reward: &str) -> v1::EvalRecord {
    let judged = |scored: &Scored| {
        let mut of_it = scored.rewards.iter().filter(|value| &*value.name == reward);
        of_it.all(|value| value.value.is_some())
    };
    let all = || done.groups.iter().flatten();
    let tallies: Vec<Tally> = done.groups.iter().map(|group| tally(group)).collect();
    let samples = tallies.iter().map(|tally| tally.samples).min().unwrap_or(0);
    let accuracy = statistics::pass_at_1(&tallies);
    let pass_at_k = |k| {
        let Estimate { mean, low, high } = statistics::pass_at_k(&tallies, k)?;
        let value = mean;
        Some(v1::PassAtK {
            k,
            value,
            low,
            high,
        })
    };
    v1::EvalRecord {
        step: done.version.step,
        problems: done.groups.len() as u32,
        accuracy: accuracy.mean,
        completion_tokens_mean: mean(all().map(|scored| scored.completion.tokens.len() as f64)),
        seconds: done.seconds.as_secs_f64(),
        truncated_share: truncated_share(all()),
        samples,
        accuracy_low: accuracy.low,
        accuracy_high: accuracy.high,
        not_judged: all().filter(|scored| !judged(scored)).count() as u32,
        tokens: all()
            .map(|scored| scored.completion.tokens.len() as u64)
            .sum(),
        pass_at_k: statistics::powers(samples).filter_map(pass_at_k).collect(),
    }
}

/// The accuracy of an evaluation, with its interval.
pub fn accuracy_of(record: &v1::EvalRecord) -> Estimate {
    Estimate {
        mean: record.accuracy,
        low: record.accuracy_low,
        high: record.accuracy_high,
    }
}

fn tally(group: &[Arc<Scored>]) -> Tally {
    Tally {
        samples: group.len() as u32,
        correct: group.iter().filter(|scored| scored.correct).count() as u32,
    }
}

/// What reports are made of, besides the scheduler's part.
#[derive(Debug, Default)]
pub struct History {
    /// The newest steps, oldest first.
    tail: VecDeque<v1::StepRecord>,
    /// All evaluations, in order.
    pub evals: Vec<v1::EvalRecord>,
}

impl History {
    /// Where the journal left it.
    pub fn new(tail: Vec<v1::StepRecord>, evals: Vec<v1::EvalRecord>) -> Self {
        Self {
            tail: tail.into(),
            evals,
        }
    }

    /// A step was done.
    pub fn step(&mut self, record: v1::StepRecord) {
        self.tail.push_back(record);
        while self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    /// An evaluation was done.
    pub fn eval(&mut self, record: v1::EvalRecord) {
        self.evals.push(record);
    }

    /// All after this step is void.
    pub fn roll_back(&mut self, step: u64) {
        self.tail.retain(|record| record.step <= step);
        self.evals.retain(|record| record.step < step);
    }

    /// Time left, from the mean of the last steps; 0 while that isn't known.
    fn remaining(&self, steps_left: u64) -> f64 {
        let last = self
            .tail
            .iter()
            .rev()
            .take(ESTIMATE)
            .map(|record| record.seconds_total);
        let eval = self.evals.last().map_or(0.0, |record| record.seconds);
        match (self.tail.is_empty(), steps_left) {
            (true, _) | (_, 0) => 0.0,
            _ => mean(last) * steps_left as f64 + eval,
        }
    }

    /// The report.
    pub fn report(
        &self,
        snapshot: Snapshot,
        counters: &Counters,
        run: (&str, &str, u64),
        cost_usd: f64,
    ) -> v1::RunStatus {
        let (run_id, run_dir, steps) = run;
        v1::RunStatus {
            run_id: run_id.into(),
            run_dir: run_dir.into(),
            phase: snapshot.phase.into(),
            step: snapshot.step,
            steps,
            version: snapshot.version.map(|version| version.to_wire()),
            workers: snapshot.workers,
            learner: snapshot.learner,
            queues: Some(snapshot.queues),
            tail: self.tail.iter().cloned().collect(),
            learner_wait_seconds: counters.learner_wait.as_secs_f64(),
            rollout_wait_seconds: counters.rollout_wait.as_secs_f64(),
            elapsed_seconds: counters.elapsed.as_secs_f64(),
            remaining_seconds: self.remaining(steps.saturating_sub(snapshot.step)),
            cost_usd,
            tokens_sampled: counters.tokens_sampled,
            tokens_trained: counters.tokens_trained,
            evals: self.evals.clone(),
            error: snapshot.error,
            phase_done: snapshot.done.0,
            phase_total: snapshot.done.1,
            message: snapshot.message,
            coordinator_seconds: counters.coordinator.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::types::{RewardValue, Timings, Version};

    fn scored(reward: f64, judged: bool, tokens: usize, reason: v1::FinishReason) -> Arc<Scored> {
        Arc::new(Scored {
            completion: v1::Completion {
                tokens: vec![1; tokens],
                finish_reason: reason.into(),
                ..Default::default()
            },
            worker: "w".into(),
            text: String::new(),
            reward,
            judged,
            correct: reward >= 1.0,
            rewards: vec![RewardValue {
                name: "r".into(),
                value: judged.then_some(reward),
                share: None,
            }],
        })
    }

    #[test]
    fn what_could_not_be_judged_is_counted_apart_and_not_as_zero() {
        let (stop, cut) = (v1::FinishReason::Stop, v1::FinishReason::Length);
        let done = StepDone {
            version: Version {
                step: 3,
                digest: [0; 32],
            },
            metrics: v1::StepMetrics::default(),
            timings: Timings {
                sample: Duration::from_secs(2),
                ..Timings::default()
            },
            groups: vec![
                vec![scored(1.0, true, 4, stop), scored(0.0, true, 6, stop)],
                vec![scored(1.0, true, 5, cut), scored(9.0, false, 5, stop)],
            ],
            tokens: 20,
            resampled: 0,
            outdated: 0,
        };
        let before = Counters {
            coordinator: Duration::from_secs(7),
            learner_wait: Duration::from_secs(9),
            ..Counters::default()
        };
        let now = Counters {
            coordinator: Duration::from_secs(8),
            learner_wait: Duration::from_secs(12),
            ..Counters::default()
        };
        let record = step_record(&done, &before, &now, 0.0);
        assert_eq!(
            (
                record.seconds_coordinator,
                record.seconds_learner_wait,
                record.seconds_rollout_wait
            ),
            (1.0, 3.0, 0.0)
        );
        assert!((record.reward_mean - 2.0 / 3.0).abs() < 1e-12);
        assert!((record.reward_std - (2.0f64 / 9.0).sqrt()).abs() < 1e-12);
        assert_eq!(record.groups_without_signal, 0.5);
        assert_eq!(record.rewards[0].not_judged, 1);
        assert!((record.rewards[0].mean - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(
            (record.truncated_share, record.completion_tokens_mean),
            (0.25, 5.0)
        );
        assert_eq!(
            (record.tokens_sampled, record.tokens_per_second),
            (20, 10.0)
        );
    }
}
