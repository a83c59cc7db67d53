//! The problems of a run: where they come from, what is held out, and which prompts a step has.
//!
//! - [`DataSet`]: prompts, tokenized once; [`DataSet::prompts_of_step`] is a function of the seed
//!   and the step alone.
//! - [`arithmetic`]: the built-in generator. [`jsonl`]: files. `template`: `{field}` in a text.
//! - [`PromptRenderer`]: from a problem to the tokens that the model sees.

pub mod arithmetic;
pub mod jsonl;
mod render;
mod template;

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use crate::config::RunConfig;

pub use render::{PromptRenderer, TEMPLATE_TIME};
pub use template::PromptTemplate;

/// A question whose answer can be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the problem in its source: the row's `id`, or its line.
    pub id: String,
    /// The question as the source has it.
    pub question: String,
    /// The gold answer.
    pub answer: String,
    /// The user's message: the template, filled in.
    pub prompt: String,
}

/// A problem as the model is asked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Name of the problem in its source.
    pub id: String,
    /// The whole text that the model continues, chat template applied.
    pub text: String,
    /// The text's tokens: what the sampler sees, and the learner trains on.
    pub tokens: Vec<u32>,
    /// The gold answer.
    pub gold: String,
}

/// Why there are no problems to work on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("{path}: can't be read (data.source)")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of the file is not a problem.
    #[error("{path}:{line}: {message}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The file has no rows.
    #[error("{path}: there are no problems in it (data.source)")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// `arithmetic:` with a task that is not built in.
    #[error("data.source: no task {task:?}; built in are {}", arithmetic::TASKS.join(", "))]
    UnknownTask {
        /// As written.
        task: String,
    },
    /// The prompt template is malformed.
    #[error("data.prompt_template: {0}")]
    Template(String),
    /// Nothing is left to train on.
    #[error(
        "nothing is left to train on: {problems} distinct problems, {too_long} of them longer than \
         data.max_prompt_tokens, and data.held_out keeps {held_out} for evaluation"
    )]
    NothingLeft {
        /// Distinct problems of the source.
        problems: usize,
        /// How many have too long a prompt.
        too_long: usize,
        /// As configured.
        held_out: usize,
    },
    /// The model has no chat template.
    #[error(
        "the model has no chat template; set data.chat = false to ask with the bare text of \
         data.prompt_template"
    )]
    NoChatTemplate,
    /// A prompt could not be rendered or tokenized.
    #[error("problem {id}: the prompt can't be made")]
    Render {
        /// The problem.
        id: String,
        /// Why.
        source: tina_model::ModelError,
    },
}

/// The prompts of a run.
#[derive(Clone, Debug)]
pub struct DataSet {
    train: Vec<Arc<Prompt>>,
    held_out: Vec<Arc<Prompt>>,
    too_long: usize,
    repeated: usize,
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
        let problems = problems(config)?;
        Self::build(config, &problems, |problem| renderer.render(problem))
    }

    /// Splits and tokenizes: `render` gives a problem's prompt.
    fn build(
        config: &RunConfig,
        problems: &[Problem],
        render: impl Fn(&Problem) -> Result<Prompt, DataError>,
    ) -> Result<Self, DataError> {
        // A question that stands there twice could be both trained on and held out.
        let mut seen = HashSet::new();
        let distinct: Vec<&Problem> = problems
            .iter()
            .filter(|problem| seen.insert(problem.prompt.as_str()))
            .collect();
        let limit = match config.data.max_prompt_tokens {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let mut prompts = Vec::with_capacity(distinct.len());
        for problem in &distinct {
            let prompt = render(problem)?;
            if prompt.tokens.len() <= limit {
                prompts.push(Arc::new(prompt));
            }
        }
        let too_long = distinct.len() - prompts.len();
        let wanted = config.data.held_out;
        if prompts.len() <= wanted {
            return Err(DataError::NothingLeft {
                problems: distinct.len(),
                too_long,
                held_out: wanted,
            });
        }
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.shuffle(&mut rng("held out", config.run.seed, 0));
        let held_out: Vec<_> = order[..wanted]
            .iter()
            .map(|&at| prompts[at].clone())
            .collect();
        let kept: HashSet<usize> = order[..wanted].iter().copied().collect();
        let train = (0..prompts.len())
            .filter(|at| !kept.contains(at))
            .map(|at| prompts[at].clone())
            .collect();
        Ok(Self {
            train,
            held_out,
            too_long,
            repeated: problems.len() - distinct.len(),
            seed: config.run.seed,
            shuffle: config.data.shuffle,
            prompts_per_step: config.algorithm.prompts_per_step as usize,
        })
    }

    /// Prompts to evaluate on, and nothing to train on.
    pub fn to_evaluate(prompts: Vec<Arc<Prompt>>) -> Self {
        Self {
            train: Vec::new(),
            held_out: prompts,
            too_long: 0,
            repeated: 0,
            seed: 0,
            shuffle: false,
            prompts_per_step: 0,
        }
    }

    /// The prompts of a step, in order; steps count from 1. Training goes through all problems,
    /// then again in a new order; a step may span two such epochs.
    pub fn prompts_of_step(&self, step: u64) -> Vec<Arc<Prompt>> {
        let size = self.train.len() as u64;
        let first = step
            .saturating_sub(1)
            .saturating_mul(self.prompts_per_step as u64);
        let mut order: (Option<u64>, Vec<usize>) = (None, Vec::new());
        (first..first.saturating_add(self.prompts_per_step as u64))
            .map(|position| {
                let epoch = position / size;
                if order.0 != Some(epoch) {
                    order = (Some(epoch), self.epoch_order(epoch));
                }
                self.train[order.1[(position % size) as usize]].clone()
            })
            .collect()
    }

    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        if self.shuffle {
            order.shuffle(&mut rng("epoch", self.seed, epoch));
        }
        order
    }

    /// The first `count` prompts that training never sees, in a fixed order.
    pub fn held_out(&self, count: usize) -> &[Arc<Prompt>] {
        &self.held_out[..count.min(self.held_out.len())]
    }

    /// Prompts that training goes through.
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// Problems left out because their prompt is longer than `data.max_prompt_tokens`.
    pub fn too_long(&self) -> usize {
        self.too_long
    }

    /// Tokens of the longest prompt.
    pub fn longest_prompt(&self) -> usize {
        let all = self.train.iter().chain(&self.held_out);
        all.map(|prompt| prompt.tokens.len()).max().unwrap_or(0)
    }

    /// Changes when any prompt, gold answer or their order does: SHA-256, in hex.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"tina problems ");
        for part in [&self.train, &self.held_out] {
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
        let mut text = format!(
            "{} problems to train on, {} held out",
            self.train.len(),
            self.held_out.len()
        );
        if self.too_long > 0 {
            text += &format!(", {} left out for their length", self.too_long);
        }
        if self.repeated > 0 {
            text += &format!(", {} repeated ones left out", self.repeated);
        }
        text
    }
}

/// The problems that the config names.
///
/// # Errors
/// See [`DataError`].
pub fn problems(config: &RunConfig) -> Result<Vec<Problem>, DataError> {
    let data = &config.data;
    let template = PromptTemplate::parse(&data.prompt_template).map_err(DataError::Template)?;
    let Some(task) = data.source.strip_prefix("arithmetic:") else {
        let format = jsonl::RowFormat {
            question_field: data.question_field.clone(),
            answer_field: data.answer_field.clone(),
            template,
        };
        return jsonl::read(std::path::Path::new(&data.source), &format);
    };
    let mut problems = arithmetic::problems(task)?;
    for problem in &mut problems {
        let filled = template.fill(|field| match field {
            "question" => Some(problem.question.clone()),
            "answer" => Some(problem.answer.clone()),
            _ => None,
        });
        problem.prompt = filled.map_err(|field| {
            DataError::Template(format!(
                "built-in problems have no field {field:?}: {{question}}"
            ))
        })?;
    }
    Ok(problems)
}

/// The generator for one purpose of a run.
fn rng(purpose: &str, seed: u64, number: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"tina data ");
    hash.update(purpose.as_bytes());
    hash.update(seed.to_le_bytes());
    hash.update(number.to_le_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

#[cfg(test)]
mod tests;
