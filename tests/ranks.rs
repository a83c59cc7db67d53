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

const TWO: &[&str] = &["--set", "learner.ranks=2"];
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
    bench.up("one", &[]).finish().summary();
    let one = bench.final_adapter("one");

    bench.up("two", TWO).finish().summary();
    assert!(
        bench.final_adapter("two") == one,
        "two ranks differ from one"
    );
    let taken = shares(&bench, "two");
    // How many it misses while it starts is the machine's affair.
    assert!(taken > 0, "the second took part {taken} times");

    for (role, log) in [("learner-rank", "learner-rank-1"), ("learner", "learner")] {
        let name = format!("killed-{role}");
        let mut up = bench.up(&name, TWO);
        for kill in 1..=2 {
            // Progress decides: it is killed when it has work.
            let before = shares(&bench, &name);
            up.wait_for_step(kill * 8);
            up.wait_for("the second rank at work", |_| {
                shares(&bench, &name) > before
            });
            up.kill(role);
        }
        assert_eq!(up.finish().summary()["steps"], STEPS);
        assert!(
            bench.final_adapter(&name) == one,
            "SIGKILL of the {role} changed the adapter"
        );
        let log = bench.path(&format!("runs/{name}/logs/{log}.log"));
        let log = fs::read_to_string(log).unwrap();
        let deaths = log.matches("signal: 9").count();
        assert_eq!(deaths, 2, "it died in mid-run:\n{log}");
    }
}
