//! Trees, and whom they trust.

use super::*;

const VERSION: Version = Version {
    step: 4,
    digest: [4; 32],
};

fn load(session: Session) -> Command {
    Command::LoadAdapter {
        session,
        version: VERSION,
    }
}

/// A member of a machine; its relay is for that machine, for everyone, or there is none.
fn member(session: Session, machine: u8, reach: Option<Reach>) -> (Session, Member) {
    let address = format!("m{machine}:7 (10.0.0.{machine}:4711)");
    let mut member = Member::new(&format!("w{session}"), &address);
    member.relay = reach.map(|reach| {
        let relay = match reach {
            Reach::Everyone => format!("https://m{machine}:{session}"),
            Reach::Machine => format!("http://127.0.0.1:{session}"),
        };
        (relay, reach)
    });
    (session, member)
}

fn relays(fan_out: u32, members: impl IntoIterator<Item = (Session, Member)>) -> Relays {
    let mut relays = Relays::new(fan_out);
    relays.members.extend(members);
    relays
}

fn announce(relays: &mut Relays, sessions: impl IntoIterator<Item = Session>) {
    let commands: Vec<_> = sessions.into_iter().map(load).collect();
    relays.plan(&commands, |_, _| false);
}

/// Names of the sources of a worker, and its depth.
fn route(relays: &mut Relays, session: Session) -> (Vec<String>, u32) {
    let route = relays.route(session, VERSION);
    let names = route.sources.into_iter().map(|source| source.worker_id);
    (names.collect(), route.depth)
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

#[test]
fn the_coordinator_and_each_worker_have_as_many_below_them_as_they_may() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    for (fan_out, count) in [(1, 5), (2, 14), (3, 100), (64, 200)] {
        let count: u64 = count;
        let mut relays = relays(fan_out, (1..=count).map(everyone));
        announce(&mut relays, 1..=count);
        let places = &relays.tree.places;
        assert_eq!(places.len() as u64, count);
        assert_eq!(u64::from(relays.tree.first), count.min(fan_out.into()));
        assert!(places.values().all(|place| place.children <= fan_out));
        // As flat as it can be: what a level has room for is there before the next begins.
        let (mut level, mut room, mut deepest) = (u64::from(fan_out), u64::from(fan_out), 0);
        while room < count {
            level *= u64::from(fan_out);
            room += level;
            deepest += 1;
        }
        assert_eq!(
            places.values().map(|place| place.depth).max(),
            Some(deepest)
        );
        // Everyone's bytes begin at the coordinator.
        for session in 1..=count {
            let parent = |session: &Session| places[session].parent;
            let way: Vec<_> = std::iter::successors(Some(session), parent).collect();
            assert_eq!(way.len() as u32, places[&session].depth + 1);
        }
    }
}

#[test]
fn the_same_announcement_gives_the_same_tree_and_names_those_above() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    let tree = || {
        let mut relays = relays(2, (1..=7).map(everyone));
        announce(&mut relays, 1..=7);
        (1..=7)
            .map(|session| route(&mut relays, session))
            .collect::<Vec<_>>()
    };
    assert_eq!(tree(), tree());
    let expected = [
        (names([]), 0),
        (names([]), 0),
        (names(["w1"]), 1),
        (names(["w1"]), 1),
        (names(["w2"]), 1),
        (names(["w2"]), 1),
        (names(["w3", "w1"]), 2),
    ];
    assert_eq!(tree(), expected);
}

#[test]
fn a_machine_gets_an_adapter_once_where_its_workers_can_reach_each_other() {
    // Two machines of four workers, whose relays listen on loopback.
    let near = |session| member(session, 1 + (session / 4) as u8, Some(Reach::Machine));
    let mut relays = relays(2, (0..8).map(near));
    announce(&mut relays, 0..8);
    assert_eq!(relays.tree.first, 2);
    for (session, member) in &relays.members {
        let parent = relays.tree.places[session].parent;
        assert!(parent.is_none_or(|parent| relays.members[&parent].host == member.host));
    }
}

#[test]
fn who_can_reach_no_relay_is_the_coordinators() {
    let lonely = |session| member(session, session as u8, Some(Reach::Machine));
    let mut alone = relays(2, (1..=5).map(lonely));
    announce(&mut alone, 1..=5);
    assert_eq!(alone.tree.first, 5);
    // Whoever hands nothing on takes nobody's place who does.
    let mixed = |session: Session| {
        member(
            session,
            session as u8,
            (session > 3).then_some(Reach::Everyone),
        )
    };
    let mut mixed = relays(2, (1..=5).map(mixed));
    announce(&mut mixed, 1..=5);
    assert_eq!(route(&mut mixed, 4), (names([]), 0));
    assert_eq!(route(&mut mixed, 1), (names(["w4"]), 1));
    assert_eq!(Relays::new(0).route(1, VERSION), Route::default());
}

#[test]
fn workers_of_the_coordinators_machine_ask_it_first() {
    let here = |session: Session| {
        let (session, mut member) = member(session, 9, Some(Reach::Machine));
        member.host = ("here".into(), "(127.0.0.1".into());
        (session, member)
    };
    let mut relays = relays(2, (1..=4).map(here));
    assert!(relays.members[&1].is_here());
    announce(&mut relays, 1..=4);
    assert_eq!(route(&mut relays, 2), (names([]), 0));
    assert_eq!(route(&mut relays, 4), (names(["w1"]), 1));
}

#[test]
fn a_dead_relay_costs_its_children_one_source_and_is_named_no_more() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    let mut relays = relays(1, (1..=4).map(everyone));
    announce(&mut relays, 1..=3);
    // The chain 1, 2, 3: should 2 be dead, 3 still knows 1.
    assert_eq!(route(&mut relays, 3), (names(["w2", "w1"]), 2));
    relays.note(&Inbound::Event(Event::WorkerLost {
        session: 2,
        reason: String::new(),
    }));
    announce(&mut relays, [4]);
    assert_eq!(route(&mut relays, 4), (names(["w1"]), 1));
    // Told to load it again, a worker goes to the coordinator.
    announce(&mut relays, [3]);
    assert_eq!(route(&mut relays, 3), (names([]), 0));
}

fn leg(worker: &str, wrong_bytes: bool) -> v1::AdapterLeg {
    v1::AdapterLeg {
        worker_id: worker.into(),
        bytes: 512,
        problem: "broken".into(),
        wrong_bytes,
    }
}

/// Tells it that the adapter came by these ways.
fn came(relays: &mut Relays, session: Session, legs: Vec<v1::AdapterLeg>) -> Vec<String> {
    let loaded = v1::AdapterLoaded {
        legs,
        ..Default::default()
    };
    relays.note(&Inbound::Event(Event::AdapterLoaded { session, loaded }))
}

#[test]
fn a_relay_that_gave_wrong_bytes_is_told_of_and_never_named_again() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    let mut relays = relays(1, (1..=4).map(everyone));
    announce(&mut relays, 1..=3);
    (1..=3).for_each(|session| drop(relays.route(session, VERSION)));
    // Not by one that it was not named to.
    assert!(came(&mut relays, 2, vec![leg("w3", true)]).is_empty());
    let notes = came(&mut relays, 3, vec![leg("w2", true), leg("w1", false)]);
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].contains("worker w2 gave worker w3 wrong bytes"),
        "{notes:?}"
    );
    let ready = v1::WorkerReady {
        relay: "https://m2:2".into(),
        ..Default::default()
    };
    relays.note(&Inbound::Event(Event::WorkerReady { session: 2, ready }));
    assert_eq!(relays.members[&2].relay, None);
    announce(&mut relays, [4]);
    assert_eq!(route(&mut relays, 4).0, names(["w3", "w1"]));
}

#[test]
fn a_relay_that_fails_again_and_again_is_left_out_until_it_gives_all() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    let mut relays = relays(1, (1..=2).map(everyone));
    for step in 0..MAX_FAILURES + 1 {
        let version = Version {
            step: step.into(),
            digest: [step as u8; 32],
        };
        let told = |session| Command::LoadAdapter { session, version };
        relays.plan(&[told(1), told(2)], |_, _| false);
        let sources = relays.route(2, version).sources.len();
        assert_eq!(sources, usize::from(step < MAX_FAILURES), "step {step}");
        let notes = came(&mut relays, 2, vec![leg("w1", false)]);
        assert_eq!(notes.len(), usize::from(step + 1 == MAX_FAILURES));
    }
    let mut fine = leg("w1", false);
    fine.problem.clear();
    relays.tree.places.get_mut(&2).unwrap().named = vec![(1, "w1".into())];
    came(&mut relays, 2, vec![fine]);
    assert_eq!(relays.members[&1].failures, 0);
}

#[test]
fn who_gets_it_by_another_way_has_no_place() {
    let everyone = |session| member(session, session as u8, Some(Reach::Everyone));
    let mut relays = relays(2, (1..=2).map(everyone));
    relays.plan(&[load(1), load(2)], |session, _| session == 1);
    let route = relays.route(1, VERSION);
    assert!(route.sources.is_empty() && route.checked && route.depth == 0);
    assert!(relays.route(2, VERSION).checked);
}
