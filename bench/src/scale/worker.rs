//! A simulated rollout worker: it speaks the whole protocol, over a connection of its own, and has
//! its completions ready made.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tina_coordinator::scheduler::types::RoundId;
use tina_proto::{
    adapters::{AdapterTransport as _, GrpcTransport},
    client::{ClientOptions, connect, rollouts_client},
    v1::{
        AdapterLoaded, Completion, FinishReason, LoadAdapter, PolicyVersion, RunSpec, Sample,
        VersionSpan, WorkerCommand, WorkerHeartbeat, WorkerHello, WorkerMessage, WorkerReady,
        worker_command::Command, worker_message::Message,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

use super::side::{MODEL, device, probe};
use crate::{
    error::{BenchError, Result},
    shapes::mix,
};

/// Messages on their way to the transport, as with a real worker.
const OUTGOING: usize = 64;
/// Completions to choose from.
const READY_MADE: u64 = 64;
/// Token ids that are text in any vocabulary.
const TOKENS: std::ops::Range<u64> = 256..32_000;

/// What all workers of a process share.
#[derive(Debug)]
pub(super) struct Shared {
    coordinator: ClientOptions,
    slots: u32,
    /// Mean time that a completion takes; 0: it is answered at once.
    decode: Duration,
    /// Latencies of earlier steps are not kept.
    first_step: u64,
    completions: Vec<(Vec<u32>, Vec<f32>)>,
    /// Workers whose Ready is sent.
    pub(super) ready: AtomicUsize,
    latencies: Mutex<Vec<f32>>,
}

impl Shared {
    pub(super) fn new(
        coordinator: ClientOptions,
        slots: u32,
        decode: Duration,
        first_step: u64,
        tokens: u64,
    ) -> Self {
        let completion = |number: u64| {
            let random = move |at: u64| mix(number << 32 | at);
            let ids = (0..tokens).map(|at| TOKENS.start + random(at) % (TOKENS.end - TOKENS.start));
            let logprobs = (0..tokens).map(|at| -((random(at) >> 40) as f32) / (1 << 23) as f32);
            (ids.map(|id| id as u32).collect(), logprobs.collect())
        };
        Self {
            coordinator,
            slots,
            decode,
            first_step,
            completions: (0..READY_MADE).map(completion).collect(),
            ready: AtomicUsize::new(0),
            latencies: Mutex::default(),
        }
    }

    fn latencies(&self) -> std::sync::MutexGuard<'_, Vec<f32>> {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Dispatch latencies of the workers that ended, in seconds.
    pub(super) fn take_latencies(&self) -> Vec<f32> {
        std::mem::take(&mut self.latencies())
    }
}

/// A sample in a slot: when it is done, its group, its index.
type InSlot = (Instant, u64, u32);

/// One worker.
struct Worker {
    shared: Arc<Shared>,
    number: u64,
    outgoing: mpsc::Sender<WorkerMessage>,
    adapters: GrpcTransport,
    probe: Vec<f32>,
    version: Option<PolicyVersion>,
    in_slots: BinaryHeap<Reverse<InSlot>>,
    /// When slots became free that nothing was sent for yet, and which round they were of.
    freed: VecDeque<(Instant, RoundId)>,
    latencies: Vec<f32>,
    tokens_total: u64,
}

/// Works until the coordinator ends the run.
pub(super) async fn run(shared: Arc<Shared>, number: u64) -> Result<()> {
    let channel = connect(&shared.coordinator).await?;
    let interceptor = shared.coordinator.interceptor()?;
    let mut client = rollouts_client(channel.clone(), interceptor.clone());
    let (outgoing, messages) = mpsc::channel(OUTGOING);
    let mut worker = Worker {
        shared,
        number,
        outgoing,
        adapters: GrpcTransport::new(channel, interceptor),
        probe: Vec::new(),
        version: None,
        in_slots: BinaryHeap::new(),
        freed: VecDeque::new(),
        latencies: Vec::new(),
        tokens_total: 0,
    };
    let hello = WorkerHello {
        worker_id: format!("simulated-{number:04}"),
        device: Some(device()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: "simulated".to_owned(),
        slots: worker.shared.slots,
    };
    worker.send(Message::Hello(hello)).await;
    let failed = |status| BenchError::Other(format!("worker {number}: {status}"));
    let reply = client.work(ReceiverStream::new(messages)).await;
    let commands = reply.map_err(failed)?.into_inner();
    let done = worker.obey(commands).await;
    worker.shared.latencies().append(&mut worker.latencies);
    done
}

impl Worker {
    /// Does what it is told until it is told to stop.
    async fn obey<E: Display>(
        &mut self,
        mut commands: impl Stream<Item = std::result::Result<WorkerCommand, E>> + Unpin,
    ) -> Result<()> {
        let number = self.number;
        let failed = |why: String| BenchError::Other(format!("worker {number}: {why}"));
        let mut beat = interval(Duration::from_secs(1));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.in_slots.peek().map(|Reverse((due, ..))| *due);
            tokio::select! {
                command = commands.next() => {
                    let Some(command) = command.transpose().map_err(|status| failed(status.to_string()))?.and_then(|c| c.command) else {
                        return Err(failed("its coordinator hung up".into()));
                    };
                    match command {
                        Command::Welcome(welcome) => {
                            self.welcome(&welcome.spec.unwrap_or_default()).await;
                        }
                        Command::LoadAdapter(load) => self.load(load).await?,
                        Command::Sample(sample) => self.sample(&sample).await,
                        Command::Cancel(_) | Command::CompletionAck(_) => {}
                        Command::Stop(_) => return Ok(()),
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.complete_due().await;
                }
                _ = beat.tick() => self.beat().await,
            }
        }
    }

    /// Where the stream is over, its commands say why.
    async fn send(&self, message: Message) {
        let message = WorkerMessage {
            message: Some(message),
        };
        let _ = self.outgoing.send(message).await;
    }

    async fn welcome(&mut self, spec: &RunSpec) {
        self.probe = probe(spec);
        let ready = WorkerReady {
            model_digest: MODEL.to_owned(),
            slots: self.shared.slots,
            device: Some(device()),
            ..WorkerReady::default()
        };
        self.send(Message::Ready(ready)).await;
        self.shared.ready.fetch_add(1, Ordering::Relaxed);
    }

    async fn load(&mut self, load: LoadAdapter) -> Result<()> {
        let version = load.version.unwrap_or_default();
        let failed = |error| BenchError::Other(format!("worker {}: {error}", self.number));
        self.adapters.fetch(&version).await.map_err(failed)?;
        let loaded = AdapterLoaded {
            version: Some(version.clone()),
            probe_logprobs: self.probe.clone(),
            ..AdapterLoaded::default()
        };
        self.version = Some(version);
        self.send(Message::AdapterLoaded(loaded)).await;
        Ok(())
    }

    async fn sample(&mut self, sample: &Sample) {
        let now = Instant::now();
        let (round, _) = RoundId::of_group(sample.group_id);
        for _ in &sample.sample_indices {
            // A slot that waited for a step to begin says nothing of dispatch.
            if let Some((since, before)) = self.freed.pop_front()
                && before == round
                && round.step() >= self.shared.first_step
            {
                self.latencies.push((now - since).as_secs_f32());
            }
        }
        for &index in &sample.sample_indices {
            if self.shared.decode.is_zero() {
                self.complete(sample.group_id, index).await;
            } else {
                // From half the mean to half as much again.
                let random = mix(sample.group_id << 8 | u64::from(index)) >> 32;
                let share = 0.5 + random as f64 / f64::from(u32::MAX);
                let due = now + self.shared.decode.mul_f64(share);
                self.in_slots.push(Reverse((due, sample.group_id, index)));
            }
        }
    }

    async fn complete_due(&mut self) {
        let now = Instant::now();
        while let Some(&Reverse((due, group, index))) = self.in_slots.peek()
            && due <= now
        {
            self.in_slots.pop();
            self.complete(group, index).await;
        }
    }

    async fn complete(&mut self, group: u64, index: u32) {
        let number = mix(group << 8 | u64::from(index)) % READY_MADE;
        let (tokens, logprobs) = self.shared.completions[number as usize].clone();
        self.tokens_total += tokens.len() as u64;
        let round = RoundId::of_group(group).0;
        self.freed.push_back((Instant::now(), round));
        let span = VersionSpan {
            start: 0,
            version: self.version.clone(),
        };
        self.send(Message::Completion(Completion {
            group_id: group,
            sample_index: index,
            tokens,
            logprobs,
            finish_reason: FinishReason::Length.into(),
            versions: vec![span],
            decode_seconds: self.shared.decode.as_secs_f64(),
        }))
        .await;
    }

    async fn beat(&self) {
        self.send(Message::Heartbeat(WorkerHeartbeat {
            slots_used: self.in_slots.len() as u32,
            tokens_total: self.tokens_total,
            version: self.version.clone(),
            ..WorkerHeartbeat::default()
        }))
        .await;
    }
}
