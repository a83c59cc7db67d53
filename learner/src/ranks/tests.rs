//! Ranks over loopback, against a trainer that is rank 0.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tina_proto::{
    adapters::Nccl,
    client::{ClientOptions, connect, ranks_client},
    v1::{
        DeviceInfo, GradientChunk, RankCommand, RankHello, RankMessage, RankReady, RunSpec,
        StepMetrics, rank_command::Command, rank_message::Message,
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::*;
use crate::{
    engine::Loaded,
    settings::{RankSettings, TrainSettings},
    share::{Crew, Job, News, Seat},
    step::Progress,
    testing,
    trainer::{TrainError, Trainer},
};

mod nccl;

/// Many passes, and everything that a pass can depend on.
fn settings() -> TrainSettings {
    let mut settings = testing::settings();
    settings.micro_batch_tokens = 9;
    settings.iterations = 2;
    settings.lora.dropout = 0.1;
    settings.loss.kl.beta = 0.02;
    settings
}

/// A run's folder with its model, and rank 0's door.
struct Stage {
    folder: tempfile::TempDir,
    spec: RunSpec,
    ranks: u32,
    loaded: Arc<Loaded>,
    door: Option<Door>,
}

const TOKEN: &str = "s3cret";

impl Stage {
    /// With room for `others` ranks beside rank 0.
    fn new(others: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        testing::write_model(&folder.path().join("model"));
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let spec = testing::run_spec(folder.path(), &settings());
        let loaded = Arc::new(Loaded::open(&spec, "cpu").unwrap());
        Self {
            folder,
            spec,
            ranks: others + 1,
            loaded,
            door: None,
        }
    }

    async fn open(&mut self, patience: Duration) -> HubCrew {
        self.open_with(patience, None).await
    }

    async fn open_with(&mut self, patience: Duration, nccl: Option<(Nccl, String)>) -> HubCrew {
        self.door = None;
        let shared = RankSettings {
            ranks: self.ranks,
            timeout: patience,
            nccl: nccl.is_some(),
        };
        let options = DoorOptions::default();
        let opened = Door::open(&options, Some(TOKEN), &self.spec, shared, nccl).await;
        let (door, mut crew) = opened.unwrap();
        self.door = Some(door);
        crew.identify(Identity {
            model_digest: self.loaded.model_digest.clone(),
            numerics: self.loaded.decoder.numerics(),
        });
        crew
    }

    fn address_file(&self) -> std::path::PathBuf {
        Path::new(&self.spec.run_dir).join(ADDRESS_FILE)
    }

    fn options(&self, name: &str) -> RankOptions {
        let client = ClientOptions {
            token: Some(TOKEN.to_owned()),
            ..ClientOptions::default()
        };
        RankOptions::new(Rank0::In(self.address_file()), client, name)
    }

    fn start(&self, name: &str) -> JoinHandle<Result<(), RankError>> {
        tokio::spawn(run(self.options(name), std::future::pending()))
    }

    fn trainer(&self) -> Trainer {
        Trainer::init(
            self.loaded.decoder.clone(),
            self.loaded.settings.train.clone(),
        )
        .unwrap()
    }

    /// A rank of the test's own: it says that it is ready, and what becomes of it is the test's.
    async fn by_hand(&self, name: &str, ready: RankReady) -> ByHand {
        let address = std::fs::read_to_string(self.address_file()).unwrap();
        let options = ClientOptions {
            url: address,
            token: Some(TOKEN.to_owned()),
            ..ClientOptions::default()
        };
        let channel = connect(&options).await.unwrap();
        let (messages, outgoing) = mpsc::channel(16);
        let hello = Message::Hello(RankHello {
            rank_id: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RankHello::default()
        });
        let mut rank = ByHand {
            messages,
            commands: None,
        };
        rank.say(hello).await;
        let mut client = ranks_client(channel, options.interceptor().unwrap());
        let joined = client.join(ReceiverStream::new(outgoing)).await;
        rank.commands = Some(joined.unwrap().into_inner());
        assert!(matches!(rank.hear().await, Ok(Command::Welcome(_))));
        rank.say(Message::Ready(ready)).await;
        rank
    }

    fn alike(&self) -> RankReady {
        RankReady {
            model_digest: self.loaded.model_digest.clone(),
            device: Some(DeviceInfo {
                numerics: self.loaded.decoder.numerics(),
                ..DeviceInfo::default()
            }),
            nccl: false,
        }
    }
}

struct ByHand {
    messages: mpsc::Sender<RankMessage>,
    commands: Option<Streaming<RankCommand>>,
}

impl ByHand {
    async fn say(&self, message: Message) {
        let message = RankMessage {
            message: Some(message),
        };
        self.messages.send(message).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Command, tonic::Status> {
        let commands = self.commands.as_mut().unwrap();
        let next = timeout(Duration::from_secs(20), commands.message()).await;
        let command = next.expect("a command in time")?;
        let command = command.ok_or_else(|| tonic::Status::cancelled("the stream ended"))?;
        Ok(command.command.unwrap())
    }
}

type Deed = Box<dyn FnOnce() + Send>;

/// Hears what is given out, and lets things happen right after.
#[derive(Clone, Default)]
struct Watch {
    given: Arc<Mutex<Vec<(Seat, usize)>>>,
    then: Arc<Mutex<BTreeMap<usize, Deed>>>,
}

impl Watch {
    /// After the `count`th job that is given out.
    fn after(&self, count: usize, then: impl FnOnce() + Send + 'static) {
        self.then.lock().unwrap().insert(count, Box::new(then));
    }

    /// Passes given to others.
    fn passes(&self) -> usize {
        self.given
            .lock()
            .unwrap()
            .iter()
            .map(|(_, passes)| passes)
            .sum()
    }
}

struct Watched {
    crew: HubCrew,
    watch: Watch,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.crew.fmt(out)
    }
}

impl Crew for Watched {
    fn seats(&mut self) -> Vec<Seat> {
        self.crew.seats()
    }

    fn give(&mut self, seat: Seat, job: &Job<'_>) {
        self.crew.give(seat, job);
        let passes = job.nodes.iter().map(|node| node.passes().len()).sum();
        let count = {
            let mut given = self.watch.given.lock().unwrap();
            given.push((seat, passes));
            given.len()
        };
        let then = self.watch.then.lock().unwrap().remove(&count);
        if let Some(then) = then {
            then();
        }
    }

    fn hear(&mut self, wait: Duration) -> Option<News> {
        self.crew.hear(wait)
    }

    fn dismiss(&mut self, seat: Seat, why: &str) {
        self.crew.dismiss(seat, why);
    }

    fn patience(&self) -> Duration {
        self.crew.patience()
    }
}

/// An adapter and metrics a step, those of time and memory left out.
type Made = Vec<(Arc<[u8]>, StepMetrics)>;

const STEPS: usize = 4;
/// The step whose gradient is not finite: the version after it has the same adapter.
const SKIPPED: usize = 1;

/// Steps on batches that the trainer's own adapter would have sampled. Blocking.
fn train(mut trainer: Trainer, mut crew: Option<&mut dyn Crew>) -> Made {
    let decoder = testing::decoder();
    let mut made = Vec::new();
    for step in 0..STEPS {
        let mut batch = testing::batch(&decoder, trainer.adapter(), trainer.version());
        if step == SKIPPED {
            // A ratio beyond f32.
            batch.groups[0].samples[0].logprobs.fill(-1e30);
            batch.groups[0].samples[0].reward = Some(-9.0);
        }
        let crew = match &mut crew {
            Some(crew) => {
                let crew: &mut dyn Crew = &mut **crew;
                Some(crew)
            }
            None => None,
        };
        let progress = Progress::default();
        let result = trainer.step_with(&batch, &progress, crew).unwrap();
        let (done, total) = progress.done_of_total();
        let skipped = result
            .metrics
            .as_ref()
            .is_some_and(|metrics| metrics.skipped);
        assert_eq!(skipped, step == SKIPPED);
        assert!(done == total || skipped, "what was lost is counted once");
        let metrics = StepMetrics {
            seconds_forward: 0.0,
            seconds_backward: 0.0,
            seconds_optimizer: 0.0,
            seconds_total: 0.0,
            peak_rss_bytes: 0,
            ..result.metrics.unwrap()
        };
        made.push((trainer.adapter_bytes(), metrics));
    }
    made
}

/// The same with the ranks that are there.
async fn train_with(stage: &Stage, crew: HubCrew, watch: &Watch) -> Made {
    let (trainer, watch) = (stage.trainer(), watch.clone());
    let all = spawn_blocking(move || train(trainer, Some(&mut Watched { crew, watch })));
    timeout(Duration::from_secs(60), all)
        .await
        .unwrap()
        .unwrap()
}

/// Until so many ranks can be given work.
async fn ready(crew: &mut HubCrew, count: usize) {
    let all = async {
        while crew.seats().len() < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), all)
        .await
        .expect("ranks in time");
}

fn patience() -> Duration {
    Duration::from_secs(20)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_two_and_three_ranks_make_the_same_adapters_and_metrics() {
    let stage = Stage::new(0);
    let alone = train(stage.trainer(), None);
    assert!(alone[2].1.kl > 0.0 && alone[2].1.tokens_trained > 0);
    assert_eq!(alone[0].0, alone[SKIPPED].0);
    assert_ne!(alone[0].0, alone[2].0);
    for others in [1, 2] {
        let mut stage = Stage::new(others);
        let mut crew = stage.open(patience()).await;
        let ranks: Vec<_> = (0..others).map(|i| stage.start(&format!("r{i}"))).collect();
        ready(&mut crew, others as usize).await;
        let watch = Watch::default();
        assert_eq!(
            train_with(&stage, crew, &watch).await,
            alone,
            "{others} others"
        );
        let seats: std::collections::BTreeSet<Seat> = watch
            .given
            .lock()
            .unwrap()
            .iter()
            .map(|(seat, _)| *seat)
            .collect();
        assert_eq!(
            seats.len(),
            others as usize,
            "all took part, and none was lost"
        );
        assert!(watch.passes() > STEPS, "{}", watch.passes());
        stage.door.take().unwrap().close("done").await;
        for rank in ranks {
            timeout(Duration::from_secs(20), rank)
                .await
                .unwrap()
                .unwrap()
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_dies_in_the_middle_of_a_step_changes_no_byte_and_is_welcome_back() {
    let mut stage = Stage::new(2);
    let alone = train(stage.trainer(), None);
    let mut crew = stage.open(patience()).await;
    let (dies, lives) = (stage.start("dies"), stage.start("lives"));
    ready(&mut crew, 2).await;
    let watch = Watch::default();
    // Jobs 3 and 4 are those of the first step's second iteration.
    let (options, handle) = (stage.options("dies"), tokio::runtime::Handle::current());
    watch.after(3, move || {
        dies.abort();
        handle.spawn(async {
            sleep(Duration::from_millis(20)).await;
            run(options, std::future::pending()).await
        });
    });
    assert_eq!(train_with(&stage, crew, &watch).await, alone);
    let back = async {
        while stage.door.as_ref().unwrap().count() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), back)
        .await
        .expect("it is back");
    lives.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_never_answers_or_answers_nonsense_costs_time_only() {
    let mut stage = Stage::new(1);
    let alone = train(stage.trainer(), None);

    let mut crew = stage.open(Duration::from_millis(100)).await;
    let mut mute = stage.by_hand("mute", stage.alike()).await;
    ready(&mut crew, 1).await;
    let watch = Watch::default();
    assert_eq!(train_with(&stage, crew, &watch).await, alone);
    assert_eq!(
        watch.given.lock().unwrap().len(),
        1,
        "it is given nothing more"
    );
    let end = loop {
        match mute.hear().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(end.message().contains("late"), "{end}");

    let mut crew = stage.open(patience()).await;
    let mut liar = stage.by_hand("liar", stage.alike()).await;
    ready(&mut crew, 1).await;
    let lies = tokio::spawn(async move {
        let Ok(Command::Job(job)) = liar.hear().await else {
            panic!("a job comes first");
        };
        liar.say(Message::Gradient(GradientChunk {
            job: job.job,
            node: job.nodes.first().copied(),
            data: vec![0; 64 << 10],
        }))
        .await;
        while liar.hear().await.is_ok() {}
    });
    assert_eq!(train_with(&stage, crew, &Watch::default()).await, alone);
    timeout(Duration::from_secs(20), lies)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_called_off_while_it_waits_ends_and_changes_nothing() {
    let mut stage = Stage::new(1);
    let mut crew = stage.open(patience()).await;
    let _mute = stage.by_hand("mute", stage.alike()).await;
    ready(&mut crew, 1).await;
    let mut trainer = stage.trainer();
    let progress = Arc::new(Progress::default());
    let step = {
        let progress = progress.clone();
        spawn_blocking(move || {
            let batch = testing::batch(&testing::decoder(), trainer.adapter(), trainer.version());
            let outcome = trainer.step_with(&batch, &progress, Some(&mut crew));
            (outcome, trainer.version().step)
        })
    };
    sleep(Duration::from_millis(200)).await;
    assert!(!step.is_finished(), "it waits for the other rank");
    progress.cancel();
    let (outcome, version) = timeout(Duration::from_secs(5), step)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(outcome, Err(TrainError::Cancelled)));
    assert_eq!((version, stage.door.as_ref().unwrap().count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_of_another_model_arithmetic_or_without_the_token_is_refused() {
    let mut stage = Stage::new(3);
    let mut crew = stage.open(patience()).await;
    let model = RankReady {
        model_digest: "another".to_owned(),
        ..stage.alike()
    };
    let numerics = RankReady {
        device: Some(DeviceInfo {
            numerics: "cuda-bf16-composed".to_owned(),
            ..DeviceInfo::default()
        }),
        ..stage.alike()
    };
    for (ready, told) in [(model, "another"), (numerics, "last bits")] {
        let mut rank = stage.by_hand("other", ready).await;
        let refused = async {
            loop {
                assert!(crew.seats().is_empty());
                if stage.door.as_ref().unwrap().count() == 0 {
                    return rank.hear().await.unwrap_err();
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let status = timeout(Duration::from_secs(20), refused).await.unwrap();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(told), "{status}");
    }
    let mut options = stage.options("stranger");
    options.client.token = Some("guessed".to_owned());
    let outcome = timeout(
        Duration::from_secs(20),
        run(options, std::future::pending()),
    )
    .await;
    let error = outcome.unwrap().unwrap_err();
    assert!(matches!(error, RankError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("token"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_finds_the_next_rank_0_and_one_too_many_waits_for_a_seat() {
    let mut stage = Stage::new(1);
    let mut crew = stage.open(patience()).await;
    let rank = stage.start("first");
    ready(&mut crew, 1).await;
    // Another learner of the run, at another port.
    let before = stage.door.as_ref().unwrap().address();
    let mut crew = stage.open(patience()).await;
    assert_ne!(stage.door.as_ref().unwrap().address(), before);
    ready(&mut crew, 1).await;

    let second = stage.start("second");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(stage.door.as_ref().unwrap().count(), 1);
    assert!(!second.is_finished(), "it asks again");
    let first = crew.seats();
    rank.abort();
    let changed = async {
        while crew.seats().is_empty() || crew.seats() == first {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), changed)
        .await
        .expect("a free seat is taken");
    stage.door.take().unwrap().close("done").await;
    timeout(Duration::from_secs(20), second)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(!stage.address_file().exists(), "no address of nobody");
    assert!(stage.folder.path().exists());
}
