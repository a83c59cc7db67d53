//! The journal's statements.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use rusqlite::{
    Connection, OptionalExtension as _, Row, ToSql, Transaction, params, params_from_iter,
    types::Null,
};
use serde_json::{Map, Value, json};
use tina_proto::v1;

use super::{
    Counters, JournalError, PromptRow, Resumed, SCHEMA_VERSION, Write, metrics, spans, sums,
    verdicts,
};
use crate::scheduler::types::{Purpose, Restored, RoundId, Scored, Version};

/// Steps that a resumed run shows.
const TAIL: u32 = 32;

pub(super) struct Store {
    path: PathBuf,
    db: Connection,
}

type Result<T> = std::result::Result<T, JournalError>;

impl Store {
    /// The journal at `path`; `None` when there is none, or one that was never begun.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        Self::connect(path)?.begun()
    }

    /// The journal at `path`, over a connection of the caller's.
    pub(super) fn over(path: &Path, db: Connection) -> Result<Option<Self>> {
        let path = path.to_owned();
        Self { path, db }.begun()
    }

    /// Itself, if it was begun and has the schema of this program.
    fn begun(self) -> Result<Option<Self>> {
        let tables = self.wrap(self.db.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table'",
            [],
            |row| row.get::<_, i64>(0),
        ))?;
        if tables == 0 {
            return Ok(None);
        }
        let found = match self.meta("schema") {
            Err(error @ JournalError::Damaged { .. }) => return Err(error),
            found => found.ok().flatten(),
        };
        if found.as_deref() == Some(&SCHEMA_VERSION.to_string()) {
            return Ok(Some(self));
        }
        let found = found.unwrap_or_else(|| "unknown".into());
        Err(JournalError::Schema {
            path: self.path,
            found,
        })
    }

    pub(super) fn create(path: &Path, run_id: &str, config: &str, problems: &str) -> Result<Self> {
        let mut store = Self::connect(path)?;
        let begin = |db: &mut Connection| {
            let write = db.transaction()?;
            write.execute_batch(include_str!("schema.sql"))?;
            let schema = SCHEMA_VERSION.to_string();
            let meta = [
                ("schema", &*schema),
                ("run_id", run_id),
                ("config", config),
                ("problems", problems),
            ];
            for (key, value) in meta {
                set_meta(&write, key, value)?;
            }
            write.commit()
        };
        let began = begin(&mut store.db);
        store.wrap(began)?;
        Ok(store)
    }

    fn connect(path: &Path) -> Result<Self> {
        let fail = |source| JournalError::of(path, source);
        let db = Connection::open(path).map_err(fail)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(fail)?;
        db.pragma_update(None, "journal_mode", "WAL")
            .map_err(fail)?;
        db.pragma_update(None, "synchronous", "NORMAL")
            .map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            db,
        })
    }

    fn wrap<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(|source| JournalError::of(&self.path, source))
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// A page, an index or a row is not as it was written.
    pub(super) fn check(&self) -> Result<()> {
        let pages = "PRAGMA integrity_check(1)";
        let found: String = self.wrap(self.db.query_row(pages, [], |row| row.get(0)))?;
        if found != "ok" {
            return Err(self.damaged(found.replace('\n', " ")));
        }
        for table in sums::TABLES {
            let sound = self.rows(&format!("SELECT * FROM {table}"), [], sums::holds)?;
            if let Some(at) = sound.iter().position(|sound| !sound) {
                let message = format!("row {} of {table} is not what was written", at + 1);
                return Err(self.damaged(message));
            }
        }
        Ok(())
    }

    fn damaged(&self, message: impl Into<String>) -> JournalError {
        JournalError::Damaged {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    /// No more pages than it has, and so many: what a full disk does.
    #[cfg(test)]
    pub(super) fn limit(&self, more: u32) {
        let pages: u32 = self
            .db
            .query_row("PRAGMA page_count", [], |row| row.get(0))
            .unwrap_or(0);
        let limited = format!("PRAGMA max_page_count = {}", pages.saturating_add(more));
        assert!(self.db.query_row(&limited, [], |_| Ok(())).is_ok());
    }

    pub(super) fn meta(&self, key: &str) -> Result<Option<String>> {
        let find = "SELECT value FROM meta WHERE key = ?1";
        self.wrap(self.db.query_row(find, [key], |row| row.get(0)).optional())
    }

    pub(super) fn config(&self) -> Result<String> {
        Ok(self.meta("config")?.unwrap_or_default())
    }

    pub(super) fn problems(&self) -> Result<String> {
        Ok(self.meta("problems")?.unwrap_or_default())
    }

    pub(super) fn steps_done(&self) -> Result<u64> {
        let last = "SELECT coalesce(max(step), 0) FROM steps";
        let step: i64 = self.wrap(self.db.query_row(last, [], |row| row.get(0)))?;
        Ok(step.max(0) as u64)
    }

    /// Writes all of it, or nothing.
    pub(super) fn commit(&mut self, writes: &[Write]) -> Result<()> {
        let apply_all = |db: &mut Connection| {
            let transaction = db.transaction()?;
            writes
                .iter()
                .try_for_each(|write| apply(&transaction, write))?;
            transaction.commit()
        };
        let done = apply_all(&mut self.db);
        self.wrap(done)
    }

    pub(super) fn resume(&self) -> Result<Resumed> {
        let mut versions = Vec::new();
        let mut select = self.wrap(
            self.db
                .prepare("SELECT step, digest FROM steps ORDER BY step"),
        )?;
        let rows = select.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)));
        for row in self.wrap(rows)? {
            let (step, digest): (i64, Vec<u8>) = self.wrap(row)?;
            let digest = digest
                .try_into()
                .map_err(|_| self.damaged("a digest isn't 32 bytes"))?;
            if step as usize != versions.len() {
                return Err(self.damaged(format!("step {} is missing", versions.len())));
            }
            versions.push(Version {
                step: step as u64,
                digest,
            });
        }
        let evals = self.evals()?;
        let done = versions.len().saturating_sub(1) as u64;
        let evaluated = evals.iter().any(|record| record.step == done);
        let first = if evaluated {
            RoundId::train(done + 1)
        } else {
            RoundId::eval(done)
        };
        let completions = if versions.is_empty() {
            Vec::new()
        } else {
            self.scored("group_id >= ?1", first.group(0))?
        };
        Ok(Resumed {
            restored: Restored {
                versions,
                evals: evals.iter().map(|record| record.step).collect(),
                completions,
                model_digest: self.meta("model_digest")?,
            },
            counters: self.counters()?,
            tail: self.steps((done + 1).saturating_sub(u64::from(TAIL)).max(1), TAIL)?,
            evals,
            run_id: self.meta("run_id")?.unwrap_or_default(),
        })
    }

    pub(super) fn counters(&self) -> Result<Counters> {
        let text = self.meta("counters")?.unwrap_or_else(|| "{}".into());
        let all: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| self.damaged(format!("its counters: {error}")))?;
        let seconds = |key: &str| {
            let value = all.get(key).and_then(Value::as_f64).unwrap_or(0.0);
            Duration::try_from_secs_f64(value).unwrap_or_default()
        };
        let count = |key: &str| all.get(key).and_then(Value::as_u64).unwrap_or(0);
        Ok(Counters {
            elapsed: seconds("elapsed_seconds"),
            learner_wait: seconds("learner_wait_seconds"),
            rollout_wait: seconds("rollout_wait_seconds"),
            coordinator: seconds("coordinator_seconds"),
            tokens_sampled: count("tokens_sampled"),
            tokens_trained: count("tokens_trained"),
        })
    }

    pub(super) fn evals(&self) -> Result<Vec<v1::EvalRecord>> {
        let select = "SELECT record FROM evals ORDER BY step";
        self.records(select, params![], "evaluation")
    }

    pub(super) fn steps(&self, from: u64, limit: u32) -> Result<Vec<v1::StepRecord>> {
        let select = "SELECT record FROM steps WHERE step >= ?1 AND record IS NOT NULL
                      ORDER BY step LIMIT ?2";
        self.records(select, params![from as i64, limit], "step")
    }

    fn records<T: prost::Message + Default>(
        &self,
        select: &str,
        params: impl rusqlite::Params,
        what: &str,
    ) -> Result<Vec<T>> {
        let rows = self.rows(select, params, |row| row.get::<_, Vec<u8>>(0))?;
        rows.iter()
            .map(|row| {
                T::decode(&**row)
                    .map_err(|error| self.damaged(format!("record of a {what}: {error}")))
            })
            .collect()
    }

    /// What `read` makes of each row.
    pub(super) fn rows<T>(
        &self,
        select: &str,
        params: impl rusqlite::Params,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut select = self.wrap(self.db.prepare_cached(select))?;
        let rows = self.wrap(select.query_map(params, read))?;
        rows.map(|row| self.wrap(row)).collect()
    }

    pub(super) fn batch(&self, round: RoundId) -> Result<Vec<Arc<Scored>>> {
        self.scored("group_id BETWEEN ?1 AND ?1 + 16777215", round.group(0))
    }

    fn scored(&self, condition: &str, first: u64) -> Result<Vec<Arc<Scored>>> {
        let select =
            format!("SELECT * FROM completions WHERE {condition} ORDER BY group_id, sample_index");
        let rows = self.rows(&select, [first as i64], |row| {
            Ok((sums::holds(row)?, Arc::new(scored(row)?)))
        })?;
        if let Some((_, scored)) = rows.iter().find(|(sound, _)| !sound) {
            let message = format!("completion {:?} is not what was written", scored.id());
            return Err(self.damaged(message));
        }
        Ok(rows.into_iter().map(|(_, scored)| scored).collect())
    }

    pub(super) fn completions(&self, step: u64, limit: u32) -> Result<Vec<v1::CompletionRecord>> {
        let newest = "SELECT max(p.step) FROM prompts p JOIN completions USING (group_id)
                      WHERE p.purpose = 'train'";
        let step = match step {
            0 => self
                .wrap(
                    self.db
                        .query_row(newest, [], |row| row.get::<_, Option<i64>>(0)),
                )?
                .unwrap_or(0),
            step => step as i64,
        };
        let mut select = self.wrap(self.db.prepare(
            "SELECT c.*, p.text AS prompt, p.gold AS gold FROM completions c
             JOIN prompts p USING (group_id)
             WHERE p.step = ?1 AND p.purpose = 'train' ORDER BY group_id, sample_index LIMIT ?2",
        ))?;
        let rows = self.wrap(select.query_map(params![step, limit], |row| {
            let scored = scored(row)?;
            let version = scored.version().map(Version::to_wire);
            Ok(v1::CompletionRecord {
                step: step as u64,
                group_id: scored.completion.group_id,
                sample_index: scored.completion.sample_index,
                prompt: row.get("prompt")?,
                text: scored.text,
                gold: row.get("gold")?,
                reward: scored.reward,
                rewards: scored
                    .rewards
                    .iter()
                    .filter(|reward| reward.share.is_none())
                    .map(|reward| v1::RewardRecord {
                        name: reward.name.to_string(),
                        mean: reward.value.unwrap_or(0.0),
                        not_judged: u32::from(reward.value.is_none()),
                    })
                    .collect(),
                tokens: scored.completion.tokens.len() as u32,
                finish_reason: scored.completion.finish_reason,
                worker_id: scored.worker.to_string(),
                version,
            })
        }))?;
        rows.map(|row| self.wrap(row)).collect()
    }
}

/// Writes a row (its values in the table's order) with its checksum.
fn insert(db: &Transaction<'_>, into: &str, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
    let sum = sums::of(values)?;
    let marks = "?, ".repeat(values.len());
    let all = values.iter().copied().chain([&sum as &dyn ToSql]);
    db.prepare_cached(&format!("{into} VALUES ({marks}?)"))?
        .execute(params_from_iter(all))?;
    Ok(())
}

fn set_meta(db: &Transaction<'_>, key: &str, value: &str) -> rusqlite::Result<()> {
    insert(db, "INSERT OR REPLACE INTO meta", &[&key, &value])
}

fn apply(db: &Transaction<'_>, write: &Write) -> rusqlite::Result<()> {
    match write {
        Write::Start {
            version,
            model_digest,
        } => {
            set_meta(db, "model_digest", model_digest)?;
            let (step, digest) = (version.step as i64, &version.digest[..]);
            insert(db, "INSERT INTO steps", &[&step, &digest, &Null])?;
        }
        Write::Prompts(rows) => {
            for row in rows {
                let (round, _) = RoundId::of_group(row.group);
                let purpose = match round.purpose() {
                    Purpose::Train => "train",
                    Purpose::Eval => "eval",
                };
                let (group, step) = (row.group as i64, round.step() as i64);
                let tokens = le_bytes(&row.tokens, |token| token.to_le_bytes());
                let PromptRow {
                    problem,
                    text,
                    gold,
                    ..
                } = row;
                let into = "INSERT OR REPLACE INTO prompts";
                let row: [&dyn ToSql; 7] = [&group, &purpose, &step, problem, text, gold, &tokens];
                insert(db, into, &row)?;
            }
        }
        Write::Completion(scored) => write_completion(db, scored, false)?,
        Write::Rewards(all) => {
            for scored in all {
                write_completion(db, scored, true)?;
            }
        }
        Write::Step { record, counters } => {
            let digest = record
                .version
                .as_ref()
                .map_or(&[][..], |version| &version.digest);
            let step = record.step as i64;
            let bytes = record.encode_to_vec();
            insert(db, "INSERT INTO steps", &[&step, &digest, &bytes])?;
            let mut metric =
                db.prepare_cached("INSERT INTO metrics (step, name, value) VALUES (?1, ?2, ?3)")?;
            for (name, value) in metrics(record) {
                metric.execute(params![step, name, value])?;
            }
            set_counters(db, counters)?;
        }
        Write::Eval { record, counters } => {
            let (step, bytes) = (record.step as i64, record.encode_to_vec());
            let into = "INSERT OR REPLACE INTO evals";
            insert(db, into, &[&step, &record.accuracy, &bytes])?;
            set_counters(db, counters)?;
        }
        Write::Rollback(version) => {
            let step = version.step as i64;
            let next = RoundId::eval(version.step).group(0) as i64;
            db.execute("DELETE FROM steps WHERE step > ?1", [step])?;
            db.execute("DELETE FROM metrics WHERE step > ?1", [step])?;
            db.execute("DELETE FROM evals WHERE step >= ?1", [step])?;
            db.execute("DELETE FROM completions WHERE group_id >= ?1", [next])?;
            db.execute("DELETE FROM prompts WHERE group_id >= ?1", [next])?;
            // The step was done again: what its record says of the version must be true of the new.
            let find = "SELECT record FROM steps WHERE step = ?1";
            let old: Option<Option<Vec<u8>>> =
                db.query_row(find, [step], |row| row.get(0)).optional()?;
            let Some(old) = old else { return Ok(()) };
            let record = old.and_then(|old| v1::StepRecord::decode(&*old).ok());
            let record = record.map(|record| {
                let version = Some(version.to_wire());
                v1::StepRecord { version, ..record }.encode_to_vec()
            });
            let digest = &version.digest[..];
            let into = "INSERT OR REPLACE INTO steps";
            insert(db, into, &[&step, &digest, &record])?;
        }
        Write::Counters(counters) => set_counters(db, counters)?,
    }
    Ok(())
}

fn set_counters(db: &Transaction<'_>, counters: &Counters) -> rusqlite::Result<()> {
    let text = json!({
        "elapsed_seconds": counters.elapsed.as_secs_f64(),
        "learner_wait_seconds": counters.learner_wait.as_secs_f64(),
        "rollout_wait_seconds": counters.rollout_wait.as_secs_f64(),
        "coordinator_seconds": counters.coordinator.as_secs_f64(),
        "tokens_sampled": counters.tokens_sampled,
        "tokens_trained": counters.tokens_trained,
    });
    set_meta(db, "counters", &text.to_string())
}

/// Writes a completion; with `known`, the verdicts of one that is there already.
fn write_completion(db: &Transaction<'_>, scored: &Scored, known: bool) -> rusqlite::Result<()> {
    let completion = &scored.completion;
    let group = completion.group_id as i64;
    let (index, finish) = (completion.sample_index, completion.finish_reason);
    let versions = spans::to_bytes(&completion.versions);
    let tokens = le_bytes(&completion.tokens, |token| token.to_le_bytes());
    let logprobs = le_bytes(&completion.logprobs, |logprob| logprob.to_le_bytes());
    let rewards = verdicts::to_json(&scored.rewards);
    let Scored {
        reward,
        judged,
        correct,
        ..
    } = scored;
    let row: [&dyn ToSql; 13] = [
        &group,
        &index,
        &&*scored.worker,
        &versions,
        &tokens,
        &logprobs,
        &finish,
        &completion.decode_seconds,
        &scored.text,
        reward,
        judged,
        correct,
        &rewards,
    ];
    if !known {
        return insert(db, "INSERT OR REPLACE INTO completions", &row);
    }
    db.prepare_cached(
        "UPDATE completions SET reward = ?3, judged = ?4, correct = ?5, rewards = ?6, sum = ?7
         WHERE group_id = ?1 AND sample_index = ?2",
    )?
    .execute(params![
        group,
        index,
        reward,
        judged,
        correct,
        rewards,
        sums::of(&row)?
    ])?;
    Ok(())
}

fn scored(row: &Row<'_>) -> rusqlite::Result<Scored> {
    let versions: Vec<u8> = row.get("versions")?;
    let tokens: Vec<u8> = row.get("tokens")?;
    let logprobs: Vec<u8> = row.get("logprobs")?;
    let rewards: String = row.get("rewards")?;
    let worker: String = row.get("worker")?;
    Ok(Scored {
        completion: v1::Completion {
            group_id: row.get::<_, i64>("group_id")? as u64,
            sample_index: row.get("sample_index")?,
            tokens: from_le_bytes(&tokens, u32::from_le_bytes),
            logprobs: from_le_bytes(&logprobs, f32::from_le_bytes),
            finish_reason: row.get("finish_reason")?,
            versions: spans::from_bytes(&versions),
            decode_seconds: row.get("decode_seconds")?,
        },
        worker: worker.into(),
        text: row.get("text")?,
        reward: row.get("reward")?,
        judged: row.get("judged")?,
        correct: row.get("correct")?,
        rewards: verdicts::from_json(&rewards),
    })
}

fn le_bytes<T: Copy>(values: &[T], to: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn from_le_bytes<T>(bytes: &[u8], from: impl Fn([u8; 4]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&chunk| from(chunk))
        .collect()
}
