//! A world for a whole cluster: its hosts, its network, its faults.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tina_coordinator::{CoordinatorOptions, RunEvent, RunSummary, config::RunConfig};
use tina_learner::LearnerOptions;
use tina_proto::{
    auth::{Role, role_token},
    client::ClientOptions,
    platform::{Connection, Simulated, World, simulate},
    v1::Phase,
};
use tina_rollout_worker::WorkerOptions;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::sleep,
};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};
use turmoil::{
    Sim,
    net::{TcpListener, TcpStream},
};

use super::{STEPS, support::Bench};

const COORDINATOR: &str = "coordinator";
const LEARNER: &str = "learner";
const WORKERS: [&str; 2] = ["worker-0", "worker-1"];
const PORT: u16 = 7461;
const SECRET: &str = "a-secret-of-the-simulation-that-is-long-enough";

/// Faults come until then, in virtual time; what they broke is whole again soon after.
const FAULTS_END: Duration = Duration::from_secs(120);
/// And by then the run must be done.
const DEADLINE: Duration = Duration::from_secs(900);

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Faults {
    None,
    Many,
}

/// One cluster's life.
pub(crate) struct Life {
    name: String,
    seed: u64,
    faults: Faults,
    max_staleness: u64,
}

impl Life {
    pub(crate) fn new(name: &str, seed: u64, faults: Faults) -> Self {
        Self {
            name: name.to_owned(),
            seed,
            faults,
            max_staleness: 0,
        }
    }

    /// Sampling may be so many versions ahead of the learner.
    pub(crate) fn ahead(self, max_staleness: u64) -> Self {
        Self {
            max_staleness,
            ..self
        }
    }

    fn config(&self, bench: &Bench) -> RunConfig {
        let text = std::fs::read_to_string(bench.path("run.toml")).unwrap();
        let token = bench.path("token");
        std::fs::write(&token, SECRET).unwrap();
        let sets = [
            format!("run.name={:?}", self.name),
            format!("run.dir={:?}", bench.path("runs")),
            format!("run.steps={STEPS}"),
            format!("algorithm.max_staleness={}", self.max_staleness),
            "algorithm.prompts_per_step=3".to_owned(),
            "algorithm.completions_per_prompt=4".to_owned(),
            "rollout.slots=4".to_owned(),
            format!("cluster.listen=\"0.0.0.0:{PORT}\""),
            format!("cluster.token_file={token:?}"),
            "cluster.insecure=true".to_owned(),
            "cluster.launch=false".to_owned(),
        ];
        RunConfig::parse(&text, "run.toml", &bench.path(""), &sets).unwrap()
    }
}

/// When (in µs of virtual time), and by which end of which connection.
type Sent = (u64, String);

/// All that was sent until the run was over. How many bytes isn't told: headers hold the wall clock's
/// date.
#[derive(Default)]
struct Recorder {
    sent: Vec<Sent>,
    over: bool,
}

/// What was done and what happened, with its virtual time.
#[derive(Clone, Default)]
pub(crate) struct Told {
    lines: Arc<Mutex<Vec<String>>>,
    recorder: Arc<Mutex<Recorder>>,
}

impl Told {
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.recorder.lock().unwrap().sent.clone()
    }

    /// Without the name of a folder that is another each time, and when the good-byes were through.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let same = |line: &&String| {
            !line.contains("opening the model") && !line.contains("the coordinator ends")
        };
        lines.iter().filter(same).cloned().collect()
    }

    /// Good-byes are not recorded: tonic's server closes its connections in no set order.
    fn follow(&self, phase: Phase) {
        if phase == Phase::Done {
            self.recorder.lock().unwrap().over = true;
        }
    }

    fn tell(&self, line: impl fmt::Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let mut lines = self.lines.lock().unwrap();
        lines.push(format!("{:>8.3} s  {line}", at.as_secs_f64()));
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.lock().unwrap().join("\n"))
    }
}

/// Virtual time, for logs.
pub(crate) struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        write!(out, "{:>8.3} s", at.as_secs_f64())
    }
}

/// Turmoil's network, and how long things take.
struct Turmoil {
    rng: Mutex<ChaCha8Rng>,
    slowest: Duration,
    process_id: u32,
    recorder: Arc<Mutex<Recorder>>,
}

impl Turmoil {
    fn connection(stream: TcpStream, recorder: Arc<Mutex<Recorder>>) -> Connection {
        Connection::new(Recorded { stream, recorder })
    }
}

impl World for Turmoil {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Connection>> {
        let (place, recorder) = ((host.to_owned(), port), self.recorder.clone());
        Box::pin(async move { Ok(Self::connection(TcpStream::connect(place).await?, recorder)) })
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Simulated>> {
        let recorder = self.recorder.clone();
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            let incoming = stream::unfold(listener, move |listener| {
                let recorder = recorder.clone();
                async move {
                    let accepted = listener.accept().await;
                    let accepted = accepted.map(|(stream, _)| Self::connection(stream, recorder));
                    Some((accepted, listener))
                }
            });
            let incoming = incoming.boxed();
            Ok(Simulated { address, incoming })
        })
    }

    fn duration(&self) -> Duration {
        let most = self.slowest.as_micros() as u64;
        Duration::from_micros(self.rng.lock().unwrap().random_range(0..=most))
    }

    fn process_id(&self) -> u32 {
        self.process_id
    }
}

/// A connection that is recorded.
struct Recorded {
    stream: TcpStream,
    recorder: Arc<Mutex<Recorder>>,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        let mut recorder = self.recorder.lock().unwrap();
        if written.is_ready() && !recorder.over {
            let at = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
            let end = (self.stream.local_addr(), self.stream.peer_addr());
            let end = format!("{:?} to {:?}", end.0.ok(), end.1.ok());
            recorder.sent.push((at, end));
        }
        drop(recorder);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn options(role: Role) -> ClientOptions {
    ClientOptions {
        url: format!("http://{COORDINATOR}:{PORT}"),
        token: Some(role_token(SECRET, role)),
        ..ClientOptions::default()
    }
}

/// Puts the roles on their hosts; the summary comes when the run is done.
fn settle(sim: &mut Sim<'_>, config: &RunConfig, told: &Told) -> Arc<Mutex<Option<RunSummary>>> {
    let done = Arc::new(Mutex::new(None));
    let (config, say, summary) = (config.clone(), told.clone(), done.clone());
    sim.host(COORDINATOR, move || {
        let journal: PathBuf = config.run_dir().join(tina_coordinator::JOURNAL_FILE);
        let options = CoordinatorOptions {
            config: config.clone(),
            resume: journal.exists(),
            overwrite: false,
            launch: false,
            exe: None,
        };
        let (say, summary) = (say.clone(), summary.clone());
        async move {
            say.tell("the coordinator starts");
            let (events, mut heard) = mpsc::unbounded_channel();
            let listener = say.clone();
            tokio::spawn(async move {
                while let Some(event) = heard.recv().await {
                    match event {
                        RunEvent::Step(record) => {
                            listener.tell(format_args!("step {} is done", record.step));
                        }
                        RunEvent::Note(note) => listener.tell(note),
                        RunEvent::Status(report) => listener.follow(report.phase()),
                        _ => {}
                    }
                }
            });
            let (_ask, asked) = watch::channel(0);
            let ended = tina_coordinator::run(options, events, asked).await;
            say.tell(format_args!("the coordinator ends: {}", ended.is_ok()));
            *summary.lock().unwrap() = Some(ended?);
            Ok(())
        }
    });
    let say = told.clone();
    sim.host(LEARNER, move || {
        let say = say.clone();
        async move {
            loop {
                say.tell("the learner starts");
                let learner = LearnerOptions::new(options(Role::Learner), LEARNER);
                match tina_learner::run(learner, std::future::pending()).await {
                    Ok(()) => return Ok(()),
                    Err(error) => say.tell(format_args!("the learner ends: {error}")),
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
    });
    for worker in WORKERS {
        let say = told.clone();
        sim.host(worker, move || {
            let say = say.clone();
            async move {
                loop {
                    say.tell(format_args!("{worker} starts"));
                    let options = WorkerOptions::new(options(Role::Worker), worker);
                    match tina_rollout_worker::run(options, std::future::pending()).await {
                        Ok(()) => return Ok(()),
                        Err(error) => say.tell(format_args!("{worker} ends: {error}")),
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }
    done
}

/// What is broken.
#[derive(Clone, Copy)]
enum Broken {
    /// A process ended, which its peers hear of.
    Dead(&'static str),
    /// A machine went dark without a word.
    Dark(&'static str),
    /// What is sent between the host and the coordinator is lost.
    CutOff(&'static str),
    /// It comes later.
    Held(&'static str),
}

/// The hosts that one talks with.
fn peers(host: &str) -> &'static [&'static str] {
    match host {
        COORDINATOR => &[LEARNER, WORKERS[0], WORKERS[1]],
        _ => &[COORDINATOR],
    }
}

impl Broken {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let hosts = [LEARNER, WORKERS[0], WORKERS[1], COORDINATOR];
        let any = hosts[rng.random_range(0..4)];
        let dials = hosts[rng.random_range(0..3)];
        match rng.random_range(0..6) {
            0..2 => Self::Dead(any),
            2 => Self::Dark(any),
            3..5 => Self::CutOff(dials),
            _ => Self::Held(dials),
        }
    }

    fn happen(self, sim: &mut Sim<'_>) -> String {
        match self {
            Self::Dead(host) => {
                // Tokio drops tasks in no set order, so neither are its last words: none of them draws
                // a delay.
                peers(host).iter().for_each(|&peer| sim.hold(host, peer));
                sim.crash(host);
                peers(host).iter().for_each(|&peer| sim.release(host, peer));
                format!("{host} dies")
            }
            Self::Dark(host) => {
                peers(host)
                    .iter()
                    .for_each(|&peer| sim.partition(host, peer));
                sim.crash(host);
                format!("{host} goes dark")
            }
            Self::CutOff(host) => {
                sim.partition(host, COORDINATOR);
                format!("{host} is cut off from the coordinator")
            }
            Self::Held(host) => {
                sim.hold(host, COORDINATOR);
                format!("messages of {host} are held up")
            }
        }
    }

    fn mend(self, sim: &mut Sim<'_>) -> String {
        match self {
            Self::Dead(host) | Self::Dark(host) => {
                peers(host).iter().for_each(|&peer| sim.repair(host, peer));
                sim.bounce(host);
                format!("{host} is started again")
            }
            Self::CutOff(host) => {
                sim.repair(host, COORDINATOR);
                format!("{host} reaches the coordinator again")
            }
            Self::Held(host) => {
                sim.release(host, COORDINATOR);
                format!("messages of {host} go on")
            }
        }
    }
}

/// Breaks and mends things as the seed says.
struct Fate {
    rng: ChaCha8Rng,
    next: Duration,
    broken: Option<Broken>,
}

impl Fate {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xfa7e);
        let next = Duration::from_millis(rng.random_range(100..2_500));
        Self {
            rng,
            next,
            broken: None,
        }
    }

    /// Returns what it did.
    fn strike(&mut self, sim: &mut Sim<'_>) -> Option<String> {
        let now = sim.elapsed();
        if now < self.next {
            return None;
        }
        // Mostly soon; sometimes so late that everyone has noticed.
        let wait = match self.rng.random_range(0..5) {
            0 => self.rng.random_range(3_000..45_000),
            _ => self.rng.random_range(20..2_500),
        };
        self.next = now + Duration::from_millis(wait);
        if let Some(broken) = self.broken.take() {
            return Some(broken.mend(sim));
        }
        if now > FAULTS_END {
            return None;
        }
        let broken = Broken::new(&mut self.rng);
        self.broken = Some(broken);
        Some(broken.happen(sim))
    }
}

/// Has a cluster live until its run is done.
pub(crate) fn live(bench: &Bench, life: &Life) -> Told {
    let mut rng = ChaCha8Rng::seed_from_u64(life.seed);
    let told = Told::default();
    let (latency, slowest) = (rng.random_range(2..150), rng.random_range(20..300));
    let _simulation = simulate(Arc::new(Turmoil {
        slowest: Duration::from_millis(slowest),
        // Waits between dials follow from it.
        process_id: rng.random(),
        recorder: told.recorder.clone(),
        rng: Mutex::new(rng),
    }));
    let mut sim = turmoil::Builder::new()
        .rng_seed(life.seed)
        .tick_duration(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(latency))
        .simulation_duration(DEADLINE * 2)
        .enable_random_order()
        .build();
    let config = life.config(bench);
    let done = settle(&mut sim, &config, &told);
    let mut fate = Fate::new(life.seed);
    while done.lock().unwrap().is_none() {
        if life.faults == Faults::Many
            && let Some(what) = fate.strike(&mut sim)
        {
            let at = sim.elapsed().as_secs_f64();
            let mut lines = told.lines.lock().unwrap();
            lines.push(format!("{at:>8.3} s  {what}"));
        }
        let stepped = sim.step();
        let again = || format!("seed {}: what happened:\n{told}", life.seed);
        stepped.unwrap_or_else(|error| panic!("{error}; {}", again()));
        assert!(sim.elapsed() < DEADLINE, "not done; {}", again());
    }
    let summary = done.lock().unwrap().take().unwrap();
    assert_eq!(summary.steps, STEPS, "{told}");
    told
}
