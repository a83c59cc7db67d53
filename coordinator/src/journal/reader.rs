//! A journal read from outside: while its run goes on, after its end, or after it was killed.

use std::{collections::BTreeMap, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, params};
use tina_proto::v1;

use super::{Counters, JournalError, fingerprint, store::Store};
use crate::scheduler::types::{Purpose, RoundId, SampleId};

/// A journal as it was at one moment. Nothing is written, and nobody is kept from writing.
pub struct Reader(Store);

/// A completion of an evaluation, without its text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Its name.
    pub sample: SampleId,
    /// Full marks by `eval.reward`.
    pub correct: bool,
    /// Its length in tokens.
    pub tokens: u32,
    /// It was cut off by the token limit.
    pub truncated: bool,
    /// Every reward that counts could judge it.
    pub judged: bool,
}

/// A problem as an evaluation asked it.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalPrompt {
    /// Its group.
    pub group: u64,
    /// Name of the problem.
    pub problem: String,
    /// As the model saw it, chat template included.
    pub text: String,
    /// The gold answer.
    pub gold: String,
}

impl Reader {
    /// The journal at `path`; `None` when there is none, or one that was never begun.
    ///
    /// # Errors
    /// It can't be read, or is of another schema.
    pub fn open(path: &Path) -> Result<Option<Self>, JournalError> {
        if !path.exists() {
            return Ok(None);
        }
        let db = connect(path).map_err(|source| JournalError::of(path, source))?;
        Ok(Store::over(path, db)?.map(Self))
    }

    /// In what the journal was begun otherwise, `key: was A, is B`: `fingerprint` and `problems` as
    /// for [`Journal::open`](super::Journal::open).
    ///
    /// # Errors
    /// The database can't be read.
    pub fn differences(
        &self,
        fingerprint: &str,
        problems: &str,
    ) -> Result<Vec<String>, JournalError> {
        let mut all = fingerprint::differences(&self.0.config()?, fingerprint);
        if all.is_empty() && self.0.problems()? != problems {
            all.push("  the problems, or how the model is asked them".to_owned());
        }
        Ok(all)
    }

    /// The run's name for itself.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn run_id(&self) -> Result<String, JournalError> {
        Ok(self.0.meta("run_id")?.unwrap_or_default())
    }

    /// As last recorded.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn counters(&self) -> Result<Counters, JournalError> {
        self.0.counters()
    }

    /// Records of all steps, in order.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn steps(&self) -> Result<Vec<v1::StepRecord>, JournalError> {
        self.0.steps(1, u32::MAX)
    }

    /// Records of all evaluations, in order.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn evals(&self) -> Result<Vec<v1::EvalRecord>, JournalError> {
        self.0.evals()
    }

    /// By step, how long the completions of its batch are, in tokens, in no order.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn lengths(&self) -> Result<BTreeMap<u64, Vec<u32>>, JournalError> {
        // `length` of a blob is in its row's header: the blob itself stays on disk.
        let select = "SELECT group_id, length(tokens) / 4 FROM completions";
        let rows = self.0.rows(select, [], |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get::<_, u32>(1)?))
        })?;
        let mut lengths: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (group, tokens) in rows {
            let (round, _) = RoundId::of_group(group);
            if round.purpose() == Purpose::Train {
                lengths.entry(round.step()).or_default().push(tokens);
            }
        }
        Ok(lengths)
    }

    /// Problems of the evaluation after `step` steps, in the order they were asked.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn eval_prompts(&self, step: u64) -> Result<Vec<EvalPrompt>, JournalError> {
        let select = "SELECT group_id, problem, text, gold FROM prompts
                      WHERE group_id BETWEEN ?1 AND ?2 ORDER BY group_id";
        self.0.rows(select, groups(step), |row| {
            Ok(EvalPrompt {
                group: row.get::<_, i64>(0)? as u64,
                problem: row.get(1)?,
                text: row.get(2)?,
                gold: row.get(3)?,
            })
        })
    }

    /// Completions of the evaluation after `step` steps, in order.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn answers(&self, step: u64) -> Result<Vec<Answer>, JournalError> {
        let select =
            "SELECT group_id, sample_index, correct, length(tokens) / 4, finish_reason, judged
                      FROM completions
                      WHERE group_id BETWEEN ?1 AND ?2 ORDER BY group_id, sample_index";
        self.0.rows(select, groups(step), |row| {
            Ok(Answer {
                sample: SampleId {
                    group: row.get::<_, i64>(0)? as u64,
                    index: row.get(1)?,
                },
                correct: row.get(2)?,
                tokens: row.get(3)?,
                truncated: row.get::<_, i32>(4)? == v1::FinishReason::Length as i32,
                judged: row.get(5)?,
            })
        })
    }

    /// The text of a completion; empty where there is no such.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn text(&self, sample: SampleId) -> Result<String, JournalError> {
        let select = "SELECT text FROM completions WHERE group_id = ?1 AND sample_index = ?2";
        let found = self
            .0
            .rows(select, params![sample.group as i64, sample.index], |row| {
                row.get(0)
            })?;
        Ok(found.into_iter().next().unwrap_or_default())
    }
}

/// A connection that can only read, and reads the database as it is at this moment.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let open = |uri: String| {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(uri, flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        // One transaction for all that is read: steps and completions of the same moment.
        db.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema")?;
        Ok(db)
    };
    let uri = read_only_uri(path);
    open(uri.clone()).or_else(|error| {
        // In a folder that can't be written to, SQLite has no place for its index of the log.
        // Without a log it needs none.
        let log = path.with_extension("db-wal");
        if std::fs::metadata(log).is_ok_and(|log| log.len() > 0) {
            Err(error)
        } else {
            open(uri + "&immutable=1").map_err(|_| error)
        }
    })
}

/// `path` as SQLite's URI of a database to be read only.
fn read_only_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            other => uri += &format!("%{other:02X}"),
        }
    }
    uri + "?mode=ro"
}

/// First and last group that an evaluation can have.
fn groups(step: u64) -> [i64; 2] {
    let round = RoundId::eval(step);
    [
        round.group(0) as i64,
        round.group(RoundId::GROUPS - 1) as i64,
    ]
}
