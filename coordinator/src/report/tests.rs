use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tina_proto::v1;

use super::{numbers::*, turn::Turn, *};
use crate::{
    config::RunConfig,
    journal::{Counters, Journal, PromptRow, Write, fingerprint},
    run::{CONFIG_FILE, JOURNAL_FILE},
    scheduler::types::{RewardValue, RoundId, Scored, Version},
};

const CONFIG: &str = "[run]\nname = \"synthetic\"\nsteps = 100\n[model]\nsource = \"m\"\n[data]\n\
    source = \"arithmetic:add1\"\nheld_out = 4\n[[reward]]\nkind = \"numeric\"\nweight = 2.0\n\
    [[reward]]\nkind = \"regex\"\nname = \"format\"\npattern = \"x\"\n[cost]\nusd_per_hour = 3.6\n";

fn config() -> RunConfig {
    RunConfig::parse(CONFIG, "test", Path::new("/"), &[]).unwrap()
}

fn version(step: u64) -> Version {
    Version {
        step,
        digest: [step as u8; 32],
    }
}

fn completion(round: RoundId, group: u32, index: u32, tokens: usize, correct: bool) -> Write {
    let value = |name: &str, value| RewardValue {
        name: name.into(),
        value,
        share: None,
    };
    Write::Completion(Arc::new(Scored {
        completion: v1::Completion {
            group_id: round.group(group),
            sample_index: index,
            tokens: vec![7; tokens],
            logprobs: vec![-0.5; tokens],
            finish_reason: v1::FinishReason::Stop.into(),
            versions: vec![v1::VersionSpan {
                start: 0,
                version: Some(version(round.base_step()).to_wire()),
            }],
            decode_seconds: 0.1,
        },
        worker: "w".into(),
        text: format!("``` step {} problem {group} <b>|</b>", round.step()),
        reward: f64::from(u8::from(correct)),
        judged: true,
        correct,
        rewards: vec![value("numeric", Some(1.0)), value("format", None)],
    }))
}

/// The evaluation after `step` steps: `right` says of each of the problems whether it went right.
fn evaluation(step: u64, right: &[bool], seconds: u64) -> Vec<Write> {
    let round = RoundId::eval(step);
    let rows = (0u32..).zip(right).map(|(group, _)| PromptRow {
        group: round.group(group),
        problem: format!("p{group}"),
        text: format!("<|user|>\nWhat is | {group}?<|end|>\n"),
        gold: group.to_string(),
        tokens: vec![1, 2],
    });
    let mut writes = vec![Write::Prompts(rows.collect())];
    for (group, &right) in (0u32..).zip(right) {
        writes.push(completion(round, group, 0, 10 + group as usize, right));
    }
    let correct = right.iter().filter(|right| **right).count();
    writes.push(Write::Eval {
        record: v1::EvalRecord {
            step,
            problems: right.len() as u32,
            accuracy: correct as f64 / right.len() as f64,
            completion_tokens_mean: 12.0,
            seconds: 5.0,
            truncated_share: 0.25,
            ..Default::default()
        },
        counters: counters(seconds),
    });
    writes
}

fn counters(seconds: u64) -> Counters {
    Counters {
        elapsed: Duration::from_secs(seconds),
        learner_wait: Duration::from_secs(seconds / 2),
        rollout_wait: Duration::from_secs(seconds / 4),
        coordinator: Duration::from_millis(seconds),
        tokens_sampled: 100 * seconds,
        tokens_trained: 50 * seconds,
    }
}

/// A step of 10 seconds whose rewards and length are given.
fn step(step: u64, format: f64, length: f64) -> Write {
    let reward = |name: &str, mean, not_judged| v1::RewardRecord {
        name: name.into(),
        mean,
        not_judged,
    };
    Write::Step {
        record: Box::new(v1::StepRecord {
            step,
            reward_mean: 0.5,
            reward_std: 0.25,
            rewards: vec![reward("numeric", 0.4, 1), reward("format", format, 0)],
            groups_without_signal: 0.5,
            completion_tokens_mean: length,
            truncated_share: 0.125,
            tokens_sampled: 400,
            seconds_sample: 4.0,
            seconds_score: 1.0,
            seconds_learn: 4.0,
            seconds_sync: 1.0,
            seconds_total: 10.0,
            tokens_per_second: 100.0,
            cost_usd: 0.01 * step as f64,
            learner: Some(v1::StepMetrics {
                loss: 0.1,
                entropy: 0.7,
                grad_norm: 0.3,
                lr: 1e-6,
                tokens_trained: 200,
                ..Default::default()
            }),
            version: Some(version(step).to_wire()),
            seconds_coordinator: 0.01,
            seconds_learner_wait: 6.0,
            seconds_rollout_wait: 3.0,
            groups_resampled: 0,
            groups_outdated: 0,
        }),
        counters: counters(10 * step),
    }
}

/// A run's folder with a journal of these writes.
async fn run(writes: impl IntoIterator<Item = Write>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join(JOURNAL_FILE);
    let (journal, _) = Journal::open(
        &journal,
        &fingerprint(&config()),
        "problems",
        "run-1",
        |_| {},
    )
    .unwrap();
    journal.write(Write::Start {
        version: version(0),
        model_digest: "model".into(),
    });
    for write in writes {
        journal.write(write);
    }
    journal.flush().await.unwrap();
    journal.close().await;
    fs::write(folder.path().join(CONFIG_FILE), config().to_toml()).unwrap();
    folder
}

/// The page's text, after a look at all figures.
fn page_of(written: &Written) -> String {
    let text = fs::read_to_string(&written.page).unwrap();
    let folder = written.page.parent().unwrap();
    let mut figures = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            let svg = fs::read_to_string(&path).unwrap();
            let document = roxmltree::Document::parse(&svg).unwrap();
            assert!(document.root_element().has_tag_name("svg"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(text.contains(&format!("]({name})")), "{name} isn't shown");
            figures += 1;
        }
    }
    assert_eq!(text.matches("![").count(), figures);
    assert!(!text.contains("NaN"), "{text}");
    text
}

#[tokio::test]
async fn a_run_is_reported_with_its_numbers() {
    // The format reward peaks and the length is least at step 40.
    let bend = |at: u64| (at as f64 - 40.0).abs() / 60.0;
    let mut writes = evaluation(0, &[false, false, true, false], 1);
    for at in 1..=100 {
        for index in 0..11 {
            writes.push(completion(
                RoundId::train(at),
                0,
                index,
                10 * index as usize,
                true,
            ));
        }
        writes.push(step(at, 1.0 - bend(at), 100.0 + 80.0 * bend(at)));
        if at == 50 {
            writes.extend(evaluation(50, &[true, true, true, false], 500));
        }
    }
    writes.extend(evaluation(100, &[true, true, false, false], 1000));
    let folder = run(writes).await;
    let written = write(folder.path(), None).unwrap();
    assert_eq!(written.page, folder.path().join("report/report.md"));

    let report = &written.report;
    assert_eq!(
        (report.run.as_str(), report.state),
        ("synthetic", State::Finished)
    );
    let steps: Vec<u64> = report.evaluations.iter().map(|eval| eval.step).collect();
    assert_eq!(steps, [0, 50, 100]);
    assert_eq!(report.evaluations[1].accuracy, 0.75);
    for eval in &report.evaluations {
        assert!(eval.low < eval.accuracy && eval.accuracy < eval.high);
        assert_eq!((eval.problems, eval.samples), (4, 1));
    }
    assert_eq!(report.evaluations[1].cost_usd, 0.5);
    assert_eq!(report.best, Some(50));

    let problems = report.problems.as_ref().unwrap();
    assert_eq!(
        (problems.compared, problems.gained, problems.lost),
        (4, 2, 1)
    );
    assert_eq!(problems.change.unwrap().mean, 0.25);
    assert_eq!(problems.hardest[0].problem, "p3");
    assert_eq!(problems.hardest[0].question, "What is | 3?");
    // p0, p1 and p2 were right twice; p0 is the shortest.
    let easiest = &problems.easiest[0];
    assert_eq!(
        (easiest.problem.as_str(), easiest.correct, easiest.samples),
        ("p0", 2, 3)
    );

    let Transition::Seen { peak, trough } = report.transition else {
        panic!("{:?}", report.transition);
    };
    assert!((39..=41).contains(&peak) && (39..=41).contains(&trough));
    assert!(
        matches!(report.turns[0].turn, Turn::Flat { .. }),
        "{:?}",
        report.turns
    );

    let totals = &report.totals;
    assert_eq!((totals.seconds, totals.tokens_sampled), (1000.0, 100_000));
    assert!((totals.cost_usd - 1.0).abs() < 1e-12);
    assert_eq!(
        (totals.sampled_per_second, totals.trained_per_second),
        (100.0, 50.0)
    );
    let time: Vec<f64> = report.time.iter().map(|part| part.seconds).collect();
    assert_eq!(time, [400.0, 100.0, 400.0, 100.0, 15.0, 0.0]);
    let first = &report.steps[0];
    assert_eq!((first.tokens_p10, first.tokens_p90), (10.0, 90.0));
    assert!((first.not_judged_share - 1.0 / 22.0).abs() < 1e-12);

    let page = page_of(&written);
    assert!(page.contains("# Run synthetic"));
    assert!(page.contains("| **50** | **75.0 %** |"), "{page}");
    assert!(page.contains("+25.0 points"), "{page}");
    assert!(page.contains("the best checkpoint is after it"), "{page}");
    assert!(page.contains("What is \\| 3?"), "{page}");
    assert!(
        page.contains("````text\n``` step 0 problem 0 <b>|</b>\n````"),
        "{page}"
    );
    assert!(page.contains("$1.00 for 0.28 hours"), "{page}");
    assert!(written.summary[0].starts_with("100 steps of 100, finished"));
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["transition"]["outcome"], "seen");
    assert_eq!(json["turns"][1]["role"], "format");
}

#[tokio::test]
async fn a_run_that_has_only_begun_has_a_page_too() {
    let folder = run([]).await;
    fs::write(folder.path().join("coordinator.addr"), "127.0.0.1:1\n").unwrap();
    let written = write(folder.path(), None).unwrap();
    assert_eq!(written.report.state, State::Open);
    assert_eq!(written.report.best, None);
    assert_eq!(written.report.transition, Transition::NotSeen);
    let page = page_of(&written);
    assert!(page.contains("No evaluation was made."), "{page}");
    assert!(page.contains("No step is done."), "{page}");
}

#[tokio::test]
async fn numbers_that_are_none_leave_a_gap() {
    let broken = |at: u64| {
        let Write::Step {
            mut record,
            counters,
        } = step(at, f64::NAN, f64::INFINITY)
        else {
            unreachable!();
        };
        record.reward_mean = f64::NAN;
        record.seconds_sample = 0.0;
        record.seconds_learn = f64::NAN;
        record.learner = Some(v1::StepMetrics {
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            tokens_trained: 1,
            ..Default::default()
        });
        Write::Step { record, counters }
    };
    let folder = run((1..=30).map(broken)).await;
    let written = write(folder.path(), None).unwrap();
    assert!(
        written
            .report
            .turns
            .iter()
            .all(|turn| turn.turn.step().is_none())
    );
    page_of(&written);
    let json = serde_json::to_value(&written.report).unwrap();
    assert!(json["steps"][0]["loss"].is_null());
}

#[tokio::test]
async fn the_report_is_made_beside_a_run_that_goes_on_and_again_elsewhere() {
    let folder = run([step(1, 0.5, 10.0)]).await;
    let path = folder.path().join(JOURNAL_FILE);
    let (journal, _) =
        Journal::open(&path, &fingerprint(&config()), "problems", "run-1", |_| {}).unwrap();
    journal.write(step(2, 0.5, 10.0));
    journal.flush().await.unwrap();
    let out = folder.path().join("else/where");
    let written = write(folder.path(), Some(&out)).unwrap();
    assert_eq!(written.report.steps_done, 2);
    assert!(out.join("rewards.svg").exists() && !folder.path().join("report").exists());
    // The writer was not disturbed, and what it writes next is in the next report.
    journal.write(step(3, 0.5, 10.0));
    journal.flush().await.unwrap();
    // A figure of an earlier report that there is nothing to draw for is gone.
    fs::write(out.join("accuracy.svg"), "old").unwrap();
    assert_eq!(
        write(folder.path(), Some(&out)).unwrap().report.steps_done,
        3
    );
    assert!(!out.join("accuracy.svg").exists());
    journal.close().await;
}

#[tokio::test]
async fn a_reward_that_judged_nothing_and_a_config_that_is_gone_are_no_zeros() {
    let Write::Step {
        mut record,
        counters,
    } = step(1, 0.0, 10.0)
    else {
        unreachable!();
    };
    record.rewards[1].not_judged = 2;
    let writes = (0..2).map(|index| completion(RoundId::train(1), 0, index, 4, true));
    let folder = run(writes.chain([Write::Step { record, counters }])).await;
    fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
    let written = write(folder.path(), None).unwrap();
    let report = &written.report;
    assert!(report.steps[0].rewards[1].is_nan());
    assert_eq!(report.rewards[1].name, "format");
    assert_eq!(report.steps_planned, None);
    assert!(page_of(&written).contains("`config.toml` is gone"));
}

#[test]
fn a_folder_without_a_run_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = write(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("no run was begun here"), "{error}");
    fs::write(
        folder.path().join(JOURNAL_FILE),
        "no database, and long enough to say so",
    )
    .unwrap();
    assert!(matches!(
        write(folder.path(), None),
        Err(ReportError::Journal(_))
    ));
    // Nothing was left behind by looking.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn quantiles_are_linear_between_values() {
    assert_eq!(quantile(&[10, 20], 0.25), 12.5);
    assert_eq!(quantile(&[3], 0.9), 3.0);
    assert!(quantile(&[], 0.5).is_nan());
}
