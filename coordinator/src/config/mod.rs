//! The run's config: one TOML file, read once into plain data.
//!
//! - [`RunConfig`]: all sections; [`RunConfig::load`] reads a file and `--set` overrides.
//! - `sections`: every key, its default and unit. `schema`: the machinery under them.
//! - `tree`: what was written, and where. `check`: ranges and what must fit together.
//! - `reference`: the documentation of all keys.
//! - `wire`: the parts of a config that go to workers and learner.

mod check;
mod reference;
mod schema;
mod sections;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

use std::{
    fmt,
    path::{Path, PathBuf},
};

pub(crate) use check::MAX_STOPS;
pub use schema::{KeyInfo, SectionInfo};
pub use sections::{
    AdapterTransport, AlgorithmSection, Answers, BadRows, ClusterSection, CostSection, DataSection,
    Dtype, EvalSection, LearnerSection, LoraSection, Loss, ModelSection, RewardKind, RewardSection,
    RolloutSection, RunSection, SamplingSection, SourceSection, WorkerSection,
};

use tina_model::ModelSource;
use tina_proto::auth::{TokenError, read_token};

use crate::data::Source;
use schema::{FromNode as _, Reader, Section as _};
use tree::{Node, Place, Tree};

macro_rules! run_config {
    ($($(#[doc = $doc:expr])* $field:ident: $section:ty,)*) => {
        /// Everything that a run is told. See `docs/configuration.md` for every key.
        #[derive(Clone, Debug, PartialEq)]
        pub struct RunConfig {
            $($(#[doc = $doc])* pub $field: $section,)*
            /// `[[reward]]`, in order.
            pub reward: Vec<RewardSection>,
        }

        const TABLES: &[&str] = &[$(stringify!($field)),*];

        impl RunConfig {
            /// Every section in the order of [`RunConfig::to_toml`], with all that is known of its
            /// keys.
            pub fn sections() -> Vec<(&'static str, SectionInfo)> {
                let mut sections = vec![$((stringify!($field), <$section>::info())),*];
                let at = sections.iter().position(|(name, _)| *name == "algorithm");
                sections.insert(at.unwrap_or(sections.len()), ("reward", RewardSection::info()));
                sections
            }

            fn read(root: &[tree::Entry], reader: &mut Reader) -> Option<Self> {
                let find = |name: &str| root.iter().find(|entry| entry.key == name);
                $(let $field = <$section>::from_node(
                    find(stringify!($field)).map(|entry| &entry.node),
                    stringify!($field),
                    reader,
                );)*
                let reward = match find("reward") {
                    Some(entry) => {
                        reader.remember("reward", entry.place);
                        Vec::<RewardSection>::read(&entry.node, "reward", reader)
                    }
                    None => Some(Vec::new()),
                };
                Some(Self { $($field: $field?,)* reward: reward? })
            }

            fn tables(&self) -> Vec<(&'static str, Vec<(&'static str, toml::Value)>)> {
                vec![$((stringify!($field), self.$field.entries())),*]
            }
        }
    };
}

run_config! {
    /// `[run]`
    run: RunSection,
    /// `[model]`
    model: ModelSection,
    /// `[lora]`
    lora: LoraSection,
    /// `[data]`
    data: DataSection,
    /// `[sampling]`
    sampling: SamplingSection,
    /// `[algorithm]`
    algorithm: AlgorithmSection,
    /// `[learner]`
    learner: LearnerSection,
    /// `[rollout]`
    rollout: RolloutSection,
    /// `[eval]`
    eval: EvalSection,
    /// `[cluster]`
    cluster: ClusterSection,
    /// `[cost]`
    cost: CostSection,
}

/// Why a config was refused: everything that is wrong with it, a line each.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: can't be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was read, and this is wrong with it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}

/// One thing wrong with a config.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// `FILE:LINE:COLUMN`, `--set OVERRIDE`, or the file where the place is unknown.
    pub place: String,
    /// The key, as a path from the root.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            key,
            message,
        } = self;
        if key.is_empty() {
            write!(f, "{place}: {message}")
        } else {
            write!(f, "{place}: {key}: {message}")
        }
    }
}

impl RunConfig {
    /// Reads a config file and lays the overrides (`section.key=value`) over it, in order.
    ///
    /// Paths to files in it (data, model, token, certificates) are made absolute; what is unset and
    /// follows from other keys (`learner.warmup_steps`) is filled in.
    ///
    /// # Errors
    /// The file can't be read, or everything that is wrong with it.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folder = absolute.parent().unwrap_or(Path::new("."));
        Self::parse(&text, &path.display().to_string(), folder, sets)
    }

    /// [`RunConfig::load`] on text: `name` is what errors call the file, `folder` what relative
    /// paths start from.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        name: &str,
        folder: &Path,
        sets: &[String],
    ) -> Result<Self, ConfigError> {
        let known = Self::sections().into_iter().map(|(name, info)| {
            (
                name.to_owned(),
                info.keys.iter().map(|key| key.name).collect(),
            )
        });
        let mut reader = Reader::new(known.collect());
        let config = Self::read_all(text, sets, &mut reader).map(|mut config| {
            config.resolve(folder, reader.has("run.steps"));
            check::check(&config, &mut reader);
            config
        });
        match config {
            Some(config) if reader.findings.is_empty() => Ok(config),
            _ => Err(ConfigError::Problems(locate(
                reader.findings,
                text,
                name,
                sets,
            ))),
        }
    }

    fn read_all(text: &str, sets: &[String], reader: &mut Reader) -> Option<Self> {
        let mut root = match tree::parse(text) {
            Ok(root) => root,
            Err((span, message)) => {
                let place = span.map(|span| Place::File(span.start));
                reader.complain("", place, message);
                return None;
            }
        };
        for (index, set) in sets.iter().enumerate() {
            if let Err(message) = tree::apply(&mut root, index, set) {
                reader.complain("", Some(Place::Set(index)), message);
            }
        }
        let Node {
            tree: Tree::Table(entries),
            ..
        } = &root
        else {
            return None;
        };
        for entry in entries {
            let known = || TABLES.iter().copied().chain(["reward"]);
            if !known().any(|name| name == entry.key) {
                let near = schema::nearest(&entry.key, known(), 0.75);
                let message = match entry.node.tree {
                    Tree::Table(_) | Tree::Array(_) => match near {
                        Some(near) => format!("unknown section; did you mean [{near}]?"),
                        None => {
                            let all: Vec<String> =
                                known().map(|name| format!("[{name}]")).collect();
                            format!("unknown section; there are {}", all.join(", "))
                        }
                    },
                    _ => "a key outside every section; sections are [run], [model], ...".to_owned(),
                };
                reader.complain(&entry.key, Some(entry.place), message);
            }
        }
        Self::read(entries, reader)
    }

    /// The config with every key that is set, as TOML that [`RunConfig::load`] reads back to the
    /// same config.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = |header: String, entries: Vec<(&'static str, toml::Value)>| {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{header}\n"));
            for (key, value) in entries {
                text.push_str(&format!("{key} = {value}\n"));
            }
        };
        for (name, entries) in self.tables() {
            if name == "algorithm" {
                for reward in &self.reward {
                    table("[[reward]]".to_owned(), reward.entries());
                }
            }
            table(format!("[{name}]"), entries);
        }
        text
    }

    /// The shared token, from `cluster.token_file` or the environment.
    ///
    /// # Errors
    /// The file can't be read, or the token is malformed.
    pub fn token(&self) -> Result<Option<String>, TokenError> {
        read_token(self.cluster.token_file.as_deref().map(Path::new))
    }

    /// The run's folder.
    pub fn run_dir(&self) -> PathBuf {
        Path::new(&self.run.dir).join(&self.run.name)
    }

    /// Turns `data.epochs` into steps, now that the number of problems to train on is known: from
    /// here on `run.steps` alone says when the run ends. Without `data.epochs` nothing changes.
    pub fn settle_steps(&mut self, problems: usize) {
        let Some(epochs) = self.data.epochs.take() else {
            return;
        };
        let per_step = f64::from(self.algorithm.prompts_per_step.max(1));
        // 0.1 x 170 prompts are 17, whatever floats make of it.
        let steps = (epochs * problems as f64 / per_step - 1e-9).ceil().max(1.0) as u64;
        self.run.steps = match self.run.steps {
            0 => steps,
            limit => limit.min(steps),
        };
        self.fill_schedule();
    }

    fn fill_schedule(&mut self) {
        let schedule = *self.learner.schedule_steps.get_or_insert(self.run.steps);
        self.learner.warmup_steps.get_or_insert(schedule / 10);
    }

    /// Fills in what follows from other keys, and makes paths absolute. `steps`: whether `run.steps`
    /// was written.
    fn resolve(&mut self, folder: &Path, steps: bool) {
        let in_folder = |path: &mut String| {
            *path = folder.join(&*path).display().to_string();
        };
        let data = &mut self.data;
        let sources = data.sources.iter_mut().map(|source| &mut source.source);
        sources
            .chain(&mut data.source)
            .chain(&mut data.held_out_source)
            .filter(|source| Source::is_local(source))
            .for_each(in_folder);
        if let Ok(ModelSource::Folder(_) | ModelSource::Gguf(_)) = self.model.source.parse() {
            in_folder(&mut self.model.source);
        }
        let cluster = &mut self.cluster;
        let files = [
            &mut cluster.token_file,
            &mut cluster.tls_cert,
            &mut cluster.tls_key,
            &mut cluster.tls_ca,
        ];
        files.into_iter().flatten().for_each(in_folder);

        match self.data.epochs {
            // Known when the problems are.
            Some(_) => self.run.steps = if steps { self.run.steps } else { 0 },
            None => self.fill_schedule(),
        }
        self.eval.problems.get_or_insert(self.data.held_out);
        self.eval.max_tokens.get_or_insert(self.sampling.max_tokens);
        self.eval.top_p.get_or_insert(self.sampling.top_p);
        for worker in &mut self.rollout.workers {
            worker.slots.get_or_insert(self.rollout.slots);
        }
        for reward in &mut self.reward {
            reward
                .name
                .get_or_insert_with(|| reward.kind.as_str().to_owned());
        }
        if let Some(first) = self.reward.first().and_then(|reward| reward.name.clone()) {
            self.eval.reward.get_or_insert(first);
        }
    }
}

/// Findings in the order they were written, each with its file, line and column (from 1).
fn locate(
    mut findings: Vec<schema::Finding>,
    text: &str,
    name: &str,
    sets: &[String],
) -> Vec<Problem> {
    findings.sort_by_key(|finding| match finding.place {
        Some(Place::File(offset)) => (0, offset),
        Some(Place::Set(index)) => (1, index),
        None => (2, 0),
    });
    let place_of = |place: Option<Place>| match place {
        Some(Place::File(offset)) => {
            let before = text.get(..offset).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            format!("{name}:{line}:{column}")
        }
        Some(Place::Set(index)) => {
            format!("--set {}", sets.get(index).map_or("", String::as_str))
        }
        None => name.to_owned(),
    };
    findings
        .into_iter()
        .map(|f| Problem {
            place: place_of(f.place),
            key: f.key,
            message: f.message,
        })
        .collect()
}
