//! Coordinator, rollout workers and learner as they are, with their gRPC, journal, engine and
//! trainer, in a world of virtual time (turmoil): messages are late, hosts are cut off from each other,
//! crash and start again, as a seed says. A seed replays exactly, up to the good-byes. The scheduler alone is
//! simulated far more widely, in `coordinator/src/scheduler/simulation/`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;
#[path = "simulation/world.rs"]
mod world;

use support::Bench;
use world::{Faults, Life, live};

const STEPS: u64 = 16;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Worlds of so many seeds as `TINA_SIMULATION_CLUSTERS` says (8); or of `TINA_SIMULATION_SEED` alone, and
/// then `TINA_LOG=info` has the roles tell what they do.
fn worlds(check: impl Fn(u64)) {
    if let Some(seed) = number("TINA_SIMULATION_SEED") {
        // The test that comes first sets it up for all.
        let _ = tracing_subscriber::fmt()
            .with_timer(world::Clock)
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("TINA_LOG"))
            .try_init();
        return check(seed);
    }
    for seed in 0..number("TINA_SIMULATION_CLUSTERS").unwrap_or(8) {
        check(seed);
    }
}

/// Lock step: whatever happens on the way, the adapter is that of a life without faults.
#[test]
fn in_lock_step_no_fault_changes_a_byte() {
    let bench = Bench::new();
    live(&bench, &Life::new("calm", 0, Faults::None));
    let (adapter, consumed) = (bench.final_adapter("calm"), bench.consumed("calm"));
    assert_eq!(bench.steps_done("calm"), STEPS as i64);
    worlds(|seed| {
        let name = format!("seed-{seed}");
        let told = live(&bench, &Life::new(&name, seed, Faults::Many));
        let again = format!("TINA_SIMULATION_SEED={seed} replays it; what happened:\n{told}");
        assert!(bench.final_adapter(&name) == adapter, "{again}");
        assert_eq!(bench.consumed(&name), consumed, "{again}");
    });
}

/// Ahead of the learner: every prompt is trained on as often as without faults, and nothing too old.
#[test]
fn ahead_of_the_learner_each_prompt_is_trained_on_once_and_nothing_is_too_old() {
    let bench = Bench::new();
    live(&bench, &Life::new("calm", 0, Faults::None).ahead(2));
    let consumed = bench.consumed("calm");
    worlds(|seed| {
        let name = format!("seed-{seed}");
        let told = live(&bench, &Life::new(&name, seed, Faults::Many).ahead(2));
        let again = format!("TINA_SIMULATION_SEED={seed} replays it; what happened:\n{told}");
        assert_eq!(bench.consumed(&name), consumed, "{again}");
        assert!(bench.staleness(&name) <= 2, "{again}");
    });
}

/// All that happens and all that is sent, in its order.
#[test]
fn a_seed_replays_exactly() {
    for seed in number("TINA_SIMULATION_SEED").map_or(0..3, |seed| seed..seed + 1) {
        let [first, second] = [0, 1].map(|_| {
            let bench = Bench::new();
            live(&bench, &Life::new("run", seed, Faults::Many).ahead(1))
        });
        let sent = (first.sent(), second.sent());
        let differs = sent.0.iter().zip(&sent.1).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert!(first.lines() == second.lines(), "{first}\n{second}");
        assert!(sent.0.len() > 100 && sent.0.len() == sent.1.len());
    }
}
