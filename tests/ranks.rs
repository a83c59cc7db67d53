//! A learner of two ranks, as real processes: the bytes of one alone, whatever dies on the way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::fs;

use support::{Bench, STEPS};

/// With a KL term every group has a gradient, also where all its rewards are equal, as they are soon.
const ONE: &[&str] = &["--set", "algorithm.kl_beta=0.01"];
const TWO: &[&str] = &[
    "--set",
    "algorithm.kl_beta=0.01",
    "--set",
    "learner.ranks=2",
];
const SHARE: &str = "this rank's share of a gradient is done";

/// Gradients that the second rank took part in.
fn shares(bench: &Bench, name: &str) -> usize {
    let log = bench.path(&format!("runs/{name}/logs/learner-rank-1.log"));
    let log = fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.contains(SHARE)).count()
}

#[test]
fn two_ranks_make_the_bytes_of_one_whichever_is_killed() {
    let bench = Bench::new();
    bench.up("one", ONE).finish().summary();
    let one = bench.final_adapter("one");

    bench.up("two", TWO).finish().summary();
    assert!(
        bench.final_adapter("two") == one,
        "two ranks differ from one"
    );
    let taken = shares(&bench, "two");
    assert!(taken > 20, "the second took part {taken} times");

    for (role, log) in [("learner-rank", "learner-rank-1"), ("learner", "learner")] {
        let name = format!("killed-{role}");
        let mut up = bench.up(&name, TWO);
        // Progress decides: it is killed when there is work for two.
        up.wait_for_step(8);
        up.wait_for("the second rank at work", |_| shares(&bench, &name) > 0);
        up.kill(role);
        let before = shares(&bench, &name);
        up.wait_for("two ranks at work again", |_| {
            shares(&bench, &name) > before + 1
        });
        assert_eq!(up.finish().summary()["steps"], STEPS);
        assert!(
            bench.final_adapter(&name) == one,
            "SIGKILL of the {role} changed the adapter"
        );
        let log = bench.path(&format!("runs/{name}/logs/{log}.log"));
        let log = fs::read_to_string(log).unwrap();
        let deaths = log.matches("signal: 9").count();
        assert_eq!(deaths, 1, "it died in mid-run:\n{log}");
    }
}
