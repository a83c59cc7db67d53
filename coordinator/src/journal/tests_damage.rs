//! A journal on a bad disk.

use std::fs;

use super::{tests::*, *};

/// A journal of two steps and the half of a third, closed; and what it is resumed to.
async fn journal(folder: &Path) -> (PathBuf, String) {
    let path = folder.join("run.db");
    let (journal, _) = open(&path, &config(&[])).unwrap();
    journal.write(start());
    for step in 1..=3 {
        let round = RoundId::train(step);
        let prompts = (0..4).map(|group| PromptRow {
            group: round.group(group),
            problem: format!("p{group}"),
            text: "what?".repeat(20),
            gold: "1".into(),
            tokens: vec![1, 2, 3],
        });
        journal.write(Write::Prompts(prompts.collect()));
        for (group, index) in [(0, 0), (0, 1), (1, 0), (2, 0), (3, 1)] {
            let mut scored = Scored::clone(&scored(round, group, index));
            scored.completion.tokens = (0..600).collect();
            scored.completion.logprobs = (0..600).map(|at| -0.001 * at as f32).collect();
            journal.write(Write::Completion(Arc::new(scored)));
        }
        if step < 3 {
            journal.write(self::step(step));
        }
    }
    journal.flush().await.unwrap();
    journal.close().await;
    let expected = state(&path).await.unwrap();
    (path, expected)
}

/// All that a run would go on from.
async fn state(path: &Path) -> Result<String, JournalError> {
    let (journal, resumed) = open(path, &config(&[]))?;
    let mut text = format!("{resumed:?}");
    for step in 1..=3 {
        text += &format!("{:?}", journal.batch(RoundId::train(step)).await?);
    }
    journal.close().await;
    Ok(text)
}

/// The database alone, as a copy of it would be.
fn put(path: &Path, bytes: &[u8]) {
    for extension in ["db-wal", "db-shm"] {
        let _ = fs::remove_file(path.with_extension(extension));
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_journal_is_refused_or_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (path, expected) = journal(folder.path()).await;
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 20 * 4096, "{} bytes", whole.len());
    let mut refused = 0;
    for at in (0..whole.len()).step_by(61).chain(0..120) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        put(&path, &flipped);
        match state(&path).await {
            // A bit that nothing is read from.
            Ok(found) => assert!(found == expected, "byte {at}: another state, silently"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > whole.len() / 61 / 2,
        "only {refused} were noticed"
    );
}

#[tokio::test]
async fn a_torn_journal_is_refused_and_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = journal(folder.path()).await;
    let whole = fs::read(&path).unwrap();
    // An empty file, which SQLite takes one of a single byte for, is a journal that was never begun.
    for length in (2..whole.len()).step_by(1000) {
        put(&path, &whole[..length]);
        let error = state(&path).await.unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
        let text = error.to_string();
        let all = ["run.db", "bring back a copy", "--overwrite"];
        assert!(all.iter().all(|part| text.contains(part)), "{text}");
    }
}

#[tokio::test]
async fn a_page_of_another_place_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, expected) = journal(folder.path()).await;
    let whole = fs::read(&path).unwrap();
    for page in 1..whole.len() / 4096 {
        let before = whole[(page - 1) * 4096..page * 4096].to_vec();
        for content in [vec![0; 4096], before] {
            let mut torn = whole.clone();
            torn[page * 4096..(page + 1) * 4096].copy_from_slice(&content);
            put(&path, &torn);
            if let Ok(found) = state(&path).await {
                assert!(found == expected, "page {page}");
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_is_torn_gives_the_state_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let (journal, _) = open(&path, &config(&[])).unwrap();
    journal.write(start());
    journal.flush().await.unwrap();
    journal.write(step(1));
    journal.flush().await.unwrap();
    // As after a power cut: database and log as they are while it is open.
    let copy = folder.path().join("copy.db");
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    let database = fs::read(&path).unwrap();
    for length in (0..log.len()).step_by(777) {
        put(&copy, &database);
        fs::write(copy.with_extension("db-wal"), &log[..length]).unwrap();
        // Never begun, begun, version 0, or step 1: each was the state at some time.
        if let Ok((journal, resumed)) = open(&copy, &config(&[])) {
            let all = [version(0), version(1)];
            assert!(all.starts_with(&resumed.restored.versions), "{resumed:?}");
            journal.close().await;
        }
    }
}

#[test]
fn on_a_full_disk_nothing_is_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.db");
    let config = fingerprint(&config(&[]));
    let mut store = Store::create(&path, "run", &config, "problems").unwrap();
    store.commit(&[start()]).unwrap();
    store.limit(2);
    let round = RoundId::train(1);
    let many: Vec<Write> = (0..80)
        .map(|group| Write::Completion(scored(round, group, 0)))
        .collect();
    let error = store.commit(&many).unwrap_err();
    assert!(matches!(error, JournalError::Full { .. }), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    assert_eq!(store.batch(round).unwrap(), []);
    store.limit(1000);
    store.commit(&many).unwrap();
    assert_eq!(store.batch(round).unwrap().len(), 80);
    store.check().unwrap();
}
