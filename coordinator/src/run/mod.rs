//! A run, from config to summary.
//!
//! - [`run()`]: a run, from its config. [`drive`]: keeps a run or an evaluation going to its end.
//! - `given`: adapters to evaluate.
//! - `folder`: the run's folder. `prompts`: what each round asks. `adapters`: adapters on disk.
//! - `shell`: the task that owns the scheduler. `obey`: its commands, done. `broadcast`: who gets
//!   adapters by NCCL.

mod adapters;
mod broadcast;
mod error;
pub(crate) mod folder;
mod given;
mod obey;
mod prompts;
mod shell;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tina_model::{LoraConfig, ModelConfig, ModelSource, TextModel};
use tina_proto::{
    auth::{Role, role_token},
    platform, v1,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::given::{GivenAdapter, Weights};
use self::{adapters::Keep, folder::Folder, prompts::Prompts, shell::Shell};
use crate::{
    config::{MAX_STOPS, RunConfig},
    data::{DataSet, PromptRenderer},
    journal::{self, Journal, Note as JournalNote},
    scheduler::{Scheduler, types::Plan},
    scoring::Scorer,
    services::{AdapterStore, DoorError, Doors, Limits, Shared},
    statistics::Estimate,
    status::History,
    supervise::{Role as Process, Supervisor},
};

pub use self::{
    error::CoordinatorError,
    folder::{ADDRESS_FILE, CONFIG_FILE, JOURNAL_FILE},
};

/// How a run is started.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// What is to be done.
    pub config: RunConfig,
    /// Go on where the run of this name was left.
    pub resume: bool,
    /// Throw away a run of this name.
    pub overwrite: bool,
    /// Start the processes of this machine that the config names.
    pub launch: bool,
    /// The `tina` program; this one where unset.
    pub exe: Option<PathBuf>,
}

/// What happens, as it happens; for whoever shows it to a person.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// Roles can dial in.
    Bound {
        /// The address, with the port that was chosen.
        address: SocketAddr,
        /// The run's folder.
        run_dir: PathBuf,
    },
    /// The newest report: at every change of phase or step, and a few times a second.
    Status(Arc<v1::RunStatus>),
    /// A step is done.
    Step(Box<v1::StepRecord>),
    /// An evaluation is done.
    Eval(v1::EvalRecord),
    /// Something a person should know.
    Note(String),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// pass@1 on the held-out problems before the first step.
    pub accuracy_before: Option<Estimate>,
    /// The same after the newest step.
    pub accuracy_after: Option<Estimate>,
    /// Steps done.
    pub steps: u64,
    /// Steps that the run has in all.
    pub planned_steps: u64,
    /// Time that the run went, all its starts together.
    pub seconds: f64,
    /// Tokens sampled.
    pub tokens: u64,
    /// What it cost (`cost.usd_per_hour`).
    pub cost_usd: f64,
    /// The newest adapter's folder, in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// The run was stopped before its last step; `--resume` goes on.
    pub stopped_early: bool,
    /// The run's folder.
    pub run_dir: PathBuf,
}

/// Runs a coordinator until its run is done, stopped or failed.
///
/// `events` hears what happens. `shutdown` counts requests to stop (Ctrl-C): at 1 the step under
/// way is finished and saved, at 2 the run ends at once.
///
/// # Errors
/// See [`CoordinatorError`]; what was done stays in the run's folder.
pub async fn run(
    options: CoordinatorOptions,
    events: mpsc::UnboundedSender<RunEvent>,
    mut shutdown: watch::Receiver<u32>,
) -> Result<RunSummary, CoordinatorError> {
    let started = Instant::now();
    let mut config = options.config;
    let folder = Folder::claim(&config, options.resume, options.overwrite)?;
    // Known now rather than after a long load; but a port on which nobody answers yet would have
    // those who dial wait, so it is let go again.
    drop(Doors::bind(&config.cluster).await?);
    let _ = events.send(RunEvent::Note(format!(
        "opening the model {} (it is fetched first if it isn't here yet)",
        config.model.source
    )));
    let loading = config.clone();
    let (text, data) = aside(&mut shutdown, move || load(&loading)).await?;
    let _ = events.send(RunEvent::Note(data.summary()));
    for row in data.report().first_bad() {
        let _ = events.send(RunEvent::Note(format!("skipped: {row}")));
    }
    if let Some(epochs) = config.data.epochs {
        config.settle_steps(data.train_len());
        let steps = config.run.steps;
        let _ = events.send(RunEvent::Note(format!(
            "data.epochs = {epochs}: {steps} steps"
        )));
    }
    let config = Arc::new(config);
    let fingerprint = journal::fingerprint(&config);
    let work = Work {
        config,
        fingerprint,
        text,
        data,
        given: Vec::new(),
        anew: !options.resume,
        launch: options.launch,
        exe: options.exe,
    };
    drive(work, folder, started, events, shutdown).await
}

/// Does what takes long on a thread of its own, unless a stop is asked for meanwhile: nothing has
/// begun, so one request is enough.
pub(crate) async fn aside<T: Send + 'static, E: From<CoordinatorError> + Send + 'static>(
    shutdown: &mut watch::Receiver<u32>,
    load: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let loading = platform::aside(load);
    tokio::select! {
        biased;
        Ok(_) = shutdown.wait_for(|count| *count > 0) => Err(CoordinatorError::NotBegun.into()),
        loaded = loading => {
            loaded.map_err(|error| CoordinatorError::Internal(format!("loading: {error}")))?
        }
    }
}

/// What a run, or an evaluation by itself, is to do, with everything loaded.
pub(crate) struct Work {
    pub(crate) config: Arc<RunConfig>,
    /// What of the config decides what is computed: [`journal::fingerprint`], or an evaluation's own.
    pub(crate) fingerprint: String,
    pub(crate) text: TextModel,
    pub(crate) data: DataSet,
    /// Adapters to evaluate; empty: a learner makes them.
    pub(crate) given: Vec<GivenAdapter>,
    /// Throw away what an earlier one left in the folder.
    pub(crate) anew: bool,
    /// Start the processes of this machine that the config names.
    pub(crate) launch: bool,
    /// The `tina` program; this one where unset.
    pub(crate) exe: Option<PathBuf>,
}

/// Opens doors and journal, keeps the scheduler going to its end, takes everything down.
pub(crate) async fn drive(
    work: Work,
    folder: Folder,
    started: Instant,
    events: mpsc::UnboundedSender<RunEvent>,
    shutdown: watch::Receiver<u32>,
) -> Result<RunSummary, CoordinatorError> {
    let Work {
        config,
        fingerprint,
        text,
        data,
        given,
        anew,
        launch,
        exe,
    } = work;
    let longest = longest_sequence(&config, &text, &data)?;
    let doors = Doors::bind(&config.cluster).await?;
    if anew {
        folder.clear()?;
    }
    let trains = given.is_empty();
    let (notes, mut heard) = mpsc::unbounded_channel();
    let tell = notes.clone();
    let (journal, resumed) = Journal::open(
        &folder.journal(),
        &fingerprint,
        &data.digest(),
        &folder.new_run_id(),
        move |note| {
            let _ = tell.send(match note {
                JournalNote::Recorded(samples, took) => shell::Note::Recorded(samples, took),
                JournalNote::Failed(error) => shell::Note::Failed(error.to_string()),
            });
        },
    )?;
    folder.furnish(&config)?;
    let adapters = Arc::new(AdapterStore::new(adapter_bytes(&config, &text.config)));
    let run_dir = folder.path().display().to_string();
    let first = if trains {
        data.prompts_of_step(1).into_iter().next()
    } else {
        data.held_out(1).first().cloned()
    };
    let mut probe = first
        .map(|prompt| prompt.tokens.clone())
        .unwrap_or_default();
    probe.truncate(PROBE_TOKENS);
    let limits = limits(&config, &text.config, &probe);
    let (status, reports) = watch::channel(Arc::new(v1::RunStatus::default()));
    let (inbound, mut arrivals) = mpsc::channel(1024);
    let shared = Arc::new(Shared {
        inbound,
        sessions: 1.into(),
        limits,
        spec: config.run_spec(&resumed.run_id, &run_dir, probe, longest),
        heartbeat_ms: config.cluster.heartbeat_ms,
        adapters: adapters.clone(),
        status: reports,
        journal: journal.clone(),
    });
    let best = best_step(&resumed.evals);
    let failed = notes.clone();
    let keep = Keep {
        every: config.run.keep_every,
        last: config.run.keep_last,
    };
    let peft = lora_config(&config)?.peft_json(&config.model.source);
    let shelf = trains
        .then(|| {
            let told = move |error| drop(failed.send(shell::Note::Failed(error)));
            adapters::Shelf::new(folder.adapters(), peft, keep, best, told)
        })
        .transpose()
        .map_err(|source| CoordinatorError::File {
            path: folder.adapters(),
            source,
        })?;

    let (address, url, secret) = (
        doors.address(),
        doors.local_url(),
        doors.secret().map(str::to_owned),
    );
    folder.write_address(&url)?;
    let stop = CancellationToken::new();
    let mut server = doors.serve(shared.clone(), stop.clone()).await?;
    let _ = events.send(RunEvent::Bound {
        address,
        run_dir: folder.path().to_owned(),
    });

    let prompts = Prompts::new(&config, data, &text.stop_token_ids);
    let tokenizer = Arc::new(text.tokenizer);
    let scorer = Scorer::start(&config, Some(&folder.logs()))?;
    let launch = launch && config.cluster.launch;
    let plan = Plan {
        given: given.iter().map(|adapter| adapter.version).collect(),
        // Without a learner there is nothing to be ahead of.
        max_staleness: if given.is_empty() {
            config.algorithm.max_staleness
        } else {
            0
        },
        ..plan(&config, launch)
    };
    let scheduler = Scheduler::new(plan, resumed.restored);
    let history = History::new(resumed.tail, resumed.evals);
    let (deaths, mourning) = mpsc::unbounded_channel();
    let supervisor = if launch {
        let exe = match exe {
            Some(exe) => exe,
            None => std::env::current_exe().map_err(|source| CoordinatorError::File {
                path: "tina".into(),
                source,
            })?,
        };
        Supervisor::start(
            roles(&config, &folder, &exe, &url, secret.as_deref(), trains)?,
            &deaths,
            &status.subscribe(),
        )
    } else {
        Supervisor::start(Vec::new(), &deaths, &status.subscribe())
    };

    let mut shell = Shell::new(shell::Parts {
        config: config.clone(),
        scheduler,
        started,
        base: resumed.counters,
        journal: journal.clone(),
        scorer,
        tokenizer,
        prompts,
        shelf,
        given,
        shared,
        history,
        status,
        events,
        notes,
    });
    let outcome = shell
        .run(&mut arrivals, &mut heard, mourning, shutdown)
        .await;
    supervisor.expect_end();
    let summary = shell.end(outcome, &folder, &mut heard).await;
    // Not before: who sends something meanwhile would hear that nobody takes it instead of the good-bye.
    drop(arrivals);
    let at_once = matches!(summary, Err(CoordinatorError::Interrupted { .. }));
    supervisor.end(at_once).await;
    stop.cancel();
    // Those who watch have their last report; a stream that stays open must not hold us.
    if tokio::time::timeout(Duration::from_secs(1), &mut server)
        .await
        .is_err()
    {
        server.abort();
    }
    folder.forget_address();
    journal.close().await;
    summary
}

/// The model's text side and the problems.
fn load(config: &RunConfig) -> Result<(TextModel, DataSet), CoordinatorError> {
    let failed = |source| CoordinatorError::Model {
        name: config.model.source.clone(),
        source: Box::new(source),
    };
    let source: ModelSource = config.model.source.parse().map_err(failed)?;
    let text = tina_model::open_text(&source).map_err(failed)?;
    let renderer = PromptRenderer::new(config, &text)?;
    let data = DataSet::load(config, &renderer)?;
    Ok((text, data))
}

/// Tokens of the longest sequence that the run can ask for; refuses what workers and learner would
/// refuse when they have the model.
fn longest_sequence(
    config: &RunConfig,
    text: &TextModel,
    data: &DataSet,
) -> Result<u32, CoordinatorError> {
    let (vocabulary, positions) = (text.config.vocab_size, text.config.max_positions);
    let unfit = |key, message| Err(CoordinatorError::Unfit { key, message });
    let stops = config.sampling_params(&text.stop_token_ids).stop_token_ids;
    if let Some(id) = stops.iter().find(|&&id| id as usize >= vocabulary) {
        let message = format!("{id} is outside the model's vocabulary of {vocabulary} tokens");
        return unfit("sampling.stop_token_ids", message);
    }
    if stops.len() > MAX_STOPS {
        let message = format!("{} with the model's own: {MAX_STOPS} at most", stops.len());
        return unfit("sampling.stop_token_ids", message);
    }
    let (prompt, completion) = (data.longest_prompt(), config.max_completion_tokens());
    let longest = prompt.saturating_add(completion as usize);
    match u32::try_from(longest) {
        Ok(tokens) if longest <= positions => Ok(tokens),
        _ => {
            let message = format!(
                "the longest prompt has {prompt} tokens, and {completion} of the completion are \
                 more than the model's {positions} positions leave; lower it, or leave long prompts \
                 out by data.max_prompt_tokens"
            );
            unfit("sampling.max_tokens", message)
        }
    }
}

fn plan(config: &RunConfig, launch: bool) -> Plan {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX / 4);
    let cluster = &config.cluster;
    Plan {
        steps: config.run.steps,
        groups_per_step: config.algorithm.prompts_per_step,
        samples_per_group: config.algorithm.completions_per_prompt,
        eval_problems: config.eval_problems() as u32,
        eval_samples: config.eval.samples,
        eval_before: config.eval.before,
        eval_after: config.eval.after,
        eval_every: config.eval.every,
        max_staleness: config.algorithm.max_staleness,
        drain: config.drains(),
        max_resamples: config.algorithm.max_resamples,
        stall_timeout: seconds(cluster.stall_timeout_s),
        worker_timeout: seconds(cluster.worker_timeout_s),
        // A learner's beats come from beside its heaviest work.
        learner_timeout: seconds(2.0 * cluster.worker_timeout_s),
        sync_deadline: seconds(cluster.sync_timeout_s),
        start_timeout: seconds(cluster.start_timeout_s),
        progress_timeout: seconds(cluster.progress_timeout_s),
        launched_workers: if launch {
            config.rollout.workers.len()
        } else {
            0
        },
        given: Vec::new(),
        probe_tolerance: PROBE_TOLERANCE,
    }
}

/// Tokens of the probe at most: every weight has its say on a few, and all of it is computed at every
/// step by learner and workers.
const PROBE_TOKENS: usize = 16;

/// Largest difference of a log-prob between different arithmetic (bf16 on two kinds of GPU, or a
/// GPU and a CPU) that is still the same adapter.
const PROBE_TOLERANCE: f32 = 0.5;

fn limits(config: &RunConfig, model: &ModelConfig, probe: &[u32]) -> Limits {
    Limits {
        vocab_size: model.vocab_size as u32,
        train_tokens: config.sampling.max_tokens,
        eval_tokens: config.eval.max_tokens.unwrap_or(config.sampling.max_tokens),
        // A group that takes the place of another is numbered behind all of the first ones.
        groups: (config.algorithm.prompts_per_step)
            .saturating_mul(config.algorithm.max_resamples.saturating_add(1)),
        samples: config.algorithm.completions_per_prompt,
        eval_problems: config.eval_problems() as u32,
        eval_samples: config.eval.samples,
        probe_logprobs: probe.len().saturating_sub(1) as u32,
    }
}

pub(crate) fn lora_config(config: &RunConfig) -> Result<LoraConfig, CoordinatorError> {
    let modules = config
        .lora
        .target_modules
        .iter()
        .map(|module| module.parse());
    let target_modules = modules
        .collect::<Result<Vec<_>, tina_model::ModelError>>()
        .map_err(|source| CoordinatorError::Model {
            name: "lora.target_modules".into(),
            source: Box::new(source),
        })?;
    Ok(LoraConfig {
        rank: config.lora.rank as usize,
        alpha: config.lora.alpha as f32,
        dropout: config.lora.dropout as f32,
        rslora: config.lora.rslora,
        target_modules,
    })
}

/// The most bytes that an adapter of this run can have: its weights in f32, and a header.
fn adapter_bytes(config: &RunConfig, model: &ModelConfig) -> u64 {
    let rank = u64::from(config.lora.rank);
    let weights: u64 = model
        .tensors()
        .iter()
        .filter(|(name, _)| {
            let module = name.trim_end_matches(".weight").rsplit('.').next();
            config
                .lora
                .target_modules
                .iter()
                .any(|target| Some(target.as_str()) == module)
        })
        .map(|(_, shape)| {
            let header = 1024;
            header + 4 * rank * shape.iter().map(|&size| size as u64).sum::<u64>()
        })
        .sum();
    weights + (1 << 20)
}

/// The step whose accuracy has the highest lower end: the best that can be relied on. The later of
/// equals.
fn best_step(evals: &[v1::EvalRecord]) -> Option<u64> {
    let low = |record: &v1::EvalRecord| record.accuracy_low;
    evals
        .iter()
        .filter(|record| record.step > 0)
        .max_by(|a, b| low(a).total_cmp(&low(b)).then(a.step.cmp(&b.step)))
        .map(|record| record.step)
}

/// Workers that are launched here are called so.
fn worker_id(index: usize) -> String {
    format!("worker-{index}")
}

/// Devices of the learner's ranks 1, 2, ... that are launched here.
fn rank_devices(config: &RunConfig) -> Vec<String> {
    let learner = &config.learner;
    let others = learner.ranks.saturating_sub(1);
    match (&learner.rank_devices, learner.device.strip_prefix("cuda:")) {
        (Some(devices), _) => devices.clone(),
        (None, None) => vec![learner.device.clone(); others as usize],
        (None, Some(first)) => {
            let first: u32 = first.parse().unwrap_or_default();
            let devices = (1..=others).map(|rank| format!("cuda:{}", first.saturating_add(rank)));
            devices.collect()
        }
    }
}

fn roles(
    config: &RunConfig,
    folder: &Folder,
    exe: &std::path::Path,
    url: &str,
    secret: Option<&str>,
    trains: bool,
) -> Result<Vec<Process>, DoorError> {
    let cluster = &config.cluster;
    let process = |role: Role, name: String, command: &str, device: &str, more: &[&str]| {
        let mut args: Vec<String> = [command, "--device", device].map(String::from).into();
        args.extend(more.iter().map(ToString::to_string));
        if let Some(ca) = cluster.tls_ca.as_ref().or(cluster.tls_cert.as_ref()) {
            args.extend(["--ca".to_owned(), ca.clone()]);
        }
        if let Some((cert, key)) = config.client_files(role) {
            for (option, path) in [("--cert", cert), ("--key", key)] {
                // Told here rather than by a process that dies of it.
                if let Err(source) = std::fs::File::open(&path) {
                    return Err(DoorError::Pem { path, source });
                }
                args.extend([option.to_owned(), path.display().to_string()]);
            }
        }
        Ok(Process {
            log: folder.log(&name),
            name,
            exe: exe.to_owned(),
            args,
            token: secret.map(|secret| role_token(secret, role)),
        })
    };
    let coordinator = ["--coordinator", url];
    let workers = config.rollout.workers.iter().enumerate();
    let workers = workers.map(|(index, worker)| {
        let id = worker_id(index);
        let more = [&coordinator[..], &["--id", &id]].concat();
        let (role, command) = (Role::Worker, "rollout-worker");
        process(role, id.clone(), command, &worker.device, &more)
    });
    let mut more = coordinator.to_vec();
    if config.learner.ranks > 1 {
        more.extend(["--ranks-listen", &config.learner.ranks_listen]);
        if let (Some(cert), Some(key)) = (&cluster.tls_cert, &cluster.tls_key) {
            more.extend(["--ranks-cert", cert, "--ranks-key", key]);
        }
        if let Some(ca) = &cluster.tls_client_ca {
            more.extend(["--ranks-client-ca", ca]);
        }
        if cluster.insecure {
            more.push("--ranks-insecure");
        }
    }
    let device = &config.learner.device;
    let learner = process(Role::Learner, "learner".into(), "learner", device, &more);
    let run = folder.path().to_string_lossy();
    let ranks = rank_devices(config).into_iter().zip(1..);
    let ranks = ranks.map(|(device, rank)| {
        let id = format!("learner-rank-{rank}");
        let more = ["--run", &run, "--id", &id];
        process(Role::Learner, id.clone(), "learner-rank", &device, &more)
    });
    let learners = std::iter::once(learner).chain(ranks);
    learners.filter(|_| trains).chain(workers).collect()
}
