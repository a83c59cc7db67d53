//! What a person may see of the scheduler.

use tina_proto::v1;

use super::{
    Over, Scheduler,
    fleet::Worker,
    round::Round,
    types::{Purpose, Version},
};

/// The scheduler's part of a status report.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the run is at.
    pub phase: v1::Phase,
    /// Steps done.
    pub step: u64,
    /// The version of the steps done.
    pub version: Option<Version>,
    /// Workers, and those lost lately.
    pub workers: Vec<v1::WorkerStatus>,
    /// The learner, if one is dialled in.
    pub learner: Option<v1::LearnerStatus>,
    /// What waits where.
    pub queues: v1::QueueDepths,
    /// Completions of this phase that are done, of how many.
    pub done: (u32, u32),
    /// Why the run failed.
    pub error: String,
    /// What the run is waiting for.
    pub message: String,
}

impl Scheduler {
    /// What the run is at.
    pub fn phase(&self) -> v1::Phase {
        match &self.over {
            Some(Over::Done) => return v1::Phase::Done,
            Some(Over::Failed(_)) => return v1::Phase::Failed,
            None => {}
        }
        if self.stop_after.is_some() {
            return v1::Phase::Stopping;
        }
        match (&self.policy, self.rounds.values().next(), &self.learning) {
            (None, ..) => v1::Phase::Starting,
            (_, Some(round), _) if round.id.purpose() == Purpose::Eval => v1::Phase::Evaluating,
            (_, Some(round), Some(_)) if !round.has_pending() && round.in_flight() == 0 => {
                v1::Phase::Learning
            }
            (_, Some(_), _) => v1::Phase::Sampling,
            (_, None, Some(_)) => v1::Phase::Learning,
            (_, None, None) if self.synced_at.is_some() && self.paused => v1::Phase::Paused,
            (_, None, None) if self.history.len() == 1 && self.evals.is_empty() => {
                v1::Phase::Starting
            }
            (_, None, None) => v1::Phase::Syncing,
        }
    }

    /// Everything a status report needs.
    pub fn snapshot(&self) -> Snapshot {
        let round = self.rounds.values().find(|round| !round.is_complete());
        let counts = self.rounds.values().map(Round::group_counts);
        let (waiting, complete) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let in_flight: usize = self.rounds.values().map(Round::in_flight).sum();
        let learner = self.learner.as_ref();
        let learning = |part: fn(&v1::LearnerHeartbeat) -> u32| {
            learner.map_or(0, |learner| part(&learner.heartbeat))
        };
        Snapshot {
            phase: self.phase(),
            step: self.steps_done(),
            version: self.history.last().copied(),
            workers: self.worker_statuses(),
            learner: learner.map(|learner| v1::LearnerStatus {
                learner_id: learner.hello.learner_id.clone(),
                address: learner.hello.address.clone(),
                device: learner.hello.device.clone(),
                phase: learner.heartbeat.phase.clone(),
                version: learner.held.map(Version::to_wire),
                seconds_since_heartbeat: (self.now - learner.last_seen).as_secs_f64(),
                done: learner.heartbeat.done,
                total: learner.heartbeat.total,
                trainable_parameters: learner.trainable_parameters,
                model_parameters: learner.model_parameters,
            }),
            queues: v1::QueueDepths {
                groups_waiting: waiting,
                samples_in_flight: in_flight as u32,
                groups_complete: complete,
            },
            done: match round {
                Some(round) => (round.done() as u32, round.total() as u32),
                None => (learning(|beat| beat.done), learning(|beat| beat.total)),
            },
            error: match &self.over {
                Some(Over::Failed(reason)) => reason.clone(),
                _ => String::new(),
            },
            message: self.message(),
        }
    }

    fn worker_statuses(&self) -> Vec<v1::WorkerStatus> {
        let live = self.workers.values().map(|worker| v1::WorkerStatus {
            worker_id: worker.id.to_string(),
            address: worker.hello.address.clone(),
            device: worker.hello.device.clone(),
            slots: worker.slots,
            slots_used: worker.in_flight.len() as u32,
            tokens_per_second: worker.heartbeat.tokens_per_second,
            tokens_total: worker.heartbeat.tokens_total,
            version: worker.loaded.map(Version::to_wire),
            seconds_since_heartbeat: (self.now - worker.last_seen).as_secs_f64(),
            state: self.worker_state(worker),
            probe_diff_max: f64::from(worker.probe_diff),
            kv_bytes: worker.heartbeat.kv_bytes,
            kv_limit_bytes: worker.heartbeat.kv_limit_bytes,
            failures: worker.conduct.failures,
            unasked: worker.conduct.unasked,
        });
        let lost = self.lost.values().map(|worker| v1::WorkerStatus {
            worker_id: worker.hello.worker_id.clone(),
            address: worker.hello.address.clone(),
            device: worker.hello.device.clone(),
            tokens_total: worker.tokens_total,
            failures: worker.conduct.failures,
            unasked: worker.conduct.unasked,
            seconds_since_heartbeat: (self.now - worker.last_seen).as_secs_f64(),
            state: format!("lost: {}", worker.reason),
            ..Default::default()
        });
        let mut all: Vec<v1::WorkerStatus> = live.chain(lost).collect();
        all.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
        all
    }

    fn worker_state(&self, worker: &Worker) -> String {
        if let Some(reason) = &worker.refused {
            return format!("refused: {reason}");
        }
        if worker.model_digest.is_none() {
            return "loading".into();
        }
        if let Some(error) = &worker.load_error {
            return format!("syncing: {error}");
        }
        if let Some(trouble) = worker.conduct.trouble() {
            return trouble;
        }
        match &self.policy {
            Some(policy) if worker.loaded == Some(policy.version) => "ready".into(),
            _ => "syncing".into(),
        }
    }

    /// The line a person most needs now; empty when all goes its way.
    fn message(&self) -> String {
        if self.over.is_some() {
            return String::new();
        }
        if let Some(missing) = self.missing() {
            return missing;
        }
        match (self.stop_after.is_some(), self.paused) {
            (true, _) => "finishing this step, then stopping".into(),
            (false, true) if !self.rounds.is_empty() || self.learning.is_some() => {
                "pausing after this step".into()
            }
            (false, true) => "paused".into(),
            _ => String::new(),
        }
    }

    /// Which role the run stands still for, and why that one can't work.
    pub(super) fn missing(&self) -> Option<String> {
        let needs_learner = !self.has_given() && (self.policy.is_none() || self.learning.is_some());
        match &self.learner {
            None if needs_learner => return Some("waiting for a learner to dial in".into()),
            Some(learner) if needs_learner && learner.held.is_none() => {
                return Some("the learner loads the model".into());
            }
            _ => {}
        }
        let idle = self.rounds.is_empty() && self.learning.is_none();
        let needs_worker = self.rounds.values().any(|round| !round.is_complete())
            || (idle && self.synced_at.is_none());
        let at_work =
            |worker: &Worker| !worker.in_flight.is_empty() || self.worker_state(worker) == "ready";
        if !needs_worker || self.workers.values().any(at_work) {
            return None;
        }
        let troubled = self.workers.values().find_map(|worker| {
            let known = worker.refused.clone().or(worker.load_error.clone());
            let reason = known.or_else(|| worker.conduct.trouble())?;
            Some(format!("no worker can sample; {}: {reason}", worker.id))
        });
        let mut workers = self.workers.values();
        Some(match troubled {
            Some(trouble) => trouble,
            None if self.workers.is_empty() => "waiting for a rollout worker to dial in".into(),
            None if workers.all(|worker| worker.model_digest.is_none()) => {
                "the rollout workers load the model".into()
            }
            None => "the rollout workers load the adapter".into(),
        })
    }

    /// Completions that the scheduler holds in memory, for tests of its bounds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let rounds = self
            .rounds
            .values()
            .chain(self.learning.as_ref().map(|l| &l.round));
        rounds.map(|round| round.total()).sum::<usize>() + self.restored.len() + self.early.len()
    }
}
