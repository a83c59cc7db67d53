//! The workers: what they hold and what they bring.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tina_proto::v1;

use super::{
    Policy, Probe, Scheduler,
    conduct::Conduct,
    round::{Admits, State},
    types::{Command, RoundId, SampleId, Session, Version, versions},
};

/// Failed loads of one adapter after which a worker is left out until the next.
const MAX_LOAD_FAILURES: u32 = 3;

/// Pause before a failed load is asked for again.
const LOAD_RETRY: Duration = Duration::from_secs(1);

/// Lost workers that are remembered.
const LOST_KEPT: usize = 64;

/// Workers at a time; more are no cluster.
const MAX_WORKERS: usize = 1 << 14;

/// A worker whose stream is open.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) session: Session,
    pub(super) id: Arc<str>,
    pub(super) hello: v1::WorkerHello,
    pub(super) slots: u32,
    /// The model it loaded; `None` while it loads.
    pub(super) model_digest: Option<String>,
    /// Why it gets no work, for as long as this stream lives.
    pub(super) refused: Option<String>,
    /// What it acknowledged last.
    pub(super) loaded: Option<Version>,
    /// When it was told to load the policy version.
    asked: Option<Duration>,
    load_failures: u32,
    pub(super) load_error: Option<String>,
    /// What it was asked for, and when.
    pub(super) in_flight: BTreeMap<SampleId, Duration>,
    pub(super) last_seen: Duration,
    /// When it last got on with what it has to do, or had nothing to do.
    pub(super) progress: Duration,
    pub(super) heartbeat: v1::WorkerHeartbeat,
    pub(super) probe_diff: f32,
    pub(super) conduct: Conduct,
}

/// A worker whose stream closed.
#[derive(Debug)]
pub(super) struct LostWorker {
    pub(super) hello: v1::WorkerHello,
    pub(super) last_seen: Duration,
    pub(super) reason: String,
    pub(super) tokens_total: u64,
    pub(super) conduct: Conduct,
}

impl Worker {
    /// True when its model is loaded and nothing speaks against it.
    pub(super) fn is_usable(&self) -> bool {
        self.model_digest.is_some() && self.refused.is_none()
    }

    /// True when it failed to load the policy version too often.
    pub(super) fn gave_up_loading(&self) -> bool {
        self.load_failures >= MAX_LOAD_FAILURES
    }

    pub(super) fn new_policy(&mut self) {
        self.asked = None;
        self.load_failures = 0;
        self.load_error = None;
    }

    /// True when it has samples to make, or was told to load this version and hasn't answered.
    pub(super) fn has_work(&self, policy: Option<Version>) -> bool {
        let owes_load = self.is_usable()
            && self.asked.is_some()
            && self.loaded != policy
            && self.load_error.is_none();
        owes_load || !self.in_flight.is_empty()
    }

    pub(super) fn free(&self) -> u32 {
        let slots = if self.conduct.is_on_trial() {
            self.slots.min(1)
        } else {
            self.slots
        };
        slots.saturating_sub(self.in_flight.len() as u32)
    }
}

impl Scheduler {
    pub(super) fn worker_hello(
        &mut self,
        session: Session,
        hello: v1::WorkerHello,
        out: &mut Vec<Command>,
    ) {
        let same = self
            .workers
            .values()
            .find(|w| *w.id == *hello.worker_id)
            .map(|w| (w.session, &w.hello.address));
        if same.is_none() && self.workers.len() >= MAX_WORKERS {
            let reason = format!("this run has {MAX_WORKERS} workers already");
            out.push(Command::CloseWorker { session, reason });
            return;
        }
        if let Some((old, address)) = same {
            if process(address) != process(&hello.address) || host(address) != host(&hello.address)
            {
                // Taking turns, the two would get nothing done. Should the one that is here be gone,
                // its silence ends it.
                let (id, address) = (&hello.worker_id, process(address));
                let reason =
                    format!("this run has a worker {id} already, {address}: give each its own id");
                out.push(Command::CloseWorker { session, reason });
                return;
            }
            let reason = "the same worker dialled in anew".to_owned();
            out.push(Command::CloseWorker {
                session: old,
                reason: reason.clone(),
            });
            self.worker_lost(old, &reason);
        }
        let lost = self.lost.remove(hello.worker_id.as_str());
        let worker = Worker {
            session,
            id: hello.worker_id.as_str().into(),
            slots: 0,
            hello,
            model_digest: None,
            refused: None,
            loaded: None,
            asked: None,
            load_failures: 0,
            load_error: None,
            in_flight: BTreeMap::new(),
            last_seen: self.now,
            progress: self.now,
            heartbeat: v1::WorkerHeartbeat::default(),
            probe_diff: 0.0,
            conduct: lost.map_or_else(Conduct::default, |lost| lost.conduct),
        };
        self.workers.insert(session, worker);
    }

    /// The worker whose stream this is; notes that it lives.
    pub(super) fn heard_worker(&mut self, session: Session) -> Option<&mut Worker> {
        let now = self.now;
        let worker = self.workers.get_mut(&session)?;
        worker.last_seen = now;
        Some(worker)
    }

    /// The worker whose stream this is; notes that it lives and gets on.
    fn worker(&mut self, session: Session) -> Option<&mut Worker> {
        let now = self.now;
        let worker = self.heard_worker(session)?;
        worker.progress = now;
        Some(worker)
    }

    pub(super) fn worker_ready(
        &mut self,
        session: Session,
        ready: &v1::WorkerReady,
        out: &mut Vec<Command>,
    ) {
        let Some(worker) = self.worker(session) else {
            return;
        };
        worker.slots = ready.slots;
        if ready.device.is_some() {
            worker.hello.device.clone_from(&ready.device);
        }
        worker.model_digest = Some(ready.model_digest.clone());
        if ready.slots == 0 {
            worker.refused = Some("it offers no slots".into());
        } else if !self.plan.given.is_empty() {
            self.model_digest
                .get_or_insert_with(|| ready.model_digest.clone());
        }
        self.check_models();
        if let Some(worker) = self.workers.get(&session)
            && let Some(reason) = &worker.refused
        {
            out.push(Command::Warn(format!(
                "worker {} is refused: {reason}",
                worker.id
            )));
        }
    }

    /// Refuses workers whose model isn't the learner's, or without one the first worker's.
    pub(super) fn check_models(&mut self) {
        let Some(expected) = &self.model_digest else {
            return;
        };
        for worker in self.workers.values_mut() {
            if let Some(digest) = worker
                .model_digest
                .as_ref()
                .filter(|digest| *digest != expected)
            {
                worker.refused = Some(format!(
                    "its model's digest is {digest}, the run's {expected}: the model's files \
                     differ between the machines"
                ));
            }
        }
    }

    pub(super) fn worker_heartbeat(&mut self, session: Session, beat: v1::WorkerHeartbeat) {
        let now = self.now;
        if let Some(worker) = self.heard_worker(session) {
            if beat.tokens_total != worker.heartbeat.tokens_total {
                worker.progress = now;
            }
            // Slots that came to be are to be filled; those that are gone are left to run empty.
            let grown = worker.model_digest.is_some() && beat.slots > worker.slots;
            if worker.model_digest.is_some() && beat.slots > 0 {
                worker.slots = beat.slots;
            }
            worker.heartbeat = beat;
            self.look_over |= grown;
        }
    }

    /// The stream closed: what it had in flight is dispatched again.
    pub(super) fn worker_lost(&mut self, session: Session, reason: &str) {
        let Some(worker) = self.workers.remove(&session) else {
            return;
        };
        for id in worker.in_flight.into_keys() {
            if let Some(round) = self.round_of(id.group) {
                round.take_from(id, session);
            }
        }
        let lost = LostWorker {
            hello: worker.hello,
            last_seen: worker.last_seen,
            reason: reason.to_owned(),
            tokens_total: worker.heartbeat.tokens_total,
            conduct: worker.conduct,
        };
        self.lost.insert(worker.id, lost);
        if self.lost.len() > LOST_KEPT
            && let Some(oldest) = self
                .lost
                .iter()
                .min_by_key(|(_, l)| l.last_seen)
                .map(|(id, _)| id.clone())
        {
            self.lost.remove(&oldest);
        }
    }

    /// Tells every worker that hasn't the policy version to load it.
    pub(super) fn request_loads(&mut self, out: &mut Vec<Command>) {
        let Some(policy) = &self.policy else { return };
        for worker in self.workers.values_mut() {
            if !worker.is_usable() || worker.loaded == Some(policy.version) {
                continue;
            }
            let patience = if worker.load_error.is_some() && !worker.gave_up_loading() {
                LOAD_RETRY
            } else {
                self.plan.sync_deadline
            };
            if worker
                .asked
                .is_none_or(|asked| self.now >= asked + patience)
            {
                worker.asked = Some(self.now);
                let (session, version) = (worker.session, policy.version);
                out.push(Command::LoadAdapter { session, version });
            }
        }
    }

    pub(super) fn adapter_loaded(
        &mut self,
        session: Session,
        loaded: &v1::AdapterLoaded,
        out: &mut Vec<Command>,
    ) {
        let version = loaded.version.as_ref().and_then(Version::from_wire);
        let tolerance = self.plan.probe_tolerance;
        let policy = self.policy.clone();
        let Some(worker) = self.worker(session) else {
            return;
        };
        let Some(policy) = policy.filter(|policy| Some(policy.version) == version) else {
            return; // of a version that is no longer asked for
        };
        if !loaded.error.is_empty() {
            worker.load_failures += 1;
            worker.load_error = Some(loaded.error.clone());
            out.push(Command::Warn(format!(
                "worker {} could not load the adapter {}: {}",
                worker.id, policy.version, loaded.error
            )));
            return;
        }
        let numerics = worker
            .hello
            .device
            .as_ref()
            .map_or("", |device| device.numerics.as_str());
        let Some(probe) = &policy.probe else {
            if loaded.probe_logprobs.iter().any(|x| !x.is_finite()) {
                let reason = format!(
                    "under the adapter {} its log-probs of the probe are not finite",
                    policy.version
                );
                out.push(Command::Warn(format!(
                    "worker {} is refused: {reason}",
                    worker.id
                )));
                worker.refused = Some(reason);
                return;
            }
            let probe = Probe {
                whose: format!("worker {}", worker.id),
                logprobs: loaded.probe_logprobs.clone(),
                numerics: numerics.to_owned(),
            };
            worker.loaded = version;
            worker.load_error = None;
            self.policy = Some(Policy {
                probe: Some(probe),
                ..policy
            });
            return;
        };
        let exact = numerics == probe.numerics && numerics.starts_with("cpu");
        match probe_difference(&probe.logprobs, &loaded.probe_logprobs) {
            Some(diff) if diff <= if exact { 0.0 } else { tolerance } => {
                let cpus = numerics.starts_with("cpu") && probe.numerics.starts_with("cpu");
                if cpus && !exact && worker.loaded.is_none() {
                    out.push(Command::Warn(format!(
                        "worker {} computes in {numerics}, {} in {}: their samples differ by \
                         rounding, so the run can't be repeated to the byte with other workers \
                         (model.dtype = \"f32\" gives the same bits on every x86-64 with AVX2)",
                        worker.id, probe.whose, probe.numerics
                    )));
                }
                worker.probe_diff = diff;
                worker.loaded = version;
                worker.load_error = None;
            }
            diff => {
                let diff = diff.map_or("not comparable".into(), |diff| format!("off by {diff:e}"));
                let reason = format!(
                    "under the adapter {} its log-probs of the probe are {diff} against those of \
                     {} (arithmetic {numerics} and {})",
                    policy.version, probe.whose, probe.numerics
                );
                out.push(Command::Warn(format!(
                    "worker {} is refused: {reason}",
                    worker.id
                )));
                worker.refused = Some(reason);
                worker.loaded = None;
            }
        }
    }

    pub(super) fn completion(
        &mut self,
        session: Session,
        completion: v1::Completion,
        out: &mut Vec<Command>,
    ) {
        self.take_completion(session, completion, false, out);
    }

    /// Takes a completion that is wanted of this worker; `claimed`: that an earlier coordinator may have
    /// asked for it is settled.
    pub(super) fn take_completion(
        &mut self,
        session: Session,
        completion: v1::Completion,
        claimed: bool,
        out: &mut Vec<Command>,
    ) {
        let id = SampleId {
            group: completion.group_id,
            index: completion.sample_index,
        };
        let (round_id, _) = RoundId::of_group(id.group);
        let now = self.now;
        let Some(worker) = self.heard_worker(session) else {
            return;
        };
        let asked_at = worker.in_flight.remove(&id);
        let asked_here = asked_at.is_some();
        if asked_here {
            worker.progress = now;
        }
        let name = worker.id.clone();
        self.free.insert(session);
        let cancel = Command::Cancel {
            session,
            group: id.group,
            indices: vec![id.index],
        };
        let ack = Command::Ack {
            session,
            sample: id,
        };
        let Some(round) = self.rounds.get_mut(&round_id) else {
            if self.is_recorded(round_id) {
                out.push(ack);
            } else if self.policy.is_none()
                && self.early.len() < self.early_limit()
                && self.claim(session)
            {
                self.early.push((session, completion));
            } else {
                out.push(cancel);
            }
            return;
        };
        if let Some(asked) = asked_at {
            round.took(now - asked);
        }
        let admitted = round.admits.admits(&completion, &self.history);
        let open = matches!(round.state(id), Some(State::Pending | State::InFlight(_)));
        let asked = asked_here || claimed || round.was_asked(id, &name);
        let wanted = open && admitted && (asked || self.claim(session));
        let Some(round) = self.rounds.get_mut(&round_id) else {
            return;
        };
        match round.state(id) {
            None if round.gave_way(id) => out.push(ack),
            None => out.push(cancel),
            Some(State::Done(_)) => out.push(ack),
            Some(State::Arrived) if admitted => round.wait_for(id, session),
            Some(State::Arrived) => out.push(cancel),
            Some(State::Pending | State::InFlight(_)) if !admitted => {
                let admits = match round.admits {
                    Admits::Exactly(version) => version.to_string(),
                    Admits::Since(step) => format!("one of step {step} or later"),
                };
                out.push(cancel);
                if asked_here {
                    let found = versions(&completion).map_or("no known version".into(), |all| {
                        let all: Vec<String> = all.iter().map(Version::to_string).collect();
                        all.join(", ")
                    });
                    let error = format!("sampled under {found} instead of {admits}");
                    self.note_failure(id, session, &name, &error, out);
                }
            }
            Some(State::Pending | State::InFlight(_)) if !wanted => {
                self.refuse_unasked(session, id, out);
                out.push(cancel);
            }
            Some(State::Pending) => self.take(id, session, name, completion, out),
            Some(State::InFlight(at)) => {
                let others: Vec<Session> = at.iter().copied().filter(|o| *o != session).collect();
                for other in others {
                    if let Some(worker) = self.workers.get_mut(&other) {
                        worker.in_flight.remove(&id);
                        self.free.insert(other);
                    }
                    let (group, indices) = (id.group, vec![id.index]);
                    out.push(Command::Cancel {
                        session: other,
                        group,
                        indices,
                    });
                }
                self.take(id, session, name, completion, out);
            }
        }
    }

    fn take(
        &mut self,
        id: SampleId,
        session: Session,
        worker: Arc<str>,
        completion: v1::Completion,
        out: &mut Vec<Command>,
    ) {
        let now = self.now;
        if let Some(worker) = self.workers.get_mut(&session) {
            worker.conduct.brought_a_good_one();
        }
        if let Some(round) = self.round_of(id.group) {
            round.arrive(id, session, now);
            out.push(Command::Score { worker, completion });
        }
    }

    /// Completions that may wait for the first rounds: one of each sample that can be under way.
    fn early_limit(&self) -> usize {
        let plan = &self.plan;
        let batch = plan.groups_per_step as usize * plan.samples_per_group as usize;
        let eval = plan.eval_problems as usize * plan.eval_samples as usize;
        match plan.max_staleness {
            0 => batch.max(eval),
            n => batch.saturating_mul(n as usize + 1).saturating_add(eval),
        }
    }

    pub(super) fn cancel_all(&mut self, session: Session, out: &mut Vec<Command>) {
        let Some(worker) = self.workers.get_mut(&session) else {
            return;
        };
        let samples = std::mem::take(&mut worker.in_flight);
        let mut samples = samples.into_keys().peekable();
        while let Some(first) = samples.next() {
            let mut indices = vec![first.index];
            while let Some(next) = samples.next_if(|next| next.group == first.group) {
                indices.push(next.index);
            }
            out.push(Command::Cancel {
                session,
                group: first.group,
                indices,
            });
        }
    }
}

/// The process in Hello's address, which says before a space where it runs, and then whence it
/// dials.
fn process(address: &str) -> &str {
    address
        .split_once(' ')
        .map_or(address, |(process, _)| process)
}

/// The machine in Hello's address whence it dials, which the coordinator has put behind what the role
/// says of itself: `... (IP:PORT)`.
fn host(address: &str) -> &str {
    let from = address.rsplit_once('(').map_or("", |(_, from)| from);
    from.rsplit_once(':').map_or(from, |(host, _)| host)
}

/// The largest difference between two rows of log-probs; `None` when they can't be compared.
fn probe_difference(reference: &[f32], worker: &[f32]) -> Option<f32> {
    if reference.len() != worker.len() || reference.iter().chain(worker).any(|x| !x.is_finite()) {
        return None;
    }
    Some(
        reference
            .iter()
            .zip(worker)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max),
    )
}
