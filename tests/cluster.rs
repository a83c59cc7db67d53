//! Whole clusters of real processes on a tiny random model: they learn, answer while they run, and
//! end in the same bytes whatever dies on the way. Faults start on progress, never on a sleep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use serde_json::Value;
use support::{Bench, STEPS, tina};
use tina_proto::v1::StepRecord;

/// Mean reward of some steps.
fn reward(steps: &[StepRecord]) -> f64 {
    steps.iter().map(|step| step.reward_mean).sum::<f64>() / steps.len() as f64
}

#[test]
fn a_cluster_learns_and_answers_meanwhile() {
    let bench = Bench::new();
    let mut up = bench.up("learns", &[]);
    let status = up.wait_for_step(3);
    assert_eq!(status.steps, STEPS);
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
    up.wait_for_step(60);
    // Late steps may have nothing left to learn.
    let all = up.steps(1..=60);
    let compared = |step: &&StepRecord| {
        let metrics = step.learner.as_ref();
        metrics.is_some_and(|metrics| metrics.tokens_trained > 0)
    };
    assert!(all.iter().any(|step| compared(&step)));
    for step in all.iter().filter(compared) {
        let metrics = step.learner.as_ref().unwrap();
        assert_eq!(
            metrics.logprob_diff_max, 0.0,
            "step {}: one forward",
            step.step
        );
    }
    let (first, later) = (reward(&up.steps(1..=3)), reward(&up.steps(58..=60)));
    assert!(
        later > first + 0.2,
        "reward {first:.3} at first, {later:.3} later"
    );
    let summary = up.finish().summary();
    assert_eq!(summary["steps"], STEPS);
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

    for (role, log) in [("rollout-worker", "worker-0"), ("learner", "learner")] {
        let name = format!("killed-{role}");
        let mut up = bench.up(&name, &[]);
        up.wait_for_step(2);
        up.kill(role);
        assert_eq!(up.finish().summary()["steps"], STEPS);
        assert!(
            bench.final_adapter(&name) == whole,
            "SIGKILL of the {role} changed the adapter"
        );
        let log = bench.path(&format!("runs/{name}/logs/{log}.log"));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("signal: 9"), "it died in mid-run:\n{log}");
    }
}

#[test]
fn two_workers_of_three_threads_sample_what_one_of_one_does() {
    let bench = Bench::new();
    bench.up("one", &[]).finish().summary();
    let mut up = bench.coordinator("two");
    // The run begins when the learner is there: by then both workers have the model.
    let _workers = [1, 2].map(|_| bench.join(&mut up, "rollout-worker", 3));
    up.wait_for("two workers with the model", |status| {
        let loaded = |state: &str| ["syncing", "ready"].contains(&state);
        status.workers.iter().filter(|w| loaded(&w.state)).count() == 2
    });
    let _learner = bench.join(&mut up, "learner", 3);
    up.finish().summary();
    assert_eq!(bench.samplers("two"), 2);
    assert!(bench.final_adapter("two") == bench.final_adapter("one"));
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
        STEPS
    );
    assert!(
        bench.final_adapter("interrupted") == whole,
        "Ctrl-C and --resume"
    );

    let mut up = bench.up("killed", &[]);
    up.wait_for_step(3);
    up.kill_coordinator();
    assert_eq!(
        bench.up("killed", &["--resume"]).finish().summary()["steps"],
        STEPS
    );
    assert!(
        bench.final_adapter("killed") == whole,
        "SIGKILL of the coordinator and --resume"
    );
}

/// The numbers of an evaluation, without what depends on the clock.
fn numbers(mut report: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, _| !["seconds", "cost_usd"].contains(&key.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut report);
    report
}

#[test]
fn an_evaluation_that_was_killed_goes_on_to_the_same_numbers() {
    const PROBLEMS: usize = 400;
    let bench = Bench::new();
    bench
        .up("trained", &["--set", "run.steps=2"])
        .finish()
        .summary();
    let suite: String = (0..PROBLEMS)
        .map(|i| format!("{{\"problem\": \"say {i}\", \"answer\": \"{}\"}}\n", i % 10))
        .collect();
    std::fs::write(bench.path("digits.jsonl"), suite).unwrap();
    let how = |samples: &'static str| {
        let suites = ["--suite", "digits.jsonl,held-out", "--adapter", "base,2"];
        let sampling = [
            "--samples",
            samples,
            "--temperature",
            "1",
            "--max-tokens",
            "60",
        ];
        [&suites[..], &sampling[..], &["--prompt", "config"][..]].concat()
    };

    let ended = bench.eval("trained", "whole", &how("4")).finish();
    let whole = numbers(ended.summary());
    assert!(
        !bench.path("whole/logs/learner.log").exists(),
        "nothing is trained"
    );
    assert_eq!(whole["samples"], 4);
    let adapters = whole["adapters"].as_array().unwrap();
    assert_eq!(adapters.len(), 2);
    assert_eq!(adapters[0]["adapter"], "base");
    let digits = &adapters[1]["suites"][0];
    assert_eq!(
        (&digits["suite"], &digits["problems"]),
        (&"digits".into(), &PROBLEMS.into())
    );
    let [value, low, high] =
        ["value", "low", "high"].map(|key| digits["pass_at_1"][key].as_f64().unwrap());
    assert!(0.0 <= low && low <= value && value <= high && low < high);
    assert_eq!(
        digits["pass_at_k"].as_array().unwrap().len(),
        3,
        "k is 1, 2 and 4"
    );
    assert!(
        whole["changes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|change| change["suite"] == "all")
    );
    let page = std::fs::read_to_string(bench.path("whole/report.md")).unwrap();
    assert!(page.contains("| base | digits | 400 |"), "{page}");

    let mut eval = bench.eval("trained", "killed", &how("4"));
    let all = (PROBLEMS + 4) * 4;
    eval.wait_for("a good part of the second adapter", |status| {
        status.step == 1 && status.phase_done as usize > all / 8
    });
    eval.kill_coordinator();
    let before = bench.decode_times("killed");
    assert!(
        all < before.len() && before.len() < 2 * all,
        "{}",
        before.len()
    );
    let again = bench.eval("trained", "killed", &how("4")).finish();
    assert_eq!(numbers(again.summary()), whole, "SIGKILL and going on");
    let after = bench.decode_times("killed");
    assert_eq!(after.len(), 2 * all);
    let kept = before
        .iter()
        .filter(|sample| after.contains(sample))
        .count();
    assert_eq!(kept, before.len(), "what was scored is not sampled again");

    let third = bench.eval("trained", "killed", &how("4")).finish();
    assert_eq!(numbers(third.summary()), whole, "a report may be had again");
    let other = bench.eval("trained", "killed", &how("2")).finish();
    assert!(
        !other.success && other.stderr.contains("samples: was 4, is 2"),
        "{}",
        other.stderr
    );
}
