//! A cluster whose workers and learner speak real gRPC and compute next to nothing: a completion is
//! a hash of its seed's parts, an adapter the hash of the one before and its batch.

// Test helpers may panic, as tests may: that is how they fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tina_coordinator::{
    CoordinatorError, CoordinatorOptions, RunEvent, RunSummary, config::RunConfig,
};
use tina_proto::{
    adapters::{AdapterTransport as _, GrpcTransport},
    client::{self, ClientOptions},
    v1::{
        self, LearnerMessage, WorkerMessage, learner_command, learner_message, worker_command,
        worker_message,
    },
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) const MODEL: &str = "fake-model";

/// A model folder with a tokenizer of single characters, and no weights: the coordinator reads none.
pub(crate) fn model(folder: &Path) -> PathBuf {
    let path = folder.join("model");
    std::fs::create_dir_all(&path).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "eos_token_id": 0, "hidden_act": "silu",
    });
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    let characters = "0123456789 abcdefghijklmnopqrstuvwxyzW+-*?.";
    let mut vocab = serde_json::Map::from_iter([("<e>".to_owned(), 0.into())]);
    for (at, character) in characters.chars().enumerate() {
        vocab.insert(character.to_string(), (at + 1).into());
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<e>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    std::fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    path
}

/// 4 steps of 3 prompts x 4 completions, evaluated before and after. One reward looks at a
/// completion alone, the other compares those of a group.
pub(crate) fn config(folder: &Path, sets: &[&str]) -> RunConfig {
    let text = format!(
        "[run]\nname = \"t\"\ndir = \"{}\"\nsteps = 4\nkeep_every = 2\n[model]\nsource = \"{}\"\n\
         [data]\nsource = \"arithmetic:add1\"\nchat = false\nheld_out = 10\n\
         [sampling]\nmax_tokens = 8\n[[reward]]\nkind = \"numeric\"\n\
         [[reward]]\nkind = \"length\"\njudge = \"numeric\"\n\
         compat = \"tina\"\nweight = 0.5\n\
         [algorithm]\nprompts_per_step = 3\ncompletions_per_prompt = 4\n[lora]\nrank = 2\n\
         [cluster]\nlisten = \"127.0.0.1:0\"\nheartbeat_ms = 100\nworker_timeout_s = 2.0\n\
         sync_timeout_s = 2.0\nstart_timeout_s = 20.0\n[cost]\nusd_per_hour = 3600.0\n",
        folder.join("runs").display(),
        model(folder).display()
    );
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(&text, "test", folder, &sets).unwrap()
}

/// A coordinator on a runtime of its own, so that it can be killed as a process can.
pub(crate) struct Coordinator {
    pub(crate) events: mpsc::Receiver<RunEvent>,
    pub(crate) shutdown: watch::Sender<u32>,
    kill: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Option<Result<RunSummary, CoordinatorError>>>,
}

impl Coordinator {
    pub(crate) fn start(config: RunConfig, resume: bool, address: &watch::Sender<String>) -> Self {
        let (tell, events) = mpsc::channel();
        let (shutdown, asked) = watch::channel(0);
        let (kill, killed) = tokio::sync::oneshot::channel();
        let address = address.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let outcome = runtime.block_on(async {
                let (events, mut heard) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(event) = heard.recv().await {
                        if let RunEvent::Bound { address: bound, .. } = &event {
                            address.send_replace(bound.to_string());
                        }
                        let _ = tell.send(event);
                    }
                });
                let options = CoordinatorOptions {
                    config,
                    resume,
                    overwrite: false,
                    launch: false,
                    exe: None,
                };
                tokio::select! {
                    outcome = tina_coordinator::run(options, events, asked) => Some(outcome),
                    Ok(()) = killed => None,
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        });
        Self {
            events,
            shutdown,
            kill,
            thread,
        }
    }

    /// Waits for the step's record.
    pub(crate) fn wait_for_step(&self, step: u64) -> v1::StepRecord {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.events.recv_timeout(left).expect("no such step") {
                RunEvent::Step(record) if record.step == step => return *record,
                _ => {}
            }
        }
    }

    pub(crate) fn kill(self) {
        self.kill.send(()).unwrap();
        assert!(self.thread.join().unwrap().is_none(), "it was over already");
    }

    pub(crate) fn finish(self) -> Result<RunSummary, CoordinatorError> {
        self.thread.join().unwrap().unwrap()
    }
}

/// How a worker behaves.
#[derive(Clone)]
pub(crate) struct Manners {
    pub(crate) slots: u32,
    pub(crate) model: String,
    /// Hangs up after so many completions, again and again.
    pub(crate) hang_up_after: Option<usize>,
    pub(crate) malformed: bool,
    /// Fails what it is asked for, and brings junk for what it isn't.
    pub(crate) hostile: bool,
    pub(crate) sample_time: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            slots: 4,
            model: MODEL.into(),
            hang_up_after: None,
            malformed: false,
            hostile: false,
            sample_time: Duration::from_millis(3),
        }
    }
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) sampled: AtomicUsize,
    pub(crate) batches: AtomicUsize,
}

pub(crate) fn options(address: &str) -> ClientOptions {
    ClientOptions {
        url: format!("http://{address}"),
        token: None,
        ..ClientOptions::default()
    }
}

fn probe(digest: &[u8]) -> Vec<f32> {
    digest[..4]
        .iter()
        .map(|byte| -f32::from(*byte) / 256.0)
        .collect()
}

fn device() -> v1::DeviceInfo {
    let (device, numerics) = ("cpu".to_owned(), "cpu-fake".to_owned());
    v1::DeviceInfo {
        device,
        numerics,
        ..Default::default()
    }
}

/// Two digits and the stop token, from the seed's parts alone.
fn sample(key: &[u8], index: u32, version: &v1::PolicyVersion) -> Vec<u32> {
    let hash = Sha256::new()
        .chain_update(key)
        .chain_update(index.to_le_bytes())
        .chain_update(&version.digest)
        .finalize();
    // A digit or two, and the end, which is no text.
    let second = (1 + u32::from(hash[1]) % 10) * u32::from(hash[2] % 2);
    vec![1 + u32::from(hash[0]) % 2, second, 0]
}

/// Dials again and again, until told to stop or given up on.
pub(crate) async fn worker(
    id: &str,
    manners: Manners,
    tally: Arc<Tally>,
    mut address: watch::Receiver<String>,
) {
    let mut unacked: BTreeMap<(u64, u32), v1::Completion> = BTreeMap::new();
    loop {
        let at = address.borrow_and_update().clone();
        match serve_worker(id, &manners, &tally, &at, &mut unacked).await {
            Some(true) => return,
            _ => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

async fn serve_worker(
    id: &str,
    manners: &Manners,
    tally: &Tally,
    address: &str,
    unacked: &mut BTreeMap<(u64, u32), v1::Completion>,
) -> Option<bool> {
    let options = options(address);
    let channel = client::connect(&options).await.ok()?;
    let auth = options.interceptor().ok()?;
    let adapters = GrpcTransport::new(channel.clone(), auth.clone());
    let (send, messages) = tokio::sync::mpsc::channel(64);
    let say = |message| {
        let send = send.clone();
        async move {
            send.send(WorkerMessage {
                message: Some(message),
            })
            .await
            .ok()
        }
    };
    let hello = v1::WorkerHello {
        worker_id: id.into(),
        device: Some(device()),
        ..Default::default()
    };
    say(worker_message::Message::Hello(hello)).await?;
    let mut rollouts = client::rollouts_client(channel, auth);
    let mut commands = rollouts
        .work(ReceiverStream::new(messages))
        .await
        .ok()?
        .into_inner();
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    let mut done = 0;
    let mut asked = std::collections::BTreeSet::new();
    loop {
        let command = tokio::select! {
            command = commands.message() => command.ok()??.command?,
            _ = beat.tick() => {
                say(worker_message::Message::Heartbeat(Default::default())).await?;
                continue;
            }
        };
        match command {
            worker_command::Command::Welcome(_) => {
                let (model_digest, slots) = (manners.model.clone(), manners.slots);
                let ready = v1::WorkerReady {
                    model_digest,
                    slots,
                    device: Some(device()),
                    ..Default::default()
                };
                say(worker_message::Message::Ready(ready)).await?;
                for completion in unacked.values() {
                    say(worker_message::Message::Completion(completion.clone())).await?;
                }
            }
            worker_command::Command::LoadAdapter(load) => {
                let version = load.version?;
                let bytes = adapters.fetch(&version).await.ok()?;
                assert_eq!(bytes.len() as u64, load.bytes);
                let loaded = v1::AdapterLoaded {
                    probe_logprobs: probe(&version.digest),
                    version: Some(version),
                    ..Default::default()
                };
                say(worker_message::Message::AdapterLoaded(loaded)).await?;
            }
            worker_command::Command::Sample(order) if manners.hostile => {
                // Of the next group of this round.
                let (round, group) = (order.group_id >> 24, order.group_id & 0xff_ffff);
                let other = (round << 24) | ((group + 1) % 3);
                asked.extend(order.sample_indices.iter().map(|i| (order.group_id, *i)));
                for &index in &order.sample_indices {
                    if !asked.contains(&(other, index)) {
                        let junk = v1::Completion {
                            group_id: other,
                            sample_index: index,
                            logprobs: vec![-0.5],
                            tokens: vec![7],
                            finish_reason: v1::FinishReason::Stop.into(),
                            versions: vec![v1::VersionSpan {
                                start: 0,
                                version: order.version.clone(),
                            }],
                            decode_seconds: 0.001,
                        };
                        say(worker_message::Message::Completion(junk)).await?;
                    }
                }
                let failed = v1::SampleFailed {
                    group_id: order.group_id,
                    sample_indices: order.sample_indices,
                    error: "I won't".into(),
                };
                say(worker_message::Message::SampleFailed(failed)).await?;
            }
            worker_command::Command::Sample(order) => {
                let version = order.version.clone()?;
                for &index in &order.sample_indices {
                    tokio::time::sleep(manners.sample_time).await;
                    let mut tokens = sample(&order.prompt_key, index, &version);
                    if manners.malformed {
                        tokens[0] = 9999;
                    }
                    let completion = v1::Completion {
                        group_id: order.group_id,
                        sample_index: index,
                        logprobs: vec![-0.5; tokens.len()],
                        tokens,
                        finish_reason: v1::FinishReason::Stop.into(),
                        versions: vec![v1::VersionSpan {
                            start: 0,
                            version: Some(version.clone()),
                        }],
                        decode_seconds: 0.001,
                    };
                    tally.sampled.fetch_add(1, Ordering::SeqCst);
                    unacked.insert((order.group_id, index), completion.clone());
                    say(worker_message::Message::Completion(completion)).await?;
                    done += 1;
                    if manners.hang_up_after == Some(done) {
                        return Some(false);
                    }
                }
            }
            worker_command::Command::Cancel(cancel) => {
                for index in cancel.sample_indices {
                    unacked.remove(&(cancel.group_id, index));
                }
            }
            worker_command::Command::CompletionAck(ack) => {
                unacked.remove(&(ack.group_id, ack.sample_index));
            }
            worker_command::Command::Stop(_) => return Some(true),
        }
    }
}

/// The adapter of step 0.
pub(crate) fn first_adapter() -> Vec<u8> {
    Sha256::digest(b"first").to_vec()
}

/// What the fake learner remembers; on "disk" as long as this is shared.
#[derive(Clone)]
pub(crate) struct Checkpoint(pub(crate) Arc<Mutex<(u64, Vec<u8>)>>);

impl Default for Checkpoint {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0, first_adapter()))))
    }
}

/// Dials again and again; checkpoints every `every` steps, and after each stream that breaks goes
/// on from its checkpoint.
pub(crate) async fn learner(
    checkpoint: Checkpoint,
    every: u64,
    refuse: Arc<AtomicBool>,
    tally: Arc<Tally>,
    mut address: watch::Receiver<String>,
) {
    loop {
        let at = address.borrow_and_update().clone();
        match serve_learner(&checkpoint, every, &refuse, &tally, &at).await {
            Some(true) => return,
            _ => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

async fn serve_learner(
    checkpoint: &Checkpoint,
    every: u64,
    refuse: &AtomicBool,
    tally: &Tally,
    address: &str,
) -> Option<bool> {
    let options = options(address);
    let channel = client::connect(&options).await.ok()?;
    let auth = options.interceptor().ok()?;
    let adapters = GrpcTransport::new(channel.clone(), auth.clone());
    let (send, messages) = tokio::sync::mpsc::channel(64);
    let say = |message| {
        let send = send.clone();
        async move {
            send.send(LearnerMessage {
                message: Some(message),
            })
            .await
            .ok()
        }
    };
    let hello = v1::LearnerHello {
        learner_id: "learner".into(),
        device: Some(device()),
        ..Default::default()
    };
    say(learner_message::Message::Hello(hello)).await?;
    let mut learning = client::learning_client(channel, auth);
    let mut commands = learning
        .learn(ReceiverStream::new(messages))
        .await
        .ok()?
        .into_inner();
    let (mut step, mut bytes) = checkpoint.0.lock().unwrap().clone();
    let mut batch: Vec<v1::TrainingGroup> = Vec::new();
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    loop {
        let command = tokio::select! {
            command = commands.message() => command.ok()??.command?,
            _ = beat.tick() => {
                say(learner_message::Message::Heartbeat(Default::default())).await?;
                continue;
            }
        };
        let version = v1::PolicyVersion::of_bytes(step, &bytes);
        match command {
            learner_command::Command::Welcome(_) => {
                adapters.publish(&version, &bytes).await.ok()?;
                let result = v1::StepResult {
                    version: Some(version.clone()),
                    probe_logprobs: probe(&version.digest),
                    ..Default::default()
                };
                let ready = v1::LearnerReady {
                    model_digest: MODEL.into(),
                    probe_logprobs: probe(&version.digest),
                    version: Some(version),
                    last_result: (step > 0).then_some(result),
                    ..Default::default()
                };
                say(learner_message::Message::Ready(ready)).await?;
            }
            learner_command::Command::BeginStep(begin) => {
                assert_eq!(begin.version, Some(version));
                batch.clear();
            }
            learner_command::Command::Group(group) => batch.push(group),
            learner_command::Command::EndStep(end) => {
                tally.batches.fetch_add(1, Ordering::SeqCst);
                if refuse.load(Ordering::SeqCst) {
                    let error = "I don't like it".into();
                    let refused = v1::BatchRefused {
                        step: end.step,
                        error,
                    };
                    say(learner_message::Message::BatchRefused(refused)).await?;
                    continue;
                }
                let mut hash = Sha256::new_with_prefix(&bytes);
                for group in &batch {
                    group
                        .prompt_tokens
                        .iter()
                        .for_each(|t| hash.update(t.to_le_bytes()));
                    for trained in &group.completions {
                        let completion = trained.completion.as_ref()?;
                        assert_eq!(completion.versions[0].version, Some(version.clone()));
                        completion
                            .tokens
                            .iter()
                            .for_each(|t| hash.update(t.to_le_bytes()));
                        hash.update(trained.reward.to_le_bytes());
                    }
                }
                (step, bytes) = (step + 1, hash.finalize().to_vec());
                if step.is_multiple_of(every) {
                    *checkpoint.0.lock().unwrap() = (step, bytes.clone());
                }
                let version = v1::PolicyVersion::of_bytes(step, &bytes);
                adapters.publish(&version, &bytes).await.ok()?;
                let result = v1::StepResult {
                    probe_logprobs: probe(&version.digest),
                    version: Some(version),
                    metrics: Some(v1::StepMetrics {
                        tokens_trained: 36,
                        ..Default::default()
                    }),
                    adapter_bytes: bytes.len() as u64,
                    ..Default::default()
                };
                say(learner_message::Message::StepResult(result)).await?;
            }
            learner_command::Command::Stop(_) => return Some(true),
            learner_command::Command::Broadcast(_) => return Some(false), // not offered
        }
    }
}

/// Workers and a learner, on a runtime that outlives coordinators.
pub(crate) struct Roles {
    pub(crate) address: watch::Sender<String>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) refuse: Arc<AtomicBool>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Roles {
    pub(crate) fn start(manners: &[Manners], checkpoint_every: u64) -> Self {
        let roles = Self {
            address: watch::channel(String::from("127.0.0.1:1")).0,
            tally: Arc::default(),
            refuse: Arc::default(),
            checkpoint: Checkpoint::default(),
            runtime: tokio::runtime::Runtime::new().unwrap(),
        };
        for (index, manners) in manners.iter().enumerate() {
            roles.add_worker(&format!("w{index}"), manners.clone());
        }
        roles.add_learner(checkpoint_every);
        roles
    }

    pub(crate) fn add_worker(&self, id: &str, manners: Manners) {
        let (id, tally, address) = (id.to_owned(), self.tally.clone(), self.address.subscribe());
        self.runtime
            .spawn(async move { worker(&id, manners, tally, address).await });
    }

    pub(crate) fn add_learner(&self, every: u64) -> tokio::task::JoinHandle<()> {
        let (checkpoint, refuse) = (self.checkpoint.clone(), self.refuse.clone());
        let (tally, address) = (self.tally.clone(), self.address.subscribe());
        self.runtime
            .spawn(learner(checkpoint, every, refuse, tally, address))
    }

    pub(crate) fn sampled(&self) -> usize {
        self.tally.sampled.load(Ordering::SeqCst)
    }
}

pub(crate) fn adapter(summary: &RunSummary) -> Vec<u8> {
    let folder = summary.adapter.as_ref().unwrap();
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

/// The adapter of a whole run without any fault.
pub(crate) fn undisturbed(folder: &Path) -> Vec<u8> {
    let roles = Roles::start(&[Manners::default()], 1);
    let summary = Coordinator::start(
        config(folder, &["run.name=\"undisturbed\""]),
        false,
        &roles.address,
    )
    .finish()
    .unwrap();
    adapter(&summary)
}

/// Waits until a coordinator listens.
pub(crate) async fn listening(address: &mut watch::Receiver<String>) {
    let bound = address.wait_for(|address| !address.is_empty());
    tokio::time::timeout(Duration::from_secs(20), bound)
        .await
        .expect("nobody listens")
        .unwrap();
}
