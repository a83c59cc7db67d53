//! The async shell: dials, carries messages between coordinator, [`State`] and engine, and comes
//! back when the coordinator was away. `fetch`: how an adapter comes here.

mod fetch;

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::OptionFuture;
use tina_model::{Decoder, LoadOptions, ModelError, ModelSource, parse_device};
use tina_proto::{
    adapters::{GrpcTransport, MAX_ADAPTER_BYTES, Nccl, NcclTransport, Relayed},
    backoff::{Backoff, BackoffOptions},
    client::{
        AuthInterceptor, ClientError, ClientOptions, STREAM_OPEN_DEADLINE, connect, reason,
        rollouts_client,
    },
    host, platform,
    v1::{
        DeviceInfo, ModelSpec, RunSpec, WorkerCommand, WorkerHeartbeat, WorkerHello,
        worker_command::Command,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use tracing::{info, warn};

use self::fetch::{FetchDone, Way, by, fetch};
use crate::{
    adapter::AdapterLoader,
    check,
    engine::{Capacity, Engine},
    relay::{RelayError, RelayOptions, RelayServer},
    state::{Action, LoadedModel, Offer, State},
    thread::EngineThread,
};

/// How long the coordinator may take to answer a Hello.
const WELCOME_DEADLINE: Duration = Duration::from_secs(30);
/// Bounds of the heartbeat that a coordinator may ask for, milliseconds.
const HEARTBEAT_MS: (u32, u32) = (100, 60_000);
/// Messages on their way to the transport.
const OUTGOING: usize = 64;
/// Slots beyond this are a mistake.
const MAX_SLOTS: u32 = 4096;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The coordinator.
    pub coordinator: ClientOptions,
    /// Unique in the run, and the same over reconnects.
    pub worker_id: String,
    /// "cpu" or "cuda:N".
    pub device: String,
    /// Sequences at a time; `None`: as the coordinator's config says.
    pub slots: Option<u32>,
    /// Without contact for this long the worker gives up.
    pub give_up_after: Duration,
    /// Where it hands adapters on, in a run whose workers do.
    pub relay: RelayOptions,
}

impl WorkerOptions {
    /// On the CPU, with the coordinator's slots, giving up after two minutes without contact.
    pub fn new(coordinator: ClientOptions, worker_id: impl Into<String>) -> Self {
        Self {
            coordinator,
            worker_id: worker_id.into(),
            device: "cpu".to_owned(),
            slots: None,
            give_up_after: Duration::from_secs(120),
            relay: RelayOptions::default(),
        }
    }
}

/// Why a worker ends before its run does.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator can't be dialled at all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The model or the device can't be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The coordinator's specification is no use with this model or this program.
    #[error("the run's specification: {0}")]
    Spec(String),
    /// The coordinator refuses this worker.
    #[error("the coordinator at {url} refuses this worker: {}", status.message())]
    Refused {
        /// Its address.
        url: String,
        /// What it says.
        status: Box<Status>,
    },
    /// The coordinator does what it must not.
    #[error("the coordinator at {url} breaks the protocol: {problem}; is it of another version?")]
    Protocol {
        /// Its address.
        url: String,
        /// What it did.
        problem: String,
    },
    /// The coordinator has been away for too long.
    #[error(
        "no contact with the coordinator at {url} for {seconds} s: {last}; start this worker again \
         once the coordinator runs"
    )]
    CoordinatorAway {
        /// Its address.
        url: String,
        /// How long it has been away.
        seconds: u64,
        /// What the last attempt came to.
        last: String,
    },
    /// It can't hand adapters on as it is told to.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The engine's thread has ended.
    #[error("the sampling engine stopped unexpectedly: {0}")]
    Engine(String),
}

/// How a connection ended.
enum End {
    /// The run is over.
    Stopped(String),
    /// Worth dialling again.
    Lost(String),
}

/// Runs a rollout worker until the coordinator ends the run, `shutdown` completes (both `Ok`), or
/// something is wrong that waiting doesn't cure.
pub async fn run(
    options: WorkerOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let mut worker = Worker::new(options)?;
    tokio::select! {
        biased;
        () = shutdown => {
            info!("shutting down");
            Ok(())
        }
        end = worker.work() => end,
    }
}

type ModelTask = JoinHandle<Result<(LoadedModel, Engine), WorkerError>>;
type FetchTask = JoinHandle<FetchDone>;

struct Worker {
    options: WorkerOptions,
    auth: AuthInterceptor,
    state: State,
    engine: Option<(EngineThread, AdapterLoader)>,
    model_task: Option<ModelTask>,
    fetch_task: Option<FetchTask>,
    nccl: Nccl,
    relay: Option<RelayServer>,
    last_contact: Instant,
    last_heartbeat: (Instant, u64),
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(task) = &self.fetch_task {
            task.abort();
        }
    }
}

impl Worker {
    fn new(options: WorkerOptions) -> Result<Self, WorkerError> {
        // A device that can't be had is told at once, not after dialling.
        parse_device(&options.device)?;
        options.relay.check(options.coordinator.token.is_some())?;
        let auth = options.coordinator.interceptor()?;
        let hello = WorkerHello {
            worker_id: options.worker_id.clone(),
            device: Some(device_info(&options.device, String::new())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: host::address(),
            slots: options.slots.unwrap_or(0),
        };
        let now = Instant::now();
        Ok(Self {
            nccl: Nccl::on_device(&options.device),
            options,
            auth,
            state: State::new(hello),
            engine: None,
            model_task: None,
            fetch_task: None,
            relay: None,
            last_contact: now,
            last_heartbeat: (now, 0),
        })
    }

    fn url(&self) -> String {
        self.options.coordinator.url.clone()
    }

    async fn work(&mut self) -> Result<(), WorkerError> {
        let seed = Backoff::seed_for(&self.options.worker_id);
        let mut backoff = Backoff::new(BackoffOptions::default(), seed);
        loop {
            let end = self.connection().await?;
            let welcomed = self.state.is_welcomed();
            self.state.disconnected();
            let last = match end {
                End::Stopped(reason) => {
                    info!(reason, "the run is over");
                    return Ok(());
                }
                End::Lost(why) => why,
            };
            if welcomed {
                self.last_contact = Instant::now();
                backoff.reset();
            }
            let away = self.last_contact.elapsed();
            if away >= self.options.give_up_after {
                let (url, seconds) = (self.url(), away.as_secs());
                return Err(WorkerError::CoordinatorAway { url, seconds, last });
            }
            let wait = backoff.next_wait();
            warn!(
                why = last,
                wait_ms = wait.as_millis() as u64,
                "no coordinator; dialling again"
            );
            sleep(wait.min(self.options.give_up_after.saturating_sub(away))).await;
        }
    }

    /// One connection, from dialling to its end.
    async fn connection(&mut self) -> Result<End, WorkerError> {
        let channel = match connect(&self.options.coordinator).await {
            Ok(channel) => channel,
            Err(error @ ClientError::Connect { .. }) => return Ok(End::Lost(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        self.state.connected();
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        if let Some(hello) = self.state.next_message() {
            // The channel is new and has room.
            let _ = outgoing.try_send(hello);
        }
        let mut client = rollouts_client(channel.clone(), self.auth.clone());
        let opening = timeout(
            STREAM_OPEN_DEADLINE,
            client.work(ReceiverStream::new(messages)),
        );
        let mut commands = match opening.await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return self.broken(status),
            Err(_) => return Ok(End::Lost("the coordinator doesn't answer".to_owned())),
        };
        let welcome_deadline = sleep(WELCOME_DEADLINE);
        tokio::pin!(welcome_deadline);
        let mut heartbeat = heartbeats(1000);
        loop {
            // In order, so that a run replays; what is rare comes first, so that nothing starves.
            let actions = tokio::select! {
                biased;
                () = &mut welcome_deadline, if !self.state.is_welcomed() => {
                    return Ok(End::Lost("the coordinator doesn't welcome this worker".to_owned()));
                }
                _ = heartbeat.tick(), if self.state.is_welcomed() => {
                    self.heartbeat();
                    Vec::new()
                }
                Some(loaded) = OptionFuture::from(self.model_task.as_mut()) => {
                    self.model_task = None;
                    self.model_loaded(loaded)?
                }
                Some(fetched) = OptionFuture::from(self.fetch_task.as_mut()) => {
                    self.fetch_task = None;
                    let done = fetched.map_err(|error| {
                        WorkerError::Engine(format!("fetching an adapter: {error}"))
                    })?;
                    self.state.fetched(done.version, done.adapter, done.legs)
                }
                command = commands.message() => match command {
                    Ok(Some(command)) => {
                        if let Some(every) = heartbeat_ms(&command) {
                            heartbeat = heartbeats(every);
                        }
                        self.state.command(command)
                    }
                    Ok(None) => return Ok(End::Lost("the coordinator closed the stream".to_owned())),
                    Err(status) => return self.broken(status),
                },
                permit = outgoing.reserve(), if self.state.has_message() => {
                    let Ok(permit) = permit else {
                        return Ok(End::Lost("the stream to the coordinator closed".to_owned()));
                    };
                    if let Some(message) = self.state.next_message() {
                        permit.send(message);
                    }
                    Vec::new()
                }
                Some(event) = OptionFuture::from(self.engine.as_mut().map(|engine| engine.0.event())) => {
                    let event = event.ok_or_else(|| engine_gone("its thread ended"))?;
                    self.state.engine_event(event)
                }
            };
            for action in actions {
                if let Some(end) = self.act(action, &channel)? {
                    return Ok(end);
                }
            }
        }
    }

    /// A stream that ended with a status: refused for good, or lost.
    fn broken(&self, status: Status) -> Result<End, WorkerError> {
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unimplemented => Err(WorkerError::Refused {
                url: self.url(),
                status: Box::new(status),
            }),
            _ => Ok(End::Lost(reason(&status))),
        }
    }

    fn act(&mut self, action: Action, channel: &Channel) -> Result<Option<End>, WorkerError> {
        match action {
            Action::LoadModel { spec, offer } => {
                // Of an earlier run; its memory is needed.
                self.engine = None;
                if let Some(task) = self.fetch_task.take() {
                    task.abort();
                }
                self.start_relay(spec.adapter_fan_out)?;
                let options = self.options.clone();
                self.model_task = Some(platform::aside(move || load(*spec, offer, &options)));
            }
            Action::Fetch {
                version,
                bytes,
                nccl,
                route,
            } => {
                let limit = if bytes == 0 { MAX_ADAPTER_BYTES } else { bytes };
                let grpc = GrpcTransport::new(channel.clone(), self.auth.clone())
                    .with_limit(limit.min(MAX_ADAPTER_BYTES));
                let relay = self.relay.as_ref().map(|server| server.relay().clone());
                let way = match nccl {
                    Some(group) => {
                        let nccl = NcclTransport::new(self.nccl.clone(), group, bytes, grpc);
                        Way::Nccl(Box::new(nccl), relay)
                    }
                    None => {
                        let plain = Relayed::new(grpc).with_relay(relay);
                        let client = &self.options.coordinator;
                        Way::Relayed(Box::new(by(route, plain, &version, bytes, client)))
                    }
                };
                let (_, loader) = self.engine()?;
                self.fetch_task = Some(tokio::spawn(fetch(way, loader.clone(), version)));
            }
            Action::Engine(work) => {
                if !self.engine()?.0.send(work) {
                    return Err(engine_gone("its thread ended"));
                }
            }
            Action::Stop(reason) => return Ok(Some(End::Stopped(reason))),
            Action::Fail(problem) => {
                return Err(WorkerError::Protocol {
                    url: self.url(),
                    problem,
                });
            }
        }
        Ok(None)
    }

    /// In a run whose workers hand adapters on, this one begins to; in another, it ceases to.
    fn start_relay(&mut self, fan_out: u32) -> Result<(), WorkerError> {
        if fan_out == 0 {
            self.relay = None;
            self.state.relays_at(String::new());
        }
        if fan_out == 0 || self.relay.is_some() {
            return Ok(());
        }
        let token = self.options.coordinator.token.as_deref();
        match RelayServer::start(&self.options.relay, token, fan_out) {
            Ok(server) => {
                info!(address = server.address(), fan_out, "handing adapters on");
                self.state.relays_at(server.address().to_owned());
                self.relay = Some(server);
            }
            // Nobody asked for this port in particular: the run goes on without.
            Err(error) if self.options.relay.is_default() => {
                warn!(%error, "this worker hands no adapters on");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn engine(&self) -> Result<&(EngineThread, AdapterLoader), WorkerError> {
        self.engine
            .as_ref()
            .ok_or_else(|| engine_gone("it never began"))
    }

    fn model_loaded(
        &mut self,
        loaded: Result<Result<(LoadedModel, Engine), WorkerError>, tokio::task::JoinError>,
    ) -> Result<Vec<Action>, WorkerError> {
        let (model, engine) =
            loaded.map_err(|error| engine_gone(&format!("loading the model: {error}")))??;
        info!(digest = model.digest, slots = model.slots, "model loaded");
        let loader = engine.loader();
        let thread =
            EngineThread::start(engine).map_err(|error| engine_gone(&error.to_string()))?;
        self.engine = Some((thread, loader));
        self.last_heartbeat = (Instant::now(), 0);
        Ok(self.state.model_loaded(model))
    }

    fn heartbeat(&mut self) {
        let mut heartbeat = WorkerHeartbeat::default();
        if let Some((engine, _)) = &self.engine {
            let gauges = engine.gauges();
            let (then, before) = self.last_heartbeat;
            let now = Instant::now();
            let total = gauges.tokens.load(Ordering::Relaxed);
            let seconds = (now - then).as_secs_f64();
            heartbeat.slots_used = gauges.slots_used.load(Ordering::Relaxed);
            heartbeat.queued = gauges.queued.load(Ordering::Relaxed);
            heartbeat.slots = gauges.slots.load(Ordering::Relaxed);
            heartbeat.kv_bytes = gauges.kv_bytes.load(Ordering::Relaxed);
            heartbeat.kv_limit_bytes = gauges.kv_limit.load(Ordering::Relaxed);
            heartbeat.tokens_total = total;
            if seconds > 0.0 {
                heartbeat.tokens_per_second = total.saturating_sub(before) as f64 / seconds;
            }
            self.last_heartbeat = (now, total);
        }
        self.state.heartbeat(heartbeat);
    }
}

fn engine_gone(why: &str) -> WorkerError {
    WorkerError::Engine(why.to_owned())
}

fn heartbeat_ms(command: &WorkerCommand) -> Option<u32> {
    match &command.command {
        Some(Command::Welcome(welcome)) => Some(welcome.heartbeat_ms),
        _ => None,
    }
}

fn heartbeats(every_ms: u32) -> tokio::time::Interval {
    let (least, most) = HEARTBEAT_MS;
    let every = if every_ms == 0 {
        1000
    } else {
        every_ms.clamp(least, most)
    };
    let mut ticks = interval(Duration::from_millis(every.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Opens and loads the run's model and builds the engine. Takes seconds, blocks.
fn load(
    spec: RunSpec,
    offer: Offer,
    options: &WorkerOptions,
) -> Result<(LoadedModel, Engine), WorkerError> {
    let wish = options.slots.filter(|&slots| slots > 0);
    let slots = match (wish, offer.slots) {
        (Some(wish), 0) => wish,
        (Some(wish), suggested) => wish.min(suggested),
        (None, suggested) => suggested,
    };
    if slots == 0 || slots > MAX_SLOTS {
        return Err(WorkerError::Spec(format!(
            "{slots} slots: 1 to {MAX_SLOTS} are possible"
        )));
    }
    let model = spec
        .model
        .as_ref()
        .ok_or_else(|| WorkerError::Spec("it names no model".to_owned()))?;
    let load_options = load_options(model, &options.device)?;
    let source: ModelSource = model.source.parse()?;
    info!(source = %source, device = options.device, "loading the model");
    let model = tina_model::open(&source)?;
    let plan = check::run_plan(&spec, &model.text.config).map_err(WorkerError::Spec)?;
    let decoder = Decoder::load(&model.text.config, &*model.weights, &load_options)?;
    let device: DeviceInfo = device_info(&options.device, decoder.numerics());
    let text = Arc::new(model.text.tokenizer);
    // A worker with a wish of its own keeps to it.
    let most = if wish.is_some() {
        slots
    } else {
        offer.max_slots.clamp(slots, MAX_SLOTS)
    };
    let kv_bytes = match offer.kv_memory_mb {
        0 => decoder.available_bytes().map(|bytes| bytes / 2),
        mb => usize::try_from(mb << 20).ok(),
    };
    let capacity = Capacity {
        slots: slots as usize,
        most: most as usize,
        kv_bytes,
    };
    let engine = Engine::new(Arc::new(decoder), text, plan.clone(), capacity)?;
    Ok((
        LoadedModel {
            spec,
            digest: model.digest,
            slots,
            device,
            plan,
        },
        engine,
    ))
}

fn device_info(device: &str, numerics: String) -> DeviceInfo {
    host::device_info(device, numerics, tina_model::kernels::team::threads())
}

fn load_options(model: &ModelSpec, device: &str) -> Result<LoadOptions, WorkerError> {
    let mut options = LoadOptions::new(parse_device(device)?, false);
    options.dtype = model
        .dtype
        .parse()
        .map_err(|error: ModelError| WorkerError::Spec(error.to_string()))?;
    Ok(options)
}

#[cfg(test)]
mod tests;
