//! The run's config: one TOML file, read once into plain data.
//!
//! - [`RunConfig`]: all sections; [`RunConfig::load`] reads a file and `--set` overrides.
//! - `sections`: every key, its default and unit. `schema`: the machinery under them.
//! - `files`: the file, and those that it `extends`. `tree`: what was written, and where.
//! - `check`: ranges and what must fit together.
//! - `reference`: the documentation of all keys.
//! - `rewards`: which keys each kind of reward takes.
//! - `wire`: the parts of a config that go to workers and learner.

mod check;
mod files;
mod reference;
mod rewards;
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
    AdapterSwap, AdapterTransport, Advantage, AlgorithmSection, Answers, BadRows, ClusterSection,
    CostSection, DataSection, Dtype, EvalSection, Importance, ImportanceMode, KlEstimator, KlIn,
    LearnerSection, LoraSection, Loss, ModelSection, NotJudged, RewardCompat, RewardJudge,
    RewardKind, RewardRule, RewardSection, RolloutSection, RunSection, SamplingSection,
    SourceSection, WorkerSection,
};

use tina_model::ModelSource;
use tina_proto::auth::{Role, TokenError, read_token};

use crate::data::Source;
use files::Files;
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
    /// Reads a config file, lays it over the one that it extends (`extends = "base.toml"`, a path
    /// relative to the file; that one may extend another), and lays the overrides
    /// (`section.key=value`) over both, in order. Tables are merged key by key; lists, `[[reward]]`
    /// among them, are replaced as a whole.
    ///
    /// Paths to files in it (data, model, chat template, token, certificates) are made absolute, from
    /// the folder of the file that they stand in; what is unset and follows from other keys
    /// (`learner.warmup_steps`) is filled in.
    ///
    /// # Errors
    /// The file can't be read, or everything that is wrong with it.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, ConfigError> {
        Self::build(&mut Files::open(path)?, sets).map(|(config, _)| config)
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
        Self::build(&mut Files::of_text(text, name, folder), sets).map(|(config, _)| config)
    }

    /// [`RunConfig::load`], as TOML with a comment after each key that was written: in which file
    /// and line, or that it came from the command line.
    ///
    /// # Errors
    /// As of [`RunConfig::load`].
    pub fn explain(path: &Path, sets: &[String]) -> Result<String, ConfigError> {
        let mut files = Files::open(path)?;
        let (config, reader) = Self::build(&mut files, sets)?;
        Ok(config.write_toml(|key| match reader.place_of(key)? {
            Place::File { file, offset } => {
                let (name, line, _) = files.position(file, offset);
                Some(format!("{name}:{line}"))
            }
            Place::Set(_) => Some("--set".to_owned()),
        }))
    }

    /// The config, and the reader that knows where each key was written.
    fn build(files: &mut Files, sets: &[String]) -> Result<(Self, Reader), ConfigError> {
        let known = Self::sections().into_iter().map(|(name, info)| {
            (
                name.to_owned(),
                info.keys.iter().map(|key| key.name).collect(),
            )
        });
        let mut reader = Reader::new(known.collect());
        let config = match files.merged() {
            Ok(root) => Self::read_all(root, sets, &mut reader).map(|mut config| {
                config.resolve(files, &reader);
                check::check(&config, &mut reader);
                config
            }),
            Err(finding) => {
                reader.findings.push(finding);
                None
            }
        };
        match config {
            Some(config) if reader.findings.is_empty() => Ok((config, reader)),
            _ => Err(ConfigError::Problems(locate(reader.findings, files, sets))),
        }
    }

    fn read_all(mut root: Node, sets: &[String], reader: &mut Reader) -> Option<Self> {
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
                    _ if entry.key == files::EXTENDS => {
                        "stands in the file; --set can't change it".to_owned()
                    }
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
        self.write_toml(|_| None)
    }

    /// [`RunConfig::to_toml`] with a comment after the keys (paths from the root) that have one.
    fn write_toml(&self, comment: impl Fn(&str) -> Option<String>) -> String {
        let mut text = String::new();
        let mut table = |header: String, path: &str, entries: Vec<(&'static str, toml::Value)>| {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{header}\n"));
            for (key, value) in entries {
                let comment = comment(&format!("{path}.{key}"));
                let comment = comment.map_or(String::new(), |comment| format!("  # {comment}"));
                text.push_str(&format!("{key} = {value}{comment}\n"));
            }
        };
        for (name, entries) in self.tables() {
            if name == "algorithm" {
                for (at, reward) in self.reward.iter().enumerate() {
                    let path = format!("reward.{at}");
                    table("[[reward]]".to_owned(), &path, reward.entries());
                }
            }
            table(format!("[{name}]"), name, entries);
        }
        text
    }

    /// The shared secret, from `cluster.token_file` or the environment.
    ///
    /// # Errors
    /// The file can't be read, or the token is malformed.
    pub fn token(&self) -> Result<Option<String>, TokenError> {
        read_token(self.cluster.token_file.as_deref().map(Path::new))
    }

    /// The files of the certificate and of the private key that a role shows to this run's coordinator;
    /// `None`: it asks for none.
    pub fn client_files(&self, role: Role) -> Option<(PathBuf, PathBuf)> {
        let authority = Path::new(self.cluster.tls_client_ca.as_ref()?);
        let folder = match &self.cluster.tls_client_dir {
            Some(folder) => Path::new(folder),
            None => authority.parent().unwrap_or(Path::new("")),
        };
        let file = |ending: &str| folder.join(format!("{role}.{ending}"));
        Some((file("pem"), file("key")))
    }

    /// When a worker takes a new adapter.
    pub fn adapter_swap(&self) -> AdapterSwap {
        let own = match self.algorithm.max_staleness {
            0 => AdapterSwap::Drain,
            _ => AdapterSwap::Keep,
        };
        self.rollout.adapter_swap.unwrap_or(own)
    }

    /// Whether workers end what they sample before they take a new adapter.
    pub fn drains(&self) -> bool {
        self.adapter_swap() == AdapterSwap::Drain
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

    /// Fills in what follows from other keys, and makes paths absolute: each from the folder of the
    /// file that it was written in.
    fn resolve(&mut self, files: &Files, reader: &Reader) {
        let in_folder = |key: &str, path: &mut String| {
            let folder = files.folder(reader.place_of(key));
            *path = folder.join(&*path).display().to_string();
        };
        let data = &mut self.data;
        let sources = data.sources.iter_mut().enumerate();
        let sources = sources
            .map(|(at, source)| (format!("data.sources.{at}.source"), &mut source.source))
            .chain(
                data.source
                    .iter_mut()
                    .map(|s| ("data.source".to_owned(), s)),
            )
            .chain(
                data.held_out_source
                    .iter_mut()
                    .map(|s| ("data.held_out_source".to_owned(), s)),
            );
        for (key, source) in sources {
            if Source::is_local(source) {
                in_folder(&key, source);
            }
        }
        if let Ok(ModelSource::Folder(_) | ModelSource::Gguf(_)) = self.model.source.parse() {
            in_folder("model.source", &mut self.model.source);
        }
        let cluster = &mut self.cluster;
        let optional = [
            ("data.chat_template", &mut data.chat_template),
            ("cluster.token_file", &mut cluster.token_file),
            ("cluster.tls_cert", &mut cluster.tls_cert),
            ("cluster.tls_key", &mut cluster.tls_key),
            ("cluster.tls_ca", &mut cluster.tls_ca),
            ("cluster.tls_client_ca", &mut cluster.tls_client_ca),
            ("cluster.tls_client_dir", &mut cluster.tls_client_dir),
        ];
        for (key, path) in optional {
            if let Some(path) = path {
                in_folder(key, path);
            }
        }

        match self.data.epochs {
            // Known when the problems are.
            Some(_) if reader.place_of("run.steps").is_none() => self.run.steps = 0,
            Some(_) => {}
            None => self.fill_schedule(),
        }
        self.eval.problems.get_or_insert(self.data.held_out);
        self.eval.max_tokens.get_or_insert(self.sampling.max_tokens);
        self.eval.top_p.get_or_insert(self.sampling.top_p);
        for worker in &mut self.rollout.workers {
            worker.slots.get_or_insert(self.rollout.slots);
        }
        self.resolve_rewards();
    }
}

/// Findings in the order they were written, each with its file, line and column (from 1).
fn locate(mut findings: Vec<schema::Finding>, files: &Files, sets: &[String]) -> Vec<Problem> {
    findings.sort_by_key(|finding| match finding.place {
        Some(Place::File { file, offset }) => (0, file, offset),
        Some(Place::Set(index)) => (1, index, 0),
        None => (2, 0, 0),
    });
    let place_of = |place: Option<Place>| match place {
        Some(Place::File { file, offset }) => {
            let (name, line, column) = files.position(file, offset);
            format!("{name}:{line}:{column}")
        }
        Some(Place::Set(index)) => {
            format!("--set {}", sets.get(index).map_or("", String::as_str))
        }
        None => files.name().to_owned(),
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
