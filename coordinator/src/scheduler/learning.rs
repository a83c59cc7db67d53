//! The learner: welcoming it, sending it batches, taking its results; and what happens when its
//! checkpoint and the journal aren't at the same step.

use std::time::Duration;

use tina_proto::v1;

use super::{
    Policy, Probe, Scheduler,
    round::Round,
    types::{Command, RoundId, Session, StepDone, Timings, Version},
};

/// The learner that is dialled in.
#[derive(Debug)]
pub(super) struct Learner {
    pub(super) session: Session,
    pub(super) hello: v1::LearnerHello,
    pub(super) last_seen: Duration,
    /// When it last got on with its batch, or had none.
    pub(super) progress: Duration,
    pub(super) heartbeat: v1::LearnerHeartbeat,
    pub(super) trainable_parameters: u64,
    pub(super) model_parameters: u64,
    /// The version it holds, once its model is loaded.
    pub(super) held: Option<Version>,
    /// It has a batch.
    pub(super) busy: bool,
}

impl Learner {
    /// True while it is ready and has no batch.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_some() && !self.busy
    }
}

/// The batch that the learner is to train on, or trains on.
#[derive(Debug)]
pub(super) struct Learning {
    pub(super) step: u64,
    pub(super) round: Round,
    timings: Timings,
    since: Duration,
    sent: bool,
}

impl Learning {
    pub(super) fn new(round: Round, timings: Timings, now: Duration) -> Self {
        Self {
            step: round.id.step(),
            round,
            timings,
            since: now,
            sent: false,
        }
    }
}

/// The version a learner must hold to train on the batch of `round`, out of the versions of all
/// steps done.
pub fn batch_version(history: &[Version], round: RoundId) -> Option<Version> {
    history.get(round.base_step() as usize).copied()
}

impl Scheduler {
    pub(super) fn learner_hello(
        &mut self,
        session: Session,
        hello: v1::LearnerHello,
        out: &mut Vec<Command>,
    ) {
        if self.has_given() {
            return Self::decline_learner(session, out);
        }
        if let Some(other) = &self.learner {
            let id = &other.hello.learner_id;
            if *id != hello.learner_id {
                let reason = format!("this run has a learner already ({id}); stop that one first");
                out.push(Command::CloseLearner { session, reason });
                return;
            }
            let reason = "the same learner dialled in anew".to_owned();
            out.push(Command::CloseLearner {
                session: other.session,
                reason,
            });
            self.learner_lost(other.session);
        }
        self.learner = Some(Learner {
            session,
            hello,
            last_seen: self.now,
            progress: self.now,
            heartbeat: v1::LearnerHeartbeat {
                phase: "loading".into(),
                ..Default::default()
            },
            trainable_parameters: 0,
            model_parameters: 0,
            held: None,
            busy: false,
        });
        let resume = self.history.last().copied();
        out.push(Command::WelcomeLearner { session, resume });
    }

    /// The learner, when `session` is its stream; notes that it lives.
    fn heard(&mut self, session: Session) -> Option<&mut Learner> {
        let now = self.now;
        let learner = self
            .learner
            .as_mut()
            .filter(|learner| learner.session == session)?;
        learner.last_seen = now;
        Some(learner)
    }

    pub(super) fn learner_heartbeat(&mut self, session: Session, beat: v1::LearnerHeartbeat) {
        let now = self.now;
        if let Some(learner) = self.heard(session) {
            if learner.heartbeat != beat {
                learner.progress = now;
            }
            learner.heartbeat = beat;
        }
    }

    pub(super) fn learner_lost(&mut self, session: Session) {
        if self
            .learner
            .as_ref()
            .is_some_and(|learner| learner.session == session)
        {
            self.learner = None;
            if let Some(learning) = &mut self.learning {
                learning.sent = false;
            }
        }
    }

    pub(super) fn learner_failed(&mut self, session: Session, error: &str, out: &mut Vec<Command>) {
        if self.heard(session).is_some() {
            self.fail(format!("the learner can't go on: {error}"), out);
        }
    }

    pub(super) fn batch_refused(
        &mut self,
        session: Session,
        refused: &v1::BatchRefused,
        out: &mut Vec<Command>,
    ) {
        if self.heard(session).is_some() {
            let v1::BatchRefused { step, error } = refused;
            self.fail(
                format!("the learner refused the batch of step {step}: {error}"),
                out,
            );
        }
    }

    pub(super) fn learner_ready(
        &mut self,
        session: Session,
        ready: v1::LearnerReady,
        out: &mut Vec<Command>,
    ) {
        let Some(learner) = self.heard(session) else {
            return;
        };
        let Some(version) = ready.version.as_ref().and_then(Version::from_wire) else {
            let reason = "the learner announced itself without a policy version".to_owned();
            return self.fail(reason, out);
        };
        if ready.device.is_some() {
            learner.hello.device = ready.device;
        }
        learner.trainable_parameters = ready.trainable_parameters;
        learner.model_parameters = ready.model_parameters;
        learner.held = Some(version);
        match &self.model_digest {
            Some(digest) if *digest != ready.model_digest => {
                let reason = format!(
                    "the learner loaded the model {}, but the run began with {digest}: the model's \
                     files changed; restore them, or start a new run",
                    ready.model_digest
                );
                return self.fail(reason, out);
            }
            Some(_) => {}
            None => self.model_digest = Some(ready.model_digest.clone()),
        }
        self.check_models();
        let Some(&recorded) = self.history.last() else {
            if version.step != 0 {
                let reason = format!(
                    "the learner holds step {} of an earlier run of this name, but the journal is \
                     empty: remove the run's folder, or choose another run.name",
                    version.step
                );
                return self.fail(reason, out);
            }
            self.history.push(version);
            out.push(Command::RecordStart {
                version,
                model_digest: ready.model_digest,
            });
            return self.adopt(version, Some(ready.probe_logprobs));
        };
        if version.step > recorded.step {
            return match ready.last_result {
                Some(mut result) if version.step == recorded.step + 1 => {
                    result.version = ready.version;
                    // The one saved with the result may be of another probe than this run's.
                    result.probe_logprobs = ready.probe_logprobs;
                    self.take_missed_result(version, result, out);
                }
                _ => self.refuse_future(version, recorded, out),
            };
        }
        self.take_known(session, version, ready.probe_logprobs, out);
    }

    /// The learner is further than the journal by the one result that was lost on the way.
    fn take_missed_result(
        &mut self,
        version: Version,
        result: v1::StepResult,
        out: &mut Vec<Command>,
    ) {
        let Some(&recorded) = self.history.last() else {
            return;
        };
        if self.learning.is_none() && self.policy.is_none() {
            // The journal was closed on a batch that the learner had.
            self.adopt(recorded, None);
            if let Some(round) = self.begin_round(RoundId::train(version.step))
                && round.is_complete()
            {
                self.tokens_sampled += round.tokens;
                self.learning = Some(Learning::new(round, Timings::default(), self.now));
            }
        }
        if self
            .learning
            .as_ref()
            .is_some_and(|learning| learning.step == version.step)
        {
            self.close_step(version, result, out);
        } else {
            self.refuse_future(version, recorded, out);
        }
    }

    fn refuse_future(&mut self, version: Version, recorded: Version, out: &mut Vec<Command>) {
        let reason = format!(
            "the learner's checkpoint is at step {} and the journal at step {}: the checkpoint \
             belongs to another history; remove the checkpoints after step {}, or start a new run",
            version.step, recorded.step, recorded.step
        );
        self.fail(reason, out);
    }

    /// The learner holds the version of a step that is in the journal: the newest (go on), an older
    /// one (replay), or another of that step (what followed is void).
    fn take_known(
        &mut self,
        session: Session,
        version: Version,
        probe: Vec<f32>,
        out: &mut Vec<Command>,
    ) {
        let known = self.history.get(version.step as usize) == Some(&version);
        if !known {
            self.roll_back(version, out);
            self.adopt(version, Some(probe));
        } else if self.history.last() == Some(&version) {
            if self.policy.is_none() {
                self.adopt(version, Some(probe));
            }
        } else {
            if let Some(learner) = self.heard(session) {
                learner.busy = true;
            }
            out.push(Command::ReplayBatch { session, version });
        }
    }

    fn roll_back(&mut self, version: Version, out: &mut Vec<Command>) {
        let lost = self.steps_done() - version.step;
        out.push(Command::Warn(format!(
            "the learner's adapter of step {} isn't the journal's: {lost} later steps are void and \
             made again",
            version.step
        )));
        if !self.rounds.is_empty() {
            let in_flight: Vec<Session> = self
                .workers
                .values()
                .filter(|worker| !worker.in_flight.is_empty())
                .map(|worker| worker.session)
                .collect();
            for session in in_flight {
                self.cancel_all(session, out);
            }
        }
        self.history.truncate(version.step as usize);
        self.history.push(version);
        self.evals.retain(|&step| step < version.step);
        self.rounds.clear();
        self.learning = None;
        self.restored.clear();
        self.early.clear();
        out.push(Command::Rollback { version });
    }

    /// From now on workers sample with this version; `probe`: what the learner computes with it.
    pub(super) fn adopt(&mut self, version: Version, probe: Option<Vec<f32>>) {
        let device = || self.learner.as_ref()?.hello.device.as_ref();
        let probe = probe.map(|logprobs| Probe {
            whose: "the learner".to_owned(),
            logprobs,
            numerics: device().map_or_else(String::new, |device| device.numerics.clone()),
        });
        self.policy = Some(Policy { version, probe });
        self.sync_since = self.now;
        self.synced_at = None;
        self.look_over = true;
        for worker in self.workers.values_mut() {
            worker.new_policy();
        }
    }

    /// Hands the learner the batch that waits, if it holds the version that the batch needs.
    pub(super) fn send_batch(&mut self, out: &mut Vec<Command>) {
        let (Some(learning), Some(learner)) = (&mut self.learning, &mut self.learner) else {
            return;
        };
        let Some(version) = batch_version(&self.history, learning.round.id) else {
            return;
        };
        if learning.sent || !learner.is_idle() || learner.held != Some(version) {
            return;
        }
        learning.sent = true;
        learner.busy = true;
        out.push(Command::SendBatch {
            session: learner.session,
            version,
            groups: learning.round.batch(),
        });
    }

    pub(super) fn step_result(
        &mut self,
        session: Session,
        result: v1::StepResult,
        out: &mut Vec<Command>,
    ) {
        let Some(version) = result.version.as_ref().and_then(Version::from_wire) else {
            return self.fail(
                "the learner sent a result without a policy version".into(),
                out,
            );
        };
        let Some(learner) = self.heard(session) else {
            return;
        };
        let expected = learner
            .held
            .is_some_and(|held| version.step == held.step + 1);
        if !learner.busy || !expected {
            out.push(Command::Warn(format!(
                "a result of step {} came unasked",
                version.step
            )));
            return;
        }
        learner.busy = false;
        learner.held = Some(version);
        if version.step <= self.steps_done() {
            self.take_known(session, version, result.probe_logprobs, out);
        } else if self
            .learning
            .as_ref()
            .is_some_and(|l| l.sent && l.step == version.step)
        {
            self.close_step(version, result, out);
        } else {
            out.push(Command::Warn(format!(
                "a result of step {} came unasked",
                version.step
            )));
        }
    }

    /// The step is done: it is recorded, and its version is what workers sample with.
    fn close_step(&mut self, version: Version, result: v1::StepResult, out: &mut Vec<Command>) {
        let Some(learning) = self.learning.take() else {
            return;
        };
        let mut timings = learning.timings;
        timings.learn = self.now - learning.since;
        timings.total = match self.plan.max_staleness {
            0 => timings.sync + timings.sample + timings.score + timings.learn,
            _ => self.now - self.step_since,
        };
        self.step_since = self.now;
        self.history.push(version);
        out.push(Command::RecordStep(Box::new(StepDone {
            version,
            metrics: result.metrics.unwrap_or_default(),
            timings,
            groups: learning.round.batch(),
            tokens: learning.round.tokens,
            resampled: learning.round.resampled,
            outdated: learning.round.outdated(),
        })));
        self.adopt(version, Some(result.probe_logprobs));
    }
}
