//! The numbers of an evaluation, out of its journal.

use std::path::Path;

use serde::Serialize;

use super::{EvaluationError, EvaluationOptions, REPORT_JSON, REPORT_MARKDOWN, table};
use crate::{
    config::RunConfig,
    journal::{Answer, JournalError, Reader},
    run::CoordinatorError,
    scheduler::types::RoundId,
    statistics::{self, Estimate, Tally},
};

/// A number and its 95 % interval over problems.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The number.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<Estimate> for Interval {
    fn from(Estimate { mean, low, high }: Estimate) -> Self {
        let value = mean;
        Self { value, low, high }
    }
}

/// The chance that at least one of k completions is right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PassAtK {
    /// Completions.
    pub k: u32,
    /// Mean over problems.
    #[serde(flatten)]
    pub chance: Interval,
}

/// One adapter on one suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuiteReport {
    /// Its name.
    pub suite: String,
    /// Problems.
    pub problems: usize,
    /// Mean over problems of the share of right completions.
    pub pass_at_1: Interval,
    /// For k = 1, 2, 4, … up to the completions of a problem.
    pub pass_at_k: Vec<PassAtK>,
    /// Mean length of a completion, in tokens.
    pub length_mean: f64,
    /// Share of completions that the token limit cut off.
    pub truncated_share: f64,
    /// Completions that could not be judged; they count as wrong.
    pub not_judged: usize,
    /// Tokens of all completions.
    pub tokens: u64,
    /// Share of the adapter's time, by tokens.
    pub seconds: f64,
    /// What that cost, in USD.
    pub cost_usd: f64,
}

/// One adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterReport {
    /// As it was asked for.
    pub adapter: String,
    /// SHA-256 of its file.
    pub digest: String,
    /// Mean of the suites' pass@1, each suite counting alike.
    pub mean_of_suites: f64,
    /// Each suite, in the order asked for.
    pub suites: Vec<SuiteReport>,
    /// Tokens of all completions.
    pub tokens: u64,
    /// Time of all starts together: loading, sampling, scoring.
    pub seconds: f64,
    /// What that cost, in USD.
    pub cost_usd: f64,
}

/// How much an adapter is better than the first, on the same problems.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The adapter.
    pub adapter: String,
    /// The first adapter.
    pub than: String,
    /// The suite; `all`: the problems of all suites together.
    pub suite: String,
    /// Difference of pass@1, paired by problem.
    #[serde(flatten)]
    pub difference: Interval,
}

/// All numbers of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationReport {
    /// The base model.
    pub model: String,
    /// Completions of a problem.
    pub samples: u32,
    /// Of sampling.
    pub temperature: f64,
    /// Of sampling.
    pub top_p: f64,
    /// Longest completion, in tokens.
    pub max_tokens: u32,
    /// `paper` or `config`.
    pub prompt: &'static str,
    /// All samples follow from it.
    pub seed: u64,
    /// In the order asked for; those that are done.
    pub adapters: Vec<AdapterReport>,
    /// Against the first adapter.
    pub changes: Vec<Change>,
}

/// What was to be evaluated.
pub(super) struct Asked<'a> {
    pub(super) options: &'a EvaluationOptions,
    pub(super) config: &'a RunConfig,
    pub(super) names: &'a [String],
    pub(super) digests: &'a [[u8; 32]],
    pub(super) suites: &'a [(String, usize)],
}

/// Completions of one adapter, by problem.
type Answers = Vec<Vec<Answer>>;

/// The report of what is done.
pub(super) fn read(journal: &Path, asked: &Asked<'_>) -> Result<EvaluationReport, JournalError> {
    let eval = &asked.config.eval;
    let mut report = EvaluationReport {
        model: asked.config.model.source.clone(),
        samples: eval.samples,
        temperature: eval.temperature,
        top_p: eval.top_p.unwrap_or(1.0),
        max_tokens: eval.max_tokens.unwrap_or(0),
        prompt: asked.options.prompt.as_str(),
        seed: asked.config.run.seed,
        adapters: Vec::new(),
        changes: Vec::new(),
    };
    let Some(reader) = Reader::open(journal)? else {
        return Ok(report);
    };
    let problems = asked.suites.iter().map(|(_, count)| count).sum();
    let usd_per_second = asked.config.cost.usd_per_hour / 3600.0;
    let mut first: Option<(&String, Answers)> = None;
    for record in reader.evals()? {
        let place = record.step as usize;
        let (Some(name), Some(digest)) = (asked.names.get(place), asked.digests.get(place)) else {
            continue;
        };
        let answers = by_problem(reader.answers(record.step)?, problems);
        report.adapters.push(AdapterReport::new(
            name,
            digest,
            &answers,
            asked.suites,
            record.seconds,
            usd_per_second,
        ));
        match &first {
            None => first = Some((name, answers)),
            Some((than, before)) => {
                report
                    .changes
                    .extend(changes(name, than, &answers, before, asked.suites));
            }
        }
    }
    Ok(report)
}

fn by_problem(answers: Vec<Answer>, problems: usize) -> Answers {
    let mut sorted: Answers = vec![Vec::new(); problems];
    for answer in answers {
        let (_, index) = RoundId::of_group(answer.sample.group);
        if let Some(of_problem) = sorted.get_mut(index as usize) {
            of_problem.push(answer);
        }
    }
    sorted
}

fn tallies(answers: &[Vec<Answer>]) -> Vec<Tally> {
    let tally = |of_problem: &Vec<Answer>| Tally {
        samples: of_problem.len() as u32,
        correct: of_problem.iter().filter(|answer| answer.correct).count() as u32,
    };
    answers.iter().map(tally).collect()
}

/// Each suite's part of the problems.
fn parts<'a>(
    answers: &'a [Vec<Answer>],
    suites: &'a [(String, usize)],
) -> impl Iterator<Item = (&'a String, &'a [Vec<Answer>])> {
    let mut rest = answers;
    suites.iter().map(move |(name, count)| {
        let (part, after) = rest.split_at((*count).min(rest.len()));
        rest = after;
        (name, part)
    })
}

fn changes(
    adapter: &str,
    than: &str,
    after: &[Vec<Answer>],
    before: &[Vec<Answer>],
    suites: &[(String, usize)],
) -> Vec<Change> {
    let change = |suite: &str, after: &[Vec<Answer>], before: &[Vec<Answer>]| {
        let difference = statistics::difference(&tallies(after), &tallies(before))?;
        Some(Change {
            adapter: adapter.to_owned(),
            than: than.to_owned(),
            suite: suite.to_owned(),
            difference: difference.into(),
        })
    };
    let pairs = parts(after, suites).zip(parts(before, suites));
    let mut all: Vec<Change> = pairs
        .filter_map(|((name, after), (_, before))| change(name, after, before))
        .collect();
    if suites.len() > 1 {
        all.extend(change("all", after, before));
    }
    all
}

impl AdapterReport {
    fn new(
        name: &str,
        digest: &[u8; 32],
        answers: &[Vec<Answer>],
        suites: &[(String, usize)],
        seconds: f64,
        usd_per_second: f64,
    ) -> Self {
        let tokens = |answers: &[Vec<Answer>]| -> u64 {
            let all = answers.iter().flatten();
            all.map(|answer| u64::from(answer.tokens)).sum()
        };
        let all_tokens = tokens(answers);
        let suites: Vec<SuiteReport> = parts(answers, suites)
            .map(|(suite, part)| {
                let part_tokens = tokens(part);
                let seconds = seconds * part_tokens as f64 / all_tokens.max(1) as f64;
                SuiteReport::new(suite, part, part_tokens, seconds, usd_per_second)
            })
            .collect();
        let sum: f64 = suites.iter().map(|suite| suite.pass_at_1.value).sum();
        Self {
            adapter: name.to_owned(),
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            mean_of_suites: sum / suites.len().max(1) as f64,
            suites,
            tokens: all_tokens,
            seconds,
            cost_usd: seconds * usd_per_second,
        }
    }
}

impl SuiteReport {
    fn new(
        suite: &str,
        answers: &[Vec<Answer>],
        tokens: u64,
        seconds: f64,
        usd_per_second: f64,
    ) -> Self {
        let tallies = tallies(answers);
        let samples = tallies.iter().map(|tally| tally.samples).max().unwrap_or(0);
        let all = || answers.iter().flatten();
        let count = all().count().max(1) as f64;
        let pass_at_k = |k| {
            let chance = statistics::pass_at_k(&tallies, k)?.into();
            Some(PassAtK { k, chance })
        };
        Self {
            suite: suite.to_owned(),
            problems: answers.len(),
            pass_at_1: statistics::pass_at_1(&tallies).into(),
            pass_at_k: statistics::powers(samples).filter_map(pass_at_k).collect(),
            length_mean: tokens as f64 / count,
            truncated_share: all().filter(|answer| answer.truncated).count() as f64 / count,
            not_judged: all().filter(|answer| !answer.judged).count(),
            tokens,
            seconds,
            cost_usd: seconds * usd_per_second,
        }
    }
}

/// Puts the report into the evaluation's folder.
pub(super) fn write(folder: &Path, report: &EvaluationReport) -> Result<(), EvaluationError> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    for (name, text) in [
        (REPORT_JSON, json + "\n"),
        (REPORT_MARKDOWN, table::markdown(report)),
    ] {
        let (path, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|source| CoordinatorError::File { path, source })?;
    }
    Ok(())
}
