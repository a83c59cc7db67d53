//! An evaluation by itself: adapters on suites of problems, without training (`tina eval`).
//!
//! It is a run whose policies are given ([`crate::scheduler`]) and whose rounds are all evaluations:
//! one for each adapter, over the problems of all suites. So workers, journal, faults and resuming
//! are those of a run, and the same command goes on with what was killed.
//!
//! - [`evaluate`]: from what is asked to the report. `suites`: problems. `adapters`: policies.
//! - `report`: the numbers. `table`: the numbers as a person reads them.

mod adapters;
mod report;
mod suites;
mod table;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tina_model::{ModelSource, TextModel};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use toml::{Table, Value};

use crate::{
    config::{ModelSection, RewardJudge, RewardSection, RunConfig},
    data::{DataError, DataSet, Prompt, PromptRenderer},
    journal::{JournalError, Reader},
    run::{
        CoordinatorError, JOURNAL_FILE, RunEvent, Work, aside, drive, folder::Folder, lora_config,
    },
};

pub use self::{
    adapters::BASE,
    report::{AdapterReport, Change, EvaluationReport, Interval, PassAtK, SuiteReport},
    suites::{HELD_OUT, PromptStyle, SUITES},
};

/// Where the evaluations of a run are, in its folder.
const FOLDER: &str = "evals";
/// The report's files, in the evaluation's folder.
const REPORT_JSON: &str = "report.json";
const REPORT_MARKDOWN: &str = "report.md";
/// Characters of suites' names in an evaluation's own.
const NAME_LENGTH: usize = 48;

/// What is to be evaluated, and how.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// Of the run: model, shape of the adapters, chat template, workers, seed.
    pub config: RunConfig,
    /// Suites: names of [`SUITES`], [`HELD_OUT`], or files.
    pub suites: Vec<String>,
    /// A folder with `NAME.jsonl` or `NAME.parquet` of suites.
    pub suite_dir: Option<PathBuf>,
    /// Fetch what is not at hand from the Hub.
    pub download: bool,
    /// Adapters: [`BASE`], a step of the run, `best`, `latest`, or folders in PEFT's format.
    pub adapters: Vec<String>,
    /// Completions of a problem.
    pub samples: u32,
    /// Of sampling; 0: greedy.
    pub temperature: f64,
    /// Of sampling.
    pub top_p: f64,
    /// Longest completion, in tokens; lowered to what the model's context leaves.
    pub max_tokens: u32,
    /// How problems are asked.
    pub prompt: PromptStyle,
    /// Problems of each suite at most.
    pub limit: Option<usize>,
    /// The evaluation's folder; unset: one below the run's, named after what is evaluated.
    pub out: Option<PathBuf>,
    /// Start the workers of this machine that the config names.
    pub launch: bool,
    /// The `tina` program; this one where unset.
    pub exe: Option<PathBuf>,
}

/// Why an evaluation can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A suite can't be had.
    #[error("suite {name}: {message}")]
    Suite {
        /// As asked for.
        name: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// An adapter can't be had.
    #[error("adapter {name}: {message}")]
    Adapter {
        /// As asked for.
        name: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A wish that can't be met.
    #[error("--{option}: {message}")]
    Option {
        /// Of the command line.
        option: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The folder holds another evaluation.
    #[error(
        "{folder} holds another evaluation; it differs in\n{}\nSet these back to go on with it, or \
         give this one a folder of its own (--out)",
        .differences.join("\n")
    )]
    Differs {
        /// The evaluation's folder.
        folder: PathBuf,
        /// `key: was A, is B`.
        differences: Vec<String>,
    },
    /// The problems can't be had.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It can't go on.
    #[error(transparent)]
    Run(#[from] CoordinatorError),
    /// The journal can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How an evaluation ended.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Of the adapters that are done.
    pub report: EvaluationReport,
    /// The evaluation's folder, where the report is too.
    pub folder: PathBuf,
    /// It was stopped before its end; the same command goes on.
    pub stopped_early: bool,
}

/// What an evaluation is made of, once it is known to be possible.
struct Loaded {
    config: RunConfig,
    text: TextModel,
    data: DataSet,
    named: Vec<adapters::Named>,
    /// Name of each suite, and how many of the problems are its own, in the problems' order.
    suites: Vec<(String, usize)>,
    fingerprint: String,
    notes: Vec<String>,
}

/// Evaluates until all is done, stopped or failed; what was done before goes into it. `plan` hears
/// the adapters' names, in order, before anything is sampled; `events` and `shutdown` as in
/// [`crate::run()`].
///
/// # Errors
/// See [`EvaluationError`]; what was done stays in the evaluation's folder.
pub async fn evaluate(
    options: EvaluationOptions,
    plan: impl FnOnce(&[String]),
    events: mpsc::UnboundedSender<RunEvent>,
    mut shutdown: watch::Receiver<u32>,
) -> Result<Evaluated, EvaluationError> {
    let started = Instant::now();
    check(&options)?;
    let _ = events.send(RunEvent::Note(format!(
        "opening the model {} (it is fetched first if it isn't here yet)",
        options.config.model.source
    )));
    let asked = options.clone();
    let loaded = aside(&mut shutdown, move || load(&asked)).await?;
    let Loaded {
        config,
        text,
        data,
        named,
        suites,
        fingerprint,
        notes,
    } = loaded;
    for note in notes {
        let _ = events.send(RunEvent::Note(note));
    }
    let names: Vec<String> = named.iter().map(|adapter| adapter.name.clone()).collect();
    plan(&names);

    let begun = config.run_dir().join(JOURNAL_FILE).exists();
    let folder = Folder::claim(&config, begun, false)?;
    let path = folder.path().to_owned();
    let digests = named.iter().map(|adapter| adapter.given.version.digest);
    let digests: Vec<[u8; 32]> = digests.collect();
    let config = Arc::new(config);
    let journal = path.join(JOURNAL_FILE);
    let done = match Reader::open(&journal)? {
        Some(reader) => {
            let differences = reader.differences(&fingerprint, &data.digest())?;
            if !differences.is_empty() {
                let folder = path;
                return Err(EvaluationError::Differs {
                    folder,
                    differences,
                });
            }
            reader.evals()?.len()
        }
        None => 0,
    };
    let stopped_early = if done >= names.len() {
        false
    } else {
        let work = Work {
            config: config.clone(),
            fingerprint,
            text,
            data,
            given: named.into_iter().map(|adapter| adapter.given).collect(),
            anew: !begun,
            launch: options.launch,
            exe: options.exe.clone(),
        };
        drive(work, folder, started, events, shutdown)
            .await?
            .stopped_early
    };
    let asked = report::Asked {
        options: &options,
        config: &config,
        names: &names,
        digests: &digests,
        suites: &suites,
    };
    let report = report::read(&journal, &asked)?;
    report::write(&path, &report)?;
    Ok(Evaluated {
        report,
        folder: path,
        stopped_early,
    })
}

fn check(options: &EvaluationOptions) -> Result<(), EvaluationError> {
    let wrong = |option, message: &str| {
        let message = message.to_owned();
        Err(EvaluationError::Option { option, message })
    };
    if options.samples == 0 {
        wrong("samples", "must be 1 or more")
    } else if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
        wrong("temperature", "must be 0 or more")
    } else if options.samples > 1 && options.temperature == 0.0 {
        wrong(
            "samples",
            "more than 1 needs a temperature above 0: greedy completions of one prompt are all the \
             same",
        )
    } else if !(options.top_p > 0.0 && options.top_p <= 1.0) {
        wrong("top-p", "must be above 0, and 1 at most")
    } else if options.max_tokens == 0 {
        wrong("max-tokens", "must be 1 or more")
    } else if options.limit == Some(0) {
        wrong("limit", "must be 1 or more")
    } else if options.suites.is_empty() {
        wrong("suite", "names nothing to evaluate on")
    } else if options.adapters.is_empty() {
        wrong("adapter", "names nothing to evaluate")
    } else {
        Ok(())
    }
}

/// Reads and checks everything that can be without a worker. Blocks.
fn load(options: &EvaluationOptions) -> Result<Loaded, EvaluationError> {
    let run = &options.config;
    let mut places = Vec::new();
    for wanted in &options.suites {
        let place = suites::find(wanted, options.suite_dir.as_deref(), options.download)?;
        if places
            .iter()
            .any(|other: &suites::Place| other.name == place.name)
        {
            return Err(EvaluationError::Suite {
                name: place.name,
                message: "it is asked for twice".to_owned(),
            });
        }
        places.push(place);
    }
    let failed = |source| CoordinatorError::Model {
        name: run.model.source.clone(),
        source: Box::new(source),
    };
    let source: ModelSource = run.model.source.parse().map_err(failed)?;
    let text = tina_model::open_text(&source).map_err(failed)?;
    let lora = lora_config(run)?;
    let named = adapters::find(&options.adapters, &run.run_dir(), &lora, &text.config)?;

    let (prompts, sizes) = prompts(options, &places, &text)?;
    let data = DataSet::to_evaluate(prompts);
    let mut notes = vec![format!(
        "{} problems ({}), {} completions each, for {}",
        data.held_out(usize::MAX).len(),
        sizes
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
        options.samples,
        named
            .iter()
            .map(|adapter| adapter.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    )];
    let (room, longest) = (text.config.max_positions, data.longest_prompt());
    let left = u32::try_from(room.saturating_sub(longest)).unwrap_or(u32::MAX);
    if left == 0 {
        let message = format!("a prompt has {longest} tokens, the model's context {room}");
        return Err(EvaluationError::Option {
            option: "suite",
            message,
        });
    }
    let max_tokens = options.max_tokens.min(left);
    if max_tokens < options.max_tokens {
        notes.push(format!(
            "completions end after {max_tokens} tokens instead of {}: the model's context is {room} \
             tokens, and the longest prompt takes {longest}",
            options.max_tokens
        ));
    }
    let fingerprint = fingerprint(options, max_tokens, &named, &sizes);
    let config = config(options, max_tokens, &named, &sizes, &fingerprint, &data);
    Ok(Loaded {
        config,
        text,
        data,
        named,
        suites: sizes,
        fingerprint,
        notes,
    })
}

/// Prompts of all suites, each named after its suite; and how many each suite has.
#[allow(clippy::type_complexity, reason = "two lists that belong together")]
fn prompts(
    options: &EvaluationOptions,
    places: &[suites::Place],
    text: &TextModel,
) -> Result<(Vec<Arc<Prompt>>, Vec<(String, usize)>), EvaluationError> {
    let run = &options.config;
    let renderer = PromptRenderer::new(run, text)?;
    let system = match options.prompt {
        PromptStyle::Config => run.data.system_prompt.as_deref(),
        PromptStyle::Paper => None,
    };
    let limit = options.limit.unwrap_or(usize::MAX);
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    for place in places {
        let rendered: Vec<Prompt> = match &place.source {
            Some(source) => suites::read(place, source, run, options.prompt, limit)?
                .iter()
                .map(|problem| renderer.render_as(problem, system))
                .collect::<Result<_, _>>()?,
            // As the run asks them: its template may need fields that only it knows.
            None => DataSet::load(run, &renderer)?
                .held_out(limit)
                .iter()
                .map(|prompt| (**prompt).clone())
                .collect(),
        };
        if rendered.is_empty() {
            return Err(EvaluationError::Suite {
                name: place.name.clone(),
                message: "there are no problems in it (data.held_out)".to_owned(),
            });
        }
        sizes.push((place.name.clone(), rendered.len()));
        all.extend(rendered.into_iter().map(|prompt| {
            let id = format!("{}/{}", place.name, prompt.id);
            Arc::new(Prompt { id, ..prompt })
        }));
    }
    Ok((all, sizes))
}

/// What decides the numbers, besides the problems' text: another of it is another evaluation.
fn fingerprint(
    options: &EvaluationOptions,
    max_tokens: u32,
    named: &[adapters::Named],
    suites: &[(String, usize)],
) -> String {
    let run = &options.config;
    let ModelSection { source, dtype, .. } = &run.model;
    let text = |text: &str| Value::String(text.to_owned());
    let number = |number: u64| Value::Integer(number as i64);
    let adapters = named.iter().map(|adapter| {
        let digest = tina_proto::v1::PolicyVersion {
            step: 0,
            digest: adapter.given.version.digest.to_vec(),
        };
        text(&format!("{} {}", adapter.name, digest.digest_hex()))
    });
    let suites = suites
        .iter()
        .map(|(name, count)| text(&format!("{name}, {count} problems")));
    let all = [
        ("model", text(source)),
        ("dtype", text(dtype.as_str())),
        ("seed", number(run.run.seed)),
        ("adapters", Value::Array(adapters.collect())),
        ("suites", Value::Array(suites.collect())),
        ("prompt", text(options.prompt.as_str())),
        ("samples", number(u64::from(options.samples))),
        ("temperature", Value::Float(options.temperature)),
        ("top_p", Value::Float(options.top_p)),
        ("max_tokens", number(u64::from(max_tokens))),
    ];
    let table: Table = all
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    table.to_string()
}

/// The run's config, made one of an evaluation: its folder, its sampling, its judge.
fn config(
    options: &EvaluationOptions,
    max_tokens: u32,
    named: &[adapters::Named],
    suites: &[(String, usize)],
    fingerprint: &str,
    data: &DataSet,
) -> RunConfig {
    let mut config = options.config.clone();
    let folder = match &options.out {
        Some(out) => out.clone(),
        None => {
            let names: Vec<&str> = suites.iter().map(|(name, _)| name.as_str()).collect();
            let plain = |c: char| match c {
                '+' | '-' | '_' | '.' => c,
                c if c.is_alphanumeric() => c,
                _ => '-',
            };
            let names = names.join("+");
            let names: String = names.chars().take(NAME_LENGTH).map(plain).collect();
            let hash = Sha256::new()
                .chain_update(fingerprint)
                .chain_update(data.digest())
                .finalize();
            let hash: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let name = format!("{names}-k{}-{hash}", options.samples);
            config.run_dir().join(FOLDER).join(name)
        }
    };
    let text = |part: Option<&Path>| part.map_or_else(String::new, |p| p.display().to_string());
    config.run.dir = text(folder.parent());
    config.run.name = text(folder.file_name().map(Path::new));
    config.run.steps = named.len().saturating_sub(1) as u64;

    config.sampling.max_tokens = max_tokens;
    config.sampling.top_k = 0;
    config.sampling.min_p = 0.0;
    let eval = &mut config.eval;
    eval.problems = Some(data.held_out(usize::MAX).len());
    eval.samples = options.samples;
    eval.temperature = options.temperature;
    eval.top_p = Some(options.top_p);
    eval.max_tokens = Some(max_tokens);
    (eval.before, eval.after, eval.every) = (true, true, 1);
    let judge = RewardSection::accuracy("accuracy", RewardJudge::Evaluation);
    eval.reward.clone_from(&judge.name);
    config.reward = vec![judge];
    config
}
