//! The journal: all that a run must not lose, in SQLite (`run.db` in the run's folder).
//!
//! One thread owns the database. Writes come in over a channel; all that wait are written in one
//! transaction (group commit), and only then is anybody told. SQLite runs in WAL mode with
//! `synchronous = NORMAL`: what is committed survives the death of any process at any moment; a
//! power cut may cost the last transactions, but never the database.
//!
//! A journal that is gone on with is read as a whole first: pages, indexes, and each row's checksum. One
//! that is damaged is refused, and touched no more.
//!
//! - [`Journal`]: the handle. [`Reader`]: for those who only look. `store`: statements.
//!   `verdicts`: rewards as text. `spans`: versions as bytes. `fingerprint`: whose journal it is.
//!   `sums`: checksums.

mod fingerprint;
mod reader;
mod spans;
mod store;
mod sums;
mod verdicts;

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tina_proto::{platform::Clerk, v1};
use tokio::sync::{mpsc, oneshot};

pub use self::reader::{Answer, EvalPrompt, Reader};
use self::store::Store;
use crate::{
    config::RunConfig,
    scheduler::types::{Restored, RoundId, Scored, Version},
};

/// Writes of one transaction at most.
const COMMIT_LIMIT: usize = 4096;

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite says no.
    #[error("journal {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Made by another version of the program.
    #[error(
        "journal {path} has schema {found}, this program writes schema {SCHEMA_VERSION}: go on \
         with the program that began the run, or start a new run"
    )]
    Schema {
        /// The database.
        path: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// Begun with another config.
    #[error(
        "journal {path} was begun with another config; it differs in\n{}\nSet these back, or start \
         a new run (another run.name, or --overwrite)",
        .differences.join("\n")
    )]
    Config {
        /// The database.
        path: PathBuf,
        /// `key: was A, is B`.
        differences: Vec<String>,
    },
    /// Begun with other problems.
    #[error(
        "journal {path} was begun with other problems: the file of data.source, the model's \
         tokenizer or its chat template changed since, and the completions in it were sampled for \
         other prompts. Bring the old ones back, or start a new run (another run.name, or \
         --overwrite)"
    )]
    Problems {
        /// The database.
        path: PathBuf,
    },
    /// There is no room for what is to be written.
    #[error(
        "journal {path}: the disk is full. Nothing that was acknowledged is lost: free some space, \
         then go on with --resume"
    )]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// What is on disk is not what was written.
    #[error(
        "journal {path} is damaged: {message}. Nothing in it is used or changed: bring back a copy \
         of it from before (without the files -wal and -shm beside it), or start a new run (another \
         run.name, or --overwrite); the run's adapters and checkpoints are files of their own"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Its thread is gone.
    #[error("the journal's thread ended")]
    Gone,
}

/// The file ends in the middle of a page.
fn short_read(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHORT_READ)
}

impl JournalError {
    /// What SQLite said of the database at `path`.
    fn of(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Self::Damaged {
                path,
                message: source.to_string(),
            },
            Some(Code::DiskFull) => Self::Full { path },
            Some(Code::SystemIoFailure) if short_read(&source) => Self::Damaged {
                path,
                message: "it is cut short".to_owned(),
            },
            _ => Self::Sqlite { path, source },
        }
    }
}

/// Written into every journal; another number is refused.
pub const SCHEMA_VERSION: u32 = 3;

/// A prompt as the journal keeps it.
#[derive(Clone, Debug)]
pub struct PromptRow {
    /// Its group.
    pub group: u64,
    /// Name of the problem.
    pub problem: String,
    /// As the model sees it.
    pub text: String,
    /// The gold answer.
    pub gold: String,
    /// The text's tokens.
    pub tokens: Vec<u32>,
}

/// What goes on over restarts of the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Time that the run went.
    pub elapsed: Duration,
    /// Time in which the learner had no batch.
    pub learner_wait: Duration,
    /// Time in which slots stood free because the step was not done.
    pub rollout_wait: Duration,
    /// The coordinator's own work.
    pub coordinator: Duration,
    /// Tokens of all completions.
    pub tokens_sampled: u64,
    /// Tokens that the learner trained on.
    pub tokens_trained: u64,
}

/// What is to be written.
#[derive(Debug)]
pub enum Write {
    /// A version that no step made: the one that the run starts from, or one that is given.
    Start {
        /// Version 0, or a given one.
        version: Version,
        /// The base model's digest.
        model_digest: String,
    },
    /// The prompts of a round.
    Prompts(Vec<PromptRow>),
    /// A completion and its verdicts.
    Completion(Arc<Scored>),
    /// Verdicts that waited for the completion's group.
    Rewards(Vec<Arc<Scored>>),
    /// A step that is done.
    Step {
        /// Its version and metrics.
        record: Box<v1::StepRecord>,
        /// As of now.
        counters: Counters,
    },
    /// An evaluation that is done.
    Eval {
        /// Its outcome.
        record: v1::EvalRecord,
        /// As of now.
        counters: Counters,
    },
    /// Forget everything after this version.
    Rollback(Version),
    /// The counters alone.
    Counters(Counters),
}

/// What the journal's thread tells.
#[derive(Debug)]
pub enum Note {
    /// These completions are durable; the time the transaction took.
    Recorded(Vec<Arc<Scored>>, Duration),
    /// Writing failed: the run can't go on.
    Failed(JournalError),
}

/// What a resumed run goes on from.
#[derive(Debug, Default)]
pub struct Resumed {
    /// The scheduler's part.
    pub restored: Restored,
    /// As last recorded.
    pub counters: Counters,
    /// The newest steps, oldest first.
    pub tail: Vec<v1::StepRecord>,
    /// All evaluations.
    pub evals: Vec<v1::EvalRecord>,
    /// The run's name for itself.
    pub run_id: String,
}

enum Job {
    Write(Write),
    Flush(oneshot::Sender<()>),
    Batch(
        RoundId,
        oneshot::Sender<Result<Vec<Arc<Scored>>, JournalError>>,
    ),
    Steps(
        u64,
        u32,
        oneshot::Sender<Result<Vec<v1::StepRecord>, JournalError>>,
    ),
    Completions(
        u64,
        u32,
        oneshot::Sender<Result<Vec<v1::CompletionRecord>, JournalError>>,
    ),
}

/// The journal of a run; dropping the last handle writes what waits and ends its thread.
#[derive(Clone, Debug)]
pub struct Journal {
    jobs: mpsc::UnboundedSender<Job>,
    clerk: Arc<Clerk>,
}

/// Steps done in the journal at `path`; 0 where there is none.
///
/// # Errors
/// There is a file, and it is no journal of this schema.
pub fn steps_done(path: &Path) -> Result<u64, JournalError> {
    if !path.exists() {
        return Ok(0);
    }
    Store::open(path)?.map_or(Ok(0), |store| store.steps_done())
}

/// The part of a config that decides what a run computes, as TOML.
pub fn fingerprint(config: &RunConfig) -> String {
    fingerprint::of(config)
}

impl Journal {
    /// Opens the journal at `path`, or begins it (`run_id` names a new run), and tells `note` what
    /// happens. `fingerprint`: TOML of what decides what the run computes, as by [`fingerprint`].
    /// `problems` is the digest of the run's problems.
    ///
    /// # Errors
    /// The database can't be used, is damaged, or belongs to another config, other problems or another program
    /// version.
    pub fn open(
        path: &Path,
        fingerprint: &str,
        problems: &str,
        run_id: &str,
        note: impl Fn(Note) + Send + 'static,
    ) -> Result<(Self, Resumed), JournalError> {
        let (mut store, resumed) = match Store::open(path)? {
            Some(store) => {
                store.check()?;
                let differences = fingerprint::differences(&store.config()?, fingerprint);
                if !differences.is_empty() {
                    return Err(JournalError::Config {
                        path: path.to_owned(),
                        differences,
                    });
                }
                if store.problems()? != problems {
                    return Err(JournalError::Problems {
                        path: path.to_owned(),
                    });
                }
                let resumed = store.resume()?;
                (store, resumed)
            }
            None => {
                let store = Store::create(path, run_id, fingerprint, problems)?;
                (
                    store,
                    Resumed {
                        run_id: run_id.to_owned(),
                        ..Resumed::default()
                    },
                )
            }
        };
        let work = move |jobs| serve(&mut store, jobs, &note);
        let (jobs, clerk) =
            Clerk::start("journal", COMMIT_LIMIT, work).map_err(|error| JournalError::Damaged {
                path: path.to_owned(),
                message: format!("no thread for it: {error}"),
            })?;
        let clerk = Arc::new(clerk);
        Ok((Self { jobs, clerk }, resumed))
    }

    /// Has something written with the next transaction.
    pub fn write(&self, write: Write) {
        // The thread tells of its own end by `Note::Failed`.
        let _ = self.jobs.send(Job::Write(write));
    }

    /// Returns when all that was written before is durable.
    ///
    /// # Errors
    /// The journal's thread ended.
    pub async fn flush(&self) -> Result<(), JournalError> {
        let (done, wait) = oneshot::channel();
        self.jobs
            .send(Job::Flush(done))
            .map_err(|_| JournalError::Gone)?;
        wait.await.map_err(|_| JournalError::Gone)
    }

    /// All completions of a round, in order.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn batch(&self, round: RoundId) -> Result<Vec<Arc<Scored>>, JournalError> {
        self.ask(|reply| Job::Batch(round, reply)).await
    }

    /// Records of steps from `from` on.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn steps(&self, from: u64, limit: u32) -> Result<Vec<v1::StepRecord>, JournalError> {
        self.ask(|reply| Job::Steps(from, limit, reply)).await
    }

    /// Completions of a step (0: the newest that has any), in order.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn completions(
        &self,
        step: u64,
        limit: u32,
    ) -> Result<Vec<v1::CompletionRecord>, JournalError> {
        self.ask(|reply| Job::Completions(step, limit, reply)).await
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Job,
    ) -> Result<T, JournalError> {
        let (reply, wait) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| JournalError::Gone)?;
        wait.await.map_err(|_| JournalError::Gone)?
    }

    /// Writes what waits and closes the database, where this is the last handle; another has that
    /// done when it is dropped.
    pub async fn close(self) {
        let Self { jobs, clerk } = self;
        drop(jobs);
        if let Some(clerk) = Arc::into_inner(clerk) {
            clerk.done().await;
        }
    }
}

/// Writes all that waits in one transaction, then answers.
fn serve(store: &mut Store, jobs: Vec<Job>, note: &dyn Fn(Note)) -> ControlFlow<()> {
    let began = Instant::now();
    let mut writes = Vec::new();
    let mut others = Vec::new();
    for job in jobs {
        match job {
            Job::Write(write) => writes.push(write),
            other => others.push(other),
        }
    }
    if !writes.is_empty() {
        if let Err(error) = store.commit(&writes) {
            note(Note::Failed(error));
            return ControlFlow::Break(());
        }
        let recorded = writes
            .iter()
            .filter_map(|write| match write {
                Write::Completion(scored) => Some(scored.clone()),
                _ => None,
            })
            .collect();
        note(Note::Recorded(recorded, began.elapsed()));
    }
    for job in others {
        match job {
            Job::Write(_) => {}
            Job::Flush(done) => drop(done.send(())),
            Job::Batch(round, reply) => drop(reply.send(store.batch(round))),
            Job::Steps(from, limit, reply) => drop(reply.send(store.steps(from, limit))),
            Job::Completions(step, limit, reply) => {
                drop(reply.send(store.completions(step, limit)));
            }
        }
    }
    ControlFlow::Continue(())
}

/// Numbers of a step worth a row each, by name.
fn metrics(record: &v1::StepRecord) -> BTreeMap<String, f64> {
    let learner = record.learner.unwrap_or_default();
    let mut all: BTreeMap<String, f64> = [
        ("reward_mean", record.reward_mean),
        ("reward_std", record.reward_std),
        ("groups_without_signal", record.groups_without_signal),
        ("completion_tokens_mean", record.completion_tokens_mean),
        ("truncated_share", record.truncated_share),
        ("tokens_sampled", record.tokens_sampled as f64),
        ("tokens_per_second", record.tokens_per_second),
        ("seconds_sample", record.seconds_sample),
        ("seconds_score", record.seconds_score),
        ("seconds_learn", record.seconds_learn),
        ("seconds_sync", record.seconds_sync),
        ("seconds_total", record.seconds_total),
        ("seconds_coordinator", record.seconds_coordinator),
        ("seconds_learner_wait", record.seconds_learner_wait),
        ("seconds_rollout_wait", record.seconds_rollout_wait),
        ("groups_resampled", f64::from(record.groups_resampled)),
        ("groups_outdated", f64::from(record.groups_outdated)),
        ("cost_usd", record.cost_usd),
        ("loss", learner.loss),
        ("kl", learner.kl),
        ("entropy", learner.entropy),
        ("grad_norm", learner.grad_norm),
        ("lr", learner.lr),
        ("ratio_mean", learner.ratio_mean),
        ("ratio_max", learner.ratio_max),
        ("clip_fraction", learner.clip_fraction),
        ("effective_sample_share", learner.effective_sample_share),
        ("corrected_fraction", learner.corrected_fraction),
        ("staleness_mean", learner.staleness_mean),
        ("staleness_max", learner.staleness_max as f64),
        ("skipped", f64::from(u8::from(learner.skipped))),
        ("logprob_diff_max", learner.logprob_diff_max),
        ("logprob_diff_mean", learner.logprob_diff_mean),
        ("tokens_trained", learner.tokens_trained as f64),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for reward in &record.rewards {
        all.insert(format!("reward/{}", reward.name), reward.mean);
        all.insert(
            format!("not_judged/{}", reward.name),
            f64::from(reward.not_judged),
        );
    }
    all
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_damage;
