//! `tina-bench cpu`: what a CPU does by us, by the peers, and at best.
//!
//! - `peak`, `machine`: what the machine could do at most, measured.
//! - `contest`: each side's turns, every one a fresh process.
//! - `decode`, `train`, `step`, `parity`: what is measured, and our side of it.
//! - `own`: our side's model. `peers`: what runs the others.
//! - `run`: all of it in one run. `report`: the table.

pub(crate) mod contest;
pub(crate) mod decode;
pub(crate) mod machine;
pub(crate) mod own;
pub(crate) mod parity;
mod peak;
pub(crate) mod peers;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod step;
pub(crate) mod train;

use clap::ValueEnum;
use serde::Serialize;

use self::{decode::Sampling, train::Training};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// Decoding of 64, 16 and 1 sequences
    Decode,
    /// 64 prompts
    Prefill,
    /// A LoRA training step, with different prompts and with groups that share one
    Train,
    /// A whole GRPO step
    Step,
    /// Greedy tokens and log-probs beside transformers in f32
    Parity,
    /// Decoding at a context of 4,096 tokens
    Long,
}

/// How much of everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sizes {
    /// The first is also the one whose prompts are timed.
    pub(crate) sampling: Vec<Sampling>,
    pub(crate) long: Sampling,
    pub(crate) training: Vec<Training>,
    /// Prompts, completions of each, tokens of one at most.
    pub(crate) step: [u32; 3],
    /// Of one run, after the first.
    pub(crate) timed_steps: u64,
    /// Prompts, and greedy tokens after each.
    pub(crate) parity: (usize, usize),
}

impl Sizes {
    /// What the figures are taken at.
    pub(crate) fn full() -> Self {
        let sampling = |sequences, prompt| Sampling {
            sequences,
            prompt,
            new: 64,
        };
        let training = |group| Training {
            sequences: 64,
            group,
            prompt: 64,
            completion: 64,
            warm_up: 16,
        };
        Self {
            sampling: [64, 16, 1].map(|n| sampling(n, 64)).to_vec(),
            long: sampling(1, 4032),
            training: [1, 8].map(training).to_vec(),
            step: [8, 8, 48],
            timed_steps: 2,
            parity: (200, 32),
        }
    }

    /// Enough to see that everything runs, and too little for any figure.
    pub(crate) fn quick() -> Self {
        let sampling = |sequences, prompt| Sampling {
            sequences,
            prompt,
            new: 8,
        };
        let training = |group| Training {
            sequences: 4,
            group,
            prompt: 8,
            completion: 8,
            warm_up: 2,
        };
        Self {
            sampling: [4, 1].map(|n| sampling(n, 8)).to_vec(),
            long: sampling(1, 120),
            training: [1, 2].map(training).to_vec(),
            step: [2, 4, 8],
            timed_steps: 1,
            parity: (8, 8),
        }
    }
}
