//! The async shell: dials the coordinator, carries messages between it and the [`Engine`], and
//! comes back when the coordinator was away. Computing goes on meanwhile, in a thread of its own.

mod broadcast;
mod session;

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tina_model::parse_device;
use tina_proto::{
    adapters::{Nccl, TransportError},
    backoff::{Backoff, BackoffOptions},
    client::{AuthInterceptor, ClientError, ClientOptions},
    platform::aside,
    v1::{
        LearnerFailed, LearnerHeartbeat, LearnerWelcome, RunSpec, learner_command::Command,
        learner_message::Message,
    },
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::Status;
use tracing::{info, warn};

use self::{broadcast::Broadcasts, session::Session};
use crate::{
    batch::{Assembly, Batch, BatchError},
    engine::{Engine, EngineError},
    ranks::{Door, DoorError, DoorOptions, HubCrew},
    settings::RankSettings,
    step::Progress,
    trainer::TrainError,
};

/// How long the coordinator may take to answer a Hello.
const WELCOME_DEADLINE: Duration = Duration::from_secs(30);

/// How a learner is started.
#[derive(Clone, Debug)]
pub struct LearnerOptions {
    /// The coordinator.
    pub coordinator: ClientOptions,
    /// The same over reconnects.
    pub learner_id: String,
    /// "cpu" or "cuda:N".
    pub device: String,
    /// Where checkpoints are kept; `None`: `checkpoints` in the run's folder.
    pub state_dir: Option<PathBuf>,
    /// Without contact for this long the learner gives up.
    pub give_up_after: Duration,
    /// How it listens for other ranks, where the run has them.
    pub door: DoorOptions,
}

impl LearnerOptions {
    /// On the CPU, with checkpoints in the run's folder, giving up after two minutes without
    /// contact.
    pub fn new(coordinator: ClientOptions, learner_id: impl Into<String>) -> Self {
        Self {
            coordinator,
            learner_id: learner_id.into(),
            device: "cpu".to_owned(),
            state_dir: None,
            give_up_after: Duration::from_secs(120),
            door: DoorOptions::default(),
        }
    }
}

/// Why a learner ends before its run does.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The coordinator can't be dialled at all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Model, step or checkpoint failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Other ranks can't dial in.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The new adapter is not taken.
    #[error("the coordinator does not take the adapter: {0}")]
    Publish(#[from] TransportError),
    /// The coordinator refuses this learner.
    #[error("the coordinator at {url} refuses this learner: {}", status.message())]
    Refused {
        /// Its address.
        url: String,
        /// What it says.
        status: Box<Status>,
    },
    /// The coordinator has been away for too long.
    #[error(
        "no contact with the coordinator at {url} for {seconds} s: {last}; start this learner \
         again once the coordinator runs"
    )]
    CoordinatorAway {
        /// Its address.
        url: String,
        /// How long it has been away.
        seconds: u64,
        /// What the last attempt came to.
        last: String,
    },
    /// The computing thread has died.
    #[error("the learner's computing thread ended unexpectedly: {0}")]
    Thread(String),
}

/// Why a connection ended.
enum End {
    /// The run is over, or this process is asked to end.
    Stopped(String),
    /// Worth dialling again.
    Lost(String),
    /// Waiting doesn't cure it.
    Failed(LearnerError),
}

impl<E: Into<LearnerError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs a learner until the coordinator ends the run, `shutdown` completes (both `Ok`), or
/// something is wrong that waiting doesn't cure. A step under way at shutdown is called off; it is
/// made again, to the same bytes, when the run is resumed.
pub async fn run(
    options: LearnerOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), LearnerError> {
    // A device that can't be had is told at once, not after dialling.
    parse_device(&options.device).map_err(EngineError::from)?;
    let mut learner = Learner {
        auth: options.coordinator.interceptor()?,
        nccl: Nccl::on_device(&options.device),
        options,
        work: Work::Nothing,
        activity: Arc::default(),
        broadcasts: Broadcasts::default(),
        door: None,
        last_contact: Instant::now(),
    };
    let (stopped, run_over) = tokio::select! {
        biased;
        () = shutdown => (Ok("asked to end".to_owned()), false),
        end = learner.dial_on() => {
            let over = end.is_ok();
            (end, over)
        }
    };
    let finished = learner.finish().await;
    // Where the run isn't over, the other ranks wait for the next learner.
    if let (Some(door), true) = (learner.door.take(), run_over) {
        door.close("the run has ended").await;
    }
    let reason = stopped?;
    info!(reason, "the learner ends");
    finished
}

/// What the computing thread gives back.
type Done = (Engine, Result<(), EngineError>);

/// Where the engine is.
enum Work {
    Nothing,
    Loading(JoinHandle<Result<Engine, EngineError>>),
    Idle(Box<Engine>),
    /// Training; goes on while there is no connection.
    Busy(JoinHandle<Done>),
}

/// What heartbeats tell.
#[derive(Default)]
struct Activity {
    progress: Progress,
    step: AtomicU64,
    phase: AtomicU64,
}

const PHASES: [&str; 3] = ["loading", "idle", "learning"];
const IDLE: u64 = 1;
const LEARNING: u64 = 2;

impl Activity {
    fn set(&self, phase: u64, step: u64) {
        self.phase.store(phase, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
    }

    fn heartbeat(&self) -> LearnerHeartbeat {
        let phase = self.phase.load(Ordering::Relaxed);
        let (done, total) = if phase == LEARNING {
            self.progress.done_of_total()
        } else {
            (0, 0)
        };
        LearnerHeartbeat {
            phase: PHASES[phase as usize % PHASES.len()].to_owned(),
            step: self.step.load(Ordering::Relaxed),
            done,
            total,
        }
    }
}

struct Learner {
    options: LearnerOptions,
    /// One for adapters and gradients: NCCL wants one thing at a time of a GPU.
    nccl: Nccl,
    auth: AuthInterceptor,
    work: Work,
    activity: Arc<Activity>,
    broadcasts: Broadcasts,
    door: Option<Door>,
    last_contact: Instant,
}

impl Learner {
    /// Connection after connection; returns the reason why the run is over.
    async fn dial_on(&mut self) -> Result<String, LearnerError> {
        let seed = Backoff::seed_for(&self.options.learner_id);
        let mut backoff = Backoff::new(BackoffOptions::default(), seed);
        loop {
            let before = self.last_contact;
            let last = match self.connection().await {
                End::Stopped(reason) => return Ok(reason),
                End::Failed(error) => return Err(error),
                End::Lost(why) => why,
            };
            if self.last_contact != before {
                self.last_contact = Instant::now();
                backoff.reset();
            }
            let away = self.last_contact.elapsed();
            if away >= self.options.give_up_after {
                let (url, seconds) = (self.options.coordinator.url.clone(), away.as_secs());
                return Err(LearnerError::CoordinatorAway { url, seconds, last });
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

    /// Calls a step off, and saves what is not on disk yet.
    async fn finish(&mut self) -> Result<(), LearnerError> {
        self.activity.progress.cancel();
        let engine = match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Nothing => return Ok(()),
            // Nothing is lost with it.
            Work::Loading(task) => {
                task.abort();
                return Ok(());
            }
            Work::Idle(engine) => *engine,
            Work::Busy(task) => task.await.map_err(thread_died)?.0,
        };
        let save = aside(move || {
            let mut engine = engine;
            engine.save()
        });
        Ok(save.await.map_err(thread_died)??)
    }

    /// One connection, from dialling to its end.
    async fn connection(&mut self) -> End {
        let mut session = match Session::open(&self.options, &self.auth).await {
            Ok(session) => session,
            Err(end) => return end,
        };
        match self.serve(&mut session).await {
            Ok(never) => match never {},
            Err(End::Failed(error)) => {
                let failed = LearnerFailed {
                    error: error.to_string(),
                };
                if session.send(Message::Failed(failed)).await.is_ok() {
                    session.farewell().await;
                }
                End::Failed(error)
            }
            Err(end) => end,
        }
    }

    async fn serve(&mut self, session: &mut Session) -> Result<std::convert::Infallible, End> {
        let welcome = match timeout(WELCOME_DEADLINE, session.next()).await {
            Ok(Ok(Command::Welcome(welcome))) => welcome,
            Ok(Ok(Command::Stop(stop))) => return Err(End::Stopped(stop.reason)),
            Ok(Ok(_)) => return Err(End::Lost("its first answer was no Welcome".to_owned())),
            Ok(Err(end)) => return Err(end),
            Err(_) => return Err(End::Lost("the coordinator sends no Welcome".to_owned())),
        };
        self.last_contact = Instant::now();
        session.beat(welcome.heartbeat_ms, self.activity.clone());
        self.become_ready(session, welcome).await?;

        let mut assembly: Option<Assembly> = None;
        loop {
            match session.next().await? {
                Command::BeginStep(begin) => {
                    let engine = self.idle()?;
                    let trainer = engine.trainer()?;
                    let made: Vec<_> = trainer.made().cloned().collect();
                    let held = trainer.version();
                    assembly = Some(Assembly::begin(begin, held, &made, engine.limits()));
                }
                Command::Group(group) => match &mut assembly {
                    Some(assembly) => assembly.push(group),
                    None => session.refuse(0, outside("a group")).await?,
                },
                Command::EndStep(end) => match assembly.take() {
                    Some(assembly) => {
                        let step = assembly.step();
                        match assembly.finish(&end) {
                            Ok(batch) => self.learn(session, batch).await?,
                            Err(error) => session.refuse(step, error).await?,
                        }
                    }
                    None => session.refuse(end.step, outside("EndStep")).await?,
                },
                Command::Broadcast(order) => {
                    let trainer = self.idle()?.trainer()?;
                    let held = (trainer.version().clone(), trainer.adapter_bytes());
                    self.broadcasts.start(order, held, session.transport());
                }
                Command::Stop(stop) => return Err(End::Stopped(stop.reason)),
                Command::Welcome(_) => {
                    return Err(End::Lost("a second Welcome came".to_owned()));
                }
            }
        }
    }

    /// Loads the model where it isn't, lets a step under way end, goes to where the run goes on,
    /// publishes, and says so.
    async fn become_ready(
        &mut self,
        session: &mut Session,
        welcome: LearnerWelcome,
    ) -> Result<(), End> {
        let spec = welcome.spec.unwrap_or_default();
        self.broadcasts
            .follow(&spec, &self.options.device, &self.nccl);
        let mut engine = loop {
            match std::mem::replace(&mut self.work, Work::Nothing) {
                Work::Idle(engine) if engine.serves(&spec) => break *engine,
                // Of an earlier run; its memory is needed.
                Work::Idle(_) | Work::Nothing => self.load(&spec).await?,
                work => {
                    self.work = work;
                    self.computed(session).await?;
                }
            }
        };
        let resume = welcome.resume;
        self.work = Work::Busy(aside(move || {
            let outcome = engine.resume(resume.as_ref());
            (engine, outcome)
        }));
        self.computed(session).await?;
        let engine = self.idle()?;
        let mut ready = engine.ready()?;
        let trainer = engine.trainer()?;
        session
            .publish(trainer.version(), &trainer.adapter_bytes())
            .await?;
        info!(version = %trainer.version().short(), "ready");
        ready.nccl_id = self.broadcasts.offer().await;
        session.send(Message::Ready(ready)).await
    }

    async fn load(&mut self, spec: &RunSpec) -> Result<(), LearnerError> {
        self.activity.set(0, 0);
        let crew = self.open_door(spec).await?;
        let spec = spec.clone();
        let (device, state_dir) = (self.options.device.clone(), self.options.state_dir.clone());
        self.work = Work::Loading(aside(move || {
            let mut engine = Engine::load(spec, &device, state_dir.as_deref())?;
            if let Some(crew) = crew {
                engine.share_with(crew);
            }
            Ok(engine)
        }));
        Ok(())
    }

    /// Lets other ranks of this run dial in, where it has them; the ranks of an earlier run go.
    async fn open_door(&mut self, spec: &RunSpec) -> Result<Option<HubCrew>, LearnerError> {
        if let Some(door) = self.door.take() {
            door.close("another run has begun").await;
        }
        let shared = RankSettings::of_spec(spec).map_err(EngineError::from)?;
        if shared.ranks < 2 {
            return Ok(None);
        }
        let (options, token) = (&self.options.door, &self.options.coordinator.token);
        let device = &self.options.device;
        let nccl = (shared.nccl && device.starts_with("cuda"))
            .then(|| (self.nccl.clone(), device.clone()));
        let (door, crew) = Door::open(options, token.as_deref(), spec, shared, nccl).await?;
        self.door = Some(door);
        Ok(Some(crew))
    }

    /// Trains, checkpoints, publishes, and sends the result.
    async fn learn(&mut self, session: &mut Session, batch: Batch) -> Result<(), End> {
        let Work::Idle(engine) = std::mem::replace(&mut self.work, Work::Nothing) else {
            return Err(LearnerError::Thread("it is gone".to_owned()).into());
        };
        self.activity.set(LEARNING, batch.version.step + 1);
        let (mut engine, activity) = (*engine, self.activity.clone());
        self.work = Work::Busy(aside(move || {
            let outcome = engine.step(&batch, &activity.progress);
            (engine, outcome)
        }));
        self.computed(session).await?;
        let engine = self.idle()?;
        let started = Instant::now();
        let trainer = engine.trainer()?;
        session
            .publish(trainer.version(), &trainer.adapter_bytes())
            .await?;
        engine.note_seconds(0.0, started.elapsed().as_secs_f64());
        let Some(mut result) = engine.result() else {
            return Ok(());
        };
        result.nccl_id = self.broadcasts.offer().await;
        session.send(Message::StepResult(result)).await
    }

    /// Waits for the computing thread, with an ear for the coordinator: when the connection is
    /// lost it computes on, and the next connection waits for it.
    async fn computed(&mut self, session: &mut Session) -> Result<(), End> {
        let outcome = tokio::select! {
            biased;
            outcome = self.work.done() => outcome,
            end = session.interruption() => return Err(end),
        };
        match outcome {
            Ok((engine, outcome)) => {
                let step = engine.trainer().map_or(0, |trainer| trainer.version().step);
                self.activity.set(IDLE, step);
                self.work = Work::Idle(Box::new(engine));
                match outcome {
                    Err(EngineError::Train(TrainError::Cancelled)) => {
                        Err(End::Stopped("the step was called off".to_owned()))
                    }
                    outcome => Ok(outcome?),
                }
            }
            Err(error) => {
                self.work = Work::Nothing;
                Err(error.into())
            }
        }
    }

    fn idle(&mut self) -> Result<&mut Engine, LearnerError> {
        match &mut self.work {
            Work::Idle(engine) => Ok(engine),
            _ => Err(LearnerError::Thread("it is gone".to_owned())),
        }
    }
}

impl Work {
    /// The engine, once it has computed what it is at. Safe to be dropped half-way.
    async fn done(&mut self) -> Result<Done, LearnerError> {
        match self {
            Self::Loading(task) => Ok((Pin::new(task).await.map_err(thread_died)??, Ok(()))),
            Self::Busy(task) => Pin::new(task).await.map_err(thread_died),
            Self::Nothing | Self::Idle(_) => Err(LearnerError::Thread(
                "there is nothing to wait for".to_owned(),
            )),
        }
    }
}

fn outside(what: &str) -> BatchError {
    BatchError::OutsideStep {
        what: what.to_owned(),
    }
}

fn thread_died(error: tokio::task::JoinError) -> LearnerError {
    LearnerError::Thread(error.to_string())
}

#[cfg(test)]
mod tests;
