//! One connection to the coordinator: its stream, its heartbeats, and adapters on their way.

use std::{sync::Arc, time::Duration};

use tina_proto::{
    adapters::{GrpcTransport, TransportError},
    client::{
        AuthInterceptor, ClientError, STREAM_OPEN_DEADLINE, connect, learning_client, reason,
    },
    v1::{
        BatchRefused, LearnerCommand, LearnerHello, LearnerMessage, PolicyVersion,
        learner_command::Command, learner_message::Message,
    },
};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::warn;

use super::{Activity, End, LearnerError, LearnerOptions};
use crate::{batch::BatchError, host};

/// How long a message may wait for room on the stream.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// How long the coordinator may take to end the stream after it was told of a failure.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);
/// Bounds of the heartbeat that a coordinator may ask for, milliseconds.
const HEARTBEAT_MS: (u32, u32) = (100, 60_000);
/// Messages on their way to the transport.
const OUTGOING: usize = 16;

/// One connection to the coordinator.
pub(super) struct Session {
    welcomed: bool,
    outgoing: mpsc::Sender<LearnerMessage>,
    incoming: Streaming<LearnerCommand>,
    transport: GrpcTransport,
    heartbeats: Option<AbortHandle>,
    url: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = &self.heartbeats {
            task.abort();
        }
    }
}

impl Session {
    /// Dials, opens the stream and says Hello.
    pub(super) async fn open(
        options: &LearnerOptions,
        auth: &AuthInterceptor,
    ) -> Result<Self, End> {
        let url = options.coordinator.url.clone();
        let channel = match connect(&options.coordinator).await {
            Ok(channel) => channel,
            Err(error @ ClientError::Connect { .. }) => return Err(End::Lost(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let hello = Message::Hello(LearnerHello {
            learner_id: options.learner_id.clone(),
            device: Some(host::device_info(&options.device, String::new())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: tina_proto::host::address(),
        });
        // The channel is new and has room.
        let _ = outgoing.try_send(LearnerMessage {
            message: Some(hello),
        });
        let mut client = learning_client(channel.clone(), auth.clone());
        let opening = client.learn(ReceiverStream::new(messages));
        let incoming = match timeout(STREAM_OPEN_DEADLINE, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(broken(&url, status)),
            Err(_) => return Err(End::Lost("the coordinator doesn't answer".to_owned())),
        };
        let transport = GrpcTransport::new(channel, auth.clone());
        Ok(Self {
            welcomed: false,
            outgoing,
            incoming,
            transport,
            heartbeats: None,
            url,
        })
    }

    /// The coordinator's next command.
    pub(super) async fn next(&mut self) -> Result<Command, End> {
        match self.incoming.message().await {
            Ok(Some(LearnerCommand {
                command: Some(command),
            })) => {
                self.welcomed |= matches!(command, Command::Welcome(_));
                Ok(command)
            }
            Ok(Some(_)) => Err(End::Lost("a command of an unknown kind came".to_owned())),
            Ok(None) => Err(End::Lost("the coordinator closed the stream".to_owned())),
            // In place of a Welcome it is a refusal: the run has a learner.
            Err(status) if status.code() == Code::Aborted && !self.welcomed => {
                Err(refused(&self.url, status))
            }
            Err(status) => Err(broken(&self.url, status)),
        }
    }

    /// What the coordinator says while the learner computes: only Stop is in order.
    pub(super) async fn interruption(&mut self) -> End {
        match self.next().await {
            Ok(Command::Stop(stop)) => End::Stopped(stop.reason),
            Ok(_) => End::Lost("a command came before the last one was done".to_owned()),
            Err(end) => end,
        }
    }

    /// Hands a message to the transport.
    pub(super) async fn send(&self, message: Message) -> Result<(), End> {
        let sending = self.outgoing.send(LearnerMessage {
            message: Some(message),
        });
        match timeout(SEND_DEADLINE, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Lost("the stream to the coordinator closed".to_owned())),
            Err(_) => Err(End::Lost("the coordinator reads no messages".to_owned())),
        }
    }

    /// Says why a batch is not trained on.
    pub(super) async fn refuse(&self, step: u64, error: BatchError) -> Result<(), End> {
        warn!(step, %error, "refusing the batch");
        self.send(Message::BatchRefused(BatchRefused {
            step,
            error: error.to_string(),
        }))
        .await
    }

    /// Hands the adapter over; returns when the coordinator holds all of it.
    pub(super) async fn publish(
        &self,
        version: &PolicyVersion,
        bytes: &Arc<[u8]>,
    ) -> Result<(), End> {
        match self.transport.publish_shared(version, bytes).await {
            Ok(()) => Ok(()),
            Err(error @ (TransportError::GaveUp { .. } | TransportError::BadChunk { .. })) => {
                Err(End::Lost(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The way that adapters go by.
    pub(super) fn transport(&self) -> GrpcTransport {
        self.transport.clone()
    }

    /// Heartbeats from now on, whatever else this session waits for.
    pub(super) fn beat(&mut self, every_ms: u32, activity: Arc<Activity>) {
        let (least, most) = HEARTBEAT_MS;
        let every = if every_ms == 0 {
            1000
        } else {
            every_ms.clamp(least, most)
        };
        let outgoing = self.outgoing.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(every.into()));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let message = Some(Message::Heartbeat(activity.heartbeat()));
                if outgoing.send(LearnerMessage { message }).await.is_err() {
                    return;
                }
            }
        });
        self.heartbeats = Some(task.abort_handle());
    }

    /// Gives the last message time to arrive: the coordinator ends the stream when it has it.
    pub(super) async fn farewell(&mut self) {
        let _ = timeout(FAREWELL_DEADLINE, async {
            while let Ok(Some(_)) = self.incoming.message().await {}
        })
        .await;
    }
}

fn refused(url: &str, status: Status) -> End {
    End::Failed(LearnerError::Refused {
        url: url.to_owned(),
        status: Box::new(status),
    })
}

/// A stream that ended with a status: refused for good, or lost.
fn broken(url: &str, status: Status) -> End {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented => refused(url, status),
        _ => End::Lost(reason(&status)),
    }
}
