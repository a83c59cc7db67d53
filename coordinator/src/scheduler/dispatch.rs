//! Who samples what.

use std::cmp::Reverse;

use super::{
    Scheduler,
    fleet::Worker,
    types::{Command, SampleId, Session},
};

impl Scheduler {
    /// Hands out samples to free slots: group by group in order, a group to the worker that has it
    /// already (its prompt is computed there) or else to the one with the most free slots; what
    /// doesn't fit there goes to the next. A worker that failed at a sample gets it again only
    /// when all others failed too.
    pub(super) fn dispatch(&mut self, out: &mut Vec<Command>) {
        let Some(round) = &mut self.round else { return };
        if !round.has_pending() {
            return;
        }
        let version = round.version;
        let ready: Vec<&Worker> = self
            .workers
            .values()
            .filter(|worker| worker.is_usable() && worker.loaded == Some(version))
            .collect();
        let mut free: Vec<(&Worker, u32)> = ready
            .iter()
            .map(|worker| (*worker, worker.free()))
            .filter(|w| w.1 > 0)
            .collect();
        let mut sent: Vec<(Session, SampleId)> = Vec::new();
        let mut from = 0;
        while !free.is_empty() {
            let Some((group, indices)) = round.next_pending(from) else {
                break;
            };
            let group_id = round.id.group(group);
            let may = |worker: &Worker, index: u32| {
                !round.failed_at(group, index, &worker.id)
                    || ready
                        .iter()
                        .all(|other| round.failed_at(group, index, &other.id))
            };
            let choice = free
                .iter()
                .enumerate()
                .filter(|(_, (worker, _))| indices.iter().any(|&index| may(worker, index)))
                .max_by_key(|(_, (worker, slots))| {
                    let range = SampleId {
                        group: group_id,
                        index: 0,
                    }..=SampleId {
                        group: group_id,
                        index: u32::MAX,
                    };
                    let has_it = worker.in_flight.range(range).next().is_some();
                    (has_it, *slots, Reverse(worker.session))
                })
                .map(|(place, _)| place);
            let Some(place) = choice else {
                from = group + 1;
                continue;
            };
            let (worker, slots) = free[place];
            let taken: Vec<u32> = indices
                .into_iter()
                .filter(|&index| may(worker, index))
                .take(slots as usize)
                .collect();
            let session = worker.session;
            for &index in &taken {
                let id = SampleId {
                    group: group_id,
                    index,
                };
                round.send(id, session);
                sent.push((session, id));
            }
            free[place].1 -= taken.len() as u32;
            free.retain(|(_, slots)| *slots > 0);
            out.push(Command::Sample {
                session,
                group: group_id,
                indices: taken,
                version,
            });
        }
        for (session, id) in sent {
            if let Some(worker) = self.workers.get_mut(&session) {
                worker.in_flight.insert(id);
            }
        }
    }
}
