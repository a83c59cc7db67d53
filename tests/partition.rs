//! A worker on another machine that is cut off without a word, and comes back.
//!
//! The machine is a network namespace behind a pair of virtual interfaces, which takes root and Linux;
//! elsewhere the test is skipped and says so. Where the kernel has `netem`, the wire also delays and
//! loses packets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::process::Command;

use support::{Bench, tina};
use tina_proto::v1::RunStatus;

const TOKEN: &str = "a-token-that-is-long-enough-to-be-one";

/// Another machine, one wire away.
struct Machine {
    name: String,
    /// This end of the wire.
    wire: String,
}

/// Runs `ip` or `tc`; false when it says no, or there is none.
fn network(program: &str, arguments: &str) -> bool {
    let done = Command::new(program)
        .args(arguments.split_whitespace())
        .output();
    done.is_ok_and(|output| output.status.success())
}

impl Machine {
    const HERE: &str = "10.213.77.1";

    /// `None` where namespaces can't be made.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let machine = Self {
            name: format!("tina-{id}"),
            wire: format!("tina{id}"),
        };
        let (name, wire) = (&machine.name, &machine.wire);
        let made = network("ip", &format!("netns add {name}"))
            && network(
                "ip",
                &format!("link add {wire} type veth peer name far netns {name}"),
            )
            && network("ip", &format!("addr add {}/24 dev {wire}", Self::HERE))
            && network("ip", &format!("link set {wire} up"))
            && network("ip", &format!("-n {name} addr add 10.213.77.2/24 dev far"))
            && network("ip", &format!("-n {name} link set far up"));
        made.then_some(machine)
    }

    /// Delays packets and loses some; false where the kernel can't.
    fn disturb(&self) -> bool {
        network(
            "tc",
            &format!(
                "qdisc add dev {} root netem delay 5ms 2ms loss 1%",
                self.wire
            ),
        )
    }

    /// What is sent from now on is lost, and nobody is told.
    fn set_connected(&self, connected: bool) {
        let state = if connected { "up" } else { "down" };
        assert!(network(
            "ip",
            &format!("-n {} link set far {state}", self.name)
        ));
    }

    /// `tina`, there.
    fn tina(&self) -> Command {
        let here = tina();
        let mut there = Command::new("ip");
        there
            .args(["netns", "exec", &self.name])
            .arg(here.get_program());
        for (name, value) in here
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)))
        {
            there.env(name, value);
        }
        there.env("TINA_TOKEN", TOKEN);
        there
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        network("ip", &format!("link del {}", self.wire));
        network("ip", &format!("netns del {}", self.name));
    }
}

/// States of the workers, those with more slots first.
fn states(status: &RunStatus) -> Vec<(u32, &str)> {
    let mut all: Vec<_> = status
        .workers
        .iter()
        .map(|worker| (worker.slots, worker.state.as_str()))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_worker_that_is_cut_off_costs_its_slots_only_and_rejoins_by_itself() {
    let Some(machine) = Machine::new() else {
        println!("skipped: network namespaces can't be made here (root and Linux are needed)");
        return;
    };
    if !machine.disturb() {
        println!("no netem in this kernel: the wire neither delays nor loses packets");
    }
    let bench = Bench::new();
    std::fs::write(bench.path("token"), TOKEN).unwrap();
    let listen = format!("cluster.listen={}:0", Machine::HERE);
    let beyond_loopback = [
        &*listen,
        "cluster.token_file=token",
        "cluster.insecure=true",
    ];
    let patience = ["cluster.worker_timeout_s=2", "cluster.heartbeat_ms=200"];
    let task = [
        "learner.schedule_steps=100",
        "eval.before=false",
        "eval.after=false",
    ];
    let settings = [
        &beyond_loopback[..],
        &patience,
        &task,
        &["run.steps=1000000"],
    ]
    .concat();
    let settings: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let mut up = bench.coordinator_with("cut", &settings);
    up.token = Some(TOKEN.to_owned());
    let address = up.address();
    let mut here = tina();
    here.env("TINA_TOKEN", TOKEN);
    let _near = bench.join_by(here, &address, "rollout-worker", &[]);
    let _far = bench.join_by(machine.tina(), &address, "rollout-worker", &[]);
    up.wait_for("two workers", |status| status.workers.len() == 2);
    let mut here = tina();
    here.env("TINA_TOKEN", TOKEN);
    let _learner = bench.join_by(here, &address, "learner", &[]);
    up.wait_for("both at work", |status| {
        status.step > 3 && status.workers.iter().all(|worker| worker.tokens_total > 0)
    });

    machine.set_connected(false);
    let lost = up.wait_for("the far one is lost", |status| {
        status
            .workers
            .iter()
            .any(|worker| worker.state.starts_with("lost"))
    });
    let then = up.wait_for_step(lost.step + 20);
    assert_eq!(states(&then).len(), 2, "{then:?}");

    machine.set_connected(true);
    let back = up.wait_for("it is back", |status| {
        let at_work = |state: &str| ["ready", "syncing"].contains(&state);
        status.workers.len() == 2 && status.workers.iter().all(|worker| at_work(&worker.state))
    });
    up.wait_for_step(back.step + 5);
    up.signal("INT");
    up.finish();
    assert_eq!(bench.samplers("cut"), 2);

    // The same steps by one worker, undisturbed.
    let steps = format!("run.steps={}", bench.steps_done("cut"));
    let settings = [&task[..], &[&*steps]].concat();
    let settings: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    bench.up("whole", &settings).finish().summary();
    assert!(
        bench.final_adapter("cut") == bench.final_adapter("whole"),
        "being cut off changed the adapter"
    );
}
