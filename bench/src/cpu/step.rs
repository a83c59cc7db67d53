//! A whole GRPO step: `tina up` with all its processes, and TRL's trainer, as in `tina-bench step`.

use std::{collections::BTreeMap, path::Path};

use tina_model::ModelConfig;

use super::contest::{Contest, Done, Held, OURS, Row, Side, Task, Turn, Unit};
use crate::{
    cluster::{Step, Up, work},
    error::Result,
    floor::{Work, arithmetic, floor},
    peer::{Peer, PeerStep},
    stats::median,
};

/// Ours.
#[derive(Debug)]
pub(crate) struct GrpoStep {
    pub(crate) up: Up,
    /// Of one run, the first included, which is not timed.
    pub(crate) steps: u64,
    pub(crate) prompts: u32,
}

/// The peer's.
#[derive(Debug)]
pub(crate) struct TrlStep {
    pub(crate) peer: Peer,
    pub(crate) steps: u64,
}

/// `size`: prompts, completions of each, and tokens of one at most.
pub(crate) fn contest(size: [u32; 3], ours: Task, peer: Task) -> Contest {
    let [prompts, completions, tokens] = size;
    let row = |name: &str, key, unit| Row {
        name: name.to_owned(),
        key,
        unit,
        least: None,
    };
    let name = format!("GRPO step, {prompts} x {completions} x {tokens}");
    Contest {
        rows: vec![
            row(&format!("{name}, s"), "seconds", Unit::Seconds),
            row("  sample, s", "sample_seconds", Unit::Seconds),
            row("  learn, s", "learn_seconds", Unit::Seconds),
            row("  tokens sampled", "tokens", Unit::Count),
        ],
        name,
        sides: vec![
            Side {
                name: OURS.to_owned(),
                task: ours,
            },
            Side {
                name: "TRL bf16".to_owned(),
                task: peer,
            },
        ],
    }
}

fn values<const N: usize>(values: [(&str, f64); N]) -> BTreeMap<String, f64> {
    let named = values.into_iter();
    named.map(|(name, x)| (name.to_owned(), x)).collect()
}

/// One run of ours; figures are medians over its steps.
pub(crate) async fn ours(task: &GrpoStep, folder: &Path) -> Result<Turn> {
    let run = task.up.run(folder, task.steps).await?;
    let of = |f: fn(&Step) -> f64| median(run.steps.iter().map(f));
    let mut values = values([
        ("seconds", of(|s| s.seconds)),
        ("sample_seconds", of(|s| s.sample)),
        ("learn_seconds", of(|s| s.learn)),
        ("tokens", of(|s| s.tokens_sampled as f64)),
        ("completions", of(|s| s.completions as f64)),
        ("completions_trained", of(|s| s.completions_trained.into())),
        ("logprob_diff_max", of(|s| s.logprob_diff_max)),
        ("start_seconds", run.start_seconds),
    ]);
    if let Some(work) = work(run.steps.iter(), task.prompts) {
        values.insert("prompt_tokens".to_owned(), work.prompt_tokens);
        values.insert("prompt_length".to_owned(), work.prompt_length);
    }
    for (role, mib) in &run.usage.peak_by_role_mib {
        values.insert(format!("{role}_peak_mib"), *mib);
    }
    Ok(Turn {
        values,
        notes: BTreeMap::from([("numerics".to_owned(), run.numerics)]),
        peak_mib: run.usage.peak_together_mib,
        ..Turn::default()
    })
}

/// One run of the peer's.
pub(crate) async fn theirs(task: &TrlStep, folder: &Path) -> Result<Done> {
    let Some(run) = task.peer.run(folder, task.steps).await? else {
        return Ok(Done::Absent("TRL is not installed".to_owned()));
    };
    let of = |f: fn(&PeerStep) -> f64| median(run.report.steps.iter().map(f));
    Ok(Done::Turn(Turn {
        values: values([
            ("seconds", of(|s| s.seconds)),
            ("sample_seconds", of(|s| s.sample)),
            ("learn_seconds", of(|s| s.learn)),
            ("tokens", of(|s| s.tokens_sampled as f64)),
            ("start_seconds", run.report.start_seconds),
        ]),
        notes: BTreeMap::from([
            ("malloc".to_owned(), run.report.malloc),
            ("versions".to_owned(), run.report.versions),
        ]),
        peak_mib: run.usage.peak_together_mib,
        ..Turn::default()
    }))
}

/// Completions end where the model ends them, so the least that a step takes is known when it has
/// been made.
pub(crate) fn set_floor(held: &mut Held, model: &ModelConfig, rank: usize) {
    let found = held.ours().and_then(|ours| {
        Some(Work {
            prompt_tokens: ours.median("prompt_tokens")?,
            prompt_length: ours.median("prompt_length")?,
            completions: ours.median("completions")?,
            completion_tokens: ours.median("tokens")?,
        })
    });
    let Some(work) = found else { return };
    let floor = floor(model, rank, &work);
    for row in &mut held.rows {
        row.least = match row.key {
            "seconds" => Some(arithmetic(floor.total_gflop())),
            "sample_seconds" => Some(arithmetic(floor.sample_gflop)),
            "learn_seconds" => Some(arithmetic(floor.learn_gflop)),
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpu::contest::Turns, shapes::Shape};

    #[test]
    fn the_floor_is_that_of_the_tokens_that_were_sampled() {
        let absent = || Task::Absent(String::new());
        let contest = contest([8, 8, 48], absent(), absent());
        let mut held = Held {
            name: contest.name,
            rows: contest.rows,
            sides: Vec::new(),
        };
        let model = Shape::Smollm2.config().unwrap();
        set_floor(&mut held, &model, 16);
        assert!(held.rows.iter().all(|row| row.least.is_none()));
        held.sides.push(Turns {
            name: OURS.to_owned(),
            turns: vec![Turn {
                values: values([
                    ("prompt_tokens", 320.0),
                    ("prompt_length", 40.0),
                    ("completions", 64.0),
                    ("tokens", 3072.0),
                ]),
                ..Turn::default()
            }],
            absent: None,
        });
        set_floor(&mut held, &model, 16);
        let gflop: Vec<_> = held
            .rows
            .iter()
            .map(|row| row.least.map(|least| least.gflop.round()))
            .collect();
        assert_eq!(gflop, [Some(2817.0), Some(924.0), Some(1894.0), None]);
    }
}
