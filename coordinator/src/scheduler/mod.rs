//! The coordinator's heart: a pure state machine. Events and the time go in, commands come out; it
//! has no tasks, clocks, sockets or randomness of its own, so it can be simulated with hundreds of
//! workers and any order of faults (`simulation`).
//!
//! A step goes: workers acknowledge the policy version (sync), its groups are sampled, every
//! completion is scored and journaled and only then acknowledged, the batch goes to the learner in
//! a fixed order, and the learner's result makes the next policy version.
//!
//! - [`types`]: names, plan, events, commands.
//! - `round`: the samples of one batch or one evaluation.
//! - `fleet`: workers, their adapters and what they bring; `dispatch`: what is handed to them.
//! - `learning`: the learner, resuming and replaying. `given`: policies without a learner.
//! - `deadlines`: what doesn't come, and what doesn't get on.
//! - `snapshot`: what a person may see.

mod deadlines;
mod dispatch;
mod fleet;
mod given;
mod learning;
mod round;
#[cfg(test)]
mod simulation;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod types;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tina_proto::v1;

use self::{
    fleet::{LostWorker, Worker},
    learning::{Learner, Learning},
    round::{Round, State},
    types::{
        Command, EvalDone, Event, Plan, Purpose, Restored, RoundId, SampleId, Scored, Session,
        Timings, Version,
    },
};
pub use self::{learning::batch_version, snapshot::Snapshot};

/// The adapter that workers are to sample with, and what they must compute with it.
#[derive(Clone, Debug)]
struct Policy {
    version: Version,
    /// What every worker's must agree with; `None`: the first worker's will be it.
    probe: Option<Probe>,
}

/// Log-probs of the run's probe under a policy.
#[derive(Clone, Debug)]
struct Probe {
    /// Who computed them, for a person.
    whose: String,
    logprobs: Vec<f32>,
    numerics: String,
}

/// How the run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Over {
    Done,
    Failed(String),
}

/// The state of a run. See the module's page.
#[derive(Debug)]
pub struct Scheduler {
    plan: Plan,
    now: Duration,
    workers: BTreeMap<Session, Worker>,
    lost: BTreeMap<Arc<str>, LostWorker>,
    learner: Option<Learner>,
    model_digest: Option<String>,
    /// Versions of the steps done, from step 0 on.
    history: Vec<Version>,
    evals: BTreeSet<u64>,
    policy: Option<Policy>,
    /// Since when the workers load `policy`, and when they had it.
    sync_since: Duration,
    synced_at: Option<Duration>,
    /// A round was opened in this process's life.
    begun: bool,
    /// Since when the run stands still for want of a worker or a learner.
    missing_since: Option<Duration>,
    round: Option<Round>,
    learning: Option<Learning>,
    restored: Vec<Arc<Scored>>,
    /// Completions that came before the first round was opened (a coordinator that restarted).
    early: Vec<(Session, v1::Completion)>,
    paused: bool,
    stopping: bool,
    over: Option<Over>,
    learner_wait: Duration,
    rollout_wait: Duration,
    tokens_sampled: u64,
}

impl Scheduler {
    /// A run at its beginning, or where the journal left it.
    pub fn new(plan: Plan, restored: Restored) -> Self {
        Self {
            plan,
            now: Duration::ZERO,
            workers: BTreeMap::new(),
            lost: BTreeMap::new(),
            learner: None,
            model_digest: restored.model_digest,
            history: restored.versions,
            evals: restored.evals.into_iter().collect(),
            policy: None,
            sync_since: Duration::ZERO,
            synced_at: None,
            begun: false,
            missing_since: None,
            round: None,
            learning: None,
            restored: restored.completions,
            early: Vec::new(),
            paused: false,
            stopping: false,
            over: None,
            learner_wait: Duration::ZERO,
            rollout_wait: Duration::ZERO,
            tokens_sampled: 0,
        }
    }

    /// Takes one event at time `now` (since the scheduler's start) and appends to `out` what is to
    /// be done. After `Finish` or `Fail` it does nothing more.
    pub fn handle(&mut self, now: Duration, event: Event, out: &mut Vec<Command>) {
        if self.over.is_some() {
            return;
        }
        self.pass_time(now);
        match event {
            Event::WorkerHello { session, hello } => self.worker_hello(session, hello, out),
            Event::WorkerReady { session, ready } => self.worker_ready(session, &ready, out),
            Event::AdapterLoaded { session, loaded } => self.adapter_loaded(session, &loaded, out),
            Event::WorkerHeartbeat { session, heartbeat } => {
                self.worker_heartbeat(session, heartbeat);
            }
            Event::WorkerLost { session, reason } => self.worker_lost(session, &reason),
            Event::Completion {
                session,
                completion,
            } => self.completion(session, completion, out),
            Event::SampleFailed { session, failed } => self.sample_failed(session, &failed, out),
            Event::Scored(scored) => self.scored(scored, out),
            Event::Recorded(samples) => self.recorded(&samples, out),
            Event::LearnerHello { session, hello } => self.learner_hello(session, hello, out),
            Event::LearnerReady { session, ready } => self.learner_ready(session, *ready, out),
            Event::LearnerHeartbeat { session, heartbeat } => {
                self.learner_heartbeat(session, heartbeat);
            }
            Event::StepResult { session, result } => self.step_result(session, *result, out),
            Event::BatchRefused { session, refused } => {
                self.batch_refused(session, &refused, out);
            }
            Event::LearnerFailed { session, error } => self.learner_failed(session, &error, out),
            Event::LearnerLost { session, .. } => self.learner_lost(session),
            Event::Tick => self.check_deadlines(out),
            Event::Pause => self.paused = true,
            Event::Resume => self.paused = false,
            Event::Stop => self.stopping = true,
        }
        self.pump(out);
    }

    /// True after `Finish` or `Fail`.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Ends the run with a reason that came from outside the scheduler.
    pub fn fail(&mut self, reason: String, out: &mut Vec<Command>) {
        if self.over.is_none() {
            self.over = Some(Over::Failed(reason.clone()));
            out.push(Command::Fail { reason });
        }
    }

    /// Adds the time since the last event to both waits.
    fn pass_time(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if passed.is_zero() || self.policy.is_none() {
            return;
        }
        if self.learner.as_ref().is_some_and(Learner::is_idle) {
            self.learner_wait += passed;
        }
        if !self.round.as_ref().is_some_and(Round::has_pending) {
            let (mut slots, mut used) = (0u64, 0u64);
            for worker in self.workers.values().filter(|worker| worker.is_usable()) {
                slots += u64::from(worker.slots);
                used += (worker.in_flight.len() as u64).min(u64::from(worker.slots));
            }
            if slots > 0 {
                self.rollout_wait += passed.mul_f64((slots - used) as f64 / slots as f64);
            }
        }
    }

    /// The version that workers are to sample with, once it is known.
    pub fn policy(&self) -> Option<Version> {
        self.policy.as_ref().map(|policy| policy.version)
    }

    /// Time in which the learner had no batch, and in which slots stood free because the step was
    /// not done (weighted by their share).
    pub fn waits(&self) -> (Duration, Duration) {
        (self.learner_wait, self.rollout_wait)
    }

    /// Tokens of completions in the journal: of rounds that were closed since this scheduler began,
    /// and of the open one (whose completions are counted again when a run is resumed).
    pub fn tokens_sampled(&self) -> (u64, u64) {
        (
            self.tokens_sampled,
            self.round.as_ref().map_or(0, |round| round.tokens),
        )
    }

    /// Steps done and recorded.
    pub fn steps_done(&self) -> u64 {
        self.history.len().saturating_sub(1) as u64
    }

    /// Moves the run on as far as it goes.
    fn pump(&mut self, out: &mut Vec<Command>) {
        while self.over.is_none() {
            if self.stopping && self.is_between_steps() {
                return self.finish(out);
            }
            if self.take_given(out) {
                continue;
            }
            if self.given_are_done() {
                return self.finish(out);
            }
            if self.policy.is_none() {
                return;
            }
            self.request_loads(out);
            self.note_sync();
            if self.round.as_ref().is_some_and(Round::is_complete) && self.close_round(out) {
                continue;
            }
            self.send_batch(out);
            if self.round.is_some() {
                return self.dispatch(out);
            }
            match self.next_round() {
                None if self.learning.is_none() => return self.finish(out),
                Some(id) if self.may_open(id) => self.open_round(id, out),
                _ => return,
            }
        }
    }

    /// True where a stop loses no step: nothing is sampled for one, and none is learned from.
    fn is_between_steps(&self) -> bool {
        let sampling = self
            .round
            .as_ref()
            .is_some_and(|r| r.id.purpose() == Purpose::Train);
        !sampling && self.learning.is_none()
    }

    fn finish(&mut self, out: &mut Vec<Command>) {
        self.over = Some(Over::Done);
        out.push(Command::Finish {
            stopped_early: self.next_round().is_some(),
        });
    }

    /// Notes when all workers that are there hold the policy version, or the deadline passed and
    /// at least one does.
    fn note_sync(&mut self) {
        let Some(policy) = &self.policy else { return };
        if self.synced_at.is_some() {
            return;
        }
        let usable = || self.workers.values().filter(|worker| worker.is_usable());
        let synced = usable()
            .filter(|worker| worker.loaded == Some(policy.version))
            .count();
        let awaited = usable()
            .filter(|worker| worker.loaded != Some(policy.version) && !worker.gave_up_loading())
            .count();
        let overdue = self.now >= self.sync_since + self.plan.sync_deadline;
        if synced > 0 && (awaited == 0 || overdue) {
            self.synced_at = Some(self.now);
        }
    }

    /// The round that comes next, or `None` when all are done.
    fn next_round(&self) -> Option<RoundId> {
        let done = self.steps_done();
        let plan = &self.plan;
        let due = plan.eval_problems > 0
            && ((done == 0 && plan.eval_before)
                || (done == plan.steps && plan.eval_after)
                || (plan.eval_every > 0
                    && done > 0
                    && done < plan.steps
                    && done.is_multiple_of(plan.eval_every)));
        if due && self.learning.is_none() && !self.evals.contains(&done) {
            return Some(RoundId::eval(done));
        }
        let next = self
            .learning
            .as_ref()
            .map_or(done, |learning| learning.step)
            + 1;
        (next <= plan.steps).then(|| RoundId::train(next))
    }

    /// Staleness decides: a step may be sampled when the policy version at hand is recent enough.
    fn may_open(&self, id: RoundId) -> bool {
        let staleness = id.base_step().saturating_sub(self.steps_done());
        let held = self.paused || self.stopping;
        staleness <= self.plan.max_staleness && self.synced_at.is_some() && !held
    }

    fn open_round(&mut self, id: RoundId, out: &mut Vec<Command>) {
        let Some(policy) = &self.policy else { return };
        let (groups, per_group) = match id.purpose() {
            Purpose::Train => (self.plan.groups_per_step, self.plan.samples_per_group),
            Purpose::Eval => (self.plan.eval_problems, self.plan.eval_samples),
        };
        let mut round = Round::new(id, policy.version, groups, per_group, self.now);
        self.restored.retain(|scored| !round.restore(scored));
        self.round = Some(round);
        self.begun = true;
        for (session, completion) in std::mem::take(&mut self.early) {
            self.completion(session, completion, out);
        }
    }

    /// A round is complete: an evaluation is noted, a batch goes to the learner. False while the
    /// learner has the batch before.
    fn close_round(&mut self, out: &mut Vec<Command>) -> bool {
        let training = self
            .round
            .as_ref()
            .is_some_and(|r| r.id.purpose() == Purpose::Train);
        if training && self.learning.is_some() {
            return false;
        }
        let Some(round) = self.round.take() else {
            return false;
        };
        self.tokens_sampled += round.tokens;
        if training {
            let timings = Timings {
                sync: self
                    .synced_at
                    .map_or(Duration::ZERO, |at| at - self.sync_since),
                sample: round.last_arrival - round.opened,
                score: self.now - round.last_arrival,
                learn: Duration::ZERO,
            };
            self.learning = Some(Learning::new(round, timings, self.now));
        } else {
            self.evals.insert(round.id.step());
            out.push(Command::RecordEval(Box::new(EvalDone {
                version: round.version,
                seconds: self.now - round.opened,
                groups: round.batch(),
            })));
        }
        true
    }

    fn scored(&mut self, scored: Arc<Scored>, out: &mut Vec<Command>) {
        if let Some(round) = &mut self.round
            && scored.version() == Some(round.version)
            && round.scored(&scored)
        {
            out.push(Command::Record(scored));
        }
    }

    fn recorded(&mut self, samples: &[(SampleId, Version)], out: &mut Vec<Command>) {
        for &(sample, version) in samples {
            let Some(round) = self.round.as_mut().filter(|round| round.version == version) else {
                continue;
            };
            if matches!(round.state(sample), Some(State::Arrived)) {
                for session in round.recorded(sample) {
                    if self.workers.contains_key(&session) {
                        out.push(Command::Ack { session, sample });
                    }
                }
            }
        }
    }

    /// True when every completion of this round is in the journal.
    fn is_recorded(&self, id: RoundId) -> bool {
        match id.purpose() {
            Purpose::Train => {
                id.step() <= self.steps_done()
                    || self.learning.as_ref().is_some_and(|l| l.step == id.step())
            }
            Purpose::Eval => self.evals.contains(&id.step()),
        }
    }
}
