//! `tina reward` as a person uses it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const CONFIG: &str = "
[run]
name = \"n\"
[model]
source = \"hf:nobody/nothing\"
[data]
source = \"p.jsonl\"
[[reward]]
kind = \"numeric\"
weight = 2.0
[[reward]]
kind = \"length\"
judge = \"numeric\"
";

fn reward(config: &str, more: &[&str], lines: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.toml");
    std::fs::write(&path, config).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tina"))
        .arg("reward")
        .arg(&path)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may end before it has read all.
    let _ = stdin.write_all(lines.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("ends")
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn a_file_is_scored_group_by_group() {
    let replies = lines(&reward(
        CONFIG,
        &[],
        r#"{"completion": "so 7", "gold": 7, "tokens": 10}
{"completion": "so 7", "gold": "7", "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}

{"completion": "so 8", "gold": "seven", "tokens": 3, "group": "b"}
{"completion": "so 9", "gold": 9, "tokens": 30, "group": 1}
{"completion": "so 8", "gold": 9, "tokens": 20, "group": 1}
"#,
    ));
    let sums: Vec<_> = replies
        .iter()
        .map(|reply| reply["reward"].as_f64())
        .collect();
    assert_eq!(
        sums,
        [Some(2.5), Some(1.5), Some(0.0), Some(1.5), Some(0.0)]
    );
    assert_eq!(replies[0]["rewards"]["length"], 0.5);
    assert_eq!(replies[4]["correct"], false);
    assert_eq!(replies[2]["judged"], false);
    let why = replies[2]["not_judged"]["numeric"].as_str();
    assert!(
        why.is_some_and(|why| why.contains("not a number")),
        "{why:?}"
    );
}

#[test]
fn tokens_that_are_not_told_are_asked_for() {
    let line = "{\"completion\": \"so 7\", \"gold\": 7}\n";
    let output = reward(CONFIG, &[], line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for word in ["line 1", "\"length\" needs", "\"tokens\"", "--fetch"] {
        assert!(error.contains(word), "{error}");
    }
    let characters = ["--set", "reward.1.compat=tina"];
    assert_eq!(lines(&reward(CONFIG, &characters, line)).len(), 1);
}
