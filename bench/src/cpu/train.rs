//! One LoRA training step by the learner's trainer, alone in its process.

use std::time::Instant;

use serde::Serialize;
use tina_learner::{
    batch::{Batch, Group, Sample},
    settings::Settings,
    step::Progress,
    trainer::Trainer,
};
use tina_model::{Distribution, ModelConfig};
use tina_proto::v1::PolicyVersion;

use super::{
    contest::{Contest, OURS, Row, Side, Task, Unit},
    own::{About, Own, OwnArgs},
    peers::Peers,
};
use crate::{
    error::{BenchError, Result},
    floor::{self, Work},
    processes::own_peak_mib,
    roles::random_tokens,
};

/// What is learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::Args)]
pub(crate) struct Training {
    /// Sequences of the step
    #[arg(long)]
    pub(crate) sequences: usize,
    /// Of them, as many share a prompt
    #[arg(long)]
    pub(crate) group: usize,
    /// Tokens of a prompt
    #[arg(long)]
    pub(crate) prompt: usize,
    /// Tokens of a completion
    #[arg(long)]
    pub(crate) completion: usize,
    /// Sequences of the step before, which warms up
    #[arg(long)]
    pub(crate) warm_up: usize,
}

impl Training {
    pub(crate) fn args(&self) -> Vec<String> {
        let flags = [
            ("--sequences", self.sequences),
            ("--group", self.group),
            ("--prompt", self.prompt),
            ("--completion", self.completion),
            ("--warm-up", self.warm_up),
        ];
        let each = flags.into_iter();
        each.flat_map(|(flag, value)| [flag.to_owned(), value.to_string()])
            .collect()
    }

    fn work(&self) -> Work {
        let prompts = self.sequences.div_ceil(self.group);
        Work {
            prompt_tokens: (prompts * self.prompt) as f64,
            prompt_length: self.prompt as f64,
            completions: self.sequences as f64,
            completion_tokens: (self.sequences * self.completion) as f64,
        }
    }
}

pub(crate) fn contest(
    model: &ModelConfig,
    rank: usize,
    training: Training,
    ours: &dyn Fn(&str, &[String]) -> Task,
    peers: &Peers,
) -> Contest {
    let Training {
        sequences,
        group,
        prompt,
        completion,
        ..
    } = training;
    let prompts = match group {
        1 => "different prompts".to_owned(),
        _ => format!("{} prompts", sequences.div_ceil(group)),
    };
    let gflop = floor::floor(model, rank, &training.work()).learn_gflop;
    let row = |name: String, key, least| Row {
        name,
        key,
        unit: Unit::Seconds,
        least,
    };
    let rows = vec![
        row(
            format!("train, {sequences} of {prompt}+{completion}, {prompts}, s"),
            "seconds",
            Some(floor::arithmetic(gflop)),
        ),
        row("  forward, s".to_owned(), "forward_seconds", None),
        row("  backward, s".to_owned(), "backward_seconds", None),
    ];
    Contest {
        name: format!("training step, {sequences} of {prompt}+{completion}, {prompts}"),
        rows,
        sides: vec![
            Side {
                name: OURS.to_owned(),
                task: ours("train", &training.args()),
            },
            peers.train(&training, rank),
        ],
    }
}

/// What our process reports.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    about: About,
    seconds: f64,
    forward_seconds: f64,
    backward_seconds: f64,
    optimizer_seconds: f64,
    rows: u64,
    completions: u32,
    peak_mib: f64,
}

/// Our side.
pub(crate) fn measure(args: &OwnArgs, training: Training) -> Result<()> {
    let own = Own::load(args, true)?;
    let mut spec = own.spec(training.prompt + training.completion);
    // Lets a batch carry completions that only lend the others an advantage; see `group`.
    if let Some(algorithm) = &mut spec.algorithm {
        algorithm.mask_truncated = true;
    }
    let mut trainer = Trainer::init(own.decoder.clone(), Settings::from_spec(&spec)?.train)?;
    let mut step = |training: &Training, stream| {
        let batch = batch(&own, training, stream, trainer.version().clone())?;
        let began = Instant::now();
        let result = trainer.step(&batch, &Progress::default())?;
        let seconds = began.elapsed().as_secs_f64();
        let metrics = result.metrics.unwrap_or_default();
        if metrics.completions_trained as usize != training.sequences {
            return Err(BenchError::Other(format!(
                "{} of {} sequences went through the step",
                metrics.completions_trained, training.sequences
            )));
        }
        Ok((seconds, metrics))
    };
    let warm_up = Training {
        sequences: training.warm_up.clamp(1, training.sequences),
        ..training
    };
    step(&warm_up, 1 << 20)?;
    let (seconds, metrics) = step(&training, 1)?;
    let report = Report {
        about: own.about(),
        seconds,
        forward_seconds: metrics.seconds_forward,
        backward_seconds: metrics.seconds_backward,
        optimizer_seconds: metrics.seconds_optimizer,
        rows: metrics.tokens_forwarded,
        completions: metrics.completions_trained,
        peak_mib: own_peak_mib(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Completions of random tokens, with the log-probs that a worker would have recorded.
fn batch(own: &Own, training: &Training, stream: u64, version: PolicyVersion) -> Result<Batch> {
    let vocab = own.decoder.config().vocab_size;
    let random = |stream, length: usize| random_tokens(stream, length as u32, vocab);
    let mut groups = Vec::new();
    let mut left = training.sequences;
    while left > 0 {
        let count = training.group.min(left);
        left -= count;
        let id = groups.len() as u64;
        let prompt = random(stream + 2 * id, training.prompt);
        let mut samples = Vec::new();
        for index in 0..count {
            let place = ((id << 16 | index as u64) << 1 | 1) + stream;
            let tokens = random(place, training.completion);
            let logprobs = own.log_probs(&prompt, &tokens)?;
            samples.push((tokens, logprobs));
        }
        groups.push(group(id, prompt, samples));
    }
    Ok(Batch { version, groups })
}

/// A group whose completions all have an advantage. It takes two rewards for that: a completion that
/// is alone gets the company of one that hit its limit, which is in no pass and in no loss.
fn group(id: u64, prompt: Vec<u32>, completions: Vec<(Vec<u32>, Vec<f32>)>) -> Group {
    let alone = completions.len() == 1;
    let sample = |index: usize, tokens, logprobs, truncated| Sample {
        index: index as u32,
        tokens,
        logprobs,
        // All different and none the mean.
        reward: Some(((index + 1) as f64).ln()),
        truncated,
        staleness: (0, 0),
    };
    let mut samples: Vec<Sample> = completions
        .into_iter()
        .enumerate()
        .map(|(index, (tokens, logprobs))| sample(index, tokens, logprobs, false))
        .collect();
    if alone {
        let tokens = vec![0];
        samples.push(sample(1, tokens, vec![0.0], true));
    }
    Group {
        id,
        prompt,
        distribution: Distribution::FULL,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use tina_learner::advantage::{self, Scale};

    use super::*;

    fn advantages(group: &Group) -> Vec<f64> {
        let rewards = group.samples.iter().map(|sample| sample.reward).collect();
        advantage::advantages(&[rewards], Scale::GroupStd).remove(0)
    }

    #[test]
    fn every_completion_has_an_advantage_also_one_alone() {
        let completion = || (vec![5, 6], vec![-1.0, -2.0]);
        for count in 1..=16 {
            let group = group(0, vec![1], (0..count).map(|_| completion()).collect());
            let trained = group.samples.iter().zip(advantages(&group));
            let trained: Vec<f64> = trained
                .filter(|(sample, _)| !sample.truncated)
                .map(|(_, advantage)| advantage)
                .collect();
            assert_eq!(trained.len(), count);
            assert!(trained.iter().all(|a| a.abs() > 1e-3), "{trained:?}");
        }
    }

    #[test]
    fn prompts_that_are_shared_are_counted_once() {
        let mut training = Training {
            sequences: 64,
            group: 1,
            prompt: 64,
            completion: 64,
            warm_up: 16,
        };
        assert_eq!(training.work().prompt_tokens, 4096.0);
        training.group = 8;
        assert_eq!(training.work().prompt_tokens, 512.0);
        assert_eq!(training.work().completion_tokens, 4096.0);
    }
}
