//! From whom a worker gets a new adapter, where workers hand them on (`cluster.adapter_relay`).
//!
//! An extra beside the scheduler, which knows nothing of it: its order to load an adapter gets sources
//! where there are some. Whoever fails on the way, the coordinator gives the rest.

use std::collections::{BTreeSet, HashMap, HashSet};

use tina_proto::{adapters::Reach, v1};

use crate::{
    scheduler::types::{Command, Event, Session, Version},
    services::Inbound,
};

/// A machine: its name, and the address that it dials from.
pub(crate) type Host = (String, String);

/// The machine in Hello's address as the services complete it: `name:pid (ip:port)`.
pub(crate) fn host_of(address: &str) -> Host {
    let (own, peer) = address.split_once(' ').unwrap_or((address, ""));
    let host = |text: &str| {
        text.rsplit_once(':')
            .map_or(text, |split| split.0)
            .to_owned()
    };
    (host(own), host(peer))
}

/// Workers that are named to a worker: the one above it, and the one above that.
const SOURCES: usize = 2;
/// Times in a row that a relay may fail those it was named to before it is named no more.
const MAX_FAILURES: u32 = 3;

/// A worker, as far as adapters are handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: String,
    host: Host,
    /// Its relay, and who can reach it.
    relay: Option<(String, Reach)>,
    failures: u32,
}

impl Member {
    fn new(id: &str, address: &str) -> Self {
        Self {
            id: id.to_owned(),
            host: host_of(address),
            relay: None,
            failures: 0,
        }
    }

    /// Whether it dials from the coordinator's own machine.
    fn is_here(&self) -> bool {
        let peer = self.host.1.trim_matches(['(', ')', '[', ']']);
        let ip = peer.parse::<std::net::IpAddr>();
        ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// The address where `other` gets adapters of this one.
    fn relay_for(&self, other: &Member) -> Option<&str> {
        let (address, reach) = self.relay.as_ref()?;
        let reached = match reach {
            Reach::Everyone => true,
            Reach::Machine => self.host == other.host,
        };
        (reached && self.is_reliable()).then_some(address)
    }

    fn is_reliable(&self) -> bool {
        self.failures < MAX_FAILURES
    }

    /// Who has the most to offer is placed first.
    fn rank(&self) -> u8 {
        match &self.relay {
            _ if !self.is_reliable() => 2,
            Some((_, Reach::Everyone)) => 0,
            Some((_, Reach::Machine)) => 1,
            None => 2,
        }
    }
}

/// A worker's place in the tree of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Whom it is below; `None`: the coordinator.
    parent: Option<Session>,
    /// Workers between it and the coordinator.
    depth: u32,
    /// In the order of placing.
    number: usize,
    children: u32,
    /// Those that were named to it, and their names: they may be gone when it tells of them.
    named: Vec<(Session, String)>,
}

/// Where a worker with room below it stands in the order of asking: its depth, and when it was placed.
type Room = (u32, usize, Session);

/// Who gets a version from whom. It grows as workers are told to load the version: whoever comes is put
/// below the nearest that has room, its own machine first.
#[derive(Clone, Debug, Default)]
struct Tree {
    /// Workers right below the coordinator.
    first: u32,
    places: HashMap<Session, Place>,
    /// Told to load it, and not told from whom yet.
    untold: HashSet<Session>,
    /// Workers with room below them, for their own machine.
    near: HashMap<Host, BTreeSet<Room>>,
    /// Those that everyone can reach.
    far: BTreeSet<Room>,
}

impl Tree {
    /// Puts these workers below others, each of which (the coordinator too) has at most `fan_out` right
    /// below it; but a worker that can reach no relay with room is the coordinator's in any case.
    fn grow(
        &mut self,
        fan_out: u32,
        members: &HashMap<Session, Member>,
        sessions: impl IntoIterator<Item = Session>,
    ) {
        let mut fresh: Vec<_> = sessions
            .into_iter()
            .filter(|session| !self.places.contains_key(session))
            .filter_map(|session| Some((session, members.get(&session)?)))
            .collect();
        // Stable: in the order of the announcement otherwise.
        fresh.sort_by_key(|(_, member)| member.rank());
        for (session, member) in fresh {
            let parent = self.parent_of(member, fan_out);
            let above = parent.and_then(|parent| self.places.get_mut(&parent));
            let depth = above.map_or(0, |above| {
                above.children += 1;
                above.depth + 1
            });
            match parent {
                Some(parent) => self.offer(parent, fan_out, members),
                None => self.first += 1,
            }
            let place = Place {
                parent,
                depth,
                number: self.places.len(),
                children: 0,
                named: Vec::new(),
            };
            self.places.insert(session, place);
            self.untold.insert(session);
            self.offer(session, fan_out, members);
        }
    }

    /// Whom a worker is put below; `None`: the coordinator.
    fn parent_of(&self, member: &Member, fan_out: u32) -> Option<Session> {
        let coordinator = self.first < fan_out;
        if coordinator && member.is_here() {
            return None;
        }
        let near = self.near.get(&member.host).and_then(BTreeSet::first);
        let far = self.far.first().filter(|_| !coordinator);
        near.or(far).map(|(.., session)| *session)
    }

    /// Lists a worker among those with room below them, or no longer.
    fn offer(&mut self, session: Session, fan_out: u32, members: &HashMap<Session, Member>) {
        self.close(session, members);
        let (Some(place), Some(member)) = (self.places.get(&session), members.get(&session)) else {
            return;
        };
        let Some((_, reach)) = member.relay.as_ref().filter(|_| member.is_reliable()) else {
            return;
        };
        if place.children < fan_out {
            let room = (place.depth, place.number, session);
            self.near
                .entry(member.host.clone())
                .or_default()
                .insert(room);
            if *reach == Reach::Everyone {
                self.far.insert(room);
            }
        }
    }

    /// Nobody more is put below this worker.
    fn close(&mut self, session: Session, members: &HashMap<Session, Member>) {
        let Some(place) = self.places.get(&session) else {
            return;
        };
        let room = (place.depth, place.number, session);
        self.far.remove(&room);
        let host = members.get(&session).map(|member| &member.host);
        if let Some(near) = host.and_then(|host| self.near.get_mut(host)) {
            near.remove(&room);
        }
    }

    /// Those above a worker that it may ask, the nearest first.
    fn above(&self, session: Session, members: &HashMap<Session, Member>) -> Vec<Session> {
        let Some(member) = members.get(&session) else {
            return Vec::new();
        };
        let parent = |session: &Session| self.places.get(session)?.parent;
        std::iter::successors(parent(&session), parent)
            .filter(|above| {
                let above = members.get(above);
                above.is_some_and(|above| above.relay_for(member).is_some())
            })
            .take(SOURCES)
            .collect()
    }

    /// A worker is gone.
    fn lose(&mut self, session: Session, fan_out: u32, members: &HashMap<Session, Member>) {
        self.close(session, members);
        let Some(place) = self.places.remove(&session) else {
            return;
        };
        self.untold.remove(&session);
        let Some(parent) = place.parent else {
            self.first = self.first.saturating_sub(1);
            return;
        };
        if let Some(above) = self.places.get_mut(&parent) {
            above.children = above.children.saturating_sub(1);
            self.offer(parent, fan_out, members);
        }
    }
}

/// What a worker is told of the way of an adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// Whom to ask before the coordinator.
    pub sources: Vec<v1::AdapterSource>,
    /// Whether it needs to know what each piece must hash to.
    pub checked: bool,
    /// Workers between it and the coordinator.
    pub depth: u32,
}

/// Who hands on to whom.
#[derive(Debug)]
pub struct Relays {
    fan_out: u32,
    members: HashMap<Session, Member>,
    /// Workers that gave wrong bytes; they are never named again.
    distrusted: HashSet<String>,
    version: Option<Version>,
    tree: Tree,
}

impl Relays {
    /// With so many workers below each; 0: nobody hands anything on.
    pub fn new(fan_out: u32) -> Self {
        Self {
            fan_out,
            members: HashMap::new(),
            distrusted: HashSet::new(),
            version: None,
            tree: Tree::default(),
        }
    }

    /// Notes what matters here of a message; returns what a person should know of it.
    pub fn note(&mut self, inbound: &Inbound) -> Vec<String> {
        if self.fan_out == 0 {
            return Vec::new();
        }
        match inbound {
            Inbound::Worker { session, hello, .. } => self.joined(*session, hello),
            Inbound::Event(Event::WorkerReady { session, ready }) => {
                if let Some(member) = self.members.get_mut(session) {
                    let trusted = !self.distrusted.contains(&member.id);
                    let reach = Reach::of(&ready.relay).ok().filter(|_| trusted);
                    member.relay = reach.map(|reach| (ready.relay.clone(), reach));
                }
            }
            Inbound::Event(Event::WorkerLost { session, .. }) => {
                self.tree.lose(*session, self.fan_out, &self.members);
                self.members.remove(session);
            }
            Inbound::Event(Event::AdapterLoaded { session, loaded }) => {
                return self.came(*session, &loaded.legs);
            }
            _ => {}
        }
        Vec::new()
    }

    /// A worker's stream begins.
    pub fn joined(&mut self, session: Session, hello: &v1::WorkerHello) {
        let member = Member::new(&hello.worker_id, &hello.address);
        self.members.insert(session, member);
    }

    /// By which way an adapter came. Only of those that were named to it may a worker complain.
    fn came(&mut self, session: Session, legs: &[v1::AdapterLeg]) -> Vec<String> {
        let Some(place) = self.tree.places.get(&session) else {
            return Vec::new();
        };
        let who = self.members.get(&session);
        let who = who.map_or_else(String::new, |member| member.id.clone());
        let mut notes = Vec::new();
        for (above, id) in place.named.clone() {
            let Some(leg) = legs.iter().find(|leg| leg.worker_id == id) else {
                continue;
            };
            let (bytes, problem) = (leg.bytes, &leg.problem);
            let mut unknown = Member::new(&id, "");
            let member = self.members.get_mut(&above).unwrap_or(&mut unknown);
            if problem.is_empty() {
                member.failures = 0;
            } else if leg.wrong_bytes {
                notes.push(format!(
                    "worker {id} gave worker {who} wrong bytes of an adapter after {bytes} right ones \
                     ({problem}); they were refused, and it hands on no more: check its memory and \
                     its network"
                ));
                member.relay = None;
                self.distrusted.insert(id);
            } else {
                tracing::info!(
                    "worker {who} got {bytes} bytes of an adapter from worker {id}, then: {problem}"
                );
                member.failures += 1;
                if member.failures == MAX_FAILURES {
                    notes.push(format!(
                        "worker {id} hands adapters on no more: it failed {MAX_FAILURES} times in a \
                         row ({problem})"
                    ));
                }
            }
            self.tree.offer(above, self.fan_out, &self.members);
        }
        notes
    }

    /// Finds places for workers that these commands tell to load a version, but for those that get it
    /// `elsewhere`.
    pub fn plan(&mut self, commands: &[Command], elsewhere: impl Fn(Session, Version) -> bool) {
        if self.fan_out == 0 {
            return;
        }
        let mut told = Vec::new();
        for command in commands {
            let Command::LoadAdapter { session, version } = command else {
                continue;
            };
            if self.version != Some(*version) {
                (self.version, self.tree) = (Some(*version), Tree::default());
                told.clear();
            }
            if !elsewhere(*session, *version) {
                told.push(*session);
            }
        }
        self.tree.grow(self.fan_out, &self.members, told);
    }

    /// From whom the worker gets the version, the first time it is asked for; whoever must be told
    /// again gets it from the coordinator.
    pub fn route(&mut self, session: Session, version: Version) -> Route {
        let Some(member) = self.members.get(&session) else {
            return Route::default();
        };
        let first = self.version == Some(version) && self.tree.untold.remove(&session);
        let above = if first {
            self.tree.above(session, &self.members)
        } else {
            Vec::new()
        };
        let named = above.into_iter().filter_map(|session| {
            let above = self.members.get(&session)?;
            let source = v1::AdapterSource {
                worker_id: above.id.clone(),
                relay: above.relay_for(member)?.to_owned(),
            };
            Some(((session, above.id.clone()), source))
        });
        let (named, sources): (Vec<_>, Vec<_>) = named.unzip();
        let place = self.tree.places.get_mut(&session).filter(|_| first);
        let depth = place.map_or(0, |place| {
            place.named = named;
            place.depth
        });
        Route {
            // Whoever hands it on must know what is right before all of it is here.
            checked: !sources.is_empty() || member.relay.is_some(),
            sources,
            depth,
        }
    }
}

#[cfg(test)]
mod tests;
