//! Sampling: prompts and decoding by the rollout worker's engine, alone in its process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use tina_model::ModelConfig;
use tina_proto::v1::PolicyVersion;
use tina_rollout_worker::engine::{Engine, Event, Work};

use super::{
    contest::{Contest, OURS, Row, Side, Task, Unit},
    own::{About, Own, OwnArgs},
    peers::Peers,
};
use crate::{
    error::{BenchError, Result},
    floor,
    processes::own_peak_mib,
    roles::{random_tokens, task},
};

/// How much is sampled: different prompts, one sequence each, none ending early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::Args)]
pub(crate) struct Sampling {
    /// Sequences at a time
    #[arg(long)]
    pub(crate) sequences: usize,
    /// Tokens of a prompt
    #[arg(long)]
    pub(crate) prompt: usize,
    /// Tokens sampled after each
    #[arg(long)]
    pub(crate) new: usize,
}

impl Sampling {
    pub(crate) fn args(&self) -> [String; 6] {
        let flag = |name: &str, value: usize| [format!("--{name}"), value.to_string()];
        let [sequences, prompt, new] = [
            flag("sequences", self.sequences),
            flag("prompt", self.prompt),
            flag("new", self.new),
        ];
        let [a, b] = sequences;
        let [c, d] = prompt;
        let [e, f] = new;
        [a, b, c, d, e, f]
    }

    fn longest(&self) -> usize {
        self.prompt + self.new
    }
}

/// Which of a process's figures are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) decode: bool,
    pub(crate) prefill: bool,
}

/// Sampling against those peers that `pick` names, all of them without it.
pub(crate) fn contest(
    model: &ModelConfig,
    sampling: Sampling,
    wanted: Wanted,
    ours: &dyn Fn(&str, &[String]) -> Task,
    peers: &Peers,
) -> Contest {
    let Sampling {
        sequences,
        prompt,
        new,
    } = sampling;
    let mut rows = Vec::new();
    let plural = if sequences == 1 { "" } else { "s" };
    if wanted.decode {
        rows.push(Row {
            name: format!("decode, {sequences} sequence{plural} of {prompt}+{new}, tok/s"),
            key: "decode",
            unit: Unit::TokensPerSecond((sequences * (new - 1)) as f64),
            least: Some(floor::decode(model, sequences, prompt, new)),
        });
    }
    if wanted.prefill {
        rows.push(Row {
            name: format!("prefill, {sequences} prompt{plural} of {prompt}, tok/s"),
            key: "prefill",
            unit: Unit::TokensPerSecond((sequences * prompt) as f64),
            least: Some(floor::prefill(model, sequences, prompt)),
        });
    }
    let mut sides = vec![Side {
        name: OURS.to_owned(),
        task: ours("decode", &sampling.args()),
    }];
    sides.extend(peers.llama(&sampling));
    sides.push(peers.generate(&sampling));
    Contest {
        name: format!("sampling {sequences} x {prompt}+{new}"),
        rows,
        sides,
    }
}

/// What our process reports.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    about: About,
    /// Tokens of prompts a second, up to every sequence's first token.
    prefill: f64,
    /// Further tokens a second.
    decode: f64,
    prefill_seconds: f64,
    decode_seconds: f64,
    decode_steps: u32,
    peak_mib: f64,
}

/// Our side.
pub(crate) fn measure(args: &OwnArgs, sampling: Sampling) -> Result<()> {
    let own = Own::load(args, false)?;
    let Sampling {
        sequences,
        prompt,
        new,
    } = sampling;
    let (mut engine, version) = own.engine(sequences, sampling.longest(), true)?;
    let prompts = |stream: u64, length: usize| -> Vec<Vec<u32>> {
        let vocab = own.decoder.config().vocab_size;
        let one = |i| random_tokens(stream + i, length as u32, vocab);
        (0..sequences as u64).map(one).collect()
    };
    // As many sequences, so that memory is there and threads are awake; the others warm up as well.
    let warm = Sampling {
        prompt: prompt.min(8),
        new: new.min(4),
        ..sampling
    };
    sample(
        &mut engine,
        prompts(1 << 20, warm.prompt),
        0,
        &warm,
        &version,
    )?;
    let first_group = sequences as u64;
    let timed = sample(
        &mut engine,
        prompts(1, prompt),
        first_group,
        &sampling,
        &version,
    )?;
    let report = Report {
        about: own.about(),
        prefill: (sequences * prompt) as f64 / timed.prefill_seconds,
        decode: timed.decode_tokens as f64 / timed.decode_seconds,
        prefill_seconds: timed.prefill_seconds,
        decode_seconds: timed.decode_seconds,
        decode_steps: timed.decode_steps,
        peak_mib: own_peak_mib(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

#[derive(Debug)]
struct Timed {
    prefill_seconds: f64,
    decode_seconds: f64,
    decode_tokens: u64,
    decode_steps: u32,
}

/// Samples one completion of each prompt at temperature 1. The engine's first steps compute prompts;
/// one that also decodes is shared out by the time of the steps after it.
fn sample(
    engine: &mut Engine,
    prompts: Vec<Vec<u32>>,
    first_group: u64,
    sampling: &Sampling,
    version: &PolicyVersion,
) -> Result<Timed> {
    let mut events = Vec::new();
    let sequences = prompts.len() as u64;
    let gauges = engine.gauges();
    let count = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
    let (before, known) = (count(&gauges.tokens), count(&gauges.prompt_tokens));
    let tokens = || count(&gauges.tokens) - before;
    let prompt_tokens = sequences * sampling.prompt as u64;
    let began = Instant::now();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let group = first_group + i as u64;
        let order = Work::Sample {
            task: Arc::new(task(group, prompt, sampling.new as u32, version.clone())),
            indices: vec![0],
            epoch: 1,
        };
        engine.submit(order, &mut events);
    }
    while count(&gauges.prompt_tokens) - known < prompt_tokens && !engine.is_idle() {
        engine.step(&mut events);
    }
    let first = began.elapsed().as_secs_f64();
    let after_first = tokens();
    let decoding = Instant::now();
    let mut decode_steps = 0;
    while !engine.is_idle() {
        engine.step(&mut events);
        decode_steps += 1;
    }
    let decode_seconds = decoding.elapsed().as_secs_f64();
    let decode_tokens = tokens() - after_first;
    let expected = sequences * sampling.new as u64;
    check(&events, expected)?;
    // Tokens that were decoded before the clock of decoding began took as long as those after it.
    let early = (after_first - sequences) as f64;
    let per_token = decode_seconds / decode_tokens.max(1) as f64;
    Ok(Timed {
        prefill_seconds: (first - early * per_token).max(f64::MIN_POSITIVE),
        decode_seconds,
        decode_tokens,
        decode_steps,
    })
}

/// Every sequence must have got its tokens.
fn check(events: &[Event], expected: u64) -> Result<()> {
    let mut sampled = 0;
    for event in events {
        match event {
            Event::Completed { completion, .. } => sampled += completion.tokens.len() as u64,
            Event::Failed(failed) => return Err(BenchError::Other(failed.error.clone())),
            Event::Loaded(_) => {}
        }
    }
    if sampled == expected {
        return Ok(());
    }
    Err(BenchError::Other(format!(
        "{sampled} tokens were sampled instead of {expected}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{child::Program, shapes::Shape};

    #[test]
    fn a_sampling_process_has_a_row_for_each_figure_that_is_wanted() {
        let model = Shape::Smollm2.config().unwrap();
        let sampling = Sampling {
            sequences: 16,
            prompt: 64,
            new: 64,
        };
        let ours = |kind: &str, args: &[String]| {
            assert_eq!(kind, "decode");
            assert_eq!(args.join(" "), "--sequences 16 --prompt 64 --new 64");
            Task::Program(
                Program {
                    what: "ours",
                    program: "true".into(),
                    args: Vec::new(),
                    envs: Vec::new(),
                    limit: std::time::Duration::from_secs(1),
                },
                &[],
            )
        };
        let wanted = Wanted {
            decode: true,
            prefill: true,
        };
        let contest = contest(
            &model,
            sampling,
            wanted,
            &ours,
            &Peers::none("not asked for"),
        );
        let units: Vec<_> = contest.rows.iter().map(|row| row.unit).collect();
        assert_eq!(
            units,
            [
                Unit::TokensPerSecond(16.0 * 63.0),
                Unit::TokensPerSecond(16.0 * 64.0)
            ]
        );
        assert_eq!(contest.sides[0].name, OURS);
        let absent = |side: &Side| matches!(side.task, Task::Absent(_));
        assert!(contest.sides[1..].iter().all(absent));
    }
}
