//! Messages of every stream: decoded, checked, and given to whoever acts on them. An input is a
//! sequence of messages, each behind its length.

use std::time::Duration;

use prost::Message;
use tina_coordinator::{
    relays::Relays,
    scheduler::{
        Scheduler,
        types::{Command, Event, Plan, Restored, RoundId, Scored, Version},
    },
    services::{Inbound, Limits},
};
use tina_learner::{
    batch::{Assembly, Limits as BatchLimits},
    settings::Settings,
};
use tina_model::ModelConfig;
use tina_proto::{
    adapters::{Checks, Inbox, Source},
    client::ClientOptions,
    v1,
};
use tina_rollout_worker::check;

/// The messages of an input, up to the first that is none.
pub(crate) fn messages<M: Message + Default>(mut bytes: &[u8]) -> impl Iterator<Item = M> {
    std::iter::from_fn(move || {
        (!bytes.is_empty())
            .then(|| M::decode_length_delimited(&mut bytes).ok())
            .flatten()
    })
}

pub(crate) fn stream<M: Message>(messages: impl IntoIterator<Item = M>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend(message.encode_length_delimited_to_vec());
    }
    bytes
}

fn version(step: u64) -> Version {
    Version {
        step,
        digest: [step as u8 + 1; 32],
    }
}

fn completion(group: u32, sample_index: u32) -> v1::Completion {
    v1::Completion {
        group_id: RoundId::train(1).group(group),
        sample_index,
        tokens: vec![1, 2, 3],
        logprobs: vec![-0.5, -0.25, 0.0],
        finish_reason: v1::FinishReason::Stop.into(),
        versions: vec![v1::VersionSpan {
            start: 0,
            version: Some(version(0).to_wire()),
        }],
        decode_seconds: 0.5,
    }
}

fn device() -> Option<v1::DeviceInfo> {
    Some(v1::DeviceInfo {
        device: "cpu".into(),
        numerics: "cpu-x".into(),
        ..Default::default()
    })
}

/// A scheduler with its scorer and its journal, which answer at once.
struct Run {
    scheduler: Scheduler,
    relays: Relays,
    now: Duration,
}

/// Streams: of an honest worker, of a learner, and of whoever is tried.
const HONEST: u64 = 1;
const LEARNER: u64 = 2;
const TRIED: u64 = 3;

impl Run {
    const LIMITS: Limits = Limits {
        vocab_size: 32,
        train_tokens: 8,
        eval_tokens: 8,
        groups: 2,
        samples: 2,
        eval_problems: 1,
        eval_samples: 1,
        probe_logprobs: 4,
    };

    fn new(max_staleness: u64) -> Self {
        let seconds = Duration::from_secs;
        let plan = Plan {
            steps: 3,
            groups_per_step: 2,
            samples_per_group: 2,
            eval_problems: 1,
            eval_samples: 1,
            eval_before: false,
            eval_after: true,
            eval_every: 0,
            max_staleness,
            drain: true,
            max_resamples: 0,
            worker_timeout: seconds(5),
            learner_timeout: seconds(5),
            sync_deadline: seconds(3),
            start_timeout: seconds(60),
            stall_timeout: seconds(20),
            progress_timeout: seconds(30),
            launched_workers: 0,
            given: Vec::new(),
            probe_tolerance: 0.1,
        };
        Self {
            scheduler: Scheduler::new(plan, Restored::default()),
            relays: Relays::new(1),
            now: Duration::ZERO,
        }
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut said = Vec::new();
            let inbound = Inbound::Event(event);
            self.relays.note(&inbound);
            let Inbound::Event(event) = inbound else {
                continue;
            };
            self.scheduler.handle(self.now, event, &mut said);
            self.relays.plan(&said, |_, _| false);
            for command in said {
                match command {
                    Command::Score { worker, completion } => {
                        events.push(Event::Scored(std::sync::Arc::new(Scored {
                            reward: f64::from(completion.sample_index),
                            completion,
                            worker,
                            text: String::new(),
                            judged: true,
                            correct: false,
                            rewards: Vec::new(),
                        })));
                    }
                    Command::Record(scored) => events.push(Event::Recorded(vec![scored])),
                    Command::LoadAdapter { session, version } => {
                        self.relays.route(session, version);
                    }
                    _ => {}
                }
            }
        }
        self.now += Duration::from_millis(300);
    }

    fn worker_joins(&mut self, session: u64) {
        let hello = v1::WorkerHello {
            worker_id: format!("w{session}"),
            ..Default::default()
        };
        self.relays.joined(session, &hello);
        self.tell(Event::WorkerHello { session, hello });
        self.worker(session, ready());
        self.worker(session, loaded());
    }

    fn learner_joins(&mut self) {
        let hello = v1::LearnerHello {
            learner_id: "l".into(),
            ..Default::default()
        };
        self.tell(Event::LearnerHello {
            session: LEARNER,
            hello,
        });
        self.learner(LEARNER, learner_ready());
    }

    /// What a worker's message is made into (`services::streams`).
    fn worker(&mut self, session: u64, message: v1::WorkerMessage) {
        use v1::worker_message::Message as M;
        let event = match message.message {
            None | Some(M::Hello(_)) => return,
            Some(M::Ready(ready)) => match Limits::check_ready(&ready) {
                Ok(()) => Event::WorkerReady { session, ready },
                Err(_) => return,
            },
            Some(M::AdapterLoaded(loaded)) => match Self::LIMITS.check_loaded(&loaded) {
                Ok(()) => Event::AdapterLoaded { session, loaded },
                Err(_) => return,
            },
            Some(M::Heartbeat(heartbeat)) => match Limits::check_heartbeat(&heartbeat) {
                Ok(()) => Event::WorkerHeartbeat { session, heartbeat },
                Err(_) => return,
            },
            Some(M::SampleFailed(failed)) => match Self::LIMITS.check_failed(&failed) {
                Ok(()) => Event::SampleFailed { session, failed },
                Err(_) => return,
            },
            Some(M::Completion(completion)) => match Self::LIMITS.check_completion(&completion) {
                Ok(()) => Event::Completion {
                    session,
                    completion,
                },
                Err(error) => Event::SampleFailed {
                    session,
                    failed: v1::SampleFailed {
                        group_id: completion.group_id,
                        sample_indices: vec![completion.sample_index],
                        error,
                    },
                },
            },
        };
        self.tell(event);
    }

    /// What a learner's message is made into.
    fn learner(&mut self, session: u64, message: v1::LearnerMessage) {
        use v1::learner_message::Message as M;
        let event = match message.message {
            None | Some(M::Hello(_)) => return,
            Some(M::Ready(ready)) => match Self::LIMITS.check_learner_ready(&ready) {
                Ok(()) => Event::LearnerReady {
                    session,
                    ready: Box::new(ready),
                },
                Err(_) => return,
            },
            Some(M::StepResult(result)) => match Self::LIMITS.check_result(&result) {
                Ok(()) => Event::StepResult {
                    session,
                    result: Box::new(result),
                },
                Err(_) => return,
            },
            Some(M::Heartbeat(heartbeat)) => Event::LearnerHeartbeat { session, heartbeat },
            Some(M::Failed(failed)) => Event::LearnerFailed {
                session,
                error: failed.error,
            },
            Some(M::BatchRefused(refused)) => Event::BatchRefused { session, refused },
        };
        self.tell(event);
    }
}

fn of_worker(message: v1::worker_message::Message) -> v1::WorkerMessage {
    v1::WorkerMessage {
        message: Some(message),
    }
}

fn of_learner(message: v1::learner_message::Message) -> v1::LearnerMessage {
    v1::LearnerMessage {
        message: Some(message),
    }
}

fn ready() -> v1::WorkerMessage {
    of_worker(v1::worker_message::Message::Ready(v1::WorkerReady {
        model_digest: "m".into(),
        slots: 4,
        device: device(),
        relay: "http://127.0.0.1:7".into(),
    }))
}

fn loaded() -> v1::WorkerMessage {
    of_worker(v1::worker_message::Message::AdapterLoaded(
        v1::AdapterLoaded {
            version: Some(version(0).to_wire()),
            probe_logprobs: vec![-1.0, -2.0],
            seconds: 0.1,
            legs: vec![v1::AdapterLeg {
                worker_id: "w1".into(),
                bytes: 7,
                problem: "it broke".into(),
                wrong_bytes: true,
            }],
            ..Default::default()
        },
    ))
}

fn learner_ready() -> v1::LearnerMessage {
    of_learner(v1::learner_message::Message::Ready(v1::LearnerReady {
        model_digest: "m".into(),
        version: Some(version(0).to_wire()),
        probe_logprobs: vec![-1.0, -2.0],
        device: device(),
        ..Default::default()
    }))
}

/// What a worker sends, up to what the scheduler makes of it.
pub mod worker_stream {
    use super::*;

    /// Beside an honest worker and a learner, in lock step and ahead.
    pub fn run(bytes: &[u8]) {
        for max_staleness in [0, 2] {
            let mut run = Run::new(max_staleness);
            run.learner_joins();
            run.worker_joins(HONEST);
            run.worker_joins(TRIED);
            for message in messages(bytes) {
                run.worker(TRIED, message);
            }
            run.tell(Event::Tick);
            run.scheduler.snapshot();
        }
    }

    /// A worker that does all it is asked; one that fails.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::worker_message::Message as M;
        let samples = (0..2).flat_map(|group| (0..2).map(move |index| (group, index)));
        let completions =
            samples.map(|(group, index)| of_worker(M::Completion(completion(group, index))));
        let heartbeat = of_worker(M::Heartbeat(v1::WorkerHeartbeat {
            slots_used: 2,
            queued: 1,
            tokens_per_second: 10.0,
            tokens_total: 100,
            version: Some(version(0).to_wire()),
            slots: 5,
            kv_bytes: 1 << 20,
            kv_limit_bytes: 1 << 30,
        }));
        let failed = of_worker(M::SampleFailed(v1::SampleFailed {
            group_id: RoundId::train(1).group(1),
            sample_indices: vec![0, 1],
            error: "out of memory".into(),
        }));
        vec![
            stream(
                [ready(), loaded(), heartbeat.clone()]
                    .into_iter()
                    .chain(completions),
            ),
            stream([failed, heartbeat, ready()]),
        ]
    }
}

/// What a learner sends, up to what the scheduler makes of it.
pub mod learner_stream {
    use super::*;

    /// After a worker has sampled the first batch.
    pub fn run(bytes: &[u8]) {
        let mut run = Run::new(0);
        run.learner_joins();
        run.worker_joins(HONEST);
        for (group, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let completion = completion(group, index);
            run.worker(
                HONEST,
                of_worker(v1::worker_message::Message::Completion(completion)),
            );
        }
        for message in messages(bytes) {
            run.learner(LEARNER, message);
        }
        run.tell(Event::Tick);
        run.scheduler.snapshot();
    }

    /// A step's result, and what else there is.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::learner_message::Message as M;
        let result = of_learner(M::StepResult(v1::StepResult {
            version: Some(version(1).to_wire()),
            adapter_bytes: 1000,
            metrics: Some(v1::StepMetrics {
                loss: 0.5,
                grad_norm: 1.0,
                tokens_trained: 12,
                ..Default::default()
            }),
            probe_logprobs: vec![-1.0, -2.0],
            nccl_id: Vec::new(),
        }));
        let heartbeat = of_learner(M::Heartbeat(v1::LearnerHeartbeat {
            phase: "learning".into(),
            step: 1,
            done: 1,
            total: 4,
        }));
        let refused = of_learner(M::BatchRefused(v1::BatchRefused {
            step: 1,
            error: "it came twice".into(),
        }));
        vec![
            stream([heartbeat.clone(), result, heartbeat.clone()]),
            stream([refused, learner_ready(), heartbeat]),
        ]
    }
}

fn params() -> v1::SamplingParams {
    v1::SamplingParams {
        temperature: 1.0,
        top_p: 0.9,
        top_k: 5,
        min_p: 0.01,
        max_tokens: 8,
        stop_token_ids: vec![2],
        stop: vec!["end".into()],
    }
}

fn spec() -> v1::RunSpec {
    v1::RunSpec {
        run_id: "run".into(),
        seed: 1,
        run_dir: "/nowhere".into(),
        model: Some(v1::ModelSpec {
            source: "hf:a/b".into(),
            dtype: "auto".into(),
        }),
        lora: Some(v1::LoraSpec {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            rslora: false,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
        }),
        algorithm: Some(v1::AlgorithmSpec {
            loss: "grpo".into(),
            clip_low: Some(0.2),
            clip_high: Some(0.2),
            iterations: 1,
            advantage: "group".into(),
            max_completion_tokens: 8,
            ..Default::default()
        }),
        learner: Some(v1::LearnerSpec {
            lr: 1e-4,
            schedule_steps: 10,
            warmup_steps: 1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            micro_batch_tokens: 64,
            checkpoint_every: 1,
            ..Default::default()
        }),
        probe_tokens: vec![1, 2, 3],
        max_sequence_tokens: 32,
        ..Default::default()
    }
}

/// What a coordinator sends a worker.
pub mod worker_commands {
    use super::*;

    fn model() -> ModelConfig {
        let config = r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "max_position_embeddings": 64}"#;
        ModelConfig::from_hf_json(config).expect("a config")
    }

    /// Checks the run's specification, the samples asked for, and whom an adapter is to be had from.
    pub fn run(bytes: &[u8]) {
        use v1::worker_command::Command as C;
        let model = model();
        let mut plan = check::run_plan(&spec(), &model).expect("a plan");
        for message in messages::<v1::WorkerCommand>(bytes) {
            match message.command {
                Some(C::Welcome(welcome)) => {
                    let spec = welcome.spec.unwrap_or_default();
                    if let Ok(new) = check::run_plan(&spec, &model) {
                        plan = new;
                    }
                }
                Some(C::Sample(sample)) => {
                    if let Ok((task, indices)) = check::sample(sample, &plan) {
                        assert!(!indices.is_empty() && !task.prompt.is_empty());
                    }
                }
                Some(C::LoadAdapter(load)) => {
                    let version = load.version.unwrap_or_default();
                    let checks = load.checks.unwrap_or_default();
                    if let Ok(checks) = Checks::from_wire(&checks, &version, load.bytes) {
                        assert!(checks.to_wire().digests.ends_with(&version.digest));
                    }
                    let coordinator = ClientOptions::default();
                    for source in load.sources {
                        let _ = Source::new(source.worker_id, &source.relay, &coordinator);
                    }
                }
                _ => {}
            }
        }
    }

    /// A welcome and samples.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::worker_command::Command as C;
        let welcome = C::Welcome(v1::WorkerWelcome {
            spec: Some(spec()),
            slots: 4,
            heartbeat_ms: 500,
            ..Default::default()
        });
        let sample = C::Sample(v1::Sample {
            group_id: RoundId::train(1).group(1),
            prompt_tokens: vec![1, 2, 3],
            sample_indices: vec![0, 1],
            prompt_key: vec![7; 32],
            params: Some(params()),
            version: Some(version(0).to_wire()),
            exact: true,
        });
        let bytes = [7; 100];
        let version = v1::PolicyVersion::of_bytes(3, &bytes);
        let load = C::LoadAdapter(v1::LoadAdapter {
            version: Some(version),
            bytes: 100,
            nccl: None,
            sources: vec![v1::AdapterSource {
                worker_id: "w".into(),
                relay: "http://127.0.0.1:7".into(),
            }],
            checks: Some(Checks::of_bytes(&bytes).to_wire()),
            depth: 1,
        });
        let commands = [welcome, load, sample];
        vec![stream(commands.map(|command| v1::WorkerCommand {
            command: Some(command),
        }))]
    }
}

/// What a coordinator sends a learner.
pub mod learner_commands {
    use super::*;

    /// Checks the run's specification and the batches.
    pub fn run(bytes: &[u8]) {
        use v1::learner_command::Command as C;
        let limits = BatchLimits {
            vocab_size: 32,
            max_sequence_tokens: 32,
        };
        let held = version(1).to_wire();
        let mut assembly: Option<Assembly> = None;
        for message in messages::<v1::LearnerCommand>(bytes) {
            match message.command {
                Some(C::Welcome(welcome)) => {
                    let _ = Settings::from_spec(&welcome.spec.unwrap_or_default());
                }
                Some(C::BeginStep(begin)) => {
                    let made = [version(0).to_wire()];
                    assembly = Some(Assembly::begin(begin, &held, &made, limits.clone()));
                }
                Some(C::Group(group)) => {
                    if let Some(assembly) = &mut assembly {
                        assembly.push(group);
                    }
                }
                Some(C::EndStep(end)) => {
                    if let Some(Ok(batch)) = assembly.take().map(|all| all.finish(&end)) {
                        let mut samples = batch.groups.iter().flat_map(|group| &group.samples);
                        assert!(samples.all(|sample| {
                            let finite = sample.logprobs.iter().all(|p| p.is_finite());
                            finite && sample.reward.is_none_or(f64::is_finite)
                        }));
                    }
                }
                _ => {}
            }
        }
    }

    /// A welcome and a batch of two groups.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::learner_command::Command as C;
        let group = |group: u32| {
            let completions = (0..2).map(|index| {
                let mut completion = completion(group, index);
                completion.versions[0].version = Some(version(u64::from(index)).to_wire());
                v1::TrainingCompletion {
                    completion: Some(completion),
                    reward: f64::from(index),
                    judged: true,
                }
            });
            C::Group(v1::TrainingGroup {
                group_id: RoundId::train(1).group(group),
                prompt_tokens: vec![4, 5],
                completions: completions.collect(),
                params: Some(params()),
            })
        };
        let commands = [
            C::Welcome(v1::LearnerWelcome {
                spec: Some(spec()),
                resume: Some(version(1).to_wire()),
                heartbeat_ms: 500,
            }),
            C::BeginStep(v1::BeginStep {
                version: Some(version(1).to_wire()),
                groups: 2,
                known: vec![version(0).to_wire()],
            }),
            group(0),
            group(1),
            C::EndStep(v1::EndStep { step: 2 }),
        ];
        vec![stream(commands.map(|command| v1::LearnerCommand {
            command: Some(command),
        }))]
    }
}

/// An adapter that is published in pieces.
pub mod adapter_chunks {
    use super::*;

    /// Largest adapter taken.
    const LIMIT: u64 = 1 << 12;

    /// Two attempts on one inbox: what a broken one left is there for the next.
    pub fn run(bytes: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let inbox = Inbox::new(LIMIT);
        runtime.block_on(async {
            for _ in 0..2 {
                let chunks = futures::stream::iter(messages::<v1::AdapterChunk>(bytes).map(Ok));
                let _ = inbox.receive(chunks, |_| None).await;
            }
        });
    }

    /// Whole, in two pieces; a question for what is held.
    pub fn seeds() -> Vec<Vec<u8>> {
        let bytes: Vec<u8> = (0..100).collect();
        let version = v1::PolicyVersion::of_bytes(3, &bytes);
        let chunk = |from: usize, to: usize, named: bool| v1::AdapterChunk {
            version: named.then(|| version.clone()),
            offset: from as u64,
            total: 100,
            data: bytes[from..to].to_vec(),
        };
        vec![
            stream([chunk(0, 60, true), chunk(60, 100, false)]),
            stream([chunk(0, 0, true), chunk(0, 30, false)]),
            stream([chunk(0, 100, true)]),
        ]
    }
}
