//! The task that owns the scheduler: it feeds it events and the time, and does what it says.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tina_model::Tokenizer;
use tina_proto::v1::{
    self, LearnerCommand, RunStatus, WorkerCommand, learner_command, worker_command,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    CoordinatorError, RunEvent, RunSummary,
    adapters::Shelf,
    broadcast::Broadcasts,
    folder::Folder,
    given::GivenAdapter,
    obey::{stop_learner, stop_worker},
    prompts::Prompts,
    worker_id,
};
use crate::{
    config::RunConfig,
    journal::{Counters, Journal, Write},
    relays::Relays,
    scheduler::{
        Scheduler,
        types::{Event, RoundId, Scored, Session, Version},
    },
    scoring::Scorer,
    services::{Inbound, Outbox, Shared},
    status::{History, accuracy_of},
    supervise::GaveUp,
};

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(100);
/// Between two reports while nothing changes.
const REPORT: Duration = Duration::from_millis(250);
/// Between two times that the counters go to the journal while nothing is recorded.
const COUNT: Duration = Duration::from_secs(10);
/// Messages taken at a time before commands go out.
const BURST: usize = 256;

/// What the shell's own helpers tell it.
#[derive(Debug)]
pub(super) enum Note {
    /// Completions have their verdicts.
    Scored(Vec<Scored>),
    /// Completions are in the journal; the time it took.
    Recorded(Vec<Arc<Scored>>, Duration),
    /// A batch out of the journal.
    Replay(Session, Version, Vec<Arc<Scored>>),
    /// The run can't go on.
    Failed(String),
}

impl Note {
    fn failure(self) -> Option<String> {
        match self {
            Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}

/// How the loop ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Finished { stopped_early: bool },
    Failed(String),
    Interrupted,
}

impl Outcome {
    /// As roles are told.
    fn reason(&self) -> String {
        match self {
            Self::Finished {
                stopped_early: false,
            } => "the run is done".to_owned(),
            Self::Failed(reason) => format!("the run failed: {reason}"),
            _ => "the run was stopped".to_owned(),
        }
    }
}

pub(super) struct Parts {
    pub(super) config: Arc<RunConfig>,
    pub(super) scheduler: Scheduler,
    pub(super) started: Instant,
    pub(super) base: Counters,
    pub(super) journal: Journal,
    pub(super) scorer: Scorer,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) prompts: Prompts,
    /// `None`: nothing is trained, so there is nothing to keep.
    pub(super) shelf: Option<Shelf>,
    /// Adapters to evaluate, where nothing is trained.
    pub(super) given: Vec<GivenAdapter>,
    pub(super) shared: Arc<Shared>,
    pub(super) history: History,
    pub(super) status: watch::Sender<Arc<RunStatus>>,
    pub(super) events: mpsc::UnboundedSender<RunEvent>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

pub(super) struct Shell {
    pub(super) parts: Parts,
    pub(super) workers: BTreeMap<Session, Outbox<WorkerCommand>>,
    /// Slots that each worker was welcomed with: it gets no more, whatever it offers.
    slots: HashMap<Session, u32>,
    /// The learner's, and for a moment that of one that takes its place or is turned away.
    pub(super) learners: BTreeMap<Session, Outbox<LearnerCommand>>,
    /// Waiting to be scored, all in one go.
    pub(super) unscored: Vec<(Arc<str>, v1::Completion)>,
    pub(super) outcome: Option<Outcome>,
    /// The coordinator's own work in this process: here, and (in nanoseconds) in helpers.
    busy: Duration,
    pub(super) busy_elsewhere: Arc<AtomicU64>,
    pub(super) tokens_trained: u64,
    /// Tokens of the rounds recorded since the start.
    pub(super) tokens_sampled: u64,
    /// As of the last step's record, or the start.
    pub(super) at_last_step: Counters,
    pub(super) saved: Option<Version>,
    /// The version whose adapter the store may not drop.
    pinned: Option<Version>,
    pub(super) broadcasts: Broadcasts,
    pub(super) relays: Relays,
    reported: (Instant, i32, u64),
    /// When the counters were last sent to the journal.
    counted: Instant,
}

impl Shell {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            workers: BTreeMap::new(),
            slots: HashMap::new(),
            learners: BTreeMap::new(),
            unscored: Vec::new(),
            outcome: None,
            busy: Duration::ZERO,
            busy_elsewhere: Arc::default(),
            tokens_trained: 0,
            tokens_sampled: 0,
            at_last_step: parts.base,
            saved: None,
            pinned: None,
            broadcasts: Broadcasts::default(),
            relays: Relays::new(parts.shared.spec.adapter_fan_out),
            reported: (parts.started, -1, 0),
            counted: parts.started,
            parts,
        }
    }

    /// Goes until the run is over.
    pub(super) async fn run(
        &mut self,
        arrivals: &mut mpsc::Receiver<Inbound>,
        notes: &mut mpsc::UnboundedReceiver<Note>,
        mut deaths: mpsc::UnboundedReceiver<GaveUp>,
        mut shutdown: watch::Receiver<u32>,
    ) -> Outcome {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = true;
        let mut asked = 0;
        while self.outcome.is_none() {
            // In order, so that a run replays; what is rare comes first, so that nothing starves.
            tokio::select! {
                biased;
                changed = shutdown.changed(), if watched => {
                    watched = changed.is_ok();
                    let count = *shutdown.borrow_and_update();
                    if count >= 2 {
                        self.outcome = Some(Outcome::Interrupted);
                    } else if count > asked {
                        asked = count;
                        self.handle(Event::Stop);
                    }
                }
                Some(GaveUp(reason)) = deaths.recv() => self.fail(reason),
                _ = tick.tick() => {
                    let began = Instant::now();
                    self.handle(Event::Tick);
                    self.busy += began.elapsed();
                    // However long that took, the others have their turn first.
                    tick.reset();
                }
                Some(note) = notes.recv() => {
                    let began = Instant::now();
                    self.hear(note);
                    self.busy += began.elapsed();
                }
                Some(inbound) = arrivals.recv() => {
                    let began = Instant::now();
                    self.arrive(inbound);
                    for _ in 0..BURST {
                        let Ok(inbound) = arrivals.try_recv() else { break };
                        self.arrive(inbound);
                    }
                    self.busy += began.elapsed();
                }
            }
            let began = Instant::now();
            self.score();
            self.save_adapter();
            self.report(false);
            self.busy += began.elapsed();
        }
        self.outcome.take().unwrap_or(Outcome::Interrupted)
    }

    fn arrive(&mut self, inbound: Inbound) {
        self.broadcasts.note(&inbound);
        let notes = self.relays.note(&inbound);
        notes.into_iter().for_each(|note| self.warn(note));
        match inbound {
            Inbound::Worker {
                session,
                hello,
                outbox,
            } => {
                let slots = self.slots_of(&hello.worker_id);
                let max_slots = self.parts.config.rollout.max_slots.unwrap_or(4 * slots);
                let max_slots = max_slots.max(slots);
                self.slots.insert(session, max_slots);
                let welcome = v1::WorkerWelcome {
                    spec: Some(self.parts.shared.spec.clone()),
                    slots,
                    heartbeat_ms: self.parts.shared.heartbeat_ms,
                    max_slots,
                    kv_memory_mb: self.parts.config.rollout.kv_memory_mb.unwrap_or(0),
                };
                self.workers.insert(session, outbox);
                self.handle(Event::WorkerHello { session, hello });
                let gone = self.command(session, worker_command::Command::Welcome(welcome));
                gone.into_iter().for_each(|event| self.handle(event));
            }
            Inbound::Learner {
                session,
                hello,
                outbox,
            } => {
                self.learners.insert(session, outbox);
                self.handle(Event::LearnerHello { session, hello });
            }
            Inbound::Malformed { session, failed } => {
                let (group_id, sample_indices) = (failed.group_id, failed.sample_indices.clone());
                self.warn(failed.error.clone());
                let cancel = v1::Cancel {
                    group_id,
                    sample_indices,
                };
                let gone = self.command(session, worker_command::Command::Cancel(cancel));
                self.handle(Event::SampleFailed { session, failed });
                gone.into_iter().for_each(|event| self.handle(event));
            }
            Inbound::Event(mut event) => {
                match &mut event {
                    Event::WorkerReady { session, ready } => {
                        let most = self.slots.get(session).copied();
                        ready.slots = ready.slots.min(most.unwrap_or_default());
                    }
                    Event::WorkerHeartbeat { session, heartbeat } => {
                        let most = self.slots.get(session).copied();
                        heartbeat.slots = heartbeat.slots.min(most.unwrap_or_default());
                    }
                    Event::WorkerLost { session, .. } => {
                        self.slots.remove(session);
                        drop(self.workers.remove(session));
                    }
                    Event::LearnerLost { session, .. } => drop(self.learners.remove(session)),
                    _ => {}
                }
                self.handle(event);
            }
        }
    }

    fn slots_of(&self, worker: &str) -> u32 {
        let rollout = &self.parts.config.rollout;
        let launched = rollout.workers.iter().enumerate();
        let launched = launched.filter(|(index, _)| worker_id(*index) == worker);
        let own = launched.filter_map(|(_, worker)| worker.slots).next();
        own.unwrap_or(rollout.slots)
    }

    fn hear(&mut self, note: Note) {
        match note {
            Note::Scored(all) => {
                all.into_iter()
                    .for_each(|scored| self.handle(Event::Scored(Arc::new(scored))));
            }
            Note::Recorded(samples, took) => {
                self.spent(took);
                if !samples.is_empty() {
                    self.handle(Event::Recorded(samples));
                }
            }
            Note::Replay(session, version, batch) => {
                let groups = self.finish(self.trained_on(batch));
                self.send_batch(session, version, &groups)
                    .into_iter()
                    .for_each(|event| self.handle(event));
            }
            Note::Failed(reason) => self.fail(reason),
        }
    }

    /// The groups that a step was trained on, of all that were sampled for it: where one gave way to
    /// another, the last.
    fn trained_on(&self, sampled: Vec<Arc<Scored>>) -> Vec<Vec<Arc<Scored>>> {
        let places = self.parts.config.algorithm.prompts_per_step;
        let mut groups: BTreeMap<u32, (u64, Vec<Arc<Scored>>)> = BTreeMap::new();
        for scored in sampled {
            let group = scored.completion.group_id;
            let place = RoundId::of_group(group).1 % places.max(1);
            let (newest, completions) = groups.entry(place).or_default();
            if group > *newest {
                *newest = group;
                completions.clear();
            }
            completions.push(scored);
        }
        groups.into_values().map(|(_, group)| group).collect()
    }

    fn spent(&self, time: Duration) {
        self.busy_elsewhere
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn fail(&mut self, reason: String) {
        let mut commands = Vec::new();
        self.parts.scheduler.fail(reason, &mut commands);
        let mut follow = VecDeque::new();
        commands
            .into_iter()
            .for_each(|command| self.obey(command, &mut follow));
    }

    /// Hands the scheduler an event, does what it says, and hands it what follows from that.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut commands = Vec::new();
        while let Some(event) = events.pop_front() {
            self.parts
                .scheduler
                .handle(self.parts.started.elapsed(), event, &mut commands);
            if let Some((session, order)) = self.broadcasts.plan(&commands) {
                let order = learner_command::Command::Broadcast(order);
                events.extend(self.tell_learner(session, [order]));
            }
            let broadcasts = &self.broadcasts;
            self.relays.plan(&commands, |session, version| {
                broadcasts.has_place(session, version)
            });
            let policy = self.parts.scheduler.policy();
            if self.pinned != policy
                && let Some(version) = policy
            {
                self.offer_given(version);
                self.parts.shared.adapters.pin(version);
                self.pinned = policy;
            }
            for command in commands.drain(..) {
                self.obey(command, &mut events);
            }
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let (base, scheduler) = (&self.parts.base, &self.parts.scheduler);
        let (learner_wait, rollout_wait) = scheduler.waits();
        let elsewhere = Duration::from_nanos(self.busy_elsewhere.load(Ordering::Relaxed));
        Counters {
            elapsed: base.elapsed + self.parts.started.elapsed(),
            learner_wait: base.learner_wait + learner_wait,
            rollout_wait: base.rollout_wait + rollout_wait,
            coordinator: base.coordinator + self.busy + elsewhere,
            tokens_sampled: base.tokens_sampled + self.tokens_sampled,
            tokens_trained: base.tokens_trained + self.tokens_trained,
        }
    }

    pub(super) fn cost(&self, counters: &Counters) -> f64 {
        self.parts.config.cost.usd_per_hour * counters.elapsed.as_secs_f64() / 3600.0
    }

    /// Tells everybody how the run stands, when something changed or it is time.
    fn report(&mut self, now: bool) {
        let scheduler = &self.parts.scheduler;
        let (phase, step) = (scheduler.phase().into(), scheduler.steps_done());
        let (last, last_phase, last_step) = self.reported;
        if !now && (phase, step) == (last_phase, last_step) && last.elapsed() < REPORT {
            return;
        }
        self.reported = (Instant::now(), phase, step);
        let mut counters = self.counters();
        if self.counted.elapsed() > COUNT {
            // A run that is killed keeps what it cost.
            self.counted = Instant::now();
            self.parts.journal.write(Write::Counters(counters));
        }
        let scheduler = &self.parts.scheduler;
        let (closed, open) = scheduler.tokens_sampled();
        counters.tokens_sampled += (closed + open).saturating_sub(self.tokens_sampled);
        let spec = &self.parts.shared.spec;
        let run = (&*spec.run_id, &*spec.run_dir, self.parts.config.run.steps);
        let cost = self.cost(&counters);
        let report = Arc::new(self.parts.history.report(
            scheduler.snapshot(),
            &counters,
            run,
            cost,
        ));
        let _ = self.parts.status.send_replace(report.clone());
        self.tell(RunEvent::Status(report));
    }

    /// Makes everything durable, says good-bye to all, and sums up.
    pub(super) async fn end(
        mut self,
        mut outcome: Outcome,
        folder: &Folder,
        notes: &mut mpsc::UnboundedReceiver<Note>,
    ) -> Result<RunSummary, CoordinatorError> {
        self.save_adapter();
        self.report(true);
        let (workers, learners) = (take(&mut self.workers), take(&mut self.learners));
        let good_byes = |outcome: &Outcome| {
            let reason = outcome.reason();
            for outbox in workers.into_values() {
                outbox.finish(stop_worker(reason.clone()));
            }
            for outbox in learners.into_values() {
                outbox.finish(stop_learner(reason.clone()));
            }
        };
        let counters = self.counters();
        let steps = self.parts.scheduler.steps_done();
        let cost_usd = self.cost(&counters);
        let Parts {
            journal,
            shelf,
            history,
            ..
        } = self.parts;
        journal.write(Write::Counters(counters));
        let durable = async {
            let flushed = journal.flush().await;
            if let Some(shelf) = shelf {
                shelf.close().await;
            }
            flushed
        };
        let flushed = if matches!(outcome, Outcome::Interrupted) {
            // At once; who goes on with the run starts it anew.
            good_byes(&outcome);
            durable.await
        } else {
            // Not before all is durable: whoever is told that the run is over won't come back, and if this
            // process died without what was last recorded, it would want them again.
            let flushed = durable.await;
            let failures = std::iter::from_fn(|| notes.try_recv().ok());
            if let Some(why) = failures.filter_map(Note::failure).next()
                && matches!(outcome, Outcome::Finished { .. })
            {
                outcome = Outcome::Failed(why);
            }
            good_byes(&outcome);
            flushed
        };
        let stopped_early = match outcome {
            Outcome::Finished { stopped_early } => stopped_early,
            Outcome::Failed(reason) => {
                let run_dir = folder.path().to_owned();
                return Err(CoordinatorError::Failed {
                    reason,
                    steps,
                    run_dir,
                });
            }
            Outcome::Interrupted => return Err(CoordinatorError::Interrupted { steps }),
        };
        flushed?;
        let accuracy = |step: u64| {
            history
                .evals
                .iter()
                .find(|record| record.step == step)
                .map(accuracy_of)
        };
        Ok(RunSummary {
            accuracy_before: accuracy(0),
            accuracy_after: if steps > 0 { accuracy(steps) } else { None },
            steps,
            planned_steps: self.parts.config.run.steps,
            seconds: counters.elapsed.as_secs_f64(),
            tokens: counters.tokens_sampled,
            cost_usd,
            adapter: folder.adapters().join("latest").canonicalize().ok(),
            stopped_early,
            run_dir: folder.path().to_owned(),
        })
    }
}
