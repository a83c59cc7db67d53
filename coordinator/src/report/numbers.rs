//! From a run's data to the numbers of its report.

use serde::Serialize;
use tina_proto::v1;

use super::{
    facts::{RewardFacts, Role},
    problems::{self, Problems},
    read::{EvalData, RunData},
    turn::{self, Shape, Turn},
};
use crate::statistics::{Estimate, Tally, pass_at_1};

/// Everything that a report says, but for the completions that it shows. Shares are between 0 and
/// 1, times in seconds, lengths in tokens. A number that isn't known is NaN, in JSON null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The run's name.
    pub run: String,
    /// The run's name for itself.
    pub run_id: String,
    /// How it stands.
    pub state: State,
    /// Steps done.
    pub steps_done: u64,
    /// Steps that it was to do.
    pub steps_planned: Option<u64>,
    /// Keys of the config worth telling.
    pub settings: Vec<(String, String)>,
    /// The rewards.
    pub rewards: Vec<RewardFacts>,
    /// All evaluations, in order.
    pub evaluations: Vec<Evaluation>,
    /// The evaluated checkpoint with the highest lower end of its interval; of equals the last, as
    /// the run itself keeps it. The base model (step 0) is none.
    pub best: Option<u64>,
    /// What the evaluations say of single problems.
    pub problems: Option<Problems>,
    /// Where the curves turned.
    pub turns: Vec<CurveTurn>,
    /// The paper's phase transition.
    pub transition: Transition,
    /// Time, money, tokens.
    pub totals: Totals,
    /// Where the time went; the parts add up to it.
    pub time: Vec<TimePart>,
    /// Each step.
    pub steps: Vec<Step>,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All steps are done.
    Finished,
    /// Its coordinator has not taken leave: it goes on, or was killed.
    Open,
    /// It ended before its last step.
    StoppedEarly,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Steps done before.
    pub step: u64,
    /// Problems asked.
    pub problems: u32,
    /// Completions of a problem (the fewest that any has).
    pub samples: u32,
    /// pass@1.
    pub accuracy: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The chance that at least one of k completions is right, for k = 1, 2, 4, …, where the
    /// record has it.
    pub pass_at_k: Vec<PassAtK>,
    /// Completions that could not be judged; they count as wrong. 0 in records that don't have it.
    pub not_judged: u32,
    /// Mean length of a completion.
    pub tokens_mean: f64,
    /// Share of completions cut off by the token limit.
    pub truncated_share: f64,
    /// Time it took.
    pub seconds: f64,
    /// What the run had cost until then; NaN without a price.
    pub cost_usd: f64,
}

/// pass@k with its 95 % interval over problems.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PassAtK {
    /// Completions, of which one must be right.
    pub k: u32,
    /// Mean over problems.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A curve and where it turned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurveTurn {
    /// A reward's name, or `completion length`.
    pub curve: String,
    /// The reward's role; `None` for the length.
    pub role: Option<Role>,
    /// What was looked for.
    pub shape: Shape,
    /// What was found.
    #[serde(flatten)]
    pub turn: Turn,
}

/// The paper's phase transition: a peak of the format reward and a trough of completion length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Transition {
    /// Both were seen.
    Seen {
        /// Step of the format reward's peak.
        peak: u64,
        /// Step of the length's trough.
        trough: u64,
    },
    /// The format reward turned, the length didn't.
    FormatOnly {
        /// Step of the format reward's peak.
        peak: u64,
    },
    /// The length turned, no format reward did.
    LengthOnly {
        /// Step of the length's trough.
        trough: u64,
    },
    /// Neither turned.
    NotSeen,
}

/// Time, money, tokens of the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Time that the run went.
    pub seconds: f64,
    /// Price of an hour; 0: none is given.
    pub usd_per_hour: f64,
    /// What it cost.
    pub cost_usd: f64,
    /// Tokens of all completions, evaluations included.
    pub tokens_sampled: u64,
    /// Tokens trained on.
    pub tokens_trained: u64,
    /// Sampled tokens of steps over the time of sampling.
    pub sampled_per_second: f64,
    /// Trained tokens over the time of learning.
    pub trained_per_second: f64,
    /// Time in which the learner had no batch.
    pub learner_wait_seconds: f64,
    /// Time in which slots stood free because the step was not done, by their share.
    pub rollout_wait_seconds: f64,
    /// The coordinator's own work.
    pub coordinator_seconds: f64,
}

/// A part of the run's time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimePart {
    /// What was done.
    pub what: &'static str,
    /// How long.
    pub seconds: f64,
}

/// A step's numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Counted from 1.
    pub step: u64,
    /// Mean of the weighted sum of rewards over judged completions.
    pub reward_mean: f64,
    /// Its standard deviation.
    pub reward_std: f64,
    /// Each reward's mean over the completions that it judged, in the order of
    /// [`Report::rewards`], unweighted.
    pub rewards: Vec<f64>,
    /// Share of verdicts that could not be given, over all rewards.
    pub not_judged_share: f64,
    /// Mean length of a completion.
    pub tokens_mean: f64,
    /// A tenth of the completions is shorter.
    pub tokens_p10: f64,
    /// A tenth is longer.
    pub tokens_p90: f64,
    /// Share of completions cut off by the token limit.
    pub truncated_share: f64,
    /// Share of groups whose completions all got the same reward.
    pub groups_without_signal: f64,
    /// The loss; this and the next three NaN where nothing was trained on.
    pub loss: f64,
    /// KL to the base model.
    pub kl: f64,
    /// Entropy of the next token.
    pub entropy: f64,
    /// Norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens sampled.
    pub tokens_sampled: u64,
    /// Tokens trained on.
    pub tokens_trained: u64,
    /// Sampled tokens a second of sampling.
    pub sampled_per_second: f64,
    /// Trained tokens a second of learning.
    pub trained_per_second: f64,
    /// Until all workers had the step's adapter.
    pub seconds_sync: f64,
    /// From the first prompt sent to the last completion in.
    pub seconds_sample: f64,
    /// From then until all are scored and in the journal.
    pub seconds_score: f64,
    /// From the batch sent to the new adapter.
    pub seconds_learn: f64,
    /// Time in which the learner had no batch; 0 in journals that don't have it.
    pub seconds_learner_wait: f64,
    /// Time in which slots stood free, by their share; 0 in journals that don't have it.
    pub seconds_rollout_wait: f64,
    /// The coordinator's own work.
    pub seconds_coordinator: f64,
    /// What the run had cost until then.
    pub cost_usd: f64,
}

/// The name that the turn of the completion length has.
pub const LENGTH: &str = "completion length";

/// The numbers of a run's report.
pub fn report(data: &RunData) -> Report {
    let rewards = rewards(data);
    let steps: Vec<Step> = data
        .steps
        .iter()
        .map(|record| step(record, data.lengths.get(&record.step), &rewards))
        .collect();
    let steps_done = steps.last().map_or(0, |step| step.step);
    let state = match data.facts.steps {
        Some(planned) if steps_done >= planned => State::Finished,
        _ if data.open => State::Open,
        _ => State::StoppedEarly,
    };
    let evaluations: Vec<Evaluation> = data
        .evals
        .iter()
        .map(|eval| evaluation(eval, &steps, data.facts.usd_per_hour > 0.0))
        .collect();
    let turns = turns(&rewards, &steps);
    Report {
        run: data
            .facts
            .name
            .clone()
            .unwrap_or_else(|| data.folder.clone()),
        run_id: data.run_id.clone(),
        state,
        steps_done,
        steps_planned: data.facts.steps,
        settings: data.facts.settings.clone(),
        best: best(&evaluations),
        evaluations,
        problems: problems::problems(data),
        transition: transition(&turns),
        turns,
        totals: totals(data),
        time: time(data),
        rewards,
        steps,
    }
}

/// The config's rewards; what the journal has beyond them (its config is gone) comes after.
fn rewards(data: &RunData) -> Vec<RewardFacts> {
    let mut rewards = data.facts.rewards.clone();
    for record in data.steps.iter().flat_map(|step| &step.rewards) {
        if !rewards.iter().any(|reward| reward.name == record.name) {
            rewards.push(RewardFacts {
                name: record.name.clone(),
                kind: "unknown".into(),
                weight: f64::NAN,
                role: Role::Other,
            });
        }
    }
    rewards
}

fn step(record: &v1::StepRecord, lengths: Option<&Vec<u32>>, rewards: &[RewardFacts]) -> Step {
    let mut lengths = lengths.cloned().unwrap_or_default();
    lengths.sort_unstable();
    let completions = lengths.len() as f64;
    let judged = |reward: &RewardFacts| {
        let found = record.rewards.iter().find(|part| part.name == reward.name);
        match found {
            // A mean over nothing is recorded as 0; it is none.
            Some(part) if completions > 0.0 && f64::from(part.not_judged) >= completions => {
                f64::NAN
            }
            Some(part) => part.mean,
            None => f64::NAN,
        }
    };
    let not_judged: u32 = record.rewards.iter().map(|part| part.not_judged).sum();
    let learner = record.learner.unwrap_or_default();
    let trained = |value: f64| {
        if learner.tokens_trained == 0 {
            f64::NAN
        } else {
            value
        }
    };
    Step {
        step: record.step,
        reward_mean: record.reward_mean,
        reward_std: record.reward_std,
        rewards: rewards.iter().map(judged).collect(),
        not_judged_share: f64::from(not_judged) / (completions * record.rewards.len() as f64),
        tokens_mean: record.completion_tokens_mean,
        tokens_p10: quantile(&lengths, 0.1),
        tokens_p90: quantile(&lengths, 0.9),
        truncated_share: record.truncated_share,
        groups_without_signal: record.groups_without_signal,
        loss: trained(learner.loss),
        kl: trained(learner.kl),
        entropy: trained(learner.entropy),
        grad_norm: trained(learner.grad_norm),
        lr: learner.lr,
        tokens_sampled: record.tokens_sampled,
        tokens_trained: learner.tokens_trained,
        sampled_per_second: record.tokens_sampled as f64 / record.seconds_sample,
        trained_per_second: learner.tokens_trained as f64 / record.seconds_learn,
        seconds_sync: record.seconds_sync,
        seconds_sample: record.seconds_sample,
        seconds_score: record.seconds_score,
        seconds_learn: record.seconds_learn,
        seconds_learner_wait: record.seconds_learner_wait,
        seconds_rollout_wait: record.seconds_rollout_wait,
        seconds_coordinator: record.seconds_coordinator,
        cost_usd: record.cost_usd,
    }
}

/// The quantile `q` of ascending values, linear between them (as numpy's default); NaN of none.
pub(super) fn quantile(ascending: &[u32], q: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let (low, high) = (ascending[below], ascending[(below + 1).min(last)]);
    f64::from(low) + part * (f64::from(high) - f64::from(low))
}

fn evaluation(eval: &EvalData, steps: &[Step], priced: bool) -> Evaluation {
    let record = &eval.record;
    let (samples, low, high) = if record.samples > 0 {
        (record.samples, record.accuracy_low, record.accuracy_high)
    } else {
        older_interval(eval)
    };
    let cost = steps.iter().rfind(|step| step.step <= record.step);
    Evaluation {
        step: record.step,
        problems: record.problems,
        samples,
        accuracy: record.accuracy,
        low,
        high,
        pass_at_k: record
            .pass_at_k
            .iter()
            .map(
                |&v1::PassAtK {
                     k,
                     value,
                     low,
                     high,
                 }| PassAtK {
                    k,
                    value,
                    low,
                    high,
                },
            )
            .collect(),
        not_judged: record.not_judged,
        tokens_mean: record.completion_tokens_mean,
        truncated_share: record.truncated_share,
        seconds: record.seconds,
        cost_usd: match cost {
            _ if !priced => f64::NAN,
            Some(step) => step.cost_usd,
            None => 0.0,
        },
    }
}

/// Samples a problem and the interval of a record that has neither: from its completions, or, where
/// they are gone too, as if each problem was asked once.
fn older_interval(eval: &EvalData) -> (u32, f64, f64) {
    let record = &eval.record;
    let mut tallies = problems::tallies(eval);
    if tallies.is_empty() {
        let right = (record.accuracy * f64::from(record.problems)).round() as u32;
        tallies = (0..record.problems)
            .map(|at| Tally {
                samples: 1,
                correct: u32::from(at < right),
            })
            .collect();
    }
    let Estimate { low, high, .. } = pass_at_1(&tallies);
    let samples = tallies.iter().map(|tally| tally.samples).min();
    (samples.unwrap_or(0), low, high)
}

/// As the run keeps `best`.
fn best(evaluations: &[Evaluation]) -> Option<u64> {
    let checkpoints = evaluations.iter().filter(|eval| eval.step > 0);
    let best = checkpoints.max_by(|a, b| a.low.total_cmp(&b.low).then(a.step.cmp(&b.step)));
    best.map(|best| best.step)
}

fn turns(rewards: &[RewardFacts], steps: &[Step]) -> Vec<CurveTurn> {
    let curve = |of: &dyn Fn(&Step) -> f64| -> Vec<(u64, f64)> {
        steps.iter().map(|step| (step.step, of(step))).collect()
    };
    let mut turns = Vec::new();
    for (at, reward) in rewards.iter().enumerate() {
        let values = curve(&|step| step.rewards.get(at).copied().unwrap_or(f64::NAN));
        turns.push(CurveTurn {
            curve: reward.name.clone(),
            role: Some(reward.role),
            shape: Shape::Peak,
            turn: turn::find(&values, Shape::Peak),
        });
    }
    turns.push(CurveTurn {
        curve: LENGTH.to_owned(),
        role: None,
        shape: Shape::Trough,
        turn: turn::find(&curve(&|step| step.tokens_mean), Shape::Trough),
    });
    turns
}

/// From the first format reward that turned, and the length.
fn transition(turns: &[CurveTurn]) -> Transition {
    let step_of = |role: Option<Role>| {
        let of_role = turns.iter().filter(|curve| curve.role == role);
        of_role.filter_map(|curve| curve.turn.step()).next()
    };
    match (step_of(Some(Role::Format)), step_of(None)) {
        (Some(peak), Some(trough)) => Transition::Seen { peak, trough },
        (Some(peak), None) => Transition::FormatOnly { peak },
        (None, Some(trough)) => Transition::LengthOnly { trough },
        (None, None) => Transition::NotSeen,
    }
}

/// The sum, 0 of nothing (std's is -0).
fn sum_of(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

fn totals(data: &RunData) -> Totals {
    let counters = &data.counters;
    let sum = |of: fn(&v1::StepRecord) -> f64| sum_of(data.steps.iter().map(of));
    let seconds = counters.elapsed.as_secs_f64();
    let trained = sum(|step| {
        step.learner
            .map_or(0.0, |learner| learner.tokens_trained as f64)
    });
    Totals {
        seconds,
        usd_per_hour: data.facts.usd_per_hour,
        cost_usd: data.facts.usd_per_hour * seconds / 3600.0,
        tokens_sampled: counters.tokens_sampled,
        tokens_trained: counters.tokens_trained,
        sampled_per_second: sum(|step| step.tokens_sampled as f64)
            / sum(|step| step.seconds_sample),
        trained_per_second: trained / sum(|step| step.seconds_learn),
        learner_wait_seconds: counters.learner_wait.as_secs_f64(),
        rollout_wait_seconds: counters.rollout_wait.as_secs_f64(),
        coordinator_seconds: counters.coordinator.as_secs_f64(),
    }
}

fn time(data: &RunData) -> Vec<TimePart> {
    let sum = |of: fn(&v1::StepRecord) -> f64| sum_of(data.steps.iter().map(of));
    let mut parts = vec![
        ("sampling", sum(|step| step.seconds_sample)),
        ("scoring", sum(|step| step.seconds_score)),
        ("learning", sum(|step| step.seconds_learn)),
        ("sync", sum(|step| step.seconds_sync)),
        (
            "evaluation",
            sum_of(data.evals.iter().map(|eval| eval.record.seconds)),
        ),
    ];
    let told: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    let rest = data.counters.elapsed.as_secs_f64() - told;
    // What a killed run did since its last record is in no part, nor in the time.
    parts.push(("start, steps not done, pauses", rest.max(0.0)));
    parts
        .into_iter()
        .map(|(what, seconds)| TimePart { what, seconds })
        .collect()
}
