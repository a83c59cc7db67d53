use std::sync::{Arc, Mutex};

use tina_reward::Share;

use super::*;
use crate::scheduler::types::RewardValue;

pub(super) fn config(sets: &[&str]) -> RunConfig {
    let text = "[run]\nname = \"t\"\n[model]\nsource = \"m\"\n[data]\nsource = \
                \"arithmetic:add1\"\nheld_out = 5\n[[reward]]\nkind = \"numeric\"\n";
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(text, "test", Path::new("/"), &sets).unwrap()
}

pub(super) fn version(step: u64) -> Version {
    Version {
        step,
        digest: [step as u8; 32],
    }
}

pub(super) fn scored(round: RoundId, group: u32, index: u32) -> Arc<Scored> {
    Arc::new(Scored {
        completion: v1::Completion {
            group_id: round.group(group),
            sample_index: index,
            tokens: vec![1, 70_000, 3],
            logprobs: vec![-0.1, -f32::MIN_POSITIVE, -2.5e7],
            finish_reason: v1::FinishReason::Stop.into(),
            versions: vec![v1::VersionSpan {
                start: 0,
                version: Some(version(round.base_step()).to_wire()),
            }],
            decode_seconds: 0.25,
        },
        worker: "w".into(),
        text: "it's 12 \u{1F980}".into(),
        reward: 0.75,
        judged: false,
        correct: true,
        rewards: vec![
            RewardValue {
                name: "numeric".into(),
                value: Some(1.0),
                share: None,
            },
            RewardValue {
                name: "other".into(),
                value: None,
                share: None,
            },
        ],
    })
}

pub(super) fn step(step: u64) -> Write {
    let version = Some(version(step).to_wire());
    let record = v1::StepRecord {
        step,
        reward_mean: 0.5,
        version,
        ..Default::default()
    };
    let counters = Counters {
        tokens_sampled: step * 10,
        ..Counters::default()
    };
    Write::Step {
        record: Box::new(record),
        counters,
    }
}

pub(super) fn start() -> Write {
    Write::Start {
        version: version(0),
        model_digest: "model".into(),
    }
}

pub(super) fn open(path: &Path, config: &RunConfig) -> Result<(Journal, Resumed), JournalError> {
    Journal::open(path, &fingerprint(config), "problems", "run-1", |_| {})
}

#[tokio::test]
async fn a_run_is_restored_as_it_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let (journal, fresh) = open(&path, &config(&[])).unwrap();
    assert!(fresh.restored.versions.is_empty());
    journal.write(start());
    journal.write(Write::Completion(scored(RoundId::train(1), 0, 0)));
    journal.write(step(1));
    let open_round = [
        scored(RoundId::train(2), 0, 1),
        scored(RoundId::train(2), 3, 0),
    ];
    for scored in &open_round {
        journal.write(Write::Completion(scored.clone()));
    }
    let record = v1::EvalRecord {
        step: 0,
        accuracy: 0.5,
        problems: 4,
        ..Default::default()
    };
    journal.write(Write::Eval {
        record: record.clone(),
        counters: Counters::default(),
    });
    let record_1 = v1::EvalRecord { step: 1, ..record };
    let counters = Counters {
        elapsed: Duration::from_millis(1500),
        tokens_sampled: 12,
        ..Counters::default()
    };
    journal.write(Write::Eval {
        record: record_1,
        counters,
    });
    journal.flush().await.unwrap();
    journal.close().await;

    assert_eq!(steps_done(&path).unwrap(), 1);
    let (journal, resumed) = open(&path, &config(&[])).unwrap();
    assert_eq!(resumed.restored.versions, [version(0), version(1)]);
    assert_eq!(resumed.restored.evals, [0, 1]);
    assert_eq!(resumed.restored.completions, open_round);
    assert_eq!(resumed.restored.model_digest.as_deref(), Some("model"));
    assert_eq!(resumed.counters, counters);
    assert_eq!(resumed.tail.len(), 1);
    assert_eq!(resumed.run_id, "run-1");
    assert_eq!(journal.batch(RoundId::train(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn nobody_is_told_of_a_completion_before_another_connection_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (told, reader) = (seen.clone(), path.clone());
    let (journal, _) = Journal::open(&path, &fingerprint(&config(&[])), "problems", "r", move |note| {
        if let Note::Recorded(samples, _) = note {
            let db = rusqlite::Connection::open(&reader).unwrap();
            for sample in samples.iter().map(|scored| scored.id()) {
                let found: i64 = db
                    .query_row(
                        "SELECT count(*) FROM completions WHERE group_id = ?1 AND sample_index = ?2",
                        rusqlite::params![sample.group as i64, sample.index],
                        |row| row.get(0),
                    )
                    .unwrap();
                told.lock().unwrap().push(found);
            }
        }
    })
    .unwrap();
    for index in 0..50 {
        journal.write(Write::Completion(scored(RoundId::train(1), 0, index)));
    }
    journal.flush().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), vec![1; 50]);
}

#[tokio::test]
async fn a_rollback_forgets_all_that_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let (journal, _) = open(&path, &config(&[])).unwrap();
    journal.write(start());
    for s in 1..=3 {
        journal.write(Write::Completion(scored(RoundId::train(s), 0, 0)));
        journal.write(step(s));
    }
    let other = Version {
        step: 1,
        digest: [99; 32],
    };
    journal.write(Write::Rollback(other));
    journal.flush().await.unwrap();
    assert_eq!(journal.batch(RoundId::train(1)).await.unwrap().len(), 1);
    assert!(journal.batch(RoundId::train(2)).await.unwrap().is_empty());
    journal.close().await;
    let (_, resumed) = open(&path, &config(&[])).unwrap();
    assert_eq!(resumed.restored.versions, [version(0), other]);
    assert_eq!(resumed.tail.len(), 1);
    assert_eq!(resumed.tail[0].version, Some(other.to_wire()));
}

#[tokio::test]
async fn a_journal_of_another_config_is_refused_with_the_keys_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    open(&path, &config(&[])).unwrap().0.close().await;
    let same = config(&[
        "cluster.listen=\"127.0.0.1:0\"",
        "learner.micro_batch_tokens=7",
    ]);
    open(&path, &same).unwrap().0.close().await;
    let error = open(&path, &config(&["learner.lr=0.5"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("learner.lr: was 0.000001, is 0.5"),
        "{error}"
    );
    assert!(!error.contains("lora"), "{error}");
}

#[tokio::test]
async fn a_journal_of_other_problems_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    open(&path, &config(&[])).unwrap().0.close().await;
    let error =
        Journal::open(&path, &fingerprint(&config(&[])), "others", "run-1", |_| {}).unwrap_err();
    assert!(matches!(error, JournalError::Problems { .. }), "{error}");
    open(&path, &config(&[])).unwrap();
}

#[tokio::test]
async fn a_journal_of_another_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    open(&path, &config(&[])).unwrap().0.close().await;
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'", [])
        .unwrap();
    let error = open(&path, &config(&[])).unwrap_err().to_string();
    assert!(error.contains("schema 99"), "{error}");
}

#[tokio::test]
async fn verdicts_that_wait_for_the_group_are_kept_and_then_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let (journal, _) = open(&path, &config(&[])).unwrap();
    journal.write(start());
    let round = RoundId::train(1);
    let mut waiting = Scored::clone(&scored(round, 0, 0));
    waiting.rewards[1].share = Some(Share {
        length: 9,
        value: 0.1,
    });
    journal.write(Write::Prompts(vec![PromptRow {
        group: round.group(0),
        problem: "p".into(),
        text: "?".into(),
        gold: "1".into(),
        tokens: vec![1],
    }]));
    journal.write(Write::Completion(Arc::new(waiting.clone())));
    let kept = journal.batch(round).await.unwrap();
    assert_eq!(*kept[0], waiting);
    let listed = journal.completions(1, 10).await.unwrap();
    assert_eq!(listed[0].rewards.len(), 1, "{listed:?}");

    let mut given = waiting;
    (given.rewards[1].share, given.rewards[1].value) = (None, Some(-0.5));
    (given.reward, given.judged) = (0.25, true);
    journal.write(Write::Rewards(vec![Arc::new(given.clone())]));
    assert_eq!(*journal.batch(round).await.unwrap()[0], given);
    let listed = journal.completions(1, 10).await.unwrap();
    assert_eq!((listed[0].rewards[1].mean, listed[0].reward), (-0.5, 0.25));
}
