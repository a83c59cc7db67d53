//! One round of samples: what is still to be sampled, in flight, scored and journaled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tina_proto::v1;

use super::types::{RoundId, SampleId, Scored, Session, Version, versions};

/// How far a sample is.
#[derive(Debug)]
pub(super) enum State {
    /// To be handed to a worker.
    Pending,
    /// At a worker; at two where the first doesn't get on.
    InFlight(Vec<Session>),
    /// Arrived; its verdicts or its place in the journal are under way.
    Arrived,
    /// In the journal.
    Done(Arc<Scored>),
}

/// Under which versions a round may be sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    /// This one alone: an evaluation, and training in lock step.
    Exactly(Version),
    /// Those of this step and later.
    Since(u64),
}

impl Admits {
    /// Whether a completion may be of the round; `history`: the versions of the steps done.
    pub(super) fn admits(self, completion: &v1::Completion, history: &[Version]) -> bool {
        let Some(versions) = versions(completion) else {
            return false;
        };
        match self {
            Self::Exactly(version) => versions == [version],
            Self::Since(_) => versions
                .iter()
                .all(|&version| self.allows(version, history)),
        }
    }

    /// Whether a worker that holds this version may sample for the round.
    pub(super) fn allows(self, version: Version, history: &[Version]) -> bool {
        match self {
            Self::Exactly(exact) => version == exact,
            Self::Since(oldest) => {
                version.step >= oldest && history.get(version.step as usize) == Some(&version)
            }
        }
    }
}

#[derive(Debug)]
struct Sample {
    state: State,
    scored: Option<Arc<Scored>>,
    /// Workers to be told when it is in the journal.
    waiting: Vec<Session>,
    /// Workers that were asked for it, whatever became of that: what they bring is taken.
    asked: Vec<Arc<str>>,
    failures: Vec<Failure>,
}

/// What became of a sample at one worker.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) worker: Arc<str>,
    pub(super) times: u32,
    /// The last time.
    pub(super) error: String,
}

impl Sample {
    fn new() -> Self {
        Self {
            state: State::Pending,
            scored: None,
            waiting: Vec::new(),
            asked: Vec::new(),
            failures: Vec::new(),
        }
    }
}

/// What the journal's completion is to a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Restore {
    /// Of another.
    Foreign,
    /// It has it now.
    Taken,
    /// Its sample is to be made again: it was sampled under a version that no longer counts.
    Outdated,
}

/// How many samples a round has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) groups: u32,
    pub(super) per_group: u32,
    /// How often a group without spread gives way to another.
    pub(super) max_resamples: u32,
}

/// The samples of one round, in a fixed order.
///
/// A group has a place in the round. One that gives way to another leaves its place to it: the
/// group's number in the round is `place + groups * resamples so far`.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) id: RoundId,
    pub(super) admits: Admits,
    pub(super) opened: Duration,
    pub(super) last_arrival: Duration,
    /// The longest that a sample took so far, from when a worker was asked for it until it came.
    pub(super) slowest: Duration,
    /// When the last sample was in the journal.
    pub(super) completed: Option<Duration>,
    pub(super) tokens: u64,
    pub(super) resampled: u32,
    /// Places whose group had completions that were found too old.
    outdated: BTreeSet<u32>,
    shape: Shape,
    /// How often the group of each place gave way to another; 0 where not named.
    resamples: BTreeMap<u32, u32>,
    samples: Vec<Sample>,
    pending: BTreeSet<(u32, u32)>,
    in_flight: usize,
    done: usize,
}

impl Round {
    pub(super) fn new(id: RoundId, admits: Admits, shape: Shape, now: Duration) -> Self {
        let count = shape.groups as usize * shape.per_group as usize;
        Self {
            id,
            admits,
            opened: now,
            last_arrival: now,
            slowest: Duration::ZERO,
            completed: None,
            tokens: 0,
            resampled: 0,
            outdated: BTreeSet::new(),
            shape,
            resamples: BTreeMap::new(),
            samples: std::iter::repeat_with(Sample::new).take(count).collect(),
            pending: (0..shape.groups)
                .flat_map(|g| (0..shape.per_group).map(move |s| (g, s)))
                .collect(),
            in_flight: 0,
            done: 0,
        }
    }

    fn resamples(&self, place: u32) -> u32 {
        self.resamples.get(&place).copied().unwrap_or(0)
    }

    /// The id of the group that has this place now.
    pub(super) fn group(&self, place: u32) -> u64 {
        self.id
            .group(place + self.shape.groups * self.resamples(place))
    }

    /// The place of a group, and how often groups gave way there before it.
    fn place_of(&self, group: u64) -> Option<(u32, u32)> {
        let (round, number) = RoundId::of_group(group);
        let place = number.checked_rem(self.shape.groups)?;
        (round == self.id).then_some((place, number / self.shape.groups))
    }

    fn place(&self, id: SampleId) -> Option<(u32, u32)> {
        let (place, resamples) = self.place_of(id.group)?;
        (id.index < self.shape.per_group && resamples == self.resamples(place))
            .then_some((place, id.index))
    }

    /// True for a sample of a group that gave way to another: it is in the journal.
    pub(super) fn gave_way(&self, id: SampleId) -> bool {
        self.place_of(id.group)
            .is_some_and(|(place, resamples)| resamples < self.resamples(place))
    }

    fn at(&self, (place, index): (u32, u32)) -> usize {
        place as usize * self.shape.per_group as usize + index as usize
    }

    fn sample(&mut self, id: SampleId) -> Option<&mut Sample> {
        let at = self.at(self.place(id)?);
        self.samples.get_mut(at)
    }

    /// How far a sample is; `None` when it isn't of this round.
    pub(super) fn state(&self, id: SampleId) -> Option<&State> {
        let at = self.at(self.place(id)?);
        Some(&self.samples.get(at)?.state)
    }

    /// Workers that are at a sample.
    pub(super) fn holders(&self, id: SampleId) -> usize {
        match self.state(id) {
            Some(State::InFlight(at)) => at.len(),
            _ => 0,
        }
    }

    /// Workers that are at samples of the group that has this place, each as often as it has some.
    pub(super) fn workers_at(&self, place: u32) -> impl Iterator<Item = Session> {
        let at = self.group_samples(place).iter();
        at.flat_map(|sample| match &sample.state {
            State::InFlight(at) => at.as_slice(),
            _ => &[],
        })
        .copied()
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

    pub(super) fn send(&mut self, id: SampleId, session: Session, worker: &Arc<str>) {
        if let Some(sample) = self.sample(id)
            && !sample.asked.contains(worker)
        {
            sample.asked.push(worker.clone());
        }
        match self.sample(id).map(|sample| &mut sample.state) {
            Some(State::InFlight(at)) => at.push(session),
            _ => self.set(id, State::InFlight(vec![session])),
        }
    }

    /// A worker doesn't have the sample any longer; nobody has it: it is to be handed out anew.
    pub(super) fn take_from(&mut self, id: SampleId, session: Session) {
        let Some(sample) = self.sample(id) else {
            return;
        };
        if let State::InFlight(at) = &mut sample.state {
            at.retain(|other| *other != session);
            if at.is_empty() {
                self.set(id, State::Pending);
            }
        }
    }

    /// True when this worker was asked for the sample, on this stream or an earlier one.
    pub(super) fn was_asked(&self, id: SampleId, worker: &str) -> bool {
        let sample = self
            .place(id)
            .and_then(|place| self.samples.get(self.at(place)));
        sample.is_some_and(|sample| sample.asked.iter().any(|asked| **asked == *worker))
    }

    /// Notes how long a sample took, from when it was asked for.
    pub(super) fn took(&mut self, time: Duration) {
        self.slowest = self.slowest.max(time);
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

    /// This completion is in the journal; returns the workers to tell.
    pub(super) fn recorded(&mut self, scored: &Arc<Scored>, now: Duration) -> Vec<Session> {
        let id = scored.id();
        let Some(sample) = self.sample(id) else {
            return Vec::new();
        };
        // One of before a rollback is another.
        let own = |taken: &mut Arc<Scored>| Arc::ptr_eq(taken, scored);
        let Some(scored) = sample.scored.take_if(own) else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut sample.waiting);
        self.finish(id, scored, now);
        waiting
    }

    /// Takes a completion that the journal already holds. Those of groups that gave way must come
    /// before those that took their place.
    pub(super) fn restore(
        &mut self,
        scored: &Arc<Scored>,
        history: &[Version],
        now: Duration,
    ) -> Restore {
        let id = scored.id();
        if self.state(id).is_none() {
            return Restore::Foreign;
        }
        if !self.admits.admits(&scored.completion, history) {
            self.outdated.extend(self.place(id).map(|place| place.0));
            return Restore::Outdated;
        }
        self.finish(id, scored.clone(), now);
        Restore::Taken
    }

    /// The sample is done; a group that is complete with it and has no spread gives way to another.
    fn finish(&mut self, id: SampleId, scored: Arc<Scored>, now: Duration) {
        self.tokens += scored.completion.tokens.len() as u64;
        self.set(id, State::Done(scored));
        if let Some((place, _)) = self.place(id)
            && self.resamples(place) < self.shape.max_resamples
            && self.lacks_spread(place)
        {
            for index in 0..self.shape.per_group {
                let at = self.at((place, index));
                self.samples[at] = Sample::new();
                self.pending.insert((place, index));
                self.done -= 1;
            }
            *self.resamples.entry(place).or_default() += 1;
            self.resampled += 1;
        }
        self.completed = self.is_complete().then_some(now);
    }

    fn group_samples(&self, place: u32) -> &[Sample] {
        let first = self.at((place, 0));
        &self.samples[first..first + self.shape.per_group as usize]
    }

    /// True when the group there is complete and says nothing: fewer than two completions were
    /// judged, or all that were are worth the same. (By what is known of each completion alone.)
    fn lacks_spread(&self, place: u32) -> bool {
        let mut rewards = Vec::new();
        for sample in self.group_samples(place) {
            let State::Done(scored) = &sample.state else {
                return false;
            };
            rewards.extend(scored.judged.then_some(scored.reward));
        }
        rewards.len() < 2 || rewards.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Notes a failure.
    pub(super) fn fail(&mut self, id: SampleId, worker: &Arc<str>, error: &str) {
        let Some(sample) = self.sample(id) else {
            return;
        };
        match sample.failures.iter_mut().find(|f| f.worker == *worker) {
            Some(failure) => {
                failure.times = failure.times.saturating_add(1);
                error.clone_into(&mut failure.error);
            }
            None => sample.failures.push(Failure {
                worker: worker.clone(),
                times: 1,
                error: error.to_owned(),
            }),
        }
    }

    /// Who failed at a sample, how often and why.
    pub(super) fn failures(&self, id: SampleId) -> &[Failure] {
        self.place(id).map_or(&[], |place| self.failures_at(place))
    }

    fn failures_at(&self, place: (u32, u32)) -> &[Failure] {
        let sample = self.samples.get(self.at(place));
        sample.map_or(&[], |sample| &sample.failures)
    }

    /// How often this worker failed at the sample.
    pub(super) fn failures_of(&self, place: u32, index: u32, worker: &str) -> u32 {
        let failures = self.failures_at((place, index)).iter();
        let mut own = failures.filter(|failure| *failure.worker == *worker);
        own.next().map_or(0, |failure| failure.times)
    }

    /// The first place at or after `from` with samples to hand out, and those samples.
    pub(super) fn next_pending(&self, from: u32) -> Option<(u32, Vec<u32>)> {
        let place = self.pending.range((from, 0)..).next()?.0;
        let indices = self
            .pending
            .range((place, 0)..=(place, u32::MAX))
            .map(|p| p.1)
            .collect();
        Some((place, indices))
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

    /// Groups of which completions were found too old.
    pub(super) fn outdated(&self) -> u32 {
        self.outdated.len() as u32
    }

    /// Groups with samples to hand out, and groups that are complete.
    pub(super) fn group_counts(&self) -> (u32, u32) {
        let mut waiting: Vec<u32> = self.pending.iter().map(|place| place.0).collect();
        waiting.dedup();
        let complete = self
            .samples
            .chunks(self.shape.per_group.max(1) as usize)
            .filter(|group| group.iter().all(|s| matches!(s.state, State::Done(_))))
            .count();
        (waiting.len() as u32, complete as u32)
    }

    /// The batch: groups in order, completions in order. Only of a complete round.
    pub(super) fn batch(&self) -> Vec<Vec<Arc<Scored>>> {
        self.samples
            .chunks(self.shape.per_group.max(1) as usize)
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
