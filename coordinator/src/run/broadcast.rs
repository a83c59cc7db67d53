//! Which workers get a new adapter by an NCCL broadcast of the learner's, and with which rank.
//!
//! An extra beside the scheduler, which knows nothing of it: its order to load an adapter gets a
//! place in a group where there is one. A worker that is left alone in it fetches the adapter.

use std::collections::{HashMap, HashSet};

use tina_proto::{adapters::NCCL_ID_BYTES, v1};

use crate::{
    relays::{Host, host_of},
    scheduler::types::{Command, Event, Session, Version},
    services::Inbound,
};

/// Where a process computes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    host: Host,
    device: String,
}

impl Seat {
    /// From Hello's address as the services complete it.
    fn new(address: &str, device: Option<&v1::DeviceInfo>) -> Self {
        let device = device.map_or("", |device| device.device.as_str());
        Self {
            host: host_of(address),
            device: if device == "cuda" { "cuda:0" } else { device }.to_owned(),
        }
    }

    fn is_gpu(&self) -> bool {
        self.device.starts_with("cuda")
    }
}

/// The workers that a broadcast of the learner's reaches, with their ranks (the learner's is 0):
/// those of its machine, on GPUs that are neither the learner's nor one another's.
fn plan<'a>(
    learner: &Seat,
    workers: impl IntoIterator<Item = (Session, &'a Seat)>,
) -> Vec<(Session, u32)> {
    if !learner.is_gpu() {
        return Vec::new();
    }
    let mut taken = HashSet::from([learner.device.as_str()]);
    workers
        .into_iter()
        .filter(|(_, seat)| seat.host == learner.host && seat.is_gpu())
        .filter(|(_, seat)| taken.insert(&seat.device))
        .zip(1..)
        .map(|((session, _), rank)| (session, rank))
        .collect()
}

/// A group's id that the learner offers for a version, until it is busy again.
#[derive(Debug)]
struct Offer {
    learner: Session,
    version: Version,
    id: Vec<u8>,
}

/// Places in the group of a version; each is given once.
#[derive(Debug)]
struct Group {
    version: Version,
    id: Vec<u8>,
    world: u32,
    ranks: HashMap<Session, u32>,
}

/// Who sits where, and what is on offer.
#[derive(Debug, Default)]
pub(super) struct Broadcasts {
    seats: HashMap<Session, Seat>,
    offer: Option<Offer>,
    group: Option<Group>,
}

impl Broadcasts {
    /// Notes what matters here of a message.
    pub(super) fn note(&mut self, inbound: &Inbound) {
        match inbound {
            Inbound::Worker { session, hello, .. } => {
                let seat = Seat::new(&hello.address, hello.device.as_ref());
                self.seats.insert(*session, seat);
            }
            Inbound::Learner { session, hello, .. } => {
                let seat = Seat::new(&hello.address, hello.device.as_ref());
                self.seats.insert(*session, seat);
            }
            Inbound::Event(event) => match event {
                Event::LearnerReady { session, ready } => {
                    self.offered(*session, ready.version.as_ref(), &ready.nccl_id);
                }
                Event::StepResult { session, result } => {
                    self.offered(*session, result.version.as_ref(), &result.nccl_id);
                }
                Event::WorkerLost { session, .. } | Event::LearnerLost { session, .. } => {
                    self.seats.remove(session);
                    self.offer.take_if(|offer| offer.learner == *session);
                }
                _ => {}
            },
            Inbound::Malformed { .. } => {}
        }
    }

    fn offered(&mut self, learner: Session, version: Option<&v1::PolicyVersion>, id: &[u8]) {
        let version = version.and_then(Version::from_wire);
        self.offer = version
            .filter(|_| id.len() == NCCL_ID_BYTES)
            .map(|version| Offer {
                learner,
                version,
                id: id.to_vec(),
            });
    }

    /// Makes a group where these commands announce the version on offer to workers that can be in
    /// one; returns what the learner is to be told, before any of them is obeyed.
    pub(super) fn plan(&mut self, commands: &[Command]) -> Option<(Session, v1::BroadcastAdapter)> {
        let offer = self.offer.take()?;
        let announced = commands.iter().filter_map(|command| match command {
            Command::LoadAdapter { session, version } if *version == offer.version => {
                Some((*session, self.seats.get(session)?))
            }
            _ => None,
        });
        let learner = self.seats.get(&offer.learner)?;
        let ranks: HashMap<_, _> = plan(learner, announced).into_iter().collect();
        if ranks.is_empty() {
            // A learner at its next step has no ear for it.
            let busy = commands.iter().any(|command| {
                matches!(
                    command,
                    Command::SendBatch { .. } | Command::ReplayBatch { .. }
                )
            });
            self.offer = (!busy).then_some(offer);
            return None;
        }
        let group = self.group.insert(Group {
            version: offer.version,
            id: offer.id,
            world: ranks.len() as u32 + 1,
            ranks,
        });
        let order = v1::BroadcastAdapter {
            version: Some(group.version.to_wire()),
            nccl: Some(group.place(0)),
        };
        Some((offer.learner, order))
    }

    /// Whether the worker has a place that it hasn't been given yet.
    pub(super) fn has_place(&self, session: Session, version: Version) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| group.version == version && group.ranks.contains_key(&session))
    }

    /// The worker's place in the group of this version, the first time it is asked for.
    pub(super) fn place(&mut self, session: Session, version: Version) -> Option<v1::NcclGroup> {
        let group = self
            .group
            .as_mut()
            .filter(|group| group.version == version)?;
        let rank = group.ranks.remove(&session)?;
        Some(group.place(rank))
    }
}

impl Group {
    fn place(&self, rank: u32) -> v1::NcclGroup {
        v1::NcclGroup {
            id: self.id.clone(),
            rank,
            world: self.world,
            lasting: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARNER: Session = 1;
    const VERSION: Version = Version {
        step: 4,
        digest: [4; 32],
    };

    fn seat(host: &str, device: &str) -> Seat {
        let device = v1::DeviceInfo {
            device: device.into(),
            ..Default::default()
        };
        Seat::new(&format!("{host}:17 (10.0.0.1:4711)"), Some(&device))
    }

    fn load(session: Session) -> Command {
        Command::LoadAdapter {
            session,
            version: VERSION,
        }
    }

    fn send_batch() -> Command {
        Command::SendBatch {
            session: LEARNER,
            version: VERSION,
            groups: Vec::new(),
        }
    }

    /// A learner on cuda:0 that offers an id for the version, and workers 2.. on these devices.
    fn offered(devices: &[&str]) -> Broadcasts {
        let mut broadcasts = Broadcasts::default();
        broadcasts.seats.insert(LEARNER, seat("a", "cuda:0"));
        for (session, device) in (2..).zip(devices) {
            broadcasts.seats.insert(session, seat("a", device));
        }
        let result = Box::new(v1::StepResult {
            version: Some(VERSION.to_wire()),
            nccl_id: vec![9; NCCL_ID_BYTES],
            ..Default::default()
        });
        broadcasts.note(&Inbound::Event(Event::StepResult {
            session: LEARNER,
            result,
        }));
        broadcasts
    }

    #[test]
    fn only_other_gpus_of_the_learners_machine_take_part() {
        let workers = [
            (2, seat("a", "cuda")), // the learner's own
            (3, seat("a", "cuda:1")),
            (4, seat("a", "cuda:1")), // taken
            (5, seat("b", "cuda:2")), // another machine
            (6, seat("a", "cpu")),
            (7, seat("a", "cuda:3")),
        ];
        let workers = || workers.iter().map(|(session, seat)| (*session, seat));
        assert_eq!(plan(&seat("a", "cuda:0"), workers()), [(3, 1), (7, 2)]);
        assert_eq!(plan(&seat("a", "cpu"), workers()), []);
        let elsewhere = Seat {
            host: ("a".into(), "(10.0.0.2".into()),
            device: "cuda:0".into(),
        };
        assert_eq!(plan(&elsewhere, workers()), []);
    }

    #[test]
    fn an_announcement_gives_the_learner_and_its_workers_their_places_once() {
        let mut broadcasts = offered(&["cuda:1", "cpu", "cuda:2"]);
        let commands = [load(2), load(3), load(4), send_batch()];
        let (learner, order) = broadcasts.plan(&commands).unwrap();
        assert_eq!(learner, LEARNER);
        assert_eq!(order.version, Some(VERSION.to_wire()));
        let rank = |rank| v1::NcclGroup {
            id: vec![9; NCCL_ID_BYTES],
            rank,
            world: 3,
            lasting: false,
        };
        assert_eq!(order.nccl, Some(rank(0)));
        assert_eq!(broadcasts.place(2, VERSION), Some(rank(1)));
        assert_eq!(broadcasts.place(3, VERSION), None);
        assert_eq!(broadcasts.place(4, VERSION), Some(rank(2)));
        // Asked to load it again, a worker fetches it; and the id makes no second group.
        assert_eq!(broadcasts.place(2, VERSION), None);
        assert!(broadcasts.plan(&[load(2)]).is_none());
    }

    #[test]
    fn an_offer_waits_for_workers_but_not_beyond_the_learners_next_batch() {
        let mut broadcasts = offered(&["cuda:1"]);
        assert!(broadcasts.plan(&[]).is_none());
        assert!(broadcasts.plan(&[load(2)]).is_some());
        let mut broadcasts = offered(&["cuda:1"]);
        assert!(broadcasts.plan(&[send_batch()]).is_none());
        assert!(broadcasts.plan(&[load(2)]).is_none());
    }

    #[test]
    fn an_offer_goes_with_its_learner() {
        let mut broadcasts = offered(&["cuda:1"]);
        broadcasts.note(&Inbound::Event(Event::LearnerLost {
            session: LEARNER,
            reason: String::new(),
        }));
        assert!(broadcasts.plan(&[load(2)]).is_none());
    }
}
