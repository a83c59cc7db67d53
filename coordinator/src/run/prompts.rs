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

/// Rounds whose prompts stay at hand, besides those that are sampled ahead.
const KEPT: usize = 4;

/// The prompts of all rounds.
#[derive(Debug)]
pub(super) struct Prompts {
    data: DataSet,
    eval_problems: usize,
    train: v1::SamplingParams,
    eval: v1::SamplingParams,
    rounds: BTreeMap<RoundId, Round>,
    kept: usize,
}

/// One round's.
#[derive(Debug, Default)]
struct Round {
    first: Vec<Arc<Prompt>>,
    /// Those that took the place of others, by the group's number.
    later: BTreeMap<u32, Arc<Prompt>>,
}

impl Prompts {
    pub(super) fn new(config: &RunConfig, data: DataSet, model_stop_ids: &[u32]) -> Self {
        Self {
            data,
            eval_problems: config.eval_problems(),
            train: config.sampling_params(model_stop_ids),
            eval: config.eval_sampling_params(model_stop_ids),
            rounds: BTreeMap::new(),
            kept: KEPT + config.algorithm.max_staleness as usize,
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

    /// A group's prompt, and those that are asked for the first time with it: where it is the first
    /// of its round, all of the round.
    pub(super) fn of(&mut self, group: u64) -> (Option<Arc<Prompt>>, Vec<PromptRow>) {
        let (id, number) = RoundId::of_group(group);
        let mut fresh = Vec::new();
        let known = self.rounds.contains_key(&id);
        let round = self.rounds.entry(id).or_default();
        if !known {
            round.first = match id.purpose() {
                Purpose::Train => self.data.prompts_of_step(id.step()),
                Purpose::Eval => self.data.held_out(self.eval_problems).to_vec(),
            };
            let rows = round.first.iter().enumerate();
            fresh.extend(rows.map(|(number, prompt)| row(id.group(number as u32), prompt)));
        }
        let prompt = match round.first.get(number as usize) {
            Some(prompt) => Some(prompt.clone()),
            None if id.purpose() == Purpose::Eval => None,
            None => {
                let drawn = round.later.get(&number).cloned().or_else(|| {
                    let prompt = self.data.replacement(id.step(), number)?;
                    fresh.push(row(group, &prompt));
                    Some(prompt)
                });
                if let Some(prompt) = &drawn {
                    round.later.insert(number, prompt.clone());
                }
                drawn
            }
        };
        while self.rounds.len() > self.kept {
            self.rounds.pop_first();
        }
        (prompt, fresh)
    }
}

/// As the journal keeps it.
fn row(group: u64, prompt: &Prompt) -> PromptRow {
    PromptRow {
        group,
        problem: prompt.id.clone(),
        text: prompt.text.clone(),
        gold: prompt.gold.clone(),
        tokens: prompt.tokens.clone(),
    }
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
