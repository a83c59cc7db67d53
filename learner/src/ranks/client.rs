//! A rank beside rank 0: dials it, holds the model, computes what it is given, and comes back when
//! rank 0 was away.

use std::{fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use tina_model::{Adapter, parse_device};
use tina_proto::{
    adapters::Nccl,
    backoff::{Backoff, BackoffOptions},
    client::{ClientError, ClientOptions, STREAM_OPEN_DEADLINE, connect, ranks_client, reason},
    v1::{
        PolicyVersion, RankCommand, RankFailed, RankHello, RankMessage, RankReady, RunSpec,
        rank_command::Command, rank_message::Message,
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use super::{
    wire::{Order, Orders},
    work::{adapter_limit, work},
};
use crate::{
    engine::{EngineError, Loaded},
    host,
    step::Progress,
    trainer::TrainError,
};

/// How long rank 0 may take to answer a Hello.
const WELCOME_DEADLINE: Duration = Duration::from_secs(30);
/// How long rank 0 may take to end the stream after it was told of a failure.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);
/// Messages on their way to the transport.
const OUTGOING: usize = 4;

/// Where rank 0 is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rank0 {
    /// At this address.
    At(String),
    /// At the address in this file; looked up whenever it is dialled.
    In(PathBuf),
}

impl fmt::Display for Rank0 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(url) => out.write_str(url),
            Self::In(file) => write!(out, "the address in {}", file.display()),
        }
    }
}

/// How a rank is started.
#[derive(Clone, Debug)]
pub struct RankOptions {
    /// Whom to dial.
    pub rank0: Rank0,
    /// How to be let in; the address in it is not used.
    pub client: ClientOptions,
    /// The same over reconnects, and no other rank's.
    pub rank_id: String,
    /// "cpu" or "cuda:N".
    pub device: String,
    /// Without contact for this long the rank gives up.
    pub give_up_after: Duration,
}

impl RankOptions {
    /// On the CPU, giving up after two minutes without contact.
    pub fn new(rank0: Rank0, client: ClientOptions, rank_id: impl Into<String>) -> Self {
        Self {
            rank0,
            client,
            rank_id: rank_id.into(),
            device: "cpu".to_owned(),
            give_up_after: Duration::from_secs(120),
        }
    }
}

/// Why a rank ends before its run does.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// Rank 0 can't be dialled at all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Model or device can't be had, or a pass not be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Rank 0 refuses this rank.
    #[error("rank 0 at {url} refuses this rank: {}", status.message())]
    Refused {
        /// Its address.
        url: String,
        /// What it says.
        status: Box<Status>,
    },
    /// Rank 0 has been away for too long.
    #[error(
        "no contact with rank 0 at {url} for {seconds} s: {last}; start this rank again once the \
         learner runs"
    )]
    Away {
        /// Its address.
        url: String,
        /// How long it has been away.
        seconds: u64,
        /// What the last attempt came to.
        last: String,
    },
    /// A thread has died.
    #[error("this rank's computing thread ended unexpectedly: {0}")]
    Thread(String),
}

/// Why a connection ended.
enum End {
    Stopped(String),
    /// Worth dialling again.
    Lost(String),
    /// Waiting doesn't cure it.
    Failed(RankError),
}

impl<E: Into<RankError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs a rank until rank 0 ends the run, `shutdown` completes (both `Ok`), or something is wrong that
/// waiting doesn't cure. Nothing of it is lost when it dies: rank 0 has all that it was given.
pub async fn run(
    options: RankOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RankError> {
    // A device that can't be had is told at once, not after dialling.
    parse_device(&options.device).map_err(EngineError::from)?;
    let on_gpu = options.device.starts_with("cuda");
    let nccl = on_gpu.then(|| Nccl::on_device(&options.device));
    run_with(options, nccl, shutdown).await
}

/// [`run`], with NCCL as it is given.
pub(super) async fn run_with(
    options: RankOptions,
    nccl: Option<Nccl>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RankError> {
    let mut rank = Rank {
        options,
        nccl,
        model: None,
        adapter: None,
        last_contact: Instant::now(),
    };
    let reason = tokio::select! {
        end = rank.dial_on() => end?,
        () = shutdown => "asked to end".to_owned(),
    };
    info!(reason, "the rank ends");
    Ok(())
}

struct Rank {
    options: RankOptions,
    /// By which gradients may go to rank 0.
    nccl: Option<Nccl>,
    /// Of one run; kept over reconnects.
    model: Option<(RunSpec, Arc<Loaded>)>,
    adapter: Option<(PolicyVersion, Arc<Adapter>)>,
    last_contact: Instant,
}

/// One connection to rank 0.
struct Session {
    url: String,
    welcomed: bool,
    outgoing: mpsc::Sender<RankMessage>,
    incoming: Streaming<RankCommand>,
}

/// A job that is being computed; called off when this is dropped.
struct Computing {
    task: JoinHandle<Result<Arc<Adapter>, EngineError>>,
    adapter: PolicyVersion,
    progress: Arc<Progress>,
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.progress.cancel();
    }
}

impl Rank {
    /// Connection after connection; returns the reason why the run is over.
    async fn dial_on(&mut self) -> Result<String, RankError> {
        let seed = Backoff::seed_for(&self.options.rank_id);
        // Rank 0 works on without this one: the shorter it is away, the better.
        let waits = BackoffOptions {
            max: Duration::from_secs(2),
            ..BackoffOptions::default()
        };
        let mut backoff = Backoff::new(waits, seed);
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
                let (url, seconds) = (self.options.rank0.to_string(), away.as_secs());
                return Err(RankError::Away { url, seconds, last });
            }
            let wait = backoff.next_wait();
            let wait_ms = wait.as_millis() as u64;
            warn!(why = last, wait_ms, "no rank 0; dialling again");
            sleep(wait.min(self.options.give_up_after.saturating_sub(away))).await;
        }
    }

    async fn connection(&mut self) -> End {
        let mut session = match self.open().await {
            Ok(session) => session,
            Err(end) => return end,
        };
        match self.serve(&mut session).await {
            Ok(never) => match never {},
            Err(End::Failed(error)) => {
                let failed = RankFailed {
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

    /// Dials, opens the stream and says Hello.
    async fn open(&self) -> Result<Session, End> {
        let url = match &self.options.rank0 {
            Rank0::At(url) => url.clone(),
            Rank0::In(file) => match tokio::fs::read_to_string(file).await {
                Ok(text) => text.trim().to_owned(),
                Err(error) => {
                    return Err(End::Lost(format!("{}: {error}", file.display())));
                }
            },
        };
        let client = ClientOptions {
            url: url.clone(),
            ..self.options.client.clone()
        };
        let auth = client.interceptor()?;
        let channel = match connect(&client).await {
            Ok(channel) => channel,
            Err(error @ ClientError::Connect { .. }) => return Err(End::Lost(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let hello = Message::Hello(RankHello {
            rank_id: self.options.rank_id.clone(),
            device: Some(host::device_info(&self.options.device, String::new())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: tina_proto::host::address(),
        });
        // The channel is new and has room.
        let _ = outgoing.try_send(RankMessage {
            message: Some(hello),
        });
        let mut client = ranks_client(channel, auth);
        let opening = client.join(ReceiverStream::new(messages));
        let incoming = match timeout(STREAM_OPEN_DEADLINE, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(broken(&url, status)),
            Err(_) => return Err(End::Lost("rank 0 doesn't answer".to_owned())),
        };
        Ok(Session {
            url,
            welcomed: false,
            outgoing,
            incoming,
        })
    }

    async fn serve(&mut self, session: &mut Session) -> Result<std::convert::Infallible, End> {
        let spec = match timeout(WELCOME_DEADLINE, session.next()).await {
            Ok(Ok(Command::Welcome(welcome))) => welcome.spec.unwrap_or_default(),
            Ok(Ok(Command::Stop(stop))) => return Err(End::Stopped(stop.reason)),
            Ok(Ok(_)) => return Err(End::Lost("its first answer was no Welcome".to_owned())),
            Ok(Err(end)) => return Err(end),
            Err(_) => return Err(End::Lost("rank 0 sends no Welcome".to_owned())),
        };
        self.last_contact = Instant::now();
        // What was sent on another connection rank 0 has forgotten.
        self.adapter = None;
        let model = self.load(session, spec).await?;
        let device = host::device_info(&self.options.device, model.decoder.numerics());
        let nccl = match &self.nccl {
            Some(nccl) if model.settings.ranks.nccl => nccl.is_usable().await,
            _ => false,
        };
        let ready = RankReady {
            model_digest: model.model_digest.clone(),
            device: Some(device),
            nccl,
        };
        session.send(Message::Ready(ready)).await?;
        info!(rank0 = session.url, "ready");

        let (limits, adapter_limit) = (model.limits(), adapter_limit(&model));
        let mut orders = Orders::default();
        let mut computing: Option<Computing> = None;
        loop {
            let command = tokio::select! {
                command = session.next() => command?,
                done = finished(&mut computing) => {
                    self.adapter = Some(done?);
                    computing = None;
                    continue;
                }
            };
            self.last_contact = Instant::now();
            match &command {
                Command::Stop(stop) => return Err(End::Stopped(stop.reason.clone())),
                // The last message may have been answered before its thread has ended.
                Command::Job(_) if computing.is_some() => {
                    self.adapter = Some(finished(&mut computing).await?);
                    computing = None;
                }
                _ => {}
            }
            let held = self.adapter.as_ref();
            let held = held.map(|(version, _)| &version.digest[..]);
            let order = orders.take(command, held, &limits, adapter_limit);
            if let Some(order) = order.map_err(End::Lost)? {
                computing = Some(self.compute(&model, order, session.outgoing.clone()));
            }
        }
    }

    /// The run's model: the one that is held, or loaded now.
    async fn load(&mut self, session: &mut Session, spec: RunSpec) -> Result<Arc<Loaded>, End> {
        if let Some((of, model)) = &self.model
            && *of == spec
        {
            return Ok(model.clone());
        }
        // Of an earlier run; its memory is needed.
        self.model = None;
        let (device, of) = (self.options.device.clone(), spec.clone());
        let mut loading = spawn_blocking(move || Loaded::open(&spec, &device));
        let loaded = tokio::select! {
            loaded = &mut loading => loaded.map_err(thread_died)??,
            end = session.interruption() => {
                // It is here before anything else is asked for.
                let loaded = loading.await.map_err(thread_died)??;
                self.model = Some((of, Arc::new(loaded)));
                return Err(end);
            }
        };
        let model = Arc::new(loaded);
        self.model = Some((of, model.clone()));
        Ok(model)
    }

    fn compute(
        &mut self,
        model: &Arc<Loaded>,
        order: Order,
        outgoing: mpsc::Sender<RankMessage>,
    ) -> Computing {
        let progress = Arc::new(Progress::default());
        let version = order.adapter.clone();
        // By its content: after a step that was skipped the next version has the same.
        let held = self.adapter.take();
        let held = held.filter(|(held, _)| held.digest == version.digest);
        let held = held.map(|(_, adapter)| adapter);
        let (model, called_off) = (model.clone(), progress.clone());
        let nccl = self.nccl.clone();
        let task = spawn_blocking(move || work(&model, order, held, &called_off, &outgoing, nccl));
        Computing {
            task,
            adapter: version,
            progress,
        }
    }
}

/// Waits for the job under way; for ever where there is none.
async fn finished(computing: &mut Option<Computing>) -> Result<(PolicyVersion, Arc<Adapter>), End> {
    let Some(computing) = computing else {
        return std::future::pending().await;
    };
    let outcome = Pin::new(&mut computing.task).await.map_err(thread_died)?;
    match outcome {
        Ok(adapter) => Ok((computing.adapter.clone(), adapter)),
        Err(EngineError::Train(TrainError::Cancelled)) => {
            Err(End::Lost("rank 0 takes no answer".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

impl Session {
    async fn next(&mut self) -> Result<Command, End> {
        match self.incoming.message().await {
            Ok(Some(RankCommand {
                command: Some(command),
            })) => {
                self.welcomed = true;
                Ok(command)
            }
            Ok(Some(_)) => Err(End::Lost("a command of an unknown kind came".to_owned())),
            Ok(None) => Err(End::Lost("rank 0 closed the stream".to_owned())),
            Err(status) => Err(broken(&self.url, status)),
        }
    }

    /// What rank 0 says before this rank is ready: only Stop is in order.
    async fn interruption(&mut self) -> End {
        match self.next().await {
            Ok(Command::Stop(stop)) => End::Stopped(stop.reason),
            Ok(_) => early(),
            Err(end) => end,
        }
    }

    /// Hands a message to the transport.
    async fn send(&self, message: Message) -> Result<(), End> {
        let message = RankMessage {
            message: Some(message),
        };
        match timeout(WELCOME_DEADLINE, self.outgoing.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Lost("the stream to rank 0 closed".to_owned())),
            Err(_) => Err(End::Lost("rank 0 reads no messages".to_owned())),
        }
    }

    /// Gives the last message time to arrive: rank 0 ends the stream when it has it.
    async fn farewell(&mut self) {
        let _ = timeout(FAREWELL_DEADLINE, async {
            while let Ok(Some(_)) = self.incoming.message().await {}
        })
        .await;
    }
}

fn early() -> End {
    End::Lost("a command came before the last one was done".to_owned())
}

fn thread_died(error: tokio::task::JoinError) -> RankError {
    RankError::Thread(error.to_string())
}

/// A stream that ended with a status: refused for good, or lost.
fn broken(url: &str, status: Status) -> End {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented => End::Failed(RankError::Refused {
            url: url.to_owned(),
            status: Box::new(status),
        }),
        _ => End::Lost(reason(&status)),
    }
}
