//! The scheduler under every order of faults that a seed can think of: workers that come late,
//! hang, die, reconnect, answer twice or under another version; a learner and a coordinator that
//! are killed and start again from what was written; messages that are lost with their stream.
//!
//! What must hold: the run ends with the very versions that a run without faults makes (every
//! group was trained on exactly once, in the fixed order); nothing is acknowledged before it is
//! in the journal; nobody samples under an adapter they don't hold; memory stays bounded.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tina_proto::v1;

use super::{
    Scheduler,
    types::{Command, Event, Plan, Purpose, Restored, RoundId, SampleId, Scored, Session, Version},
};

/// Milliseconds since the simulation's start.
type Time = u64;

const MODEL: &str = "model";

/// How hostile a world is: chances per message or per thousand ticks.
#[derive(Clone, Debug)]
struct World {
    workers: usize,
    plan: Plan,
    /// Chance that a message breaks its stream.
    breaks: f64,
    /// Chance that a sample fails, comes twice, or under another version.
    mischief: f64,
    /// Chance a tick that the learner, or the coordinator, is killed.
    kills: f64,
    checkpoint_every: u64,
    /// The learner's arithmetic gives other bits each time.
    nondeterministic: bool,
}

fn plan(rng: &mut ChaCha8Rng) -> Plan {
    Plan {
        steps: rng.random_range(2..6),
        groups_per_step: rng.random_range(1..9),
        samples_per_group: rng.random_range(1..9),
        eval_problems: rng.random_range(0..20),
        eval_before: true,
        eval_after: true,
        eval_every: rng.random_range(0..3),
        max_staleness: 0,
        worker_timeout: Duration::from_secs(5),
        learner_timeout: Duration::from_secs(5),
        sync_deadline: Duration::from_secs(3),
        start_timeout: Duration::from_secs(600),
        probe_tolerance: 0.1,
    }
}

impl World {
    fn of(seed: u64, rng: &mut ChaCha8Rng) -> Self {
        let calm = seed.is_multiple_of(4);
        let crowd = seed % 16 == 1;
        Self {
            workers: if crowd {
                rng.random_range(150..300)
            } else {
                rng.random_range(1..12)
            },
            plan: plan(rng),
            breaks: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            mischief: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            kills: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            checkpoint_every: rng.random_range(1..4),
            nondeterministic: seed % 8 == 7,
        }
    }
}

fn tokens_of(version: Version, id: SampleId) -> Vec<u32> {
    let hash = Sha256::new()
        .chain_update(version.digest)
        .chain_update(id.group.to_le_bytes())
        .chain_update(id.index.to_le_bytes())
        .finalize();
    vec![u32::from(hash[0]), u32::from(hash[1])]
}

fn train(version: Version, batch: &[Vec<u32>], nonce: u64) -> Version {
    let mut hash = Sha256::new();
    hash.update(version.digest);
    hash.update(nonce.to_le_bytes());
    for tokens in batch {
        tokens
            .iter()
            .for_each(|token| hash.update(token.to_le_bytes()));
    }
    Version {
        step: version.step + 1,
        digest: hash.finalize().into(),
    }
}

fn first_version() -> Version {
    Version {
        step: 0,
        digest: [7; 32],
    }
}

/// The versions of a run without any fault.
fn expected(plan: &Plan) -> Vec<Version> {
    let mut versions = vec![first_version()];
    for step in 1..=plan.steps {
        let version = versions[step as usize - 1];
        let round = RoundId::train(step);
        let batch: Vec<Vec<u32>> = (0..plan.groups_per_step)
            .flat_map(|g| (0..plan.samples_per_group).map(move |index| (g, index)))
            .map(|(g, index)| {
                tokens_of(
                    version,
                    SampleId {
                        group: round.group(g),
                        index,
                    },
                )
            })
            .collect();
        versions.push(train(version, &batch, 0));
    }
    versions
}

fn probe(version: Version) -> Vec<f32> {
    version.digest[..3]
        .iter()
        .map(|byte| -f32::from(*byte))
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Honest,
    OtherModel,
    OtherArithmetic,
}

struct SimWorker {
    kind: Kind,
    session: Option<Session>,
    process: u64,
    has_model: bool,
    wanted: Option<Version>,
    loaded: Option<Version>,
    decoding: BTreeSet<SampleId>,
    unacked: BTreeMap<SampleId, v1::Completion>,
}

struct SimLearner {
    session: Option<Session>,
    process: u64,
    training: bool,
    held: Version,
    checkpoint: Version,
}

enum Write {
    Start(Version, String),
    Completion(Arc<Scored>),
    Step(Version, Vec<Vec<Arc<Scored>>>),
    Eval(Version, usize),
    Rollback(Version),
}

#[derive(Default)]
struct Journal {
    versions: Vec<Version>,
    evals: Vec<u64>,
    completions: BTreeMap<SampleId, Arc<Scored>>,
    model: Option<String>,
}

enum Happening {
    Arrives(Session, Event),
    ToWorker(Session, Command),
    ToLearner(Session, Command),
    Scored(u64, Arc<Scored>),
    Commit(u64),
    WorkerDials(usize),
    LearnerDials,
    ModelLoaded(usize, u64),
    AdapterLoaded(usize, u64, Version),
    Decoded(usize, u64, SampleId, Version),
    Trained(u64, Version),
    Tick,
}

struct Simulation {
    world: World,
    rng: ChaCha8Rng,
    now: Time,
    order: u64,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    /// Streams open, and when the last message on them arrives (they keep order).
    streams: BTreeMap<Session, Time>,
    next_session: Session,
    process: u64,
    started: Time,
    scheduler: Scheduler,
    writes: Vec<Write>,
    journal: Journal,
    workers: Vec<SimWorker>,
    learner: SimLearner,
    spoiled: BTreeMap<SampleId, u32>,
    finished: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = World::of(seed, &mut rng);
        let workers = (0..world.workers)
            .map(|index| SimWorker {
                kind: match index {
                    0 => Kind::Honest,
                    _ if rng.random_bool(0.05) => Kind::OtherModel,
                    _ if rng.random_bool(0.05) => Kind::OtherArithmetic,
                    _ => Kind::Honest,
                },
                session: None,
                process: 0,
                has_model: false,
                wanted: None,
                loaded: None,
                decoding: BTreeSet::new(),
                unacked: BTreeMap::new(),
            })
            .collect();
        let scheduler = Scheduler::new(world.plan.clone(), Restored::default());
        let mut sim = Self {
            world,
            rng,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_session: 1,
            process: 0,
            started: 0,
            scheduler,
            writes: Vec::new(),
            journal: Journal::default(),
            workers,
            learner: SimLearner {
                session: None,
                process: 0,
                training: false,
                held: first_version(),
                checkpoint: first_version(),
            },
            spoiled: BTreeMap::new(),
            finished: false,
        };
        for index in 0..sim.workers.len() {
            let delay = sim.rng.random_range(0..3000);
            sim.later(delay, Happening::WorkerDials(index));
        }
        sim.later(100, Happening::LearnerDials);
        sim.later(100, Happening::Tick);
        sim
    }

    fn later(&mut self, delay: Time, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, time: Time, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((time, self.order)));
        self.happenings.insert(self.order, happening);
    }

    /// Sends on a stream, in order; sometimes the stream breaks instead.
    fn send(&mut self, session: Session, happening: Happening) {
        let delay = self.rng.random_range(1..20);
        let Some(last) = self.streams.get_mut(&session) else {
            return;
        };
        *last = (*last).max(self.now + delay);
        let time = *last;
        if self.rng.random_bool(self.world.breaks) {
            self.hang_up(session);
        } else {
            self.at(time, happening);
        }
    }

    fn report(&mut self, session: Session, event: Event) {
        self.send(session, Happening::Arrives(session, event));
    }

    /// A stream closes: both ends learn of it, what was on the way is lost.
    fn hang_up(&mut self, session: Session) {
        if self.streams.remove(&session).is_none() {
            return;
        }
        let reason = "closed".to_owned();
        let again = self.rng.random_range(50..800);
        if let Some(index) = self.workers.iter().position(|w| w.session == Some(session)) {
            self.workers[index].session = None;
            if self.rng.random_bool(0.3) {
                // the process died: it forgets everything
                let worker = &mut self.workers[index];
                worker.process += 1;
                worker.has_model = false;
                worker.loaded = None;
                worker.decoding.clear();
                worker.unacked.clear();
            }
            self.later(again, Happening::WorkerDials(index));
            // sometimes nobody notices until the deadline
            if self.rng.random_bool(0.7) {
                self.happen(Event::WorkerLost { session, reason });
            }
        } else if self.learner.session == Some(session) {
            self.learner.session = None;
            self.later(again, Happening::LearnerDials);
            self.happen(Event::LearnerLost { session, reason });
        }
    }

    /// Hands the scheduler an event and does what it says.
    fn happen(&mut self, event: Event) {
        let mut commands = Vec::new();
        let now = Duration::from_millis(self.now - self.started);
        self.scheduler.handle(now, event, &mut commands);
        let plan = &self.world.plan;
        let samples = plan.groups_per_step * plan.samples_per_group;
        let bound = 2 * samples.max(plan.eval_problems) as usize;
        assert!(
            self.scheduler.held() <= bound,
            "holds {} samples",
            self.scheduler.held()
        );
        for command in commands {
            self.obey(command);
        }
    }

    fn write(&mut self, write: Write) {
        if self.writes.is_empty() {
            let delay = self.rng.random_range(1..15);
            self.later(delay, Happening::Commit(self.process));
        }
        self.writes.push(write);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::LoadAdapter { session, .. }
            | Command::Sample { session, .. }
            | Command::Cancel { session, .. } => {
                self.send(session, Happening::ToWorker(session, command));
            }
            Command::Ack { session, sample } => {
                assert!(
                    self.journal.completions.contains_key(&sample),
                    "acknowledged too early"
                );
                self.send(session, Happening::ToWorker(session, command));
            }
            Command::CloseWorker { session, .. } | Command::CloseLearner { session, .. } => {
                self.hang_up(session);
            }
            Command::WelcomeLearner { session, .. }
            | Command::SendBatch { session, .. }
            | Command::ReplayBatch { session, .. } => {
                self.send(session, Happening::ToLearner(session, command));
            }
            Command::Score { worker, completion } => {
                let delay = self.rng.random_range(0..10);
                let scored = Arc::new(Scored {
                    completion,
                    worker,
                    text: String::new(),
                    reward: 1.0,
                    judged: true,
                    correct: true,
                    rewards: Vec::new(),
                });
                self.later(delay, Happening::Scored(self.process, scored));
            }
            Command::RecordStart {
                version,
                model_digest,
            } => {
                self.write(Write::Start(version, model_digest));
            }
            Command::Record(scored) => self.write(Write::Completion(scored)),
            Command::RecordStep(done) => self.write(Write::Step(done.version, done.groups)),
            Command::RecordEval(done) => {
                self.write(Write::Eval(done.version, done.completions.len()));
            }
            Command::Rollback { version } => {
                assert!(
                    self.world.nondeterministic,
                    "rolled back a deterministic run"
                );
                self.write(Write::Rollback(version));
            }
            Command::Warn(_) => {}
            Command::Finish { stopped_early } => {
                assert!(!stopped_early);
                self.commit();
                self.finished = true;
            }
            Command::Fail { reason } => panic!("the run failed: {reason}"),
        }
    }

    /// Makes the writes that wait durable; returns the completions among them.
    fn commit(&mut self) -> Vec<(SampleId, Version)> {
        let plan = self.world.plan.clone();
        let journal = &mut self.journal;
        let mut recorded = Vec::new();
        for write in self.writes.drain(..) {
            match write {
                Write::Start(version, model) => {
                    assert!(journal.versions.is_empty());
                    journal.versions.push(version);
                    journal.model = Some(model);
                }
                Write::Completion(scored) => {
                    let id = scored.id();
                    recorded.push((id, scored.version().unwrap()));
                    let before = journal.completions.insert(id, scored);
                    assert!(before.is_none(), "{id:?} was counted twice");
                }
                Write::Step(version, groups) => {
                    assert_eq!(version.step, journal.versions.len() as u64);
                    let round = RoundId::train(version.step);
                    assert_eq!(groups.len(), plan.groups_per_step as usize);
                    for (g, group) in groups.iter().enumerate() {
                        assert_eq!(group.len(), plan.samples_per_group as usize);
                        for (index, scored) in group.iter().enumerate() {
                            let (group, index) = (round.group(g as u32), index as u32);
                            let id = SampleId { group, index };
                            assert_eq!(scored.id(), id, "out of order");
                            assert_eq!(&journal.completions[&id], scored);
                        }
                    }
                    journal.versions.push(version);
                }
                Write::Eval(version, problems) => {
                    assert_eq!(problems, plan.eval_problems as usize);
                    assert!(!journal.evals.contains(&version.step), "evaluated twice");
                    journal.evals.push(version.step);
                }
                Write::Rollback(version) => {
                    journal.versions.truncate(version.step as usize);
                    journal.versions.push(version);
                    journal.evals.retain(|&step| step < version.step);
                    let keep = RoundId::train(version.step);
                    journal
                        .completions
                        .retain(|id, _| RoundId::of_group(id.group).0 <= keep);
                }
            }
        }
        recorded
    }

    fn restart_coordinator(&mut self) {
        self.process += 1;
        self.started = self.now;
        self.writes.clear();
        let done = self.journal.versions.len().saturating_sub(1) as u64;
        let open = |id: RoundId| match id.purpose() {
            Purpose::Train => id.step() > done,
            Purpose::Eval => !self.journal.evals.contains(&id.step()),
        };
        let restored = Restored {
            versions: self.journal.versions.clone(),
            evals: self.journal.evals.clone(),
            completions: self
                .journal
                .completions
                .values()
                .filter(|scored| open(RoundId::of_group(scored.completion.group_id).0))
                .cloned()
                .collect(),
            model_digest: self.journal.model.clone(),
        };
        self.scheduler = Scheduler::new(self.world.plan.clone(), restored);
        for session in self.streams.keys().copied().collect::<Vec<_>>() {
            self.hang_up(session);
        }
    }

    fn dial(&mut self) -> Session {
        let session = self.next_session;
        self.next_session += 1;
        self.streams.insert(session, self.now);
        session
    }

    fn worker_dials(&mut self, index: usize) {
        if self.workers[index].session.is_some() {
            return;
        }
        let session = self.dial();
        self.workers[index].session = Some(session);
        let device = v1::DeviceInfo {
            device: "cpu".into(),
            numerics: "cpu-sim".into(),
            ..Default::default()
        };
        let hello = v1::WorkerHello {
            worker_id: format!("w{index}"),
            device: Some(device),
            ..Default::default()
        };
        self.report(session, Event::WorkerHello { session, hello });
        if self.workers[index].has_model {
            self.worker_ready(index);
        } else {
            let delay = self.rng.random_range(10..2000);
            let process = self.workers[index].process;
            self.later(delay, Happening::ModelLoaded(index, process));
        }
    }

    fn worker_ready(&mut self, index: usize) {
        let Some(session) = self.workers[index].session else {
            return;
        };
        let slots = self.rng.random_range(1..9);
        let other = self.workers[index].kind == Kind::OtherModel;
        let model_digest = if other {
            "another".into()
        } else {
            MODEL.into()
        };
        let ready = v1::WorkerReady {
            model_digest,
            slots,
            ..Default::default()
        };
        self.report(session, Event::WorkerReady { session, ready });
        let unacked: Vec<_> = self.workers[index].unacked.values().cloned().collect();
        for completion in unacked {
            self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
    }

    fn worker_obeys(&mut self, index: usize, session: Session, command: Command) {
        let process = self.workers[index].process;
        match command {
            Command::LoadAdapter { version, .. } => {
                if self.rng.random_bool(self.world.mischief) {
                    return; // hangs: the deadline must help
                }
                if self.rng.random_bool(self.world.mischief) {
                    let loaded = v1::AdapterLoaded {
                        version: Some(version.to_wire()),
                        error: "no".into(),
                        ..Default::default()
                    };
                    return self.report(session, Event::AdapterLoaded { session, loaded });
                }
                self.workers[index].wanted = Some(version);
                let delay = self.rng.random_range(5..200);
                self.later(delay, Happening::AdapterLoaded(index, process, version));
            }
            Command::Sample {
                group,
                indices,
                version,
                ..
            } => {
                let worker = &self.workers[index];
                assert!(worker.kind == Kind::Honest, "a refused worker got work");
                assert_eq!(
                    worker.loaded,
                    Some(version),
                    "asked for an adapter it hasn't"
                );
                for index_in_group in indices {
                    let id = SampleId {
                        group,
                        index: index_in_group,
                    };
                    self.workers[index].decoding.insert(id);
                    let delay = self.rng.random_range(20..1500);
                    self.later(delay, Happening::Decoded(index, process, id, version));
                }
            }
            Command::Cancel { group, indices, .. } => {
                for index_in_group in indices {
                    let id = SampleId {
                        group,
                        index: index_in_group,
                    };
                    self.workers[index].decoding.remove(&id);
                    self.workers[index].unacked.remove(&id);
                }
            }
            Command::Ack { sample, .. } => {
                self.workers[index].unacked.remove(&sample);
            }
            _ => unreachable!(),
        }
    }

    fn decoded(&mut self, index: usize, id: SampleId, version: Version) {
        if !self.workers[index].decoding.remove(&id) {
            return;
        }
        let session = self.workers[index].session;
        let spoil =
            self.rng.random_bool(self.world.mischief) && *self.spoiled.get(&id).unwrap_or(&0) < 2;
        let mut completion = v1::Completion {
            group_id: id.group,
            sample_index: id.index,
            tokens: tokens_of(version, id),
            versions: vec![v1::VersionSpan {
                start: 0,
                version: Some(version.to_wire()),
            }],
            ..Default::default()
        };
        if spoil && let Some(session) = session {
            *self.spoiled.entry(id).or_default() += 1;
            if self.rng.random_bool(0.5) {
                let failed = v1::SampleFailed {
                    group_id: id.group,
                    sample_indices: vec![id.index],
                    error: "mischief".into(),
                };
                return self.report(session, Event::SampleFailed { session, failed });
            }
            let wrong = v1::PolicyVersion {
                step: 99,
                digest: vec![9; 32],
            };
            completion.versions[0].version = Some(wrong);
            return self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
        self.workers[index].unacked.insert(id, completion.clone());
        if let Some(session) = session {
            if self.rng.random_bool(self.world.mischief) {
                let completion = completion.clone();
                self.report(
                    session,
                    Event::Completion {
                        session,
                        completion,
                    },
                );
            }
            self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
    }

    fn learner_obeys(&mut self, session: Session, command: Command) {
        match command {
            Command::WelcomeLearner { resume, .. } => {
                if let Some(resume) = resume
                    && self.learner.checkpoint.step > resume.step + 1
                {
                    panic!("the journal fell behind the checkpoint");
                }
                let version = self.learner.held;
                let result = v1::StepResult {
                    version: Some(version.to_wire()),
                    probe_logprobs: probe(version),
                    ..Default::default()
                };
                let ready = v1::LearnerReady {
                    model_digest: MODEL.into(),
                    version: Some(version.to_wire()),
                    probe_logprobs: probe(version),
                    last_result: (version.step > 0).then_some(result),
                    ..Default::default()
                };
                self.report(
                    session,
                    Event::LearnerReady {
                        session,
                        ready: Box::new(ready),
                    },
                );
            }
            Command::SendBatch {
                version, groups, ..
            } => {
                let batch: Vec<Arc<Scored>> = groups.into_iter().flatten().collect();
                self.learn(version, &batch);
            }
            Command::ReplayBatch { version, .. } => {
                let round = RoundId::train(version.step + 1);
                let batch: Vec<Arc<Scored>> = self
                    .journal
                    .completions
                    .values()
                    .filter(|scored| RoundId::of_group(scored.completion.group_id).0 == round)
                    .cloned()
                    .collect();
                self.learn(version, &batch);
            }
            _ => unreachable!(),
        }
    }

    fn learn(&mut self, version: Version, batch: &[Arc<Scored>]) {
        let plan = &self.world.plan;
        assert_eq!(
            self.learner.held, version,
            "sent a batch for a version it hasn't"
        );
        assert_eq!(
            batch.len(),
            (plan.groups_per_step * plan.samples_per_group) as usize
        );
        for scored in batch {
            assert_eq!(
                scored.version(),
                Some(version),
                "a batch of another version"
            );
        }
        let tokens: Vec<Vec<u32>> = batch.iter().map(|s| s.completion.tokens.clone()).collect();
        let nonce = if self.world.nondeterministic {
            self.rng.random()
        } else {
            0
        };
        let next = train(version, &tokens, nonce);
        let delay = self.rng.random_range(50..1500);
        self.learner.training = true;
        self.later(delay, Happening::Trained(self.learner.process, next));
    }

    fn tick(&mut self) {
        self.later(100, Happening::Tick);
        self.happen(Event::Tick);
        for index in 0..self.workers.len() {
            if let Some(session) = self.workers[index].session {
                // beats are not drawn from the faults: hundreds a second would be all there is
                let heartbeat = v1::WorkerHeartbeat::default();
                self.happen(Event::WorkerHeartbeat { session, heartbeat });
            }
        }
        if let Some(session) = self.learner.session {
            let heartbeat = v1::LearnerHeartbeat::default();
            self.happen(Event::LearnerHeartbeat { session, heartbeat });
        }
        if self.finished {
            return;
        }
        if self.rng.random_bool(self.world.kills) {
            self.learner.process += 1;
            self.learner.training = false;
            self.learner.held = self.learner.checkpoint;
            if let Some(session) = self.learner.session {
                self.hang_up(session);
            }
        }
        if !self.finished && self.rng.random_bool(self.world.kills) {
            self.restart_coordinator();
        }
    }

    fn step(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives(session, event) => {
                if self.streams.contains_key(&session) {
                    self.happen(event);
                }
            }
            Happening::ToWorker(session, command) => {
                if let Some(index) = self.workers.iter().position(|w| w.session == Some(session)) {
                    self.worker_obeys(index, session, command);
                }
            }
            Happening::ToLearner(session, command) => {
                if self.learner.session == Some(session) {
                    self.learner_obeys(session, command);
                }
            }
            Happening::Scored(process, scored) => {
                if process == self.process {
                    self.happen(Event::Scored(scored));
                }
            }
            Happening::Commit(process) => {
                if process == self.process {
                    let recorded = self.commit();
                    self.happen(Event::Recorded(recorded));
                }
            }
            Happening::WorkerDials(index) => self.worker_dials(index),
            Happening::LearnerDials => {
                if self.learner.training && self.rng.random_bool(0.5) {
                    // it finishes its step before it dials again
                    self.later(100, Happening::LearnerDials);
                } else if self.learner.session.is_none() {
                    // what it was at is given up
                    self.learner.process += 1;
                    self.learner.training = false;
                    let session = self.dial();
                    self.learner.session = Some(session);
                    let device = v1::DeviceInfo {
                        numerics: "cpu-sim".into(),
                        ..Default::default()
                    };
                    let hello = v1::LearnerHello {
                        learner_id: "l".into(),
                        device: Some(device),
                        ..Default::default()
                    };
                    self.report(session, Event::LearnerHello { session, hello });
                }
            }
            Happening::ModelLoaded(index, process) => {
                if self.workers[index].process == process && !self.workers[index].has_model {
                    self.workers[index].has_model = true;
                    self.worker_ready(index);
                }
            }
            Happening::AdapterLoaded(index, process, version) => {
                let worker = &mut self.workers[index];
                if worker.process == process && worker.wanted == Some(version) {
                    worker.loaded = Some(version);
                    let mut probe_logprobs = probe(version);
                    if worker.kind == Kind::OtherArithmetic {
                        probe_logprobs[1] += 1e-3;
                    }
                    if let Some(session) = worker.session {
                        let version = Some(version.to_wire());
                        let loaded = v1::AdapterLoaded {
                            version,
                            probe_logprobs,
                            ..Default::default()
                        };
                        self.report(session, Event::AdapterLoaded { session, loaded });
                    }
                }
            }
            Happening::Decoded(index, process, id, version) => {
                if self.workers[index].process == process {
                    self.decoded(index, id, version);
                }
            }
            Happening::Trained(process, version) => {
                if self.learner.process == process && version.step == self.learner.held.step + 1 {
                    self.learner.held = version;
                    self.learner.training = false;
                    if version.step.is_multiple_of(self.world.checkpoint_every) {
                        self.learner.checkpoint = version;
                    }
                    if let Some(session) = self.learner.session {
                        let result = v1::StepResult {
                            version: Some(version.to_wire()),
                            probe_logprobs: probe(version),
                            ..Default::default()
                        };
                        self.report(
                            session,
                            Event::StepResult {
                                session,
                                result: Box::new(result),
                            },
                        );
                    }
                }
            }
            Happening::Tick => self.tick(),
        }
    }

    fn run(mut self) -> Self {
        while !self.finished {
            let Some(Reverse((time, order))) = self.queue.pop() else {
                break;
            };
            self.now = time;
            assert!(
                self.now < 3_600_000,
                "no progress: {:?}",
                self.scheduler.snapshot()
            );
            let Some(happening) = self.happenings.remove(&order) else {
                continue;
            };
            self.step(happening);
        }
        self
    }
}

#[test]
fn any_order_of_faults_ends_in_the_versions_of_a_run_without_faults() {
    for seed in 0..400 {
        let result = std::panic::catch_unwind(|| {
            let sim = Simulation::new(seed).run();
            let versions = &sim.journal.versions;
            assert_eq!(versions.len() as u64, sim.world.plan.steps + 1);
            if !sim.world.nondeterministic {
                assert_eq!(*versions, expected(&sim.world.plan));
            }
            if sim.world.plan.eval_problems > 0 {
                assert!(sim.journal.evals.contains(&0));
                assert!(sim.journal.evals.contains(&sim.world.plan.steps));
            }
        });
        if let Err(panic) = result {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
