use std::{
    path::Path,
    process::{Command as Run, Stdio},
    time::Instant,
};

use serde_json::json;

use super::*;

/// Python is there, or the test says that it is left out.
fn python() -> bool {
    let found = Run::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: there is no python3");
    }
    found
}

fn start(command: &[&str], slots: u32, timeout_ms: u64) -> External {
    External::start(ExternalSpec {
        name: "mine".to_owned(),
        command: command.iter().map(ToString::to_string).collect(),
        slots,
        timeout: Duration::from_millis(timeout_ms),
        log: None,
    })
}

/// A program in Python that makes `reward` out of the completion `text`.
fn script(body: &str) -> External {
    let program = format!(
        "import json, os, sys, time, subprocess\n\
         for line in sys.stdin:\n    \
             ask = json.loads(line); text = ask['completion']; id = ask['id']; reward = len(text)\n    \
             {body}\n    \
             print(json.dumps({{'id': id, 'reward': reward}}), flush=True)"
    );
    start(&["python3", "-c", &program], 1, 2000)
}

fn ask(text: &str) -> Value {
    json!({ "completion": text, "gold": "1" })
}

fn not_judged(verdict: Result<Verdict, GaveUp>, word: &str) {
    match verdict {
        Ok(Verdict::NotJudged(reason)) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{word}: {other:?}"),
    }
}

#[tokio::test]
async fn the_example_scores() {
    if !python() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/rewards/length.py");
    let program = start(&["python3", &path.display().to_string()], 2, 20_000);
    let long = "word ".repeat(400);
    let (short, long, none) = tokio::join!(
        program.ask(ask("few words")),
        program.ask(ask(&long)),
        program.ask(ask(" "))
    );
    assert_eq!(short, Ok(Verdict::Scored(1.0)));
    assert_eq!(long, Ok(Verdict::Scored(0.5)));
    not_judged(none, "0 words");
}

#[tokio::test]
async fn one_that_hangs_is_killed_with_what_it_started_and_started_anew() {
    if !python() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let alive = folder.path().join("alive");
    // The sleeper holds standard output open, and would write the file after the deadline.
    let program = script(&format!(
        "if text == 'hang': subprocess.Popen(['sh', '-c', 'sleep 4; touch {}']); time.sleep(60)",
        alive.display()
    ));
    assert_eq!(program.ask(ask("abc")).await, Ok(Verdict::Scored(3.0)));
    let began = Instant::now();
    not_judged(program.ask(ask("hang")).await, "more than 2 s");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(program.ask(ask("after")).await, Ok(Verdict::Scored(5.0)));
    sleep(Duration::from_secs(3)).await;
    assert!(!alive.exists(), "what it started lived on");
}

#[tokio::test]
async fn one_that_dies_or_answers_nonsense_is_started_anew() {
    if !python() {
        return;
    }
    let program = script(
        "exec({'die': 'os._exit(3)', 'noise': 'print(\"thinking\", flush=True)', \
         'other': 'id += 1', 'text': 'reward = \"much\"', 'nan': 'reward = float(\"nan\")', \
         'null': 'reward = None', 'long': 'reward = \"x\" * (1 << 21)'}.get(text, ''))",
    );
    for (text, word) in [
        ("die", "died before it answered"),
        ("noise", "no JSON object"),
        ("other", "without the id"),
        ("text", "without a number or null"),
        ("nan", "no JSON object"),
        ("null", "gives no reason"),
        ("long", "more than 1048576 bytes"),
    ] {
        assert_eq!(program.ask(ask("four")).await, Ok(Verdict::Scored(4.0)));
        not_judged(program.ask(ask(text)).await, word);
    }
}

#[tokio::test]
async fn one_that_never_starts_is_given_up_with_a_reason() {
    let program = start(&["/nowhere/to/be/found"], 2, 1000);
    let error = program.ask(ask("abc")).await.expect_err("given up");
    assert!(
        error.0.contains("`/nowhere/to/be/found` can't be started"),
        "{error}"
    );
    assert!(error.0.contains("reward \"mine\""), "{error}");

    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("reward-0.log");
    let program = External::start(ExternalSpec {
        name: "broken".to_owned(),
        command: ["sh", "-c", "echo no such module >&2; exit 1"]
            .map(String::from)
            .into(),
        slots: 1,
        timeout: Duration::from_secs(1),
        log: Some(log),
    });
    let error = program.ask(ask("abc")).await;
    let error = match error {
        // The first may have been given to a process that was about to die.
        Ok(_) => loop {
            if let Err(error) = program.ask(ask("abc")).await {
                break error;
            }
        },
        Err(error) => error,
    };
    assert!(error.0.contains("no such module"), "{error}");
}
