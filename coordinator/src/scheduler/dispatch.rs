//! Who samples what.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use super::{
    Scheduler,
    fleet::Worker,
    round::{Admits, Round},
    types::{Command, RoundId, SampleId, Session, Version},
};

/// A sample is late when it takes so many times as long as the slowest of its round that came.
const LATE: u32 = 4;

/// Workers that may sample for a round: those with the most free slots first, of equals the one that
/// came first.
type Free = BTreeSet<(Reverse<u32>, Session)>;

impl Scheduler {
    /// Hands out samples to free slots, the rounds in their order. What a single sample takes here
    /// doesn't grow with the number of workers, but of those with free slots.
    pub(super) fn dispatch(&mut self, out: &mut Vec<Command>) {
        let all = std::mem::take(&mut self.look_over);
        if all {
            self.free = self.workers.keys().copied().collect();
        } else if !self.has_pending() {
            return;
        }
        let mut rounds = std::mem::take(&mut self.rounds);
        for round in rounds.values_mut() {
            self.hand_out(round, out);
        }
        self.rounds = rounds;
        let workers = &self.workers;
        let has_free = |session: &Session| workers.get(session).is_some_and(|w| w.free() > 0);
        self.free.retain(has_free);
        if all && !self.free.is_empty() && !self.has_pending() {
            self.hedge(out);
        }
    }

    /// Whether a worker can be given samples at all: one that is to end what it has before it takes
    /// the new adapter gets no more.
    fn may_sample(&self, worker: &Worker) -> bool {
        let current = || worker.loaded == self.policy();
        let ready = worker.is_usable() && !worker.conduct.rests(self.now);
        ready && worker.loaded.is_some() && (!self.plan.drain || current())
    }

    /// The version under which a worker may sample for a round.
    fn fits(&self, worker: &Worker, round: &Round) -> Option<Version> {
        let version = worker.loaded.filter(|_| self.may_sample(worker))?;
        round
            .admits
            .allows(version, &self.history)
            .then_some(version)
    }

    /// Group by group in order, a group to the worker that has it already (its prompt is computed
    /// there) or else to the one with the most free slots; what doesn't fit there goes to the next.
    fn hand_out(&mut self, round: &mut Round, out: &mut Vec<Command>) {
        if !round.has_pending() {
            return;
        }
        let workers = self.free.iter().filter_map(|at| self.workers.get(at));
        let mut free: Free = workers
            .filter(|worker| worker.free() > 0 && self.fits(worker, round).is_some())
            .map(|worker| (Reverse(worker.free()), worker.session))
            .collect();
        let mut from = 0;
        while !free.is_empty()
            && let Some((place, indices)) = round.next_pending(from)
        {
            let Some((session, version, indices)) = self.choose(round, place, &indices, &free)
            else {
                from = place + 1;
                continue;
            };
            let Some(worker) = self.workers.get_mut(&session) else {
                return;
            };
            let group = round.group(place);
            free.remove(&(Reverse(worker.free()), session));
            for &index in &indices {
                let id = SampleId { group, index };
                round.send(id, session, &worker.id);
                worker.in_flight.insert(id, self.now);
            }
            if worker.free() > 0 {
                free.insert((Reverse(worker.free()), session));
            }
            out.push(Command::Sample {
                session,
                group,
                indices,
                version,
                exact: matches!(round.admits, Admits::Exactly(_)),
            });
        }
    }

    /// Who gets samples of a group, under which version, and which of them. A worker that failed at a
    /// sample gets it again only when all others with room for it failed as often.
    fn choose(
        &self,
        round: &Round,
        place: u32,
        indices: &[u32],
        free: &Free,
    ) -> Option<(Session, Version, Vec<u32>)> {
        let failures = |worker: &Worker, index| round.failures_of(place, index, &worker.id);
        let all_failed = |times, index| {
            let mut others = free.iter().filter_map(|at| self.workers.get(&at.1));
            others.all(|other| failures(other, index) >= times)
        };
        let takes = |session: Session| {
            let worker = self.workers.get(&session)?;
            let version = self.fits(worker, round)?;
            let may = |index: &u32| match failures(worker, *index) {
                0 => true,
                times => all_failed(times, *index),
            };
            let taken = indices.iter().copied().filter(may);
            let taken: Vec<u32> = taken.take(worker.free() as usize).collect();
            (!taken.is_empty()).then_some((session, version, taken))
        };
        let have_it = round.workers_at(place).filter_map(|session| {
            let worker = self.workers.get(&session)?;
            Some((Reverse(worker.free()), session))
        });
        let have_it: Free = have_it.filter(|at| free.contains(at)).collect();
        have_it.iter().chain(free).find_map(|at| takes(at.1))
    }

    /// Gives idle workers the samples of one that doesn't get on with them, or says that it does while
    /// they take far longer than any that came; who brings one first is listened to. (The same seed and
    /// version give the same tokens.)
    fn hedge(&mut self, out: &mut Vec<Command>) {
        let idle = self.free.iter().filter_map(|at| self.workers.get(at));
        let mut free: Vec<(Session, u32)> = idle
            .filter(|worker| self.may_sample(worker))
            .map(|worker| (worker.session, worker.free()))
            .collect();
        let (now, patience) = (self.now, self.plan.stall_timeout);
        let overdue = move |worker: &Worker| now > worker.progress + patience;
        let late = |id: SampleId, asked: Duration| {
            let round = self.rounds.get(&RoundId::of_group(id.group).0);
            let slowest = round.map_or(Duration::ZERO, |round| round.slowest);
            // Where none came yet, as in the round before.
            let slowest = [slowest, self.slowest]
                .into_iter()
                .find(|time| !time.is_zero());
            let most = slowest.map_or(self.plan.progress_timeout, |time| time * LATE);
            now > asked + patience.max(most)
        };
        let stalled: Vec<SampleId> = self
            .workers
            .values()
            .flat_map(|worker| {
                let stalls = overdue(worker);
                let samples = worker.in_flight.iter();
                samples.filter_map(move |(&id, &asked)| (stalls || late(id, asked)).then_some(id))
            })
            .collect();
        for id in stalled {
            free.retain(|(_, slots)| *slots > 0);
            let group = id.group;
            let Some(round) = self.rounds.get(&RoundId::of_group(group).0) else {
                continue;
            };
            if round.holders(id) != 1 {
                continue;
            }
            let fit = |(at, (session, _)): (usize, &(Session, u32))| {
                let worker = self.workers.get(session)?;
                let busy = worker.in_flight.contains_key(&id) || overdue(worker);
                let version = self.fits(worker, round)?;
                (!busy).then_some((at, *session, version))
            };
            let Some((at, session, version)) = free.iter().enumerate().find_map(fit) else {
                continue;
            };
            free[at].1 -= 1;
            let exact = matches!(round.admits, Admits::Exactly(_));
            if let Some(worker) = self.workers.get_mut(&session) {
                worker.in_flight.insert(id, now);
                let worker = worker.id.clone();
                if let Some(round) = self.round_of(group) {
                    round.send(id, session, &worker);
                }
            }
            out.push(Command::Sample {
                session,
                group,
                indices: vec![id.index],
                version,
                exact,
            });
        }
    }
}
