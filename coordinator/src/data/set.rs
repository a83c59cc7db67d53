//! The prompts of a run: read, filtered, tokenized once, split; and which of them each step has.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use rand::{
    RngExt as _, SeedableRng as _,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{
    DataError, DataReport, Problem, PromptRenderer, SourceReport,
    mixture::Mixture,
    spec::{Loaded, SourceSpec},
};
use crate::config::RunConfig;

/// A problem as the model is asked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Name of the problem in its source; before it, where there are several sources, theirs.
    pub id: String,
    /// The whole text that the model continues, chat template applied.
    pub text: String,
    /// The text's tokens: what the sampler sees, and the learner trains on.
    pub tokens: Vec<u32>,
    /// The gold answer.
    pub gold: String,
}

/// The prompts of a run.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// What training draws from: one list where every problem comes once an epoch, else one for each
    /// source.
    train: Vec<Vec<Arc<Prompt>>>,
    /// Which of the lists each prompt is drawn from, where there are several.
    mixture: Option<Mixture>,
    held_out: Vec<Arc<Prompt>>,
    report: DataReport,
    seed: u64,
    shuffle: bool,
    prompts_per_step: usize,
}

impl DataSet {
    /// Reads the problems that the config names, and tokenizes each once.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn load(config: &RunConfig, renderer: &PromptRenderer<'_>) -> Result<Self, DataError> {
        Self::load_with(config, &|problem, system| {
            renderer.render_as(problem, system)
        })
    }

    pub(super) fn load_with(config: &RunConfig, render: &Render<'_>) -> Result<Self, DataError> {
        let read = |spec| Loaded::read(spec, config.data.bad_rows);
        let held_out = SourceSpec::held_out(config)?.map(read).transpose()?;
        let sources: Result<Vec<Loaded>, DataError> =
            SourceSpec::all(config)?.into_iter().map(read).collect();
        let mut sources = sources?;
        if config.data.source.is_none() {
            for source in &mut sources {
                for problem in &mut source.read.problems {
                    problem.id = format!("{}/{}", source.name, problem.id);
                }
            }
        }
        Self::build(config, &sources, held_out.as_ref(), render)
    }

    /// Leaves out, splits and tokenizes: `render` gives the prompt of a problem that is asked with a
    /// system message.
    pub(super) fn build(
        config: &RunConfig,
        sources: &[Loaded],
        held_out_source: Option<&Loaded>,
        render: &Render<'_>,
    ) -> Result<Self, DataError> {
        let (seed, wanted) = (config.run.seed, config.data.held_out);
        let mut report = DataReport::default();
        let mut held_out = Vec::new();
        let mut asked = HashSet::new();
        if let Some(source) = held_out_source {
            let mut own = source.report();
            let mut sieve = Sieve::new(config, render, HashSet::new());
            let prompts = sieve.usable(source, 0, &mut own)?;
            if prompts.len() < wanted {
                return Err(DataError::HeldOut {
                    there: prompts.len(),
                    wanted,
                    summary: own.to_string(),
                });
            }
            let order = order_by("held out", seed, 0, prompts.len());
            held_out = order[..wanted]
                .iter()
                .map(|&at| prompts[at].clone())
                .collect();
            own.held_out = wanted;
            report.held_out_source = Some(own);
            for problem in &source.read.problems {
                asked.extend([problem.prompt.as_str(), problem.question.as_str()]);
            }
        }

        let mut sieve = Sieve::new(config, render, asked);
        let mut pools = Vec::with_capacity(sources.len());
        for (at, source) in sources.iter().enumerate() {
            let mut own = source.report();
            pools.push(sieve.usable(source, at, &mut own)?);
            report.sources.push(own);
        }
        report.prompt_tokens = sieve.lengths;
        report.prompt_tokens.sort_unstable();

        let nothing_left = |report: &DataReport| {
            let sources: Vec<String> = report.sources.iter().map(ToString::to_string).collect();
            let kept = match held_out_source {
                Some(_) => String::new(),
                None => format!("; data.held_out keeps {wanted} problems for evaluation"),
            };
            DataError::NothingLeft(format!("{}{kept}", sources.join("; ")))
        };
        if held_out_source.is_none() {
            if pools.iter().map(Vec::len).sum::<usize>() <= wanted {
                return Err(nothing_left(&report));
            }
            held_out = hold_out(&mut pools, wanted, seed, &mut report.sources);
        }
        for (at, (pool, source)) in pools.iter_mut().zip(sources).enumerate() {
            let own = &mut report.sources[at];
            if source.limit > 0 && pool.len() > source.limit {
                own.over_limit = pool.len() - source.limit;
                if config.data.shuffle {
                    let mut order = order_by("limit", seed, at as u64, pool.len());
                    order.truncate(source.limit);
                    order.sort_unstable();
                    *pool = order.into_iter().map(|at| pool[at].clone()).collect();
                } else {
                    pool.truncate(source.limit);
                }
            }
            own.train = pool.len();
        }

        let weights: Option<Vec<f64>> = sources.iter().map(|source| source.weight).collect();
        let mixture = weights.map(|weights| {
            let sum: f64 = weights.iter().sum();
            for (own, weight) in report.sources.iter_mut().zip(&weights) {
                own.share = Some(weight / sum);
            }
            Mixture::new(&weights)
        });
        if mixture.is_none() {
            pools = vec![pools.concat()];
        }
        if pools.iter().any(Vec::is_empty) {
            return Err(nothing_left(&report));
        }
        Ok(Self {
            train: pools,
            mixture,
            held_out,
            report,
            seed,
            shuffle: config.data.shuffle,
            prompts_per_step: config.algorithm.prompts_per_step as usize,
        })
    }

    /// Prompts to evaluate on, and nothing to train on.
    pub fn to_evaluate(prompts: Vec<Arc<Prompt>>) -> Self {
        Self {
            train: Vec::new(),
            mixture: None,
            held_out: prompts,
            report: DataReport::default(),
            seed: 0,
            shuffle: false,
            prompts_per_step: 0,
        }
    }

    /// The prompts of a step, in order; steps count from 1. Training goes through all problems (of
    /// each source by itself, where sources have weights), then again in a new order; a step may
    /// span two such rounds. The prompts are a function of the seed and the step alone.
    pub fn prompts_of_step(&self, step: u64) -> Vec<Arc<Prompt>> {
        let first = step
            .saturating_sub(1)
            .saturating_mul(self.prompts_per_step as u64);
        let mut orders: Vec<(Option<u64>, Vec<usize>)> = vec![(None, Vec::new()); self.train.len()];
        (first..first.saturating_add(self.prompts_per_step as u64))
            .map(|position| {
                let (pool, nth) = match &self.mixture {
                    Some(mixture) => mixture.draw(position),
                    None => (0, position),
                };
                let size = self.train[pool].len() as u64;
                let (round, order) = (nth / size, &mut orders[pool]);
                if order.0 != Some(round) {
                    *order = (Some(round), self.order(pool, round));
                }
                self.train[pool][order.1[(nth % size) as usize]].clone()
            })
            .collect()
    }

    /// The prompt of a group that takes the place of one without spread: drawn from all training
    /// prompts, the sources in their shares, by the seed, the step and the group's number in it. It
    /// is no part of the order in which training goes through the problems.
    pub fn replacement(&self, step: u64, number: u32) -> Option<Arc<Prompt>> {
        let mut hash = Sha256::new();
        hash.update(b"tina data replacement ");
        hash.update(self.seed.to_le_bytes());
        hash.update(step.to_le_bytes());
        hash.update(number.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        let pool = match &self.mixture {
            Some(mixture) => mixture.draw(rng.random_range(0..u64::from(u32::MAX))).0,
            None => 0,
        };
        self.train.get(pool)?.choose(&mut rng).cloned()
    }

    /// The order in which a list is gone through for the nth time.
    fn order(&self, pool: usize, round: u64) -> Vec<usize> {
        let size = self.train[pool].len();
        match (self.shuffle, pool) {
            (false, _) => (0..size).collect(),
            (true, 0) => order_by("epoch", self.seed, round, size),
            (true, pool) => order_by(&format!("epoch of source {pool} "), self.seed, round, size),
        }
    }

    /// The first `count` prompts that training never sees, in a fixed order.
    pub fn held_out(&self, count: usize) -> &[Arc<Prompt>] {
        &self.held_out[..count.min(self.held_out.len())]
    }

    /// Every prompt that training goes through, source by source.
    pub fn train(&self) -> impl Iterator<Item = &Arc<Prompt>> {
        self.train.iter().flatten()
    }

    /// Prompts that training goes through: the size of an epoch, whatever the sources' weights.
    pub fn train_len(&self) -> usize {
        self.train.iter().map(Vec::len).sum()
    }

    /// What became of the rows of each source.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    /// Tokens of the longest prompt.
    pub fn longest_prompt(&self) -> usize {
        let all = self.train().chain(&self.held_out);
        all.map(|prompt| prompt.tokens.len()).max().unwrap_or(0)
    }

    /// Changes when any prompt, gold answer or their order does: SHA-256, in hex.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"tina problems ");
        for part in self.train.iter().chain([&self.held_out]) {
            hash.update((part.len() as u64).to_le_bytes());
            for prompt in part {
                hash.update((prompt.tokens.len() as u64).to_le_bytes());
                for token in &prompt.tokens {
                    hash.update(token.to_le_bytes());
                }
                hash.update((prompt.gold.len() as u64).to_le_bytes());
                hash.update(prompt.gold.as_bytes());
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// One line for a person: how many problems there are, and what was left out.
    pub fn summary(&self) -> String {
        self.report.summary()
    }
}

/// Makes the prompt of a problem that is asked with a system message.
pub(super) type Render<'a> =
    dyn Fn(&Problem, Option<&str>) -> Result<Prompt, DataError> + Sync + 'a;

/// Leaves out what was asked before, and what is too short or too long.
struct Sieve<'a> {
    render: &'a Render<'a>,
    /// Bounds of a prompt's length, in tokens.
    bounds: std::ops::RangeInclusive<usize>,
    /// Prompts and questions of the held-out source.
    asked: HashSet<&'a str>,
    /// Prompts and questions of the problems before, each with its source and answer.
    prompts: HashMap<&'a str, &'a str>,
    questions: HashMap<&'a str, (usize, &'a str)>,
    /// Tokens of every prompt that was made.
    lengths: Vec<u32>,
}

impl<'a> Sieve<'a> {
    fn new(config: &RunConfig, render: &'a Render<'a>, asked: HashSet<&'a str>) -> Self {
        let longest = match config.data.max_prompt_tokens {
            0 => usize::MAX,
            limit => limit as usize,
        };
        Self {
            render,
            bounds: config.data.min_prompt_tokens as usize..=longest,
            asked,
            prompts: HashMap::new(),
            questions: HashMap::new(),
            lengths: Vec::new(),
        }
    }

    /// The prompts of a source that can be used, in its order; the rest is counted in `report`.
    fn usable(
        &mut self,
        source: &'a Loaded,
        number: usize,
        report: &mut SourceReport,
    ) -> Result<Vec<Arc<Prompt>>, DataError> {
        let mut distinct: Vec<&Problem> = Vec::new();
        for problem in &source.read.problems {
            let (prompt, question) = (problem.prompt.as_str(), problem.question.as_str());
            if self.asked.contains(prompt) || self.asked.contains(question) {
                report.in_held_out += 1;
            } else if let Some(answer) = self.before(problem, number) {
                report.repeated += 1;
                report.conflicting += usize::from(answer != problem.answer);
            } else {
                self.prompts.insert(prompt, &problem.answer);
                let first = (number, problem.answer.as_str());
                self.questions.entry(question).or_insert(first);
                distinct.push(problem);
            }
        }
        let system = source.system.as_deref();
        let rendered = distinct
            .par_iter()
            .map(|problem| (self.render)(problem, system));
        let rendered: Vec<Prompt> = rendered.collect::<Result<_, DataError>>()?;
        let mut prompts = Vec::with_capacity(rendered.len());
        for prompt in rendered {
            let length = prompt.tokens.len();
            self.lengths.push(u32::try_from(length).unwrap_or(u32::MAX));
            if length < *self.bounds.start() {
                report.too_short += 1;
            } else if length > *self.bounds.end() {
                report.too_long += 1;
            } else {
                prompts.push(Arc::new(prompt));
            }
        }
        Ok(prompts)
    }

    /// The answer of a problem before this one that is the same: one asked twice could be both
    /// trained on and held out. Within a source the whole prompt is compared, since a template may
    /// add more to the question; between sources the question is, since templates differ.
    fn before(&self, problem: &Problem, number: usize) -> Option<&'a str> {
        if let Some(answer) = self.prompts.get(problem.prompt.as_str()) {
            return Some(answer);
        }
        let same = self.questions.get(problem.question.as_str());
        same.filter(|(source, _)| *source != number)
            .map(|(_, answer)| *answer)
    }
}

/// Takes `wanted` prompts out of the lists, drawn from all of them alike.
fn hold_out(
    pools: &mut [Vec<Arc<Prompt>>],
    wanted: usize,
    seed: u64,
    reports: &mut [SourceReport],
) -> Vec<Arc<Prompt>> {
    let places: Vec<(usize, usize)> = pools
        .iter()
        .enumerate()
        .flat_map(|(pool, prompts)| (0..prompts.len()).map(move |at| (pool, at)))
        .collect();
    let order = order_by("held out", seed, 0, places.len());
    let drawn: Vec<(usize, usize)> = order[..wanted].iter().map(|&at| places[at]).collect();
    let held_out = drawn
        .iter()
        .map(|&(pool, at)| pools[pool][at].clone())
        .collect();
    for &(pool, _) in &drawn {
        reports[pool].held_out += 1;
    }
    let drawn: HashSet<(usize, usize)> = drawn.into_iter().collect();
    for (number, pool) in pools.iter_mut().enumerate() {
        let mut at = 0;
        pool.retain(|_| {
            at += 1;
            !drawn.contains(&(number, at - 1))
        });
    }
    held_out
}

/// `0..size` in an order that follows from the run's seed, for one purpose.
fn order_by(purpose: &str, seed: u64, number: u64, size: usize) -> Vec<usize> {
    let mut hash = Sha256::new();
    hash.update(b"tina data ");
    hash.update(purpose.as_bytes());
    hash.update(seed.to_le_bytes());
    hash.update(number.to_le_bytes());
    let mut order: Vec<usize> = (0..size).collect();
    order.shuffle(&mut ChaCha8Rng::from_seed(hash.finalize().into()));
    order
}
