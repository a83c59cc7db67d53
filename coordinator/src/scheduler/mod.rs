//! The coordinator's heart: a pure state machine. Events and the time go in, commands come out; it
//! has no tasks, clocks, sockets or randomness of its own, so it can be simulated with hundreds of
//! workers and any order of faults (`simulation`).
//!
//! A step goes: workers acknowledge the policy version (sync), its groups are sampled, every
//! completion is scored and journaled and only then acknowledged, the batch goes to the learner in
//! a fixed order, and the learner's result makes the next policy version.
//!
//! - [`types`]: names, plan, events, commands.
//! - `rounds`: which rounds are open, and why. `round`: the samples of one batch or one evaluation.
//! - `fleet`: workers, their adapters and what they bring; `dispatch`: what is handed to them.
//! - `conduct`: workers that fail, or bring what nobody asked them for.
//! - `learning`: the learner, resuming and replaying. `given`: policies without a learner.
//! - `deadlines`: what doesn't come, and what doesn't get on.
//! - `snapshot`: what a person may see.

mod conduct;
mod deadlines;
mod dispatch;
mod fleet;
mod given;
mod learning;
mod round;
mod rounds;
#[cfg(test)]
mod simulation;
mod snapshot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_ahead;
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
    round::Round,
    types::{Command, Event, Plan, Restored, RoundId, Scored, Session, Version},
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
    /// Those of them that may have free slots, and all that have.
    free: BTreeSet<Session>,
    /// Something out of the routine came, or a tick, since all workers were looked over.
    look_over: bool,
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
    /// Since when the run is at what it is at: the end of the last step or evaluation.
    step_since: Duration,
    /// Since when the run stands still for want of a worker or a learner.
    missing_since: Option<Duration>,
    /// Being sampled, or complete and waiting for their turn.
    rounds: BTreeMap<RoundId, Round>,
    learning: Option<Learning>,
    restored: Vec<Arc<Scored>>,
    /// Completions that came before the first round was opened (a coordinator that restarted).
    early: Vec<(Session, v1::Completion)>,
    /// The longest that a sample took in the last round that was closed.
    slowest: Duration,
    /// An earlier process of this run may have asked workers for samples.
    resumed: bool,
    paused: bool,
    /// A stop was asked for: the run ends when so many steps are done.
    stop_after: Option<u64>,
    over: Option<Over>,
    learner_wait: Duration,
    rollout_wait: Duration,
    /// Up to when both waits count.
    waits_until: Duration,
    tokens_sampled: u64,
}

impl Scheduler {
    /// A run at its beginning, or where the journal left it.
    pub fn new(plan: Plan, restored: Restored) -> Self {
        Self {
            plan,
            now: Duration::ZERO,
            workers: BTreeMap::new(),
            free: BTreeSet::new(),
            look_over: true,
            lost: BTreeMap::new(),
            learner: None,
            model_digest: restored.model_digest,
            resumed: !restored.versions.is_empty(),
            history: restored.versions,
            evals: restored.evals.into_iter().collect(),
            policy: None,
            sync_since: Duration::ZERO,
            synced_at: None,
            begun: false,
            step_since: Duration::ZERO,
            missing_since: None,
            rounds: BTreeMap::new(),
            learning: None,
            restored: restored.completions,
            early: Vec::new(),
            slowest: Duration::ZERO,
            paused: false,
            stop_after: None,
            over: None,
            learner_wait: Duration::ZERO,
            rollout_wait: Duration::ZERO,
            waits_until: Duration::ZERO,
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
        self.look_over |= !event.is_routine();
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
            Event::Stop => self.stop(),
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

    /// Adds the time that passed to both waits, to the millisecond: workers are counted for it.
    fn pass_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
        let passed = self.now - self.waits_until;
        if passed < Duration::from_millis(1) {
            return;
        }
        self.waits_until = self.now;
        if self.policy.is_none() {
            return;
        }
        if self.learner.as_ref().is_some_and(Learner::is_idle) {
            self.learner_wait += passed;
        }
        if !self.has_pending() {
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
    /// and of open ones (whose completions are counted again when a run is resumed).
    pub fn tokens_sampled(&self) -> (u64, u64) {
        (
            self.tokens_sampled,
            self.rounds.values().map(|round| round.tokens).sum(),
        )
    }

    /// Steps done and recorded.
    pub fn steps_done(&self) -> u64 {
        self.history.len().saturating_sub(1) as u64
    }

    /// Moves the run on as far as it goes.
    fn pump(&mut self, out: &mut Vec<Command>) {
        while self.over.is_none() {
            if self.has_stopped() {
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
            if self.look_over {
                self.request_loads(out);
            }
            self.note_sync();
            if self.close_rounds(out) {
                continue;
            }
            self.send_batch(out);
            self.open_rounds(out);
            if self.rounds.values().any(Round::is_complete) && self.close_rounds(out) {
                continue;
            }
            let nothing_left = self.rounds.is_empty() && self.learning.is_none();
            if nothing_left && self.next_round().is_none() {
                return self.finish(out);
            }
            return self.dispatch(out);
        }
    }

    fn finish(&mut self, out: &mut Vec<Command>) {
        self.over = Some(Over::Done);
        out.push(Command::Finish {
            stopped_early: !self.rounds.is_empty() || self.next_round().is_some(),
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
        let holds_it = |worker: &Worker| worker.loaded == Some(policy.version);
        // The first that is awaited is enough to know, and soon found while many are.
        let is_awaited = |worker: &Worker| !holds_it(worker) && !worker.gave_up_loading();
        let overdue = self.now >= self.sync_since + self.plan.sync_deadline;
        if (overdue || !usable().any(is_awaited)) && usable().any(holds_it) {
            self.synced_at = Some(self.now);
        }
    }
}
