//! A worker against a coordinator of the test's own, over loopback.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use futures::{StreamExt as _, stream::BoxStream};
use tempfile::TempDir;
use tina_proto::{
    adapters::{AdapterTransport as _, Checks, chunks},
    auth::TokenCheck,
    v1::{
        AdapterChunk, AdapterRequest, AdapterSource, Completion, CompletionAck, LoadAdapter,
        LoraSpec, PolicyVersion, PublishReply, Sample, SamplingParams, WorkerMessage, WorkerReady,
        WorkerStop, WorkerWelcome,
        adapters_server::{Adapters, AdaptersServer},
        rollouts_server::{Rollouts, RolloutsServer},
        worker_message::Message,
    },
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming, transport::Server};

use super::*;
use crate::testing;

/// The coordinator's end of one connection.
struct Peer {
    messages: Streaming<WorkerMessage>,
    commands: mpsc::Sender<Result<WorkerCommand, Status>>,
}

impl Peer {
    async fn say(&self, command: Command) {
        self.commands
            .send(Ok(WorkerCommand {
                command: Some(command),
            }))
            .await
            .unwrap();
    }

    /// The next message that is no heartbeat.
    async fn hear(&mut self) -> Message {
        loop {
            let next = timeout(Duration::from_secs(20), self.messages.message());
            match next
                .await
                .expect("a message in time")
                .unwrap()
                .unwrap()
                .message
                .unwrap()
            {
                Message::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    async fn hello(&mut self) -> WorkerHello {
        match self.hear().await {
            Message::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    async fn ready(&mut self) -> WorkerReady {
        match self.hear().await {
            Message::Ready(ready) => ready,
            other => panic!("{other:?}"),
        }
    }

    async fn completion(&mut self) -> Completion {
        match self.hear().await {
            Message::Completion(completion) => completion,
            other => panic!("{other:?}"),
        }
    }

    /// Has it load the adapter; returns the probe's log-probs.
    async fn load(&mut self, version: &PolicyVersion) -> Vec<f32> {
        let load = LoadAdapter {
            version: Some(version.clone()),
            ..LoadAdapter::default()
        };
        self.say(Command::LoadAdapter(load)).await;
        match self.hear().await {
            Message::AdapterLoaded(loaded) => {
                assert_eq!(
                    (loaded.error.as_str(), loaded.version.as_ref()),
                    ("", Some(version))
                );
                loaded.probe_logprobs
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Coordinator {
    peers: Mutex<mpsc::UnboundedSender<Peer>>,
    adapter: (PolicyVersion, Arc<[u8]>),
    fetches: AtomicU32,
}

#[derive(Clone)]
struct Service(Arc<Coordinator>);

#[tonic::async_trait]
impl Rollouts for Service {
    type WorkStream = ReceiverStream<Result<WorkerCommand, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let (commands, outgoing) = mpsc::channel(16);
        let peer = Peer {
            messages: request.into_inner(),
            commands,
        };
        self.0.peers.lock().unwrap().send(peer).unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl Adapters for Service {
    type FetchStream = BoxStream<'static, Result<AdapterChunk, Status>>;

    async fn fetch(
        &self,
        request: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        self.0.fetches.fetch_add(1, Ordering::SeqCst);
        let (version, bytes) = self.0.adapter.clone();
        let AdapterRequest { digest, offset } = request.into_inner();
        if digest != version.digest {
            return Err(Status::not_found("no such adapter"));
        }
        Ok(Response::new(chunks(version, bytes, offset)?.boxed()))
    }

    async fn publish(
        &self,
        _: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        Err(Status::unimplemented("workers publish nothing"))
    }
}

/// A coordinator, a model on disk, and a worker that is dialling.
struct Stage {
    coordinator: Arc<Coordinator>,
    peers: mpsc::UnboundedReceiver<Peer>,
    worker: JoinHandle<Result<(), WorkerError>>,
    shutdown: Option<oneshot::Sender<()>>,
    model: TempDir,
}

impl Stage {
    async fn new(token: Option<&str>) -> Self {
        let (sender, peers) = mpsc::unbounded_channel();
        let (version, bytes) = testing::adapter(0.05);
        let coordinator = Arc::new(Coordinator {
            peers: Mutex::new(sender),
            adapter: (version, bytes.into()),
            fetches: AtomicU32::new(0),
        });
        let service = Service(Arc::clone(&coordinator));
        let check = TokenCheck::new(Some("right"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(RolloutsServer::with_interceptor(
                service.clone(),
                check.clone(),
            ))
            .add_service(AdaptersServer::with_interceptor(service, check))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let model = tempfile::tempdir().unwrap();
        testing::write_model(model.path());
        let token = token.map(str::to_owned);
        let client = ClientOptions {
            url,
            token,
            ..ClientOptions::default()
        };
        let options = WorkerOptions {
            slots: Some(3),
            ..WorkerOptions::new(client, "worker-1")
        };
        let (shutdown, stop) = oneshot::channel::<()>();
        let worker = tokio::spawn(run(options, async {
            let _ = stop.await;
        }));
        Self {
            coordinator,
            peers,
            worker,
            shutdown: Some(shutdown),
            model,
        }
    }

    async fn peer(&mut self) -> Peer {
        timeout(Duration::from_secs(20), self.peers.recv())
            .await
            .unwrap()
            .unwrap()
    }

    async fn end(&mut self) -> Result<(), WorkerError> {
        timeout(Duration::from_secs(20), &mut self.worker)
            .await
            .unwrap()
            .unwrap()
    }

    fn welcome(&self) -> WorkerWelcome {
        let plan = testing::plan();
        let source = self.model.path().display().to_string();
        let spec = RunSpec {
            run_id: "run".to_owned(),
            seed: plan.seed,
            model: Some(ModelSpec {
                source,
                dtype: "auto".to_owned(),
            }),
            lora: Some(LoraSpec {
                rank: plan.lora.rank as u32,
                alpha: plan.lora.alpha,
                dropout: 0.0,
                rslora: false,
                target_modules: plan
                    .lora
                    .target_modules
                    .iter()
                    .map(|m| m.to_string())
                    .collect(),
            }),
            probe_tokens: plan.probe,
            max_sequence_tokens: testing::LONGEST as u32,
            ..RunSpec::default()
        };
        WorkerWelcome {
            spec: Some(spec),
            slots: 8,
            heartbeat_ms: 100,
            ..Default::default()
        }
    }

    fn sample(&self, group_id: u64, indices: &[u32]) -> Command {
        Command::Sample(Sample {
            group_id,
            prompt_tokens: vec![1, 2, 3],
            sample_indices: indices.to_vec(),
            prompt_key: vec![group_id as u8; 32],
            params: Some(SamplingParams {
                temperature: 1.0,
                top_p: 1.0,
                max_tokens: 12,
                ..SamplingParams::default()
            }),
            version: Some(self.coordinator.adapter.0.clone()),
            exact: false,
        })
    }
}

fn stop() -> Command {
    Command::Stop(WorkerStop {
        reason: "the run is done".to_owned(),
    })
}

#[tokio::test]
async fn from_hello_to_the_last_completion() {
    let mut stage = Stage::new(Some("right")).await;
    let mut peer = stage.peer().await;
    let hello = peer.hello().await;
    assert_eq!((hello.worker_id.as_str(), hello.slots), ("worker-1", 3));
    peer.say(Command::Welcome(stage.welcome())).await;
    let ready = peer.ready().await;
    assert_eq!((ready.slots, ready.model_digest.len()), (3, 64));
    assert!(ready.device.unwrap().numerics.starts_with("cpu-f32"));
    let version = stage.coordinator.adapter.0.clone();
    let probe = peer.load(&version).await;
    assert_eq!(probe.len(), testing::plan().probe.len() - 1);
    peer.say(stage.sample(4, &[0, 1, 2, 3, 4])).await;
    let mut indices = Vec::new();
    for _ in 0..5 {
        let completion = peer.completion().await;
        assert_eq!(completion.tokens.len(), completion.logprobs.len());
        assert_eq!(completion.versions[0].version.as_ref(), Some(&version));
        indices.push(completion.sample_index);
    }
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
    // Heartbeats say how much was sampled.
    let beat = loop {
        match peer
            .messages
            .message()
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap()
        {
            Message::Heartbeat(beat) if beat.tokens_total > 0 => break beat,
            _ => {}
        }
    };
    assert_eq!(beat.version.as_ref(), Some(&version));
    peer.say(stop()).await;
    stage.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_comes_back_with_model_adapter_and_unacknowledged_completions() {
    let mut stage = Stage::new(Some("right")).await;
    let mut peer = stage.peer().await;
    peer.hello().await;
    peer.say(Command::Welcome(stage.welcome())).await;
    let first_ready = peer.ready().await;
    let version = stage.coordinator.adapter.0.clone();
    let probe = peer.load(&version).await;
    peer.say(stage.sample(4, &[0, 1, 2])).await;
    let mut sent = [
        peer.completion().await,
        peer.completion().await,
        peer.completion().await,
    ];
    let ack = CompletionAck {
        group_id: 4,
        sample_index: sent[0].sample_index,
    };
    peer.say(Command::CompletionAck(ack)).await;
    // The acknowledgement has arrived once what was said after it is answered.
    peer.load(&version).await;
    drop(peer);

    let mut peer = stage.peer().await;
    assert_eq!(peer.hello().await.worker_id, "worker-1");
    peer.say(Command::Welcome(stage.welcome())).await;
    assert_eq!(peer.ready().await, first_ready);
    let mut again = [peer.completion().await, peer.completion().await];
    sent[1..].sort_by_key(|completion| completion.sample_index);
    again.sort_by_key(|completion| completion.sample_index);
    assert_eq!(again[..], sent[1..]);
    assert_eq!(peer.load(&version).await, probe);
    assert_eq!(stage.coordinator.fetches.load(Ordering::SeqCst), 1);
    // The acknowledged one is sampled anew when it is asked for, and comes out the same.
    peer.say(stage.sample(4, &[sent[0].sample_index])).await;
    let anew = peer.completion().await;
    assert_eq!(
        (anew.tokens, anew.logprobs),
        (sent[0].tokens.clone(), sent[0].logprobs.clone())
    );
    peer.say(stop()).await;
    stage.end().await.unwrap();
}

#[tokio::test]
async fn a_version_that_cannot_be_fetched_is_answered_with_the_reason() {
    let mut stage = Stage::new(Some("right")).await;
    let mut peer = stage.peer().await;
    peer.hello().await;
    peer.say(Command::Welcome(stage.welcome())).await;
    peer.ready().await;
    let version = Some(PolicyVersion::of_bytes(3, b"unheard of"));
    let load = LoadAdapter {
        version,
        ..LoadAdapter::default()
    };
    peer.say(Command::LoadAdapter(load)).await;
    match peer.hear().await {
        Message::AdapterLoaded(loaded) => assert!(loaded.error.contains("no such adapter")),
        other => panic!("{other:?}"),
    }
    peer.say(stage.sample(1, &[0])).await;
    match peer.hear().await {
        Message::SampleFailed(failed) => assert!(failed.error.contains("no adapter yet")),
        other => panic!("{other:?}"),
    }
    stage.shutdown.take().unwrap().send(()).unwrap();
    stage.end().await.unwrap();
}

#[tokio::test]
async fn a_wrong_token_ends_the_worker_at_once() {
    for token in [None, Some("wrong")] {
        let error = Stage::new(token).await.end().await.unwrap_err();
        assert!(matches!(error, WorkerError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("token"), "{error}");
    }
}

#[tokio::test]
async fn a_specification_that_does_not_fit_the_model_ends_the_worker() {
    let mut stage = Stage::new(Some("right")).await;
    let mut peer = stage.peer().await;
    peer.hello().await;
    let mut welcome = stage.welcome();
    welcome.spec.as_mut().unwrap().probe_tokens = vec![1, testing::VOCAB as u32];
    peer.say(Command::Welcome(welcome)).await;
    let error = stage.end().await.unwrap_err().to_string();
    assert!(
        error.contains("probe") && error.contains("vocabulary"),
        "{error}"
    );
}

#[tokio::test]
async fn a_worker_gives_up_on_a_coordinator_that_stays_away() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = ClientOptions {
        url: url.clone(),
        ..ClientOptions::default()
    };
    let give_up_after = Duration::from_millis(300);
    let options = WorkerOptions {
        give_up_after,
        ..WorkerOptions::new(client, "w")
    };
    let start = Instant::now();
    let error = run(options, std::future::pending()).await.unwrap_err();
    assert!(
        matches!(error, WorkerError::CoordinatorAway { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(&url), "{error}");
    assert!(start.elapsed() >= give_up_after && start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn in_a_run_with_relays_a_worker_hands_on_what_it_got_and_says_from_whom_it_got_it() {
    let mut stage = Stage::new(Some("right")).await;
    let mut peer = stage.peer().await;
    peer.hello().await;
    let mut welcome = stage.welcome();
    welcome.spec.as_mut().unwrap().adapter_fan_out = 1;
    peer.say(Command::Welcome(welcome)).await;
    let relay = peer.ready().await.relay;
    assert!(relay.starts_with("http://127.0.0.1:"), "{relay}");
    // Its own source is gone, so all of it comes from the coordinator.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (version, bytes) = stage.coordinator.adapter.clone();
    let load = LoadAdapter {
        version: Some(version.clone()),
        bytes: bytes.len() as u64,
        sources: vec![AdapterSource {
            worker_id: "gone".to_owned(),
            relay: gone.clone(),
        }],
        checks: Some(Checks::of_bytes(&bytes).to_wire()),
        depth: 1,
        ..LoadAdapter::default()
    };
    peer.say(Command::LoadAdapter(load)).await;
    let Message::AdapterLoaded(loaded) = peer.hear().await else {
        panic!("no acknowledgement");
    };
    assert_eq!(loaded.error, "");
    let legs: Vec<_> = loaded
        .legs
        .iter()
        .map(|leg| (leg.worker_id.as_str(), leg.bytes))
        .collect();
    assert_eq!(legs, [("gone", 0), ("", bytes.len() as u64)]);
    assert!(loaded.legs[0].problem.contains(&gone));

    let options = ClientOptions {
        url: relay,
        token: Some("right".to_owned()),
        ..ClientOptions::default()
    };
    let channel = connect(&options).await.unwrap();
    let other = GrpcTransport::new(channel, options.interceptor().unwrap());
    assert!(other.fetch(&version).await.unwrap() == *bytes);
    assert_eq!(stage.coordinator.fetches.load(Ordering::SeqCst), 1);
    peer.say(stop()).await;
    stage.end().await.unwrap();
}
