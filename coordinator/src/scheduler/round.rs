//! One round of samples: what is still to be sampled, in flight, scored and journaled.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::types::{RoundId, SampleId, Scored, Session, Version};

/// How far a sample is.
#[derive(Debug)]
pub(super) enum State {
    /// To be handed to a worker.
    Pending,
    /// At a worker.
    InFlight(Session),
    /// Arrived; its verdicts or its place in the journal are under way.
    Arrived,
    /// In the journal.
    Done(Arc<Scored>),
}

#[derive(Debug)]
struct Sample {
    state: State,
    scored: Option<Arc<Scored>>,
    /// Workers to be told when it is in the journal.
    waiting: Vec<Session>,
    /// Who failed at it, and why.
    failures: Vec<(Arc<str>, String)>,
}

/// The samples of one round, in a fixed order.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) id: RoundId,
    pub(super) version: Version,
    pub(super) opened: Duration,
    pub(super) last_arrival: Duration,
    pub(super) tokens: u64,
    groups: u32,
    per_group: u32,
    samples: Vec<Sample>,
    pending: BTreeSet<(u32, u32)>,
    in_flight: usize,
    done: usize,
}

impl Round {
    pub(super) fn new(
        id: RoundId,
        version: Version,
        groups: u32,
        per_group: u32,
        now: Duration,
    ) -> Self {
        let count = groups as usize * per_group as usize;
        let sample = || Sample {
            state: State::Pending,
            scored: None,
            waiting: Vec::new(),
            failures: Vec::new(),
        };
        Self {
            id,
            version,
            opened: now,
            last_arrival: now,
            tokens: 0,
            groups,
            per_group,
            samples: (0..count).map(|_| sample()).collect(),
            pending: (0..groups)
                .flat_map(|g| (0..per_group).map(move |s| (g, s)))
                .collect(),
            in_flight: 0,
            done: 0,
        }
    }

    fn place(&self, id: SampleId) -> Option<(u32, u32)> {
        let (round, group) = RoundId::of_group(id.group);
        (round == self.id && group < self.groups && id.index < self.per_group)
            .then_some((group, id.index))
    }

    fn sample(&mut self, id: SampleId) -> Option<&mut Sample> {
        let (group, index) = self.place(id)?;
        self.samples
            .get_mut((group * self.per_group + index) as usize)
    }

    /// How far a sample is; `None` when it isn't of this round.
    pub(super) fn state(&self, id: SampleId) -> Option<&State> {
        let (group, index) = self.place(id)?;
        Some(
            &self
                .samples
                .get((group * self.per_group + index) as usize)?
                .state,
        )
    }

    /// Moves a sample and keeps the counts true.
    fn set(&mut self, id: SampleId, state: State) {
        let Some(place) = self.place(id) else { return };
        let Some(sample) = self.sample(id) else {
            return;
        };
        let old = std::mem::replace(&mut sample.state, state);
        let new = matches!(sample.state, State::InFlight(_));
        let pending = matches!(sample.state, State::Pending);
        let done = matches!(sample.state, State::Done(_));
        match old {
            State::Pending => {
                self.pending.remove(&place);
            }
            State::InFlight(_) => self.in_flight -= 1,
            State::Arrived => {}
            State::Done(_) => self.done -= 1,
        }
        if pending {
            self.pending.insert(place);
        }
        self.in_flight += usize::from(new);
        self.done += usize::from(done);
    }

    pub(super) fn send(&mut self, id: SampleId, session: Session) {
        self.set(id, State::InFlight(session));
    }

    pub(super) fn put_back(&mut self, id: SampleId) {
        self.set(id, State::Pending);
    }

    pub(super) fn arrive(&mut self, id: SampleId, session: Session, now: Duration) {
        self.set(id, State::Arrived);
        self.last_arrival = now;
        self.wait_for(id, session);
    }

    /// Notes that `session` is to be told when the sample is in the journal.
    pub(super) fn wait_for(&mut self, id: SampleId, session: Session) {
        if let Some(sample) = self.sample(id)
            && !sample.waiting.contains(&session)
        {
            sample.waiting.push(session);
        }
    }

    /// Takes the verdicts; false when the sample wasn't waiting for any.
    pub(super) fn scored(&mut self, scored: &Arc<Scored>) -> bool {
        match self.sample(scored.id()) {
            Some(sample) if matches!(sample.state, State::Arrived) && sample.scored.is_none() => {
                sample.scored = Some(scored.clone());
                true
            }
            _ => false,
        }
    }

    /// The sample is in the journal; returns the workers to tell.
    pub(super) fn recorded(&mut self, id: SampleId) -> Vec<Session> {
        let Some(sample) = self.sample(id) else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut sample.waiting);
        if let Some(scored) = sample.scored.take() {
            self.tokens += scored.completion.tokens.len() as u64;
            self.set(id, State::Done(scored));
        }
        waiting
    }

    /// Takes a completion that the journal already holds; false when it isn't of this round.
    pub(super) fn restore(&mut self, scored: &Arc<Scored>) -> bool {
        let id = scored.id();
        let fits = self.state(id).is_some() && scored.version() == Some(self.version);
        if fits {
            self.tokens += scored.completion.tokens.len() as u64;
            self.set(id, State::Done(scored.clone()));
        }
        fits
    }

    /// Notes a failure; returns how often and why this sample failed so far.
    pub(super) fn fail(
        &mut self,
        id: SampleId,
        worker: Arc<str>,
        error: String,
    ) -> &[(Arc<str>, String)] {
        match self.sample(id) {
            Some(sample) => {
                sample.failures.push((worker, error));
                &sample.failures
            }
            None => &[],
        }
    }

    /// True when this worker has failed at the sample.
    pub(super) fn failed_at(&self, group: u32, index: u32, worker: &str) -> bool {
        self.samples
            .get((group * self.per_group + index) as usize)
            .is_some_and(|sample| sample.failures.iter().any(|(who, _)| &**who == worker))
    }

    /// The first group at or after `from` with samples to hand out, and those samples.
    pub(super) fn next_pending(&self, from: u32) -> Option<(u32, Vec<u32>)> {
        let group = self.pending.range((from, 0)..).next()?.0;
        let indices = self
            .pending
            .range((group, 0)..=(group, u32::MAX))
            .map(|p| p.1)
            .collect();
        Some((group, indices))
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn done(&self) -> usize {
        self.done
    }

    pub(super) fn total(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done == self.samples.len()
    }

    /// Groups with samples to hand out, and groups that are complete.
    pub(super) fn group_counts(&self) -> (u32, u32) {
        let mut waiting: Vec<u32> = self.pending.iter().map(|place| place.0).collect();
        waiting.dedup();
        let complete = self
            .samples
            .chunks(self.per_group.max(1) as usize)
            .filter(|group| group.iter().all(|s| matches!(s.state, State::Done(_))))
            .count();
        (waiting.len() as u32, complete as u32)
    }

    /// The batch: groups in order, completions in order. Only of a complete round.
    pub(super) fn batch(&self) -> Vec<Vec<Arc<Scored>>> {
        self.samples
            .chunks(self.per_group.max(1) as usize)
            .map(|group| {
                group
                    .iter()
                    .filter_map(|sample| match &sample.state {
                        State::Done(scored) => Some(scored.clone()),
                        _ => None,
                    })
                    .collect()
            })
            .collect()
    }
}
