//! What a worker does about each thing that happens to it (pure): commands, engine events and ends
//! of connections in; messages and actions out. The shell around it is [`crate::service`].

use std::collections::VecDeque;

use tina_proto::v1::{
    AdapterChecks, AdapterLeg, AdapterLoaded, AdapterSource, DeviceInfo, LoadAdapter, NcclGroup,
    PolicyVersion, RunSpec, Sample, SampleFailed, WorkerCommand, WorkerHeartbeat, WorkerHello,
    WorkerMessage, WorkerReady, WorkerWelcome, worker_command::Command, worker_message::Message,
};
use tracing::{info, warn};

use crate::{
    adapter::ReadyAdapter,
    check::{self, AdapterSwap, RunPlan},
    engine::{Event, Work},
    outbox::Outbox,
};

/// Commands that wait for the model or an adapter at most.
const MAX_PENDING: usize = 4096;

/// What the shell is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Load this run's model, then say so by [`State::model_loaded`].
    LoadModel {
        /// The run.
        spec: Box<RunSpec>,
        /// What the config suggests.
        offer: Offer,
    },
    /// Fetch this adapter and make it ready, then say so by [`State::fetched`].
    Fetch {
        /// Its name.
        version: PolicyVersion,
        /// Its size, as announced; 0: not known.
        bytes: u64,
        /// Where the learner broadcasts it; it is fetched where there is none, or that fails.
        nccl: Option<NcclGroup>,
        /// The workers to fetch it from first.
        route: Route,
    },
    /// An order for the engine.
    Engine(Work),
    /// The run is over.
    Stop(String),
    /// The coordinator breaks the protocol.
    Fail(String),
}

/// What the run's config says of a worker's slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) slots: u32,
    /// Slots may grow to; 0: they stay.
    pub(crate) max_slots: u32,
    /// For keys and values, MiB; 0: half of what is available.
    pub(crate) kv_memory_mb: u64,
}

/// Which workers hand an adapter on to this one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Route {
    pub(crate) sources: Vec<AdapterSource>,
    pub(crate) checks: Option<AdapterChecks>,
    pub(crate) depth: u32,
}

/// A model that is ready to sample.
#[derive(Clone, Debug)]
pub(crate) struct LoadedModel {
    /// The run that it was loaded for.
    pub(crate) spec: RunSpec,
    /// SHA-256 in hex over configuration and weights.
    pub(crate) digest: String,
    /// Sequences at a time.
    pub(crate) slots: u32,
    /// The device, numerics included.
    pub(crate) device: DeviceInfo,
    /// The specification, checked.
    pub(crate) plan: RunPlan,
}

/// Where the model stands.
#[derive(Debug)]
enum ModelState {
    None,
    Loading { spec: Box<RunSpec>, offer: Offer },
    Ready(Box<LoadedModel>),
}

/// Everything a worker knows, over all its connections.
#[derive(Debug)]
pub(crate) struct State {
    hello: WorkerHello,
    /// Counts connections.
    epoch: u64,
    welcomed: bool,
    model: ModelState,
    /// The adapter that the engine holds, and the acknowledgement of it.
    held: Option<AdapterLoaded>,
    /// The adapter that is being fetched or loaded.
    loading: Option<PolicyVersion>,
    /// By which way it came, until that is told.
    legs: Vec<AdapterLeg>,
    /// Where this worker hands adapters on; empty: nowhere.
    relay: String,
    /// Commands that wait for the model, or for an adapter.
    pending: VecDeque<Command>,
    outgoing: VecDeque<Message>,
    outbox: Outbox,
}

impl State {
    /// A worker that has never been connected.
    pub(crate) fn new(hello: WorkerHello) -> Self {
        Self {
            hello,
            epoch: 0,
            welcomed: false,
            model: ModelState::None,
            held: None,
            loading: None,
            legs: Vec::new(),
            relay: String::new(),
            pending: VecDeque::new(),
            outgoing: VecDeque::new(),
            outbox: Outbox::default(),
        }
    }

    /// From now on this worker hands adapters on at this address; empty: nowhere.
    pub(crate) fn relays_at(&mut self, address: String) {
        self.relay = address;
    }

    /// A stream to the coordinator begins.
    pub(crate) fn connected(&mut self) {
        self.disconnected();
        self.epoch += 1;
        self.outgoing.push_back(Message::Hello(self.hello.clone()));
    }

    /// The stream is lost. What a new connection would ask for again is forgotten; model, adapter,
    /// samples and completions are kept.
    pub(crate) fn disconnected(&mut self) {
        self.welcomed = false;
        self.outgoing.clear();
        self.pending.clear();
    }

    /// Whether the coordinator has answered the present Hello.
    pub(crate) fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Whether a message waits to be sent.
    pub(crate) fn has_message(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The next message to send.
    pub(crate) fn next_message(&mut self) -> Option<WorkerMessage> {
        self.outgoing.pop_front().map(|message| WorkerMessage {
            message: Some(message),
        })
    }

    /// Only a welcomed worker speaks; before that there is nobody to listen.
    fn send(&mut self, message: Message) {
        if self.welcomed {
            self.outgoing.push_back(message);
        }
    }

    /// A command came.
    pub(crate) fn command(&mut self, command: WorkerCommand) -> Vec<Action> {
        let mut actions = Vec::new();
        match command.command {
            Some(Command::Welcome(welcome)) => self.welcome(welcome, &mut actions),
            Some(Command::Stop(stop)) => actions.push(Action::Stop(stop.reason)),
            Some(_) if !self.welcomed => {
                actions.push(Action::Fail(
                    "it sent a command before its Welcome".to_owned(),
                ));
            }
            Some(Command::Cancel(cancel)) => {
                let (group_id, indices) = (cancel.group_id, cancel.sample_indices);
                self.cancel_pending(group_id, &indices);
                self.outbox.forget(group_id, &indices);
                if matches!(self.model, ModelState::Ready(_)) {
                    actions.push(Action::Engine(Work::Cancel { group_id, indices }));
                }
            }
            Some(Command::CompletionAck(ack)) => {
                self.outbox.forget(ack.group_id, &[ack.sample_index]);
            }
            Some(command @ (Command::LoadAdapter(_) | Command::Sample(_))) => {
                if self.pending.len() >= MAX_PENDING {
                    actions.push(Action::Fail(format!(
                        "it sent more than {MAX_PENDING} commands while an adapter was on its way"
                    )));
                } else {
                    self.pending.push_back(command);
                    self.work_off(&mut actions);
                }
            }
            // From a newer coordinator.
            None => warn!("the coordinator sent a command that this worker doesn't know"),
        }
        actions
    }

    fn welcome(&mut self, welcome: WorkerWelcome, actions: &mut Vec<Action>) {
        let Some(spec) = welcome.spec else {
            actions.push(Action::Fail(
                "its Welcome has no run specification".to_owned(),
            ));
            return;
        };
        self.welcomed = true;
        let known = match &self.model {
            ModelState::None => None,
            ModelState::Loading { spec, .. } => Some(&**spec),
            ModelState::Ready(model) => Some(&model.spec),
        };
        if known.is_some_and(|known| same_run(known, &spec)) {
            self.announce();
            return;
        }
        // The first run, or another one: a load for the old one that is under way is answered by
        // `model_loaded`.
        let under_way = matches!(self.model, ModelState::Loading { .. });
        self.held = None;
        self.loading = None;
        self.outbox.clear();
        let offer = Offer {
            slots: welcome.slots,
            max_slots: welcome.max_slots,
            kv_memory_mb: welcome.kv_memory_mb,
        };
        let spec = Box::new(spec);
        self.model = ModelState::Loading {
            spec: spec.clone(),
            offer,
        };
        if !under_way {
            actions.push(Action::LoadModel { spec, offer });
        }
    }

    /// The model is loaded, and the engine stands by.
    pub(crate) fn model_loaded(&mut self, model: LoadedModel) -> Vec<Action> {
        if let ModelState::Loading { spec, offer } = &self.model
            && !same_run(spec, &model.spec)
        {
            return vec![Action::LoadModel {
                spec: spec.clone(),
                offer: *offer,
            }];
        }
        self.hello.device = Some(model.device.clone());
        self.model = ModelState::Ready(Box::new(model));
        let mut actions = Vec::new();
        if self.welcomed {
            self.announce();
            self.work_off(&mut actions);
        }
        actions
    }

    /// Ready, and all completions that nobody has acknowledged.
    fn announce(&mut self) {
        let ModelState::Ready(model) = &self.model else {
            return;
        };
        self.outgoing.push_back(Message::Ready(WorkerReady {
            model_digest: model.digest.clone(),
            slots: model.slots,
            device: Some(model.device.clone()),
            relay: self.relay.clone(),
        }));
        let unacknowledged = self.outbox.completions().cloned().map(Message::Completion);
        self.outgoing.extend(unacknowledged);
    }

    /// Works off commands in order; those that have to wait for an adapter stay.
    fn work_off(&mut self, actions: &mut Vec<Action>) {
        let ModelState::Ready(model) = &self.model else {
            return;
        };
        let swap = model.plan.swap;
        for command in std::mem::take(&mut self.pending) {
            match command {
                Command::LoadAdapter(load) if self.loading.is_none() => {
                    self.load_adapter(load, actions);
                }
                Command::Sample(sample) if !self.waits(&sample, swap) => {
                    self.sample(sample, actions);
                }
                other => self.pending.push_back(other),
            }
        }
    }

    /// Whether a sample has to wait for an adapter that is on its way: for any when that is taken
    /// after what is under way has ended, else for the one that it asks for.
    fn waits(&self, sample: &Sample, swap: AdapterSwap) -> bool {
        let mut coming = self
            .loading
            .iter()
            .chain(self.pending.iter().filter_map(|command| match command {
                Command::LoadAdapter(load) => load.version.as_ref(),
                _ => None,
            }));
        let digest = sample.version.as_ref().map(|version| &version.digest);
        coming.any(|version| swap == AdapterSwap::Drain || Some(&version.digest) == digest)
    }

    fn load_adapter(&mut self, load: LoadAdapter, actions: &mut Vec<Action>) {
        let version = load.version.unwrap_or_default();
        if let Err(error) = version.checked_digest() {
            return self.adapter_failed(version, error.to_string());
        }
        let same = |held: &&mut AdapterLoaded| {
            held.version
                .as_ref()
                .is_some_and(|held| held.digest == version.digest)
        };
        // By content: a step that changed nothing gives an old adapter a new name.
        // A group waits for all its ranks, also for one that holds the adapter.
        if load.nccl.is_none()
            && let Some(held) = self.held.as_mut().filter(same)
        {
            let name = held.version.replace(version.clone());
            let again = held.clone();
            if name.as_ref() != Some(&version) {
                actions.push(Action::Engine(Work::Rename(version)));
            }
            return self.send(Message::AdapterLoaded(again));
        }
        self.loading = Some(version.clone());
        actions.push(Action::Fetch {
            version,
            bytes: load.bytes,
            nccl: load.nccl,
            route: Route {
                sources: load.sources,
                checks: load.checks,
                depth: load.depth,
            },
        });
    }

    fn adapter_failed(&mut self, version: PolicyVersion, error: String) {
        warn!(version = %version.short(), error, "adapter not loaded");
        let failed = AdapterLoaded {
            version: Some(version),
            error,
            legs: std::mem::take(&mut self.legs),
            ..AdapterLoaded::default()
        };
        self.send(Message::AdapterLoaded(failed));
    }

    /// The adapter is here, ready for the engine, or not; and by which way it came.
    pub(crate) fn fetched(
        &mut self,
        version: PolicyVersion,
        fetched: Result<Box<ReadyAdapter>, String>,
        legs: Vec<AdapterLeg>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.loading.as_ref() != Some(&version) {
            return actions; // of a run that is over
        }
        self.legs = legs;
        match fetched {
            Ok(adapter) => {
                let epoch = self.epoch;
                actions.push(Action::Engine(Work::Load { adapter, epoch }));
            }
            Err(error) => {
                self.loading = None;
                self.adapter_failed(version, error);
                self.work_off(&mut actions);
            }
        }
        actions
    }

    fn sample(&mut self, sample: Sample, actions: &mut Vec<Action>) {
        let ModelState::Ready(model) = &self.model else {
            return;
        };
        match check::sample(sample, &model.plan) {
            Ok((task, mut indices)) => {
                // What is sampled already is sent again, not sampled again.
                let mut again = Vec::new();
                indices.retain(|&index| match self.outbox.find(&task, index) {
                    Some(completion) => {
                        again.push(completion.clone());
                        false
                    }
                    None => true,
                });
                for completion in again {
                    self.send(Message::Completion(completion));
                }
                if !indices.is_empty() {
                    let epoch = self.epoch;
                    actions.push(Action::Engine(Work::Sample {
                        task,
                        indices,
                        epoch,
                    }));
                }
            }
            Err(failed) => {
                warn!(error = failed.error, "sample refused");
                self.send(Message::SampleFailed(failed));
            }
        }
    }

    fn cancel_pending(&mut self, group_id: u64, indices: &[u32]) {
        self.pending.retain_mut(|command| match command {
            Command::Sample(sample) if sample.group_id == group_id => {
                sample
                    .sample_indices
                    .retain(|index| !indices.is_empty() && !indices.contains(index));
                !sample.sample_indices.is_empty()
            }
            _ => true,
        });
    }

    /// The engine has done something.
    pub(crate) fn engine_event(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Completed {
                completion,
                prompt_key,
                asked,
            } => {
                let lost = self.outbox.keep(prompt_key, asked, completion.clone());
                if lost > 0 {
                    warn!(
                        lost,
                        "too many unacknowledged completions; the oldest are dropped"
                    );
                }
                self.send(Message::Completion(completion));
            }
            Event::Failed(failed) => {
                let SampleFailed {
                    group_id, error, ..
                } = &failed;
                warn!(group_id, error, "sample failed");
                self.send(Message::SampleFailed(failed));
            }
            Event::Loaded(mut loaded) => {
                self.loading = None;
                if loaded.error.is_empty() {
                    let version = loaded.version.clone().unwrap_or_default();
                    let (seconds, pause_ms) = (loaded.seconds, loaded.pause_seconds * 1e3);
                    info!(version = %version.short(), seconds, pause_ms, "adapter loaded");
                    self.held = Some(loaded.clone());
                }
                loaded.legs = std::mem::take(&mut self.legs);
                self.send(Message::AdapterLoaded(loaded));
                self.work_off(&mut actions);
            }
        }
        actions
    }

    /// It is time to say how things stand; `tokens_total` and the load are the engine's.
    pub(crate) fn heartbeat(&mut self, heartbeat: WorkerHeartbeat) {
        if !self
            .outgoing
            .iter()
            .any(|message| matches!(message, Message::Heartbeat(_)))
        {
            let version = self.held.as_ref().and_then(|held| held.version.clone());
            let waiting: usize = self.pending.iter().map(samples_in).sum();
            let queued = heartbeat.queued.saturating_add(waiting as u32);
            if let ModelState::Ready(model) = &mut self.model {
                // A coordinator that starts anew hears of the most that it can have asked for.
                model.slots = model.slots.max(heartbeat.slots);
            }
            self.send(Message::Heartbeat(WorkerHeartbeat {
                version,
                queued,
                ..heartbeat
            }));
        }
    }
}

fn samples_in(command: &Command) -> usize {
    match command {
        Command::Sample(sample) => sample.sample_indices.len(),
        _ => 0,
    }
}

/// Whether a model and an engine made for one specification serve the other as well.
fn same_run(a: &RunSpec, b: &RunSpec) -> bool {
    a.run_id == b.run_id
        && a.seed == b.seed
        && a.model == b.model
        && a.lora == b.lora
        && a.probe_tokens == b.probe_tokens
        && a.max_sequence_tokens == b.max_sequence_tokens
        && a.adapter_swap == b.adapter_swap
}

#[cfg(test)]
mod tests;
