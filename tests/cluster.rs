//! Whole clusters of real processes on a tiny random model: they learn, answer while they run, and
//! end in the same bytes whatever dies on the way. Faults start on progress, never on a sleep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use support::{Bench, tina};
use tina_proto::v1::{RunStatus, StepRecord, WorkerStatus};

/// Mean reward of a span of steps.
fn reward(status: &RunStatus, steps: std::ops::RangeInclusive<u64>) -> f64 {
    let rewards: Vec<f64> = status
        .tail
        .iter()
        .filter(|step| steps.contains(&step.step))
        .map(|step| step.reward_mean)
        .collect();
    assert!(!rewards.is_empty(), "no steps {steps:?}");
    rewards.iter().sum::<f64>() / rewards.len() as f64
}

#[test]
fn a_cluster_learns_and_answers_meanwhile() {
    let bench = Bench::new();
    let mut up = bench.up("learns", &[]);
    let status = up.wait_for_step(3);
    assert_eq!(status.steps, 40);
    assert_eq!(status.workers.len(), 1);
    let worker = &status.workers[0];
    assert_eq!(worker.slots, 16);
    // Between two steps it may be loading the newest adapter.
    assert!(
        ["ready", "syncing"].contains(&worker.state.as_str()),
        "{}",
        worker.state
    );
    assert_eq!(
        worker.probe_diff_max, 0.0,
        "on a CPU the probe agrees to the bit"
    );
    assert!(
        status
            .learner
            .as_ref()
            .is_some_and(|learner| learner.trainable_parameters > 0)
    );
    let address = up.address();
    let shown = tina()
        .args(["status", "--json", "--coordinator", &address])
        .output()
        .unwrap();
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["run_id"], status.run_id.as_str());
    let last = up.wait_for_step(30);
    let compared = |step: &&StepRecord| {
        let metrics = step.learner.as_ref();
        metrics.is_some_and(|metrics| metrics.tokens_trained > 0)
    };
    assert!(last.tail.iter().any(|step| compared(&step)));
    for step in last.tail.iter().filter(compared) {
        let metrics = step.learner.as_ref().unwrap();
        assert_eq!(
            metrics.logprob_diff_max, 0.0,
            "step {}: one forward",
            step.step
        );
    }
    let (first, later) = (reward(&status, 1..=3), reward(&last, 28..=30));
    assert!(
        later > first + 0.2,
        "reward {first:.3} at first, {later:.3} later"
    );
    let summary = up.finish().summary();
    assert_eq!(summary["steps"], 40);
    for key in [
        "accuracy_before",
        "accuracy_after",
        "seconds",
        "tokens",
        "cost_usd",
    ] {
        assert!(summary[key].is_number(), "{key} in {summary}");
    }
    let adapter = std::path::Path::new(summary["adapter"].as_str().unwrap());
    assert!(adapter.join("adapter_config.json").is_file());
    assert!(adapter.join("adapter_model.safetensors").is_file());
}

#[test]
fn whatever_dies_the_adapter_is_the_same_to_the_byte() {
    let bench = Bench::new();
    bench.up("whole", &[]).finish().summary();
    let whole = bench.final_adapter("whole");

    for role in ["rollout-worker", "learner"] {
        let name = format!("killed-{role}");
        let mut up = bench.up(&name, &[]);
        up.wait_for_step(2);
        up.kill(role);
        assert_eq!(up.finish().summary()["steps"], 40);
        assert!(
            bench.final_adapter(&name) == whole,
            "SIGKILL of the {role} changed the adapter"
        );
    }

    let two = [
        "--set",
        "rollout.workers=[{ device = \"cpu\" }, { device = \"cpu\" }]",
    ];
    let mut up = bench.up_with_threads(3, "two-workers", &two);
    up.wait_for("tokens of both workers", |status| {
        let sampled = |worker: &WorkerStatus| worker.tokens_total > 0;
        status.workers.iter().filter(|w| sampled(w)).count() == 2
    });
    up.finish().summary();
    assert!(
        bench.final_adapter("two-workers") == whole,
        "two workers of three threads sample otherwise than one of one"
    );
}

#[test]
fn a_run_that_was_cut_and_resumed_ends_in_the_same_bytes() {
    let bench = Bench::new();
    bench.up("whole", &[]).finish().summary();
    let whole = bench.final_adapter("whole");

    let mut up = bench.up("interrupted", &[]);
    up.wait_for_step(3);
    up.signal("INT");
    let ended = up.finish();
    assert!(
        ended.stderr.contains("--resume"),
        "it says how to go on:\n{}",
        ended.stderr
    );
    let again = bench.up("interrupted", &[]).finish();
    assert!(!again.success, "a run that has begun is not begun again");
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    assert_eq!(
        bench.up("interrupted", &["--resume"]).finish().summary()["steps"],
        40
    );
    assert!(
        bench.final_adapter("interrupted") == whole,
        "Ctrl-C and --resume"
    );

    let mut up = bench.up("killed", &[]);
    up.wait_for_step(3);
    up.signal("KILL");
    drop(up);
    assert_eq!(
        bench.up("killed", &["--resume"]).finish().summary()["steps"],
        40
    );
    assert!(
        bench.final_adapter("killed") == whole,
        "SIGKILL of the coordinator and --resume"
    );
}
