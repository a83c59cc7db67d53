//! The streams of workers and the learner: checked messages in, commands out.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tina_proto::v1::{
    self, LearnerCommand, LearnerMessage, WorkerCommand, WorkerMessage, learner_message,
    learning_server, rollouts_server, worker_message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Limits, Shared};
use crate::scheduler::types::{Event, Session};

/// Commands that may wait for one worker to read them.
const WORKER_OUTBOX: usize = 4096;
/// Commands that may wait for the learner, besides one batch.
const LEARNER_OUTBOX: usize = 64;
/// A stream's first message must come by then.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of an error's text at most.
const MAX_TEXT: usize = 2048;
/// Ways of one adapter that are listened to.
const MAX_LEGS: usize = 16;

/// Completions of one stream that can't be, after which it is closed.
const MAX_MALFORMED: u32 = 100;

/// The sending end of one stream; `C` is its kind of command.
#[derive(Debug)]
pub struct Outbox<C> {
    commands: mpsc::Sender<Result<C, Status>>,
    open: CancellationToken,
}

impl<C> Outbox<C> {
    /// False when the stream is gone, or nobody reads it.
    pub fn send(&self, command: C) -> bool {
        self.commands.try_send(Ok(command)).is_ok()
    }

    /// Ends the stream; the other end is told why.
    pub fn close(self, reason: &str) {
        let _ = self.commands.try_send(Err(Status::aborted(reason)));
        self.open.cancel();
    }

    /// Ends the stream as one that has done its work.
    pub fn finish(self, last: C) {
        let _ = self.commands.try_send(Ok(last));
        self.open.cancel();
    }
}

/// Notices when a stream ends, from whichever side.
struct End<C> {
    commands: mpsc::Sender<Result<C, Status>>,
    open: CancellationToken,
}

impl<C> End<C> {
    fn of(outbox: &Outbox<C>) -> Self {
        Self {
            commands: outbox.commands.clone(),
            open: outbox.open.clone(),
        }
    }

    /// Returns why the stream ended; an error of the other end's making is sent to it.
    async fn watch(self, messages: impl Future<Output = Result<(), Status>>) -> String {
        let outcome = tokio::select! {
            biased;
            outcome = messages => outcome,
            () = self.open.cancelled() => return "closed by the coordinator".into(),
            () = self.commands.closed() => return "it hung up".into(),
        };
        match outcome {
            Ok(()) => "it ended the stream".into(),
            Err(status) => {
                let reason = status.message().to_owned();
                let _ = self.commands.try_send(Err(status));
                reason
            }
        }
    }
}

/// What comes in by any door.
#[derive(Debug)]
pub enum Inbound {
    /// A worker's stream opened.
    Worker {
        /// Its number.
        session: Session,
        /// Its first message.
        hello: v1::WorkerHello,
        /// For commands.
        outbox: Outbox<WorkerCommand>,
    },
    /// A learner's stream opened.
    Learner {
        /// Its number.
        session: Session,
        /// Its first message.
        hello: v1::LearnerHello,
        /// For commands.
        outbox: Outbox<LearnerCommand>,
    },
    /// A completion that can't be, and why.
    Malformed {
        /// The worker's stream.
        session: Session,
        /// Which sample it says it is of.
        failed: v1::SampleFailed,
    },
    /// Something for the scheduler.
    Event(Event),
}

/// The services `Rollouts` and `Learning`.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    shared: Arc<Shared>,
}

impl Streams {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn open<C>(&self, room: usize) -> (Session, Outbox<C>, mpsc::Receiver<Result<C, Status>>) {
        let session = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        let (commands, receiver) = mpsc::channel(room);
        (
            session,
            Outbox {
                commands,
                open: CancellationToken::new(),
            },
            receiver,
        )
    }
}

#[tonic::async_trait]
impl rollouts_server::Rollouts for Streams {
    type WorkStream = ReceiverStream<Result<WorkerCommand, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let peer = peer(&request);
        let (session, outbox, commands) = self.open(WORKER_OUTBOX);
        let shared = self.shared.clone();
        let end = End::of(&outbox);
        tokio::spawn(async move {
            let work = work(&shared, session, outbox, request.into_inner(), peer);
            let reason = end.watch(work).await;
            let lost = Inbound::Event(Event::WorkerLost { session, reason });
            let _ = shared.inbound.send(lost).await;
        });
        Ok(Response::new(ReceiverStream::new(commands)))
    }
}

async fn work(
    shared: &Shared,
    session: Session,
    outbox: Outbox<WorkerCommand>,
    mut messages: Streaming<WorkerMessage>,
    peer: String,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came in time"))??;
    let Some(worker_message::Message::Hello(mut hello)) = first.and_then(|m| m.message) else {
        return Err(Status::failed_precondition(
            "a worker's first message must be Hello",
        ));
    };
    let name: String = hello.worker_id.chars().take(64).collect();
    let bad = |what: String| Status::invalid_argument(format!("worker {name}: {what}"));
    Limits::check_worker(&hello).map_err(bad)?;
    hello.address = format!(
        "{} {peer}",
        hello.address.chars().take(256).collect::<String>()
    );
    let arrived = Inbound::Worker {
        session,
        hello,
        outbox,
    };
    shared.inbound.send(arrived).await.map_err(|_| ended())?;
    let mut malformed = 0;
    while let Some(message) = messages.message().await? {
        let Some(message) = message.message else {
            continue;
        };
        let inbound = match message {
            worker_message::Message::Hello(_) => return Err(bad("a second Hello".into())),
            worker_message::Message::Ready(ready) => {
                Limits::check_ready(&ready).map_err(bad)?;
                Inbound::Event(Event::WorkerReady { session, ready })
            }
            worker_message::Message::AdapterLoaded(mut loaded) => {
                shorten(&mut loaded.error);
                shared.limits.check_loaded(&loaded).map_err(bad)?;
                loaded.legs.truncate(MAX_LEGS);
                loaded.legs.iter_mut().for_each(|leg| {
                    shorten(&mut leg.problem);
                });
                Inbound::Event(Event::AdapterLoaded { session, loaded })
            }
            worker_message::Message::Heartbeat(heartbeat) => {
                Limits::check_heartbeat(&heartbeat).map_err(bad)?;
                Inbound::Event(Event::WorkerHeartbeat { session, heartbeat })
            }
            worker_message::Message::SampleFailed(mut failed) => {
                shorten(&mut failed.error);
                shared.limits.check_failed(&failed).map_err(bad)?;
                Inbound::Event(Event::SampleFailed { session, failed })
            }
            worker_message::Message::Completion(completion) => {
                match shared.limits.check_completion(&completion) {
                    Ok(()) => Inbound::Event(Event::Completion {
                        session,
                        completion,
                    }),
                    Err(what) => {
                        malformed += 1;
                        if malformed > MAX_MALFORMED {
                            return Err(bad(format!(
                                "more than {MAX_MALFORMED} completions that can't be, the last {what}"
                            )));
                        }
                        Inbound::Malformed {
                            session,
                            failed: v1::SampleFailed {
                                group_id: completion.group_id,
                                sample_indices: vec![completion.sample_index],
                                error: format!("worker {name} sent a completion {what}"),
                            },
                        }
                    }
                }
            }
        };
        shared.inbound.send(inbound).await.map_err(|_| ended())?;
    }
    Ok(())
}

#[tonic::async_trait]
impl learning_server::Learning for Streams {
    type LearnStream = ReceiverStream<Result<LearnerCommand, Status>>;

    async fn learn(
        &self,
        request: Request<Streaming<LearnerMessage>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        let peer = peer(&request);
        let room = LEARNER_OUTBOX + self.shared.limits.groups as usize;
        let (session, outbox, commands) = self.open(room);
        let shared = self.shared.clone();
        let end = End::of(&outbox);
        tokio::spawn(async move {
            let learn = learn(&shared, session, outbox, request.into_inner(), peer);
            let reason = end.watch(learn).await;
            let lost = Inbound::Event(Event::LearnerLost { session, reason });
            let _ = shared.inbound.send(lost).await;
        });
        Ok(Response::new(ReceiverStream::new(commands)))
    }
}

async fn learn(
    shared: &Shared,
    session: Session,
    outbox: Outbox<LearnerCommand>,
    mut messages: Streaming<LearnerMessage>,
    peer: String,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came in time"))??;
    let Some(learner_message::Message::Hello(mut hello)) = first.and_then(|m| m.message) else {
        return Err(Status::failed_precondition(
            "a learner's first message must be Hello",
        ));
    };
    let name: String = hello.learner_id.chars().take(64).collect();
    let bad = |what: String| Status::invalid_argument(format!("learner {name}: {what}"));
    Limits::check_learner(&hello).map_err(bad)?;
    hello.address = format!(
        "{} {peer}",
        hello.address.chars().take(256).collect::<String>()
    );
    let arrived = Inbound::Learner {
        session,
        hello,
        outbox,
    };
    shared.inbound.send(arrived).await.map_err(|_| ended())?;
    // An adapter that is announced must have been published, or workers could not fetch it.
    let published = |version: Option<&v1::PolicyVersion>| {
        let digest = version.map_or(&[][..], |version| &version.digest);
        match shared.adapters.get(digest) {
            Some(_) => Ok(()),
            None => Err(bad("announced an adapter that it did not publish".into())),
        }
    };
    while let Some(message) = messages.message().await? {
        let Some(message) = message.message else {
            continue;
        };
        let event = match message {
            learner_message::Message::Hello(_) => return Err(bad("a second Hello".into())),
            learner_message::Message::Ready(ready) => {
                shared.limits.check_learner_ready(&ready).map_err(bad)?;
                published(ready.version.as_ref())?;
                Event::LearnerReady {
                    session,
                    ready: Box::new(ready),
                }
            }
            learner_message::Message::StepResult(result) => {
                shared.limits.check_result(&result).map_err(bad)?;
                published(result.version.as_ref())?;
                Event::StepResult {
                    session,
                    result: Box::new(result),
                }
            }
            learner_message::Message::Heartbeat(mut heartbeat) => {
                shorten(&mut heartbeat.phase);
                Event::LearnerHeartbeat { session, heartbeat }
            }
            learner_message::Message::Failed(mut failed) => {
                shorten(&mut failed.error);
                Event::LearnerFailed {
                    session,
                    error: failed.error,
                }
            }
            learner_message::Message::BatchRefused(mut refused) => {
                shorten(&mut refused.error);
                Event::BatchRefused { session, refused }
            }
        };
        shared
            .inbound
            .send(Inbound::Event(event))
            .await
            .map_err(|_| ended())?;
    }
    Ok(())
}

/// Cuts a text that is shown to people to what one reads.
fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
}

fn peer<T>(request: &Request<T>) -> String {
    request
        .remote_addr()
        .map_or_else(String::new, |address| format!("({address})"))
}

fn ended() -> Status {
    Status::unavailable("the run is over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut short = "out of memory".to_owned();
        shorten(&mut short);
        assert_eq!(short, "out of memory");
        let mut long = "x".to_owned() + &"\u{e9}".repeat(MAX_TEXT);
        shorten(&mut long);
        assert_eq!(long.len(), MAX_TEXT - 1 + " ...".len());
        assert!(long.ends_with("\u{e9} ..."));
    }
}
