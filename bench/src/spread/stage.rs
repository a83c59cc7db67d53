//! The coordinator's services in this process, worker processes that dial in, and adapters for them.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tina_coordinator::{
    config::RunConfig,
    journal::{Journal, fingerprint},
    relays::{Relays, Route},
    scheduler::types::{Command as Order, Event, RoundId, Session, Version},
    services::{AdapterStore, Doors, Inbound, Limits, Outbox, Shared, allow_connections},
};
use tina_proto::v1::{
    AdapterLoaded, Cancel, CompletionAck, LoadAdapter, PolicyVersion, RunStatus, Sample,
    SamplingParams, WorkerCommand, WorkerWelcome, worker_command::Command as Told,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Load, Options,
    model::{MOST_TOKENS, PROMPT, Subject, VOCABULARY_SIZE},
    report::{Line, Taken},
};
use crate::{
    cluster::tail,
    error::{BenchError, Result},
    processes::Others,
};

/// The longest until a worker says what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two adapters: what followed on the one before is done with.
const SETTLE: Duration = Duration::from_millis(300);
/// Samples that each engine decodes where it is busy.
const SAMPLES: u32 = 2;
/// The largest adapter taken.
const LIMIT: u64 = 1 << 30;

/// All that a measurement needs, standing.
pub(super) struct Stage {
    fan_out: u32,
    arrivals: mpsc::Receiver<Inbound>,
    store: Arc<AdapterStore>,
    relays: Relays,
    workers: HashMap<Session, Outbox<WorkerCommand>>,
    spec: tina_proto::v1::RunSpec,
    processes: Vec<Child>,
    errors: PathBuf,
    stop: CancellationToken,
    version: Option<Version>,
    groups: u32,
    // Whoever asks for status holds the other end; nobody writes it.
    _status: watch::Sender<Arc<RunStatus>>,
}

fn told(command: Told) -> WorkerCommand {
    WorkerCommand {
        command: Some(command),
    }
}

impl Stage {
    /// Opens the doors, starts the workers and waits until all have their model.
    pub(super) async fn set(
        options: &Options,
        fan_out: u32,
        tina: &Path,
        folder: &Path,
        subject: &Subject,
    ) -> Result<Self> {
        allow_connections();
        let other = |error: String| BenchError::Other(error);
        let config = RunConfig::parse(&subject.config(fan_out), "adapters", folder, &[])?;
        let doors = Doors::bind(&config.cluster)
            .await
            .map_err(|error| other(error.to_string()))?;
        let url = doors.local_url();
        let (inbound, arrivals) = mpsc::channel(1024);
        let (status, reports) = watch::channel(Arc::default());
        let store = Arc::new(AdapterStore::new(LIMIT));
        let probe = PROMPT.collect();
        let spec = config.run_spec("spread", "", probe, MOST_TOKENS + PROMPT.len() as u32);
        let journal = folder.join("run.db");
        let (journal, _) = Journal::open(&journal, &fingerprint(&config), "", "spread", |_| {})
            .map_err(|error| other(error.to_string()))?;
        let shared = Arc::new(Shared {
            inbound,
            sessions: 1.into(),
            limits: Limits {
                vocab_size: VOCABULARY_SIZE,
                train_tokens: MOST_TOKENS,
                eval_tokens: MOST_TOKENS,
                groups: u32::MAX,
                samples: SAMPLES,
                eval_problems: 0,
                eval_samples: 0,
                probe_logprobs: PROMPT.len() as u32,
            },
            spec: spec.clone(),
            heartbeat_ms: 1000,
            adapters: store.clone(),
            status: reports,
            journal,
        });
        let stop = CancellationToken::new();
        doors
            .serve(shared, stop.clone())
            .await
            .map_err(|error| other(error.to_string()))?;
        let errors = folder.join("workers.txt");
        let log = File::create(&errors).map_err(BenchError::file(&errors))?;
        let start = |number: u32| {
            let clone = || log.try_clone().map_err(BenchError::file(&errors));
            Command::new(tina)
                .args(["rollout-worker", "--coordinator", &url])
                .args(["--id", &format!("worker-{number}")])
                .args(["--exit-with-parent", &std::process::id().to_string()])
                .env("RAYON_NUM_THREADS", options.threads.to_string())
                .env("TINA_LOG", "warn")
                .env_remove("TINA_TOKEN")
                .stdin(Stdio::null())
                .stdout(clone()?)
                .stderr(clone()?)
                .kill_on_drop(true)
                .spawn()
                .map_err(|source| BenchError::Spawn {
                    program: tina.to_owned(),
                    source,
                })
        };
        let mut stage = Self {
            fan_out,
            arrivals,
            store,
            relays: Relays::new(spec.adapter_fan_out),
            workers: HashMap::new(),
            spec,
            processes: (0..options.workers).map(start).collect::<Result<_>>()?,
            errors,
            stop,
            version: None,
            groups: 0,
            _status: status,
        };
        let mut ready = 0;
        while ready < options.workers {
            if let Event::WorkerReady { .. } = stage.hear().await? {
                ready += 1;
            }
        }
        Ok(stage)
    }

    /// The next event; workers that dial in are welcomed, completions acknowledged.
    async fn hear(&mut self) -> Result<Event> {
        loop {
            let Ok(Some(inbound)) = timeout(PATIENCE, self.arrivals.recv()).await else {
                let tail = tail(&self.errors);
                return Err(BenchError::Late {
                    what: "nothing from the workers",
                    seconds: PATIENCE.as_secs(),
                    tail,
                });
            };
            for note in self.relays.note(&inbound) {
                eprintln!("{note}");
            }
            match inbound {
                Inbound::Worker {
                    session, outbox, ..
                } => {
                    let welcome = WorkerWelcome {
                        spec: Some(self.spec.clone()),
                        slots: 4,
                        heartbeat_ms: 1000,
                        ..WorkerWelcome::default()
                    };
                    outbox.send(told(Told::Welcome(welcome)));
                    self.workers.insert(session, outbox);
                }
                Inbound::Event(Event::Completion {
                    session,
                    completion,
                }) => {
                    let ack = CompletionAck {
                        group_id: completion.group_id,
                        sample_index: completion.sample_index,
                    };
                    self.tell(session, Told::CompletionAck(ack));
                }
                Inbound::Event(Event::WorkerHeartbeat { .. }) => {}
                Inbound::Event(Event::WorkerLost { reason, .. }) => {
                    let tail = tail(&self.errors);
                    return Err(BenchError::Other(format!(
                        "a worker is lost: {reason}\n{tail}"
                    )));
                }
                Inbound::Event(Event::SampleFailed { failed, .. }) => {
                    return Err(BenchError::Other(failed.error));
                }
                Inbound::Malformed { failed, .. } => return Err(BenchError::Other(failed.error)),
                Inbound::Event(event) => return Ok(event),
                Inbound::Learner { .. } => {}
            }
        }
    }

    fn tell(&self, session: Session, command: Told) {
        if let Some(outbox) = self.workers.get(&session) {
            outbox.send(told(command));
        }
    }

    /// So many adapters, one after the other, after one that is not counted.
    pub(super) async fn rounds(
        &mut self,
        rounds: u32,
        load: Load,
        subject: &mut Subject,
    ) -> Result<Line> {
        if self.version.is_none() || load == Load::Busy {
            self.round(Load::Idle, subject).await?;
        }
        self.round(load, subject).await?;
        let uploaded = self.store.uploaded();
        let pids = self.processes.iter().filter_map(Child::id).collect();
        let others = Others::beside(pids);
        let mut all = Vec::new();
        for _ in 0..rounds {
            all.push(self.round(load, subject).await?);
        }
        let others = others.share();
        let uploaded = self.store.uploaded() - uploaded;
        Ok(Line::new(self.fan_out, load, &all, uploaded, others))
    }

    /// One adapter for all.
    async fn round(&mut self, load: Load, subject: &mut Subject) -> Result<Vec<Taken>> {
        let (step, bytes) = subject.next_adapter();
        let name = PolicyVersion::of_bytes(step, &bytes);
        let missing = || BenchError::Other("a version without a digest".into());
        let version = Version::from_wire(&name).ok_or_else(missing)?;
        let total = bytes.len() as u64;
        self.store.put(version, bytes.into());
        self.store.pin(version);
        // As if they had been found when it was published.
        let checks = self
            .store
            .checks(&version.digest)
            .map(|checks| checks.to_wire());
        let sessions = self.sessions();
        let groups = match (load, self.version) {
            (Load::Busy, Some(held)) => self.busy(&sessions, held),
            _ => Vec::new(),
        };
        sleep(SETTLE).await;
        let orders: Vec<_> = sessions
            .iter()
            .map(|&session| Order::LoadAdapter { session, version })
            .collect();
        let began = Instant::now();
        self.relays.plan(&orders, |_, _| false);
        let mut depths = HashMap::new();
        for &session in &sessions {
            let Route {
                sources,
                checked,
                depth,
            } = self.relays.route(session, version);
            depths.insert(session, depth);
            let load = LoadAdapter {
                version: Some(name.clone()),
                bytes: total,
                nccl: None,
                sources,
                checks: checks.clone().filter(|_| checked),
                depth,
            };
            self.tell(session, Told::LoadAdapter(load));
        }
        let mut taken = Vec::new();
        while taken.len() < sessions.len() {
            let Event::AdapterLoaded { session, loaded } = self.hear().await? else {
                continue;
            };
            let after = began.elapsed().as_secs_f32();
            check(&loaded, &name)?;
            taken.push(Taken {
                after,
                ready: loaded.seconds as f32,
                pause: loaded.pause_seconds as f32,
                depth: depths.get(&session).copied().unwrap_or(0),
            });
        }
        for (session, group_id) in groups {
            let sample_indices = Vec::new();
            let cancel = Cancel {
                group_id,
                sample_indices,
            };
            self.tell(session, Told::Cancel(cancel));
        }
        self.version = Some(version);
        Ok(taken)
    }

    fn sessions(&self) -> Vec<Session> {
        let mut sessions: Vec<_> = self.workers.keys().copied().collect();
        sessions.sort_unstable();
        sessions
    }

    /// Gives every engine something to decode under the version that it holds.
    fn busy(&mut self, sessions: &[Session], version: Version) -> Vec<(Session, u64)> {
        let mut groups = Vec::new();
        for &session in sessions {
            self.groups += 1;
            let group_id = RoundId::train(1).group(self.groups);
            let sample = Sample {
                group_id,
                prompt_tokens: PROMPT.collect(),
                sample_indices: (0..SAMPLES).collect(),
                prompt_key: vec![self.groups as u8; 32],
                params: Some(SamplingParams {
                    temperature: 1.0,
                    top_p: 1.0,
                    max_tokens: MOST_TOKENS,
                    ..SamplingParams::default()
                }),
                version: Some(version.to_wire()),
                exact: false,
            };
            self.tell(session, Told::Sample(sample));
            groups.push((session, group_id));
        }
        groups
    }

    /// Ends the workers and closes the doors.
    pub(super) async fn end(mut self) {
        for (_, outbox) in self.workers.drain() {
            let reason = "measured".to_owned();
            outbox.finish(told(Told::Stop(tina_proto::v1::WorkerStop { reason })));
        }
        for process in &mut self.processes {
            let _ = timeout(Duration::from_secs(10), process.wait()).await;
        }
        self.stop.cancel();
    }
}

/// Whether the adapter was taken in, and is the one that was announced.
fn check(loaded: &AdapterLoaded, name: &PolicyVersion) -> Result<()> {
    let problems: Vec<_> = loaded
        .legs
        .iter()
        .filter(|leg| !leg.problem.is_empty())
        .map(|leg| format!("{}: {}", leg.worker_id, leg.problem))
        .collect();
    if !problems.is_empty() {
        eprintln!("not by the shortest way: {}", problems.join("; "));
    }
    if loaded.error.is_empty() && loaded.version.as_ref() == Some(name) {
        return Ok(());
    }
    Err(BenchError::Other(format!(
        "a worker did not load {}: {}",
        name.short(),
        loaded.error
    )))
}
