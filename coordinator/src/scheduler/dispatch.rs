//! Who samples what.

use std::cmp::Reverse;

use super::{
    Scheduler,
    fleet::Worker,
    round::{Admits, Round},
    types::{Command, SampleId, Session, Version},
};

/// Free slots of the workers that may sample for some round.
type Free = Vec<(Session, u32)>;

impl Scheduler {
    /// Hands out samples to free slots, the rounds in their order.
    pub(super) fn dispatch(&mut self, out: &mut Vec<Command>) {
        let mut free: Free = self
            .workers
            .values()
            .filter(|worker| self.may_sample(worker))
            .map(|worker| (worker.session, worker.free()))
            .filter(|(_, slots)| *slots > 0)
            .collect();
        if free.is_empty() {
            return;
        }
        let mut sent = Vec::new();
        let mut rounds = std::mem::take(&mut self.rounds);
        for round in rounds.values_mut() {
            self.hand_out(round, &mut free, &mut sent, out);
        }
        self.rounds = rounds;
        self.note_sent(&mut sent);
        if !free.is_empty() && !self.has_pending() {
            self.hedge(&mut free, out);
        }
    }

    fn note_sent(&mut self, sent: &mut Vec<(Session, SampleId)>) {
        for (session, id) in sent.drain(..) {
            if let Some(worker) = self.workers.get_mut(&session) {
                worker.in_flight.insert(id);
            }
        }
    }

    /// Whether a worker can be given samples at all: one that is to end what it has before it takes
    /// the new adapter gets no more.
    fn may_sample(&self, worker: &Worker) -> bool {
        let current = || worker.loaded == self.policy();
        worker.is_usable() && worker.loaded.is_some() && (!self.plan.drain || current())
    }

    /// The version under which a worker may sample for a round.
    fn fits(&self, worker: &Worker, round: &Round) -> Option<Version> {
        let version = worker.loaded?;
        round
            .admits
            .allows(version, &self.history)
            .then_some(version)
    }

    /// Group by group in order, a group to the worker that has it already (its prompt is computed
    /// there) or else to the one with the most free slots; what doesn't fit there goes to the next.
    /// A worker that failed at a sample gets it again only when all others failed too.
    fn hand_out(
        &self,
        round: &mut Round,
        free: &mut Free,
        sent: &mut Vec<(Session, SampleId)>,
        out: &mut Vec<Command>,
    ) {
        if !round.has_pending() {
            return;
        }
        let ready: Vec<(&Worker, Version)> = self
            .workers
            .values()
            .filter(|worker| self.may_sample(worker))
            .filter_map(|worker| Some((worker, self.fits(worker, round)?)))
            .collect();
        let mut from = 0;
        while let Some((place, indices)) = round.next_pending(from) {
            let group = round.group(place);
            let may = |worker: &Worker, index: u32| {
                !round.failed_at(place, index, &worker.id)
                    || ready
                        .iter()
                        .all(|(other, _)| round.failed_at(place, index, &other.id))
            };
            let choice = free
                .iter()
                .enumerate()
                .filter_map(|(at, (session, slots))| {
                    let (worker, version) = ready
                        .iter()
                        .find(|(worker, _)| worker.session == *session)?;
                    Some((at, *worker, *version, *slots))
                })
                .filter(|(_, worker, ..)| indices.iter().any(|&index| may(worker, index)))
                .max_by_key(|(_, worker, _, slots)| {
                    (worker.has_group(group), *slots, Reverse(worker.session))
                });
            let Some((at, worker, version, slots)) = choice else {
                if free.is_empty() {
                    return;
                }
                from = place + 1;
                continue;
            };
            let taken: Vec<u32> = indices
                .into_iter()
                .filter(|&index| may(worker, index))
                .take(slots as usize)
                .collect();
            let session = worker.session;
            for &index in &taken {
                let id = SampleId { group, index };
                round.send(id, session);
                sent.push((session, id));
            }
            free[at].1 -= taken.len() as u32;
            free.retain(|(_, slots)| *slots > 0);
            out.push(Command::Sample {
                session,
                group,
                indices: taken,
                version,
                exact: matches!(round.admits, Admits::Exactly(_)),
            });
        }
    }

    /// Gives idle workers the samples of one that doesn't get on with them; who brings one first is
    /// listened to. (The same seed and version give the same tokens.)
    fn hedge(&mut self, free: &mut Free, out: &mut Vec<Command>) {
        let (now, patience) = (self.now, self.plan.stall_timeout);
        let overdue = move |worker: &Worker| now > worker.progress + patience;
        let stalled: Vec<SampleId> = self
            .workers
            .values()
            .filter(|worker| overdue(worker))
            .flat_map(|worker| worker.in_flight.iter().copied())
            .collect();
        let mut sent = Vec::new();
        for id in stalled {
            free.retain(|(_, slots)| *slots > 0);
            let group = id.group;
            let Some(round) = self.rounds.get(&super::RoundId::of_group(group).0) else {
                continue;
            };
            if round.holders(id) != 1 {
                continue;
            }
            let fit = |(at, (session, _)): (usize, &(Session, u32))| {
                let worker = self.workers.get(session)?;
                let busy = worker.in_flight.contains(&id) || overdue(worker);
                let version = self.fits(worker, round)?;
                (!busy).then_some((at, *session, version))
            };
            let Some((at, session, version)) = free.iter().enumerate().find_map(fit) else {
                continue;
            };
            free[at].1 -= 1;
            let exact = matches!(round.admits, Admits::Exactly(_));
            if let Some(round) = self.round_of(group) {
                round.send(id, session);
            }
            sent.push((session, id));
            out.push(Command::Sample {
                session,
                group,
                indices: vec![id.index],
                version,
                exact,
            });
        }
        self.note_sent(&mut sent);
    }
}
