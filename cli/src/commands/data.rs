//! `tina data`: the problems of a config, counted, measured, and three as the model sees them.

use std::path::PathBuf;

use serde::Serialize;
use tina_coordinator::{
    config::RunConfig,
    data::{AnswerKind, DataReport, DataSet, Prompt, PromptRenderer, SourceReport},
};
use tina_model::{ModelSource, Tokenizer};

use crate::Failure;

/// Rendered prompts that are shown.
const SHOWN: usize = 3;

/// Count a config's problems, measure its prompts, and show three as the model sees them; the model's
/// tokenizer is loaded, its weights are not
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's config.
    config: PathBuf,
    /// Set a key: section.key=value, e.g. data.max_prompt_tokens=256
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// All that is told, as `--json` prints it.
#[derive(Serialize)]
struct Page {
    train: usize,
    held_out: usize,
    steps_per_epoch: f64,
    steps: u64,
    digest: String,
    #[serde(flatten)]
    report: DataReport,
    /// Of every prompt made of the sources to train on, also of those left out for their length.
    prompt_tokens: Lengths,
    answers: Answers,
    prompts: Vec<Shown>,
}

/// Numbers of tokens, by nearest rank.
#[derive(Default, Serialize)]
struct Lengths {
    min: u32,
    p50: u32,
    p90: u32,
    p95: u32,
    p99: u32,
    max: u32,
    mean: f64,
}

/// What kinds of gold answers there are, among those to train on and held out.
#[derive(Default, Serialize)]
struct Answers {
    number: usize,
    text: usize,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    /// Decoded from the tokens, special tokens written out.
    prompt: String,
    tokens: usize,
    gold: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut config = RunConfig::load(&args.config, &args.sets)?;
    let source: ModelSource = config.model.source.parse()?;
    let text = tina_model::open_text(&source)?;
    let renderer = PromptRenderer::new(&config, &text.tokenizer, text.chat.as_ref())?;
    let data = DataSet::load(&config, &renderer)?;
    config.settle_steps(data.train_len());
    let page = page(&config, &data, &text.tokenizer)?;
    if args.json {
        println!("{}", serde_json::to_string(&page)?);
    } else {
        print!("{}", words(&page));
    }
    Ok(())
}

fn page(config: &RunConfig, data: &DataSet, tokenizer: &Tokenizer) -> Result<Page, Failure> {
    let held_out = data.held_out(usize::MAX);
    let mut answers = Answers::default();
    for prompt in data.train().chain(held_out) {
        match AnswerKind::of(&prompt.gold) {
            AnswerKind::Number => answers.number += 1,
            AnswerKind::Text => answers.text += 1,
        }
    }
    let per_step = f64::from(config.algorithm.prompts_per_step);
    let mut shown: Vec<Shown> = Vec::new();
    // What training asks first; a few steps, since a step may ask the same again.
    for prompt in (1..=SHOWN as u64).flat_map(|step| data.prompts_of_step(step)) {
        if shown.len() < SHOWN && shown.iter().all(|other| other.id != prompt.id) {
            shown.push(show(&prompt, tokenizer)?);
        }
    }
    Ok(Page {
        train: data.train_len(),
        held_out: held_out.len(),
        steps_per_epoch: data.train_len() as f64 / per_step,
        steps: config.run.steps,
        digest: data.digest(),
        report: data.report().clone(),
        prompt_tokens: Lengths::of(&data.report().prompt_tokens),
        answers,
        prompts: shown,
    })
}

fn show(prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Shown, Failure> {
    Ok(Shown {
        id: prompt.id.clone(),
        prompt: tokenizer.decode(&prompt.tokens, false)?,
        tokens: prompt.tokens.len(),
        gold: prompt.gold.clone(),
    })
}

impl Lengths {
    /// `sorted`: in rising order.
    fn of(sorted: &[u32]) -> Self {
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        let rank = |share: f64| {
            let at = (share * sorted.len() as f64).ceil() as usize;
            sorted[at.clamp(1, sorted.len()) - 1]
        };
        let sum: f64 = sorted.iter().map(|&length| f64::from(length)).sum();
        Self {
            min,
            p50: rank(0.5),
            p90: rank(0.9),
            p95: rank(0.95),
            p99: rank(0.99),
            max,
            mean: sum / sorted.len() as f64,
        }
    }
}

/// The page for a person.
fn words(page: &Page) -> String {
    let mut lines: Vec<String> = Vec::new();
    let sources = page.report.sources.iter();
    lines.extend(sources.flat_map(|source| about(source, "")));
    if let Some(source) = &page.report.held_out_source {
        lines.extend(about(source, " (held out)"));
    }
    lines.push(format!(
        "together: {} to train on, {} held out; an epoch is {:.1} steps, the run {} steps",
        page.train, page.held_out, page.steps_per_epoch, page.steps
    ));
    let Lengths {
        min,
        p50,
        p90,
        p95,
        p99,
        max,
        mean,
    } = page.prompt_tokens;
    lines.push(format!(
        "tokens of a prompt: {min} to {max}, mean {mean:.1}; 50 % have at most {p50}, 90 % {p90}, \
         95 % {p95}, 99 % {p99}"
    ));
    lines.push(format!(
        "gold answers: {} numbers, {} other texts",
        page.answers.number, page.answers.text
    ));
    for shown in &page.prompts {
        lines.push(format!(
            "\n--- {}, {} tokens\n{}\n--- gold: {}",
            shown.id, shown.tokens, shown.prompt, shown.gold
        ));
    }
    lines.join("\n") + "\n"
}

/// A source's rows: all, then each reason for which some were left out, then what is left.
fn about(report: &SourceReport, note: &str) -> Vec<String> {
    let share = report.share.map_or_else(String::new, |share| {
        format!(", {:.1} % of the prompts", 100.0 * share)
    });
    let mut lines = vec![format!("{}{note}{share}", report.source)];
    let mut count = |count: usize, words: &str| {
        if count > 0 {
            lines.push(format!("{count:>9}  {words}"));
        }
    };
    count(report.rows, "rows");
    count(report.bad, "bad, skipped");
    count(report.filtered, "left out by data.filter");
    count(
        report.unfit_answer,
        "left out for their answer (data.answer)",
    );
    count(
        report.in_held_out,
        "left out: data.held_out_source asks them",
    );
    match report.conflicting {
        0 => count(report.repeated, "left out: asked before"),
        other => count(
            report.repeated,
            &format!("left out: asked before, {other} of them with another answer"),
        ),
    }
    count(report.too_short, "shorter than data.min_prompt_tokens");
    count(report.too_long, "longer than data.max_prompt_tokens");
    count(report.over_limit, "left out by data.limit");
    count(report.held_out, "held out");
    count(report.train, "to train on");
    lines.extend(report.first_bad.iter().map(|row| format!("    bad: {row}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let lengths: Vec<u32> = (1..=200).collect();
        let of = Lengths::of(&lengths);
        assert_eq!(
            (of.min, of.p50, of.p90, of.p95, of.p99, of.max),
            (1, 100, 180, 190, 198, 200)
        );
        assert_eq!(of.mean, 100.5);
        let one = Lengths::of(&[7]);
        assert_eq!((one.min, one.p50, one.p99, one.max), (7, 7, 7, 7));
        assert_eq!(Lengths::of(&[]).max, 0);
    }

    #[test]
    fn a_sources_rows_are_told_by_reason() {
        let report = SourceReport {
            source: "x.jsonl".to_owned(),
            share: Some(0.25),
            rows: 10,
            repeated: 2,
            conflicting: 1,
            train: 8,
            ..SourceReport::default()
        };
        assert_eq!(
            about(&report, ""),
            [
                "x.jsonl, 25.0 % of the prompts",
                "       10  rows",
                "        2  left out: asked before, 1 of them with another answer",
                "        8  to train on"
            ]
        );
    }
}
