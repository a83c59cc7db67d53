//! A simulated learner: takes every batch, and answers with an adapter that it publishes.

use std::{sync::Arc, time::Duration};

use tina_proto::{
    adapters::GrpcTransport,
    client::{ClientOptions, connect, learning_client},
    v1::{
        LearnerHeartbeat, LearnerHello, LearnerMessage, LearnerReady, PolicyVersion, StepResult,
        learner_command::Command, learner_message::Message,
    },
};
use tokio::{sync::mpsc, time::interval};
use tokio_stream::wrappers::ReceiverStream;

use super::side::{MODEL, Mark, device, probe};
use crate::{
    error::{BenchError, Result},
    processes::Process,
};

/// Bytes of an adapter: how adapters spread is another benchmark's question.
const ADAPTER: usize = 4096;

/// Learns until the coordinator ends the run. A mark is set whenever a batch is all there.
pub(super) async fn run(coordinator: &ClientOptions, process: Process) -> Result<Vec<Mark>> {
    let channel = connect(coordinator).await?;
    let interceptor = coordinator.interceptor()?;
    let mut client = learning_client(channel.clone(), interceptor.clone());
    let adapters = GrpcTransport::new(channel, interceptor);
    let (outgoing, messages) = mpsc::channel(64);
    let send = async |message: Message| {
        let message = LearnerMessage {
            message: Some(message),
        };
        // Where the stream is over, its commands say why.
        let _ = outgoing.send(message).await;
    };
    let publish = async |step: u64| {
        let (version, bytes) = adapter(step);
        let failed = |error| BenchError::Other(format!("the learner: {error}"));
        let published = adapters.publish_shared(&version, &bytes).await;
        published.map(|()| version).map_err(failed)
    };
    let hello = LearnerHello {
        learner_id: "simulated-learner".into(),
        device: Some(device()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: "simulated".into(),
    };
    send(Message::Hello(hello)).await;
    let failed = |status| BenchError::Other(format!("the learner: {status}"));
    let reply = client.learn(ReceiverStream::new(messages)).await;
    let mut commands = reply.map_err(failed)?.into_inner();
    let mut beat = interval(Duration::from_secs(1));
    let (mut marks, mut probed, mut completions) = (Vec::new(), Vec::new(), 0);
    loop {
        let command = tokio::select! {
            command = commands.message() => command.map_err(failed)?.and_then(|c| c.command),
            _ = beat.tick() => {
                send(Message::Heartbeat(LearnerHeartbeat::default())).await;
                continue;
            }
        };
        match command {
            Some(Command::Welcome(welcome)) => {
                probed = probe(&welcome.spec.unwrap_or_default());
                let ready = LearnerReady {
                    model_digest: MODEL.to_owned(),
                    version: Some(publish(0).await?),
                    adapter_bytes: ADAPTER as u64,
                    probe_logprobs: probed.clone(),
                    device: Some(device()),
                    ..LearnerReady::default()
                };
                send(Message::Ready(ready)).await;
            }
            Some(Command::BeginStep(_)) => completions = 0,
            Some(Command::Group(group)) => completions += group.completions.len() as u64,
            Some(Command::EndStep(end)) => {
                marks.push(Mark::now(completions, process));
                let result = StepResult {
                    version: Some(publish(end.step).await?),
                    adapter_bytes: ADAPTER as u64,
                    probe_logprobs: probed.clone(),
                    ..StepResult::default()
                };
                send(Message::StepResult(result)).await;
            }
            Some(Command::Broadcast(_)) => {}
            Some(Command::Stop(_)) => return Ok(marks),
            None => {
                let gone = "the learner lost its coordinator".to_owned();
                return Err(BenchError::Other(gone));
            }
        }
    }
}

/// The adapter of a step.
fn adapter(step: u64) -> (PolicyVersion, Arc<[u8]>) {
    let mut bytes = vec![0; ADAPTER];
    bytes[..8].copy_from_slice(&step.to_le_bytes());
    (PolicyVersion::of_bytes(step, &bytes), bytes.into())
}
