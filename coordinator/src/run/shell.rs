//! The task that owns the scheduler: it feeds it events and the time, and does what it says.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tina_proto::v1::{
    self, LearnerCommand, RunStatus, WorkerCommand, learner_command, worker_command,
};
use tokio::sync::{mpsc, watch};

use super::{
    CoordinatorError, RunEvent, RunSummary,
    adapters::Shelf,
    best_step,
    folder::Folder,
    prompts::{self, Prompts},
    worker_id,
};
use crate::{
    config::RunConfig,
    journal::{Counters, Journal, Write},
    scheduler::{
        Scheduler,
        types::{Command, Event, RoundId, SampleId, Scored, Session, Version},
    },
    scoring::Scorer,
    services::{Inbound, Outbox, Shared},
    status::{History, eval_record, step_record},
    supervise::GaveUp,
};

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(100);
/// Between two reports while nothing changes.
const REPORT: Duration = Duration::from_millis(250);
/// Messages taken at a time before commands go out.
const BURST: usize = 256;

/// What the shell's own helpers tell it.
#[derive(Debug)]
pub(super) enum Note {
    /// Completions have their verdicts.
    Scored(Vec<Scored>),
    /// Completions are in the journal; the time it took.
    Recorded(Vec<(SampleId, Version)>, Duration),
    /// A batch out of the journal.
    Replay(Session, Version, Vec<Arc<Scored>>),
    /// The run can't go on.
    Failed(String),
}

/// How the loop ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Finished { stopped_early: bool },
    Failed(String),
    Interrupted,
}

pub(super) struct Parts {
    pub(super) config: Arc<RunConfig>,
    pub(super) scheduler: Scheduler,
    pub(super) started: Instant,
    pub(super) base: Counters,
    pub(super) journal: Journal,
    pub(super) scorer: Scorer,
    pub(super) prompts: Prompts,
    pub(super) shelf: Shelf,
    pub(super) shared: Arc<Shared>,
    pub(super) history: History,
    pub(super) status: watch::Sender<Arc<RunStatus>>,
    pub(super) events: mpsc::UnboundedSender<RunEvent>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

pub(super) struct Shell {
    parts: Parts,
    workers: HashMap<Session, Outbox<WorkerCommand>>,
    learner: Option<(Session, Outbox<LearnerCommand>)>,
    /// Waiting to be scored, all in one go.
    unscored: Vec<(Arc<str>, v1::Completion, RoundId, u32)>,
    outcome: Option<Outcome>,
    /// The coordinator's own work in this process: here, and (in nanoseconds) in helpers.
    busy: Duration,
    busy_elsewhere: Arc<AtomicU64>,
    tokens_trained: u64,
    /// The coordinator's work up to the last step.
    coordinator_before: Duration,
    saved: Option<Version>,
    reported: (Instant, i32, u64),
}

impl Shell {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            workers: HashMap::new(),
            learner: None,
            unscored: Vec::new(),
            outcome: None,
            busy: Duration::ZERO,
            busy_elsewhere: Arc::default(),
            tokens_trained: 0,
            coordinator_before: Duration::ZERO,
            saved: None,
            reported: (parts.started, -1, 0),
            parts,
        }
    }

    /// Goes until the run is over.
    pub(super) async fn run(
        &mut self,
        mut arrivals: mpsc::Receiver<Inbound>,
        mut notes: mpsc::UnboundedReceiver<Note>,
        mut deaths: mpsc::UnboundedReceiver<GaveUp>,
        mut shutdown: watch::Receiver<u32>,
    ) -> Outcome {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = true;
        let mut asked = 0;
        while self.outcome.is_none() {
            tokio::select! {
                Some(inbound) = arrivals.recv() => {
                    let began = Instant::now();
                    self.arrive(inbound);
                    for _ in 0..BURST {
                        let Ok(inbound) = arrivals.try_recv() else { break };
                        self.arrive(inbound);
                    }
                    self.busy += began.elapsed();
                }
                Some(note) = notes.recv() => {
                    let began = Instant::now();
                    self.hear(note);
                    self.busy += began.elapsed();
                }
                Some(GaveUp(reason)) = deaths.recv() => self.fail(reason),
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
                _ = tick.tick() => {
                    let began = Instant::now();
                    self.handle(Event::Tick);
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
        match inbound {
            Inbound::Worker {
                session,
                hello,
                outbox,
            } => {
                let welcome = v1::WorkerWelcome {
                    spec: Some(self.parts.shared.spec.clone()),
                    slots: self.slots_of(&hello.worker_id),
                    heartbeat_ms: self.parts.shared.heartbeat_ms,
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
                // The one before goes only when the scheduler says so.
                let before = self.learner.replace((session, outbox));
                self.handle_with(Event::LearnerHello { session, hello }, before);
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
            Inbound::Event(event) => {
                match &event {
                    Event::WorkerLost { session, .. } => drop(self.workers.remove(session)),
                    Event::LearnerLost { session, .. } => {
                        self.learner.take_if(|learner| learner.0 == *session);
                    }
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
                let round = RoundId::train(version.step + 1);
                let mut groups: Vec<Vec<Arc<Scored>>> = Vec::new();
                for scored in batch {
                    let index = RoundId::of_group(scored.completion.group_id).1 as usize;
                    groups.resize_with(groups.len().max(index + 1), Vec::new);
                    groups[index].push(scored);
                }
                self.send_batch(session, version, round, &groups)
                    .into_iter()
                    .for_each(|event| self.handle(event));
            }
            Note::Failed(reason) => self.fail(reason),
        }
    }

    fn spent(&self, time: Duration) {
        self.busy_elsewhere
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn fail(&mut self, reason: String) {
        let mut commands = Vec::new();
        self.parts.scheduler.fail(reason, &mut commands);
        let mut follow = VecDeque::new();
        commands
            .into_iter()
            .for_each(|command| self.obey(command, &mut None, &mut follow));
    }

    fn handle(&mut self, event: Event) {
        self.handle_with(event, None);
    }

    /// Hands the scheduler an event, does what it says, and hands it what follows from that.
    fn handle_with(&mut self, event: Event, mut before: Option<(Session, Outbox<LearnerCommand>)>) {
        let mut events = VecDeque::from([event]);
        let mut commands = Vec::new();
        while let Some(event) = events.pop_front() {
            self.parts
                .scheduler
                .handle(self.parts.started.elapsed(), event, &mut commands);
            for command in commands.drain(..) {
                self.obey(command, &mut before, &mut events);
            }
        }
        if before.is_some() && self.learner.is_none() {
            self.learner = before; // the newcomer was turned away
        }
    }

    /// Sends a worker a command; if that can't be, what follows.
    fn command(&mut self, session: Session, command: worker_command::Command) -> Option<Event> {
        let outbox = self.workers.get(&session)?;
        if outbox.send(WorkerCommand {
            command: Some(command),
        }) {
            return None;
        }
        let reason = "it doesn't read its commands".to_owned();
        if let Some(outbox) = self.workers.remove(&session) {
            outbox.close(&reason);
        }
        Some(Event::WorkerLost { session, reason })
    }

    fn tell_learner(
        &mut self,
        session: Session,
        commands: impl IntoIterator<Item = learner_command::Command>,
    ) -> Option<Event> {
        let (_, outbox) = self
            .learner
            .as_ref()
            .filter(|learner| learner.0 == session)?;
        let sent = commands.into_iter().all(|command| {
            outbox.send(LearnerCommand {
                command: Some(command),
            })
        });
        if sent {
            return None;
        }
        let reason = "it doesn't read its commands".to_owned();
        if let Some((_, outbox)) = self.learner.take() {
            outbox.close(&reason);
        }
        Some(Event::LearnerLost { session, reason })
    }

    fn obey(
        &mut self,
        command: Command,
        before: &mut Option<(Session, Outbox<LearnerCommand>)>,
        follow: &mut VecDeque<Event>,
    ) {
        match command {
            Command::RecordStart {
                version,
                model_digest,
            } => {
                self.parts.journal.write(Write::Start {
                    version,
                    model_digest,
                });
            }
            Command::LoadAdapter { session, version } => {
                let held = self.parts.shared.adapters.get(&version.digest);
                let bytes = held.map_or(0, |(_, bytes)| bytes.len() as u64);
                let load = v1::LoadAdapter {
                    version: Some(version.to_wire()),
                    bytes,
                };
                follow.extend(self.command(session, worker_command::Command::LoadAdapter(load)));
            }
            Command::Sample {
                session,
                group,
                indices,
                version,
            } => {
                follow.extend(self.send_sample(session, group, indices, version));
            }
            Command::Cancel {
                session,
                group,
                indices,
            } => {
                let cancel = v1::Cancel {
                    group_id: group,
                    sample_indices: indices,
                };
                follow.extend(self.command(session, worker_command::Command::Cancel(cancel)));
            }
            Command::Ack { session, sample } => {
                let ack = v1::CompletionAck {
                    group_id: sample.group,
                    sample_index: sample.index,
                };
                follow.extend(self.command(session, worker_command::Command::CompletionAck(ack)));
            }
            Command::CloseWorker { session, reason } => {
                if let Some(outbox) = self.workers.remove(&session) {
                    outbox.close(&reason);
                }
            }
            Command::CloseLearner { session, reason } => {
                for place in [before, &mut self.learner] {
                    if let Some((_, outbox)) = place.take_if(|learner| learner.0 == session) {
                        outbox.close(&reason);
                    }
                }
            }
            Command::WelcomeLearner { session, resume } => {
                let welcome = v1::LearnerWelcome {
                    spec: Some(self.parts.shared.spec.clone()),
                    resume: resume.map(Version::to_wire),
                    heartbeat_ms: self.parts.shared.heartbeat_ms,
                };
                let welcome = learner_command::Command::Welcome(welcome);
                follow.extend(self.tell_learner(session, [welcome]));
            }
            Command::Score { worker, completion } => {
                let (round, index) = RoundId::of_group(completion.group_id);
                self.unscored.push((worker, completion, round, index));
            }
            Command::Record(scored) => self.parts.journal.write(Write::Completion(scored)),
            Command::SendBatch {
                session,
                version,
                groups,
            } => {
                let round = RoundId::train(version.step + 1);
                follow.extend(self.send_batch(session, version, round, &groups));
            }
            Command::ReplayBatch { session, version } => {
                let (journal, notes) = (self.parts.journal.clone(), self.parts.notes.clone());
                tokio::spawn(async move {
                    let batch = journal.batch(RoundId::train(version.step + 1)).await;
                    let _ = notes.send(match batch {
                        Ok(batch) => Note::Replay(session, version, batch),
                        Err(error) => Note::Failed(error.to_string()),
                    });
                });
            }
            Command::RecordStep(done) => {
                self.tokens_trained += done.metrics.tokens_trained;
                let counters = self.counters();
                let own = counters.coordinator.saturating_sub(self.coordinator_before);
                self.coordinator_before = counters.coordinator;
                let record = step_record(&done, own, self.cost(&counters));
                self.parts.history.step(record.clone());
                let record = Box::new(record);
                self.tell(RunEvent::Step(record.clone()));
                self.parts.journal.write(Write::Step { record, counters });
            }
            Command::RecordEval(done) => {
                let (record, counters) = (eval_record(&done), self.counters());
                self.parts.history.eval(record);
                self.parts.journal.write(Write::Eval { record, counters });
                if let Some(step) = best_step(&self.parts.history.evals) {
                    self.parts.shelf.best(step);
                }
                self.tell(RunEvent::Eval(record));
            }
            Command::Rollback { version } => {
                self.parts.journal.write(Write::Rollback(version));
                self.parts.history.roll_back(version.step);
                self.parts.shelf.roll_back(version.step);
            }
            Command::Warn(text) => self.warn(text),
            Command::Finish { stopped_early } => {
                self.outcome = Some(Outcome::Finished { stopped_early });
            }
            Command::Fail { reason } => self.outcome = Some(Outcome::Failed(reason)),
        }
    }

    fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.tell(RunEvent::Note(text));
    }

    fn tell(&self, event: RunEvent) {
        let _ = self.parts.events.send(event); // nobody has to listen
    }

    /// A round's prompts; the first time they are journaled.
    fn prompts(&mut self, round: RoundId) -> Arc<[Arc<crate::data::Prompt>]> {
        let (prompts, fresh) = self.parts.prompts.of(round);
        if fresh {
            self.parts
                .journal
                .write(Write::Prompts(prompts::rows(round, &prompts)));
        }
        prompts
    }

    fn send_sample(
        &mut self,
        session: Session,
        group: u64,
        indices: Vec<u32>,
        version: Version,
    ) -> Option<Event> {
        let (round, index) = RoundId::of_group(group);
        let prompts = self.prompts(round);
        let Some(prompt) = prompts.get(index as usize) else {
            self.fail(format!("{round:?} has no prompt {index}"));
            return None;
        };
        let sample = v1::Sample {
            group_id: group,
            prompt_tokens: prompt.tokens.clone(),
            sample_indices: indices,
            prompt_key: prompts::key(group, prompt),
            params: Some(self.parts.prompts.params(round).clone()),
            version: Some(version.to_wire()),
        };
        self.command(session, worker_command::Command::Sample(sample))
    }

    fn send_batch(
        &mut self,
        session: Session,
        version: Version,
        round: RoundId,
        groups: &[Vec<Arc<Scored>>],
    ) -> Option<Event> {
        let prompts = self.prompts(round);
        let step = version.step + 1;
        let begin = v1::BeginStep {
            version: Some(version.to_wire()),
            groups: groups.len() as u32,
        };
        let params = self.parts.prompts.params(round).clone();
        let group = |(prompt, group): (&Arc<crate::data::Prompt>, &Vec<Arc<Scored>>)| {
            let completion = |scored: &Arc<Scored>| v1::TrainingCompletion {
                completion: Some(scored.completion.clone()),
                reward: scored.reward,
                judged: scored.judged,
            };
            learner_command::Command::Group(v1::TrainingGroup {
                group_id: group.first().map_or(0, |scored| scored.completion.group_id),
                prompt_tokens: prompt.tokens.clone(),
                completions: group.iter().map(completion).collect(),
                params: Some(params.clone()),
            })
        };
        let commands = std::iter::once(learner_command::Command::BeginStep(begin))
            .chain(prompts.iter().zip(groups).map(group))
            .chain([learner_command::Command::EndStep(v1::EndStep { step })]);
        self.tell_learner(session, commands)
    }

    /// Scores what waits, beside the loop.
    fn score(&mut self) {
        if self.unscored.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.unscored);
        let with_gold: Vec<_> = waiting
            .into_iter()
            .map(|(worker, completion, round, index)| {
                let prompt = self.prompts(round).get(index as usize).cloned();
                (worker, completion, prompt)
            })
            .collect();
        let (scorer, notes) = (self.parts.scorer.clone(), self.parts.notes.clone());
        let busy = self.busy_elsewhere.clone();
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let all = with_gold
                .into_iter()
                .map(|(worker, completion, prompt)| {
                    let gold = prompt.as_ref().map_or("", |prompt| &prompt.gold);
                    scorer.score(worker, completion, gold)
                })
                .collect();
            busy.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let _ = notes.send(Note::Scored(all));
        });
    }

    /// Puts the policy's adapter on disk when it is new.
    fn save_adapter(&mut self) {
        let policy = self.parts.scheduler.policy();
        if let Some(version) = policy.filter(|version| version.step > 0)
            && self.saved != policy
            && let Some((_, bytes)) = self.parts.shared.adapters.get(&version.digest)
        {
            self.parts.shelf.save(version.step, bytes);
            self.saved = policy;
        }
    }

    fn counters(&self) -> Counters {
        let (base, scheduler) = (&self.parts.base, &self.parts.scheduler);
        let (learner_wait, rollout_wait) = scheduler.waits();
        let elsewhere = Duration::from_nanos(self.busy_elsewhere.load(Ordering::Relaxed));
        Counters {
            elapsed: base.elapsed + self.parts.started.elapsed(),
            learner_wait: base.learner_wait + learner_wait,
            rollout_wait: base.rollout_wait + rollout_wait,
            coordinator: base.coordinator + self.busy + elsewhere,
            tokens_sampled: base.tokens_sampled + scheduler.tokens_sampled().0,
            tokens_trained: base.tokens_trained + self.tokens_trained,
        }
    }

    fn cost(&self, counters: &Counters) -> f64 {
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
        counters.tokens_sampled += scheduler.tokens_sampled().1;
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

    /// Says good-bye to all, makes everything durable, and sums up.
    pub(super) async fn end(
        mut self,
        outcome: Outcome,
        folder: &Folder,
    ) -> Result<RunSummary, CoordinatorError> {
        self.save_adapter();
        self.report(true);
        let reason = match &outcome {
            Outcome::Finished {
                stopped_early: false,
            } => "the run is done".to_owned(),
            Outcome::Failed(reason) => format!("the run failed: {reason}"),
            _ => "the run was stopped".to_owned(),
        };
        for (_, outbox) in self.workers.drain() {
            let stop = worker_command::Command::Stop(v1::WorkerStop {
                reason: reason.clone(),
            });
            outbox.finish(WorkerCommand {
                command: Some(stop),
            });
        }
        if let Some((_, outbox)) = self.learner.take() {
            let stop = learner_command::Command::Stop(v1::LearnerStop { reason });
            outbox.finish(LearnerCommand {
                command: Some(stop),
            });
        }
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
        let flushed = journal.flush().await;
        tokio::task::spawn_blocking(move || shelf.close())
            .await
            .map_err(|error| CoordinatorError::Internal(format!("saving the adapter: {error}")))?;
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
                .map(|record| record.accuracy)
        };
        Ok(RunSummary {
            accuracy_before: accuracy(0),
            accuracy_after: if steps > 0 { accuracy(steps) } else { None },
            steps,
            seconds: counters.elapsed.as_secs_f64(),
            tokens: counters.tokens_sampled,
            cost_usd,
            adapter: folder.adapters().join("latest").canonicalize().ok(),
            stopped_early,
            run_dir: folder.path().to_owned(),
        })
    }
}
