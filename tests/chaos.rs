//! Real processes, killed at many points chosen by progress: at a byte of what a role sends or gets
//! (in the middle of a completion, between it and its acknowledgement, in the middle of a batch, of
//! an adapter, of a heartbeat), or when a checkpoint begins to be written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    fs,
    path::Path,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{
    Bench, PATIENCE, Role, STEPS, Up,
    wire::{Direction, Wire},
};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Worker,
    Learner,
    Coordinator,
}

/// Where it is.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// So many bytes later, on this role's wire.
    Byte(Victim, Direction, u64),
    /// When a checkpoint begins to be written.
    Checkpoint,
}

/// How often each role is killed.
const KILLS: usize = 50;

/// A run whose roles dial in over wires.
struct Cluster<'a> {
    bench: &'a Bench,
    name: String,
    more: Vec<String>,
    up: Option<Up>,
    worker: Option<Role>,
    learner: Option<Role>,
    worker_wire: Wire,
    learner_wire: Wire,
}

impl<'a> Cluster<'a> {
    fn start(bench: &'a Bench, name: &str, more: &[&str]) -> Self {
        let address = bench.path(&format!("runs/{name}/coordinator.addr"));
        let mut cluster = Self {
            bench,
            name: name.to_owned(),
            more: more.iter().map(ToString::to_string).collect(),
            up: None,
            worker: None,
            learner: None,
            worker_wire: Wire::new(address.clone()),
            learner_wire: Wire::new(address),
        };
        cluster.start_coordinator(false);
        cluster.start_role(Victim::Worker);
        cluster.start_role(Victim::Learner);
        cluster
    }

    fn start_coordinator(&mut self, resume: bool) {
        let mut more: Vec<&str> = self.more.iter().map(String::as_str).collect();
        more.extend(resume.then_some("--resume"));
        self.up = Some(self.bench.coordinator_with(&self.name, &more));
    }

    fn start_role(&mut self, role: Victim) {
        let (slot, name, wire) = match role {
            Victim::Worker => (&mut self.worker, "rollout-worker", &self.worker_wire),
            Victim::Learner => (&mut self.learner, "learner", &self.learner_wire),
            Victim::Coordinator => return,
        };
        *slot = Some(self.bench.join_at(&wire.url(), name, 1));
    }

    fn wire(&self, of: Victim) -> &Wire {
        match of {
            Victim::Worker => &self.worker_wire,
            _ => &self.learner_wire,
        }
    }

    /// Waits until the point is reached; false when the run ended before.
    fn reach(&mut self, point: Point) -> bool {
        let start = Instant::now();
        let told = match point {
            Point::Byte(of, direction, bytes) => Some(self.wire(of).stop_after(direction, bytes)),
            Point::Checkpoint => None,
        };
        let checkpoints = self.bench.path(&format!("runs/{}/checkpoints", self.name));
        loop {
            let reached = match &told {
                Some(told) => match told.recv_timeout(Duration::from_millis(20)) {
                    Ok(()) => true,
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => panic!("the wire is gone"),
                },
                None => is_writing(&checkpoints),
            };
            if reached {
                return true;
            }
            if self.up.as_mut().unwrap().has_ended() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "{point:?} was not reached");
        }
    }

    fn kill(&mut self, victim: Victim) {
        match victim {
            // Killed and waited for as they go out of scope.
            Victim::Worker => drop(self.worker.take()),
            Victim::Learner => drop(self.learner.take()),
            Victim::Coordinator => self.up.take().unwrap().kill_coordinator(),
        }
        // What was held still never arrives; the others see the connection end.
        self.worker_wire.cut_where_held();
        self.learner_wire.cut_where_held();
        match victim {
            Victim::Coordinator => {
                self.worker_wire.cut();
                self.learner_wire.cut();
                self.start_coordinator(true);
            }
            role => self.start_role(role),
        }
    }

    fn finish(&mut self) {
        let summary = self.up.take().unwrap().finish().summary();
        assert_eq!(summary["steps"], STEPS);
    }
}

/// A folder of a checkpoint that isn't whole yet.
fn is_writing(checkpoints: &Path) -> bool {
    let Ok(entries) = fs::read_dir(checkpoints) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(".writing-"))
}

/// Bytes of a step on each wire, up and down, measured on a run that nobody disturbs.
struct Traffic {
    worker: [u64; 2],
    learner: [u64; 2],
}

fn undisturbed(bench: &Bench, name: &str, more: &[&str]) -> Traffic {
    let mut cluster = Cluster::start(bench, name, more);
    cluster.finish();
    let a_step = |wire: &Wire| wire.bytes().map(|bytes| (bytes / STEPS).max(1));
    Traffic {
        worker: a_step(&cluster.worker_wire),
        learner: a_step(&cluster.learner_wire),
    }
}

/// Kills a role at points drawn from a seed; the run must come to its end.
fn chaos(bench: &Bench, name: &str, more: &[&str], victim: Victim, traffic: &Traffic) {
    let mut rng = ChaCha8Rng::seed_from_u64(victim as u64 + 100 * name.len() as u64);
    let mut cluster = Cluster::start(bench, name, more);
    for kill in 0..KILLS {
        let (of, bytes) = match (victim, rng.random_bool(0.5)) {
            (Victim::Worker, _) | (Victim::Coordinator, true) => (Victim::Worker, traffic.worker),
            _ => (Victim::Learner, traffic.learner),
        };
        let way = rng.random_range(0..2);
        let direction = [Direction::Up, Direction::Down][way];
        let point = match victim {
            // Every fourth: while a checkpoint is written.
            Victim::Learner if kill % 4 == 3 => Point::Checkpoint,
            _ => Point::Byte(of, direction, rng.random_range(0..bytes[way] * 3 / 2) + 1),
        };
        assert!(
            cluster.reach(point),
            "{name}: the run ended before kill {kill} at {point:?}"
        );
        cluster.kill(victim);
    }
    cluster.finish();
    // A worker that is started anew has another name.
    let samplers = bench.samplers(name) as usize;
    assert!(
        victim != Victim::Worker || samplers > KILLS / 4,
        "{samplers} workers"
    );
}

const VICTIMS: [Victim; 3] = [Victim::Worker, Victim::Learner, Victim::Coordinator];

#[test]
fn in_lock_step_the_adapter_is_the_same_to_the_byte_wherever_a_process_is_killed() {
    let bench = Bench::new();
    let traffic = undisturbed(&bench, "whole", &[]);
    let whole = bench.final_adapter("whole");
    for victim in VICTIMS {
        let name = format!("killed-{victim:?}");
        chaos(&bench, &name, &[], victim, &traffic);
        assert!(
            bench.final_adapter(&name) == whole,
            "killing the {victim:?} changed the adapter"
        );
    }
}
#[test]
fn ahead_of_the_learner_every_prompt_is_trained_on_as_often_wherever_a_process_is_killed() {
    const AHEAD: &[&str] = &["--set", "algorithm.max_staleness=2"];
    let bench = Bench::new();
    let traffic = undisturbed(&bench, "whole", AHEAD);
    let whole = bench.consumed("whole");
    for victim in VICTIMS {
        let name = format!("killed-{victim:?}");
        chaos(&bench, &name, AHEAD, victim, &traffic);
        assert_eq!(bench.consumed(&name), whole, "killing the {victim:?}");
        let staleness = bench.staleness(&name);
        assert!(staleness <= 2, "trained on tokens {staleness} versions old");
    }
}

/// Workers hand adapters on in a chain; the first is killed in the middle of one.
#[test]
fn an_adapter_whose_relay_is_killed_on_the_way_arrives_all_the_same() {
    // Three pieces, and little else that goes down a wire.
    const LARGE: &[&str] = &[
        "--set",
        "lora.rank=320",
        "--set",
        "learner.lr=1e-3",
        "--set",
        "run.steps=8",
        "--set",
        "eval.before=false",
        "--set",
        "eval.after=false",
    ];
    const RELAYS: &[&str] = &[
        "--set",
        "cluster.adapter_relay=true",
        "--set",
        "cluster.adapter_fan_out=1",
    ];
    let bench = Bench::new();
    bench.up("alone", LARGE).finish().summary();
    let alone = bench.final_adapter("alone");

    let wire = Wire::new(bench.path("runs/relayed/coordinator.addr"));
    let mut up = bench.coordinator_with("relayed", &[LARGE, RELAYS].concat());
    let url = wire.url();
    up.address();
    let mut workers = Vec::new();
    // In the order of the chain.
    for (count, at) in [(1, url), (2, up.address()), (3, up.address())] {
        workers.push(bench.join_at(&at, "rollout-worker", 1));
        up.wait_for("one more worker with its model", |status| {
            let loaded = |state: &str| ["syncing", "ready"].contains(&state);
            let loaded = status.workers.iter().filter(|w| loaded(&w.state));
            loaded.count() == count
        });
    }
    let told = wire.stop_after(Direction::Down, 3 << 20);
    let _learner = bench.join_at(&up.address(), "learner", 1);
    told.recv_timeout(PATIENCE).expect("an adapter on its way");
    let step = up.status().expect("the run answers").step;
    // Killed and waited for.
    drop(workers.remove(0));
    wire.cut_where_held();
    up.finish().summary();
    assert!((1..8).contains(&step), "killed at step {step}");
    assert!(bench.final_adapter("relayed") == alone, "other bytes");
    let log = bench.path("runs/relayed/logs/coordinator.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("bytes of an adapter from worker"),
        "the second had the first as its relay, and lost it:\n{log}"
    );
}
