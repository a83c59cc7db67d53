//! A learner against a coordinator of the test's own, over loopback.

use std::{collections::HashMap, fs, sync::Mutex};

use futures::stream::BoxStream;
use tina_model::Adapter;
use tina_proto::{
    adapters::{Inbox, Publication},
    v1::{
        AdapterChunk, AdapterRequest, BeginStep, Completion, EndStep, FinishReason, LearnerCommand,
        LearnerHello, LearnerMessage, LearnerReady, LearnerStop, PolicyVersion, PublishReply,
        SamplingParams, StepResult, TrainingCompletion, TrainingGroup, VersionSpan,
        adapters_server::{Adapters, AdaptersServer},
        learning_server::{Learning, LearningServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Streaming, transport::Server};

use super::*;
use crate::{batch::Batch, testing};

/// The coordinator's end of one connection.
struct Peer {
    messages: Streaming<LearnerMessage>,
    commands: mpsc::Sender<Result<LearnerCommand, Status>>,
}

impl Peer {
    async fn say(&self, command: Command) {
        self.commands
            .send(Ok(LearnerCommand {
                command: Some(command),
            }))
            .await
            .unwrap();
    }

    async fn any(&mut self) -> Message {
        let next = timeout(Duration::from_secs(30), self.messages.message()).await;
        next.expect("a message in time")
            .unwrap()
            .unwrap()
            .message
            .unwrap()
    }

    /// The next message that is no heartbeat.
    async fn hear(&mut self) -> Message {
        loop {
            match self.any().await {
                Message::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    async fn hello(&mut self) -> LearnerHello {
        match self.hear().await {
            Message::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    async fn welcome(&mut self, spec: &RunSpec, resume: Option<PolicyVersion>) {
        let welcome = LearnerWelcome {
            spec: Some(spec.clone()),
            resume,
            heartbeat_ms: 100,
        };
        self.say(Command::Welcome(welcome)).await;
    }

    async fn ready(&mut self) -> LearnerReady {
        match self.hear().await {
            Message::Ready(ready) => ready,
            other => panic!("{other:?}"),
        }
    }

    async fn result(&mut self) -> StepResult {
        match self.hear().await {
            Message::StepResult(result) => result,
            other => panic!("{other:?}"),
        }
    }

    async fn failed(&mut self) -> String {
        match self.hear().await {
            Message::Failed(failed) => failed.error,
            other => panic!("{other:?}"),
        }
    }

    async fn send(&self, batch: &Batch) {
        let version = Some(batch.version.clone());
        let groups = batch.groups.len() as u32;
        self.say(Command::BeginStep(BeginStep {
            version,
            groups,
            known: Vec::new(),
        }))
        .await;
        for group in wire(batch) {
            self.say(Command::Group(group)).await;
        }
        self.say(Command::EndStep(EndStep {
            step: batch.version.step + 1,
        }))
        .await;
    }
}

/// The batch as a coordinator sends it.
fn wire(batch: &Batch) -> Vec<TrainingGroup> {
    let group = |group: &crate::batch::Group| TrainingGroup {
        group_id: group.id,
        prompt_tokens: group.prompt.clone(),
        completions: group
            .samples
            .iter()
            .map(|sample| TrainingCompletion {
                completion: Some(Completion {
                    group_id: group.id,
                    sample_index: sample.index,
                    tokens: sample.tokens.clone(),
                    logprobs: sample.logprobs.clone(),
                    finish_reason: FinishReason::Stop.into(),
                    versions: vec![VersionSpan {
                        start: 0,
                        version: Some(batch.version.clone()),
                    }],
                    decode_seconds: 0.0,
                }),
                reward: sample.reward.unwrap_or_default(),
                judged: sample.reward.is_some(),
            })
            .collect(),
        params: Some(SamplingParams {
            temperature: group.distribution.temperature,
            top_p: 1.0,
            ..Default::default()
        }),
    };
    batch.groups.iter().map(group).collect()
}

#[derive(Clone)]
struct Service {
    peers: mpsc::UnboundedSender<Peer>,
    inbox: Arc<Inbox>,
    held: Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>,
}

#[tonic::async_trait]
impl Learning for Service {
    type LearnStream = ReceiverStream<Result<LearnerCommand, Status>>;

    async fn learn(
        &self,
        request: Request<Streaming<LearnerMessage>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        let (commands, outgoing) = mpsc::channel(16);
        self.peers
            .send(Peer {
                messages: request.into_inner(),
                commands,
            })
            .unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl Adapters for Service {
    type FetchStream = BoxStream<'static, Result<AdapterChunk, Status>>;

    async fn fetch(
        &self,
        _: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("learners fetch nothing"))
    }

    async fn publish(
        &self,
        request: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        let stored = |version: &PolicyVersion| {
            self.held
                .lock()
                .unwrap()
                .get(&version.digest)
                .map(|bytes| bytes.len() as u64)
        };
        let (version, held) = match self.inbox.receive(request.into_inner(), stored).await? {
            Publication::Held { version, held } => (version, held),
            Publication::Complete { version, bytes, .. } => {
                let held = bytes.len() as u64;
                self.held
                    .lock()
                    .unwrap()
                    .insert(version.digest.clone(), bytes);
                (version, held)
            }
        };
        Ok(Response::new(PublishReply {
            version: Some(version),
            held,
        }))
    }
}

/// A coordinator, a model on disk, a folder for checkpoints.
struct Stage {
    service: Service,
    peers: mpsc::UnboundedReceiver<Peer>,
    url: String,
    folder: tempfile::TempDir,
}

struct Running {
    task: JoinHandle<Result<(), LearnerError>>,
    shutdown: oneshot::Sender<()>,
}

impl Running {
    async fn end(&mut self) -> Result<(), LearnerError> {
        timeout(Duration::from_secs(30), &mut self.task)
            .await
            .unwrap()
            .unwrap()
    }
}

impl Stage {
    async fn new() -> Self {
        let (sender, peers) = mpsc::unbounded_channel();
        let service = Service {
            peers: sender,
            inbox: Arc::new(Inbox::default()),
            held: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(LearningServer::new(service.clone()))
            .add_service(AdaptersServer::new(service.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let folder = tempfile::tempdir().unwrap();
        testing::write_model(&folder.path().join("model"));
        Self {
            service,
            peers,
            url,
            folder,
        }
    }

    fn start(&self) -> Running {
        let client = ClientOptions {
            url: self.url.clone(),
            ..Default::default()
        };
        let options = LearnerOptions::new(client, "learner");
        let (shutdown, stop) = oneshot::channel::<()>();
        let task = tokio::spawn(run(options, async {
            let _ = stop.await;
        }));
        Running { task, shutdown }
    }

    async fn peer(&mut self) -> Peer {
        timeout(Duration::from_secs(30), self.peers.recv())
            .await
            .unwrap()
            .unwrap()
    }

    fn spec(&self) -> RunSpec {
        testing::run_spec(self.folder.path(), &testing::settings())
    }

    /// The batch that a worker would have sampled under this published version.
    fn batch(&self, version: &PolicyVersion) -> Batch {
        let decoder = testing::decoder();
        let bytes = self.service.held.lock().unwrap()[&version.digest].clone();
        let lora = &testing::settings().lora;
        let device = decoder.device();
        let adapter = Adapter::from_safetensors(&bytes, lora, decoder.config(), device).unwrap();
        testing::batch(&decoder, &adapter, version)
    }

    /// A learner from dialling to Ready on a new run.
    async fn fresh(&mut self) -> (Running, Peer, PolicyVersion) {
        let running = self.start();
        let mut peer = self.peer().await;
        peer.hello().await;
        peer.welcome(&self.spec(), None).await;
        let version = peer.ready().await.version.unwrap();
        (running, peer, version)
    }
}

#[tokio::test]
async fn a_learner_publishes_trains_and_ends_when_told() {
    let mut stage = Stage::new().await;
    let mut running = stage.start();
    let mut peer = stage.peer().await;
    let hello = peer.hello().await;
    assert_eq!(hello.learner_id, "learner");
    assert_eq!(hello.device.unwrap().device, "cpu");
    peer.welcome(&stage.spec(), None).await;
    let ready = peer.ready().await;
    let start = ready.version.unwrap();
    assert_eq!(
        (start.step, ready.last_result, ready.probe_logprobs.len()),
        (0, None, 3)
    );
    assert!(ready.device.unwrap().numerics.starts_with("cpu"));
    assert_eq!(
        ready.adapter_bytes,
        stage.service.held.lock().unwrap()[&start.digest].len() as u64
    );
    assert!(ready.trainable_parameters > 0 && ready.model_parameters > ready.trainable_parameters);

    peer.send(&stage.batch(&start)).await;
    let result = peer.result().await;
    let version = result.version.unwrap();
    assert_eq!(version.step, 1);
    assert!(
        stage
            .service
            .held
            .lock()
            .unwrap()
            .contains_key(&version.digest)
    );
    assert_ne!(result.probe_logprobs, ready.probe_logprobs);
    let metrics = result.metrics.unwrap();
    assert_eq!(metrics.logprob_diff_max, 0.0);
    assert!(metrics.seconds_publish > 0.0 && metrics.seconds_checkpoint > 0.0);

    peer.say(Command::Stop(LearnerStop {
        reason: "done".to_owned(),
    }))
    .await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_learner_that_dies_goes_on_from_its_checkpoint_to_the_same_bytes() {
    let mut straight = Vec::new();
    let mut resumed = Vec::new();
    for (cut, versions) in [(false, &mut straight), (true, &mut resumed)] {
        let mut stage = Stage::new().await;
        let (mut running, mut peer, mut version) = stage.fresh().await;
        for step in 0..3 {
            peer.send(&stage.batch(&version)).await;
            let result = peer.result().await;
            let before = std::mem::replace(&mut version, result.version.clone().unwrap());
            versions.push(version.clone());
            if cut && step == 1 {
                running.task.abort();
                running = stage.start();
                peer = stage.peer().await;
                peer.hello().await;
                // The result was lost on its way: the record ends with the version before.
                peer.welcome(&stage.spec(), Some(before)).await;
                let ready = peer.ready().await;
                assert_eq!(ready.version, Some(version.clone()));
                assert_eq!(ready.last_result.unwrap().version, Some(version.clone()));
                assert_eq!(ready.probe_logprobs, result.probe_logprobs);
            }
        }
        drop(running.shutdown);
        running.task.await.unwrap().unwrap();
    }
    assert_eq!(resumed, straight);
}

#[tokio::test]
async fn a_learner_comes_back_when_the_stream_breaks_and_keeps_its_state() {
    let mut stage = Stage::new().await;
    let (mut running, peer, start) = stage.fresh().await;
    // The connection ends right behind the batch; the step is made all the same.
    peer.send(&stage.batch(&start)).await;
    let Peer { messages, commands } = peer;
    drop(commands);
    let mut peer = stage.peer().await;
    peer.hello().await;
    drop(messages);
    // No model is loaded a second time: there is none any more.
    fs::remove_dir_all(stage.folder.path().join("model")).unwrap();
    peer.welcome(&stage.spec(), Some(start)).await;
    let ready = peer.ready().await;
    assert_eq!(ready.version.as_ref().unwrap().step, 1);
    assert_eq!(ready.last_result.unwrap().version, ready.version);
    drop(running.shutdown);
    timeout(Duration::from_secs(30), &mut running.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_batch_of_another_version_is_refused_and_the_next_one_taken() {
    let mut stage = Stage::new().await;
    let (mut running, mut peer, start) = stage.fresh().await;
    let good = stage.batch(&start);
    let other = PolicyVersion::new(0, [9; 32]);
    peer.send(&Batch {
        version: other,
        ..good.clone()
    })
    .await;
    match peer.hear().await {
        Message::BatchRefused(refused) => {
            assert_eq!(refused.step, 1);
            assert!(refused.error.contains("0:09090909"), "{}", refused.error);
        }
        other => panic!("{other:?}"),
    }
    peer.send(&good).await;
    assert_eq!(peer.result().await.version.unwrap().step, 1);
    running.shutdown.send(()).unwrap();
    timeout(Duration::from_secs(30), &mut running.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_run_that_is_further_than_any_checkpoint_is_not_begun_anew() {
    let mut stage = Stage::new().await;
    let mut running = stage.start();
    let mut peer = stage.peer().await;
    peer.hello().await;
    peer.welcome(&stage.spec(), Some(PolicyVersion::new(7, [1; 32])))
        .await;
    let told = peer.failed().await;
    drop(peer);
    let error = running.end().await.unwrap_err().to_string();
    assert_eq!(told, error);
    assert!(
        error.contains("7:01010101") && error.contains("checkpoints"),
        "{error}"
    );
}

#[tokio::test]
async fn a_model_that_cannot_be_had_is_told_to_the_coordinator() {
    let mut stage = Stage::new().await;
    let mut running = stage.start();
    let mut peer = stage.peer().await;
    peer.hello().await;
    fs::remove_file(stage.folder.path().join("model/config.json")).unwrap();
    peer.welcome(&stage.spec(), None).await;
    let told = peer.failed().await;
    assert!(told.contains("config.json"), "{told}");
    drop(peer);
    assert!(matches!(
        running.end().await,
        Err(LearnerError::Engine(EngineError::Model(_)))
    ));
}

#[tokio::test]
async fn without_a_coordinator_the_learner_gives_up_and_says_where_it_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = ClientOptions {
        url: url.clone(),
        ..Default::default()
    };
    let options = LearnerOptions {
        give_up_after: Duration::from_millis(300),
        ..LearnerOptions::new(client, "learner")
    };
    let ended = timeout(
        Duration::from_secs(20),
        run(options, std::future::pending()),
    )
    .await;
    let error = ended.unwrap().unwrap_err().to_string();
    assert!(
        error.contains(&url) && error.contains("no contact"),
        "{error}"
    );
}
