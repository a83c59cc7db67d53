//! What each round asks: a function of the seed and the step alone.

use std::{collections::BTreeMap, sync::Arc};

use sha2::{Digest as _, Sha256};
use tina_proto::v1;

use crate::{
    config::RunConfig,
    data::{DataSet, Prompt},
    journal::PromptRow,
    scheduler::types::{Purpose, RoundId},
};

/// Rounds whose prompts stay at hand.
const KEPT: usize = 4;

/// The prompts of all rounds.
#[derive(Debug)]
pub(super) struct Prompts {
    data: DataSet,
    eval_problems: usize,
    train: v1::SamplingParams,
    eval: v1::SamplingParams,
    rounds: BTreeMap<RoundId, Arc<[Arc<Prompt>]>>,
}

impl Prompts {
    pub(super) fn new(config: &RunConfig, data: DataSet, model_stop_ids: &[u32]) -> Self {
        Self {
            data,
            eval_problems: config.eval_problems(),
            train: config.sampling_params(model_stop_ids),
            eval: config.eval_sampling_params(model_stop_ids),
            rounds: BTreeMap::new(),
        }
    }

    /// How a round is sampled.
    pub(super) fn params(&self, round: RoundId) -> &v1::SamplingParams {
        match round.purpose() {
            Purpose::Train => &self.train,
            Purpose::Eval => &self.eval,
        }
    }

    /// Forgets the rounds after `step` steps, as the journal does: they are asked for anew.
    pub(super) fn roll_back(&mut self, step: u64) {
        self.rounds.split_off(&RoundId::eval(step));
    }

    /// A round's prompts in order; the second is true when they are asked for the first time.
    pub(super) fn of(&mut self, round: RoundId) -> (Arc<[Arc<Prompt>]>, bool) {
        if let Some(prompts) = self.rounds.get(&round) {
            return (prompts.clone(), false);
        }
        let prompts: Arc<[Arc<Prompt>]> = match round.purpose() {
            Purpose::Train => self.data.prompts_of_step(round.step()).into(),
            Purpose::Eval => self.data.held_out(self.eval_problems).into(),
        };
        self.rounds.insert(round, prompts.clone());
        while self.rounds.len() > KEPT {
            self.rounds.pop_first();
        }
        (prompts, true)
    }
}

/// As the journal keeps them.
pub(super) fn rows(round: RoundId, prompts: &[Arc<Prompt>]) -> Vec<PromptRow> {
    let row = |(index, prompt): (usize, &Arc<Prompt>)| PromptRow {
        group: round.group(index as u32),
        problem: prompt.id.clone(),
        text: prompt.text.clone(),
        gold: prompt.gold.clone(),
        tokens: prompt.tokens.clone(),
    };
    prompts.iter().enumerate().map(row).collect()
}

/// 32 bytes that name a prompt and what it is asked for; samples' seeds come from it. The place in
/// the run is part of it, so a problem that comes again is sampled anew.
pub(super) fn key(group: u64, prompt: &Prompt) -> Vec<u8> {
    let (round, index) = RoundId::of_group(group);
    let (purpose, step) = match round.purpose() {
        Purpose::Train => (&b"train"[..], round.step()),
        // Evaluations are told apart by the policy's version, which is part of a seed too.
        Purpose::Eval => (&b"eval"[..], 0),
    };
    let mut hash = Sha256::new();
    hash.update(b"tina prompt ");
    hash.update(purpose);
    hash.update(step.to_le_bytes());
    hash.update(index.to_le_bytes());
    prompt
        .tokens
        .iter()
        .for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().to_vec()
}
