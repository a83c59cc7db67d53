//! `external`: a reward that a program of the user's gives, in any language.
//!
//! The program is started once per slot and gets one JSON object a line: `id`, `completion`, `gold`,
//! `prompt`, `tokens`, `truncated`. It answers each with one line: `id` as it came, `reward` (a number,
//! or null: it can't judge), and, if it likes, `reason`. One that overruns its time, dies or answers
//! nonsense is killed with all that it started (its process group) and started anew; the completion
//! at hand is not judged.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tina_proto::auth::TOKEN_VARIABLE;
use tina_reward::Verdict;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Mutex, mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use crate::supervise::last_lines;

/// Processes in a row that never gave an answer, after which the program is given up.
const MAX_FAILED_STARTS: u32 = 3;
/// Pause before a program that failed to start is started again.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How long a program may take to end by itself when it gets no more work.
const GRACE: Duration = Duration::from_secs(1);

/// A program that scores.
#[derive(Clone, Debug)]
pub struct ExternalSpec {
    /// The reward's name.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Processes of it.
    pub slots: u32,
    /// How long it may take over a completion.
    pub timeout: Duration,
    /// Where its standard error goes; `None`: to this program's.
    pub log: Option<PathBuf>,
}

/// A program won't start; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GaveUp(pub String);

struct Job {
    request: Value,
    reply: oneshot::Sender<Verdict>,
}

/// The processes of one program; they end when this is dropped.
#[derive(Debug)]
pub struct External {
    jobs: mpsc::UnboundedSender<Job>,
    given_up: watch::Receiver<Option<GaveUp>>,
}

/// What the slots share.
struct Pool {
    spec: ExternalSpec,
    jobs: Mutex<mpsc::UnboundedReceiver<Job>>,
    ids: AtomicU64,
    failed_starts: AtomicU32,
    given_up: watch::Sender<Option<GaveUp>>,
}

impl External {
    /// Starts the processes; must be called within a Tokio runtime.
    pub fn start(spec: ExternalSpec) -> Self {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let (give_up, given_up) = watch::channel(None);
        let slots = spec.slots.max(1);
        let pool = Arc::new(Pool {
            spec,
            jobs: Mutex::new(waiting),
            ids: AtomicU64::new(1),
            failed_starts: AtomicU32::new(0),
            given_up: give_up,
        });
        for _ in 0..slots {
            tokio::spawn(serve(pool.clone()));
        }
        Self { jobs, given_up }
    }

    /// Asks for a verdict: waits until a process is free, and then for at most its time.
    ///
    /// # Errors
    /// The program won't start.
    pub async fn ask(&self, request: Value) -> Result<Verdict, GaveUp> {
        let (reply, verdict) = oneshot::channel();
        let _ = self.jobs.send(Job { request, reply });
        let mut given_up = self.given_up.clone();
        tokio::select! {
            biased;
            Ok(verdict) = verdict => Ok(verdict),
            given_up = given_up.wait_for(Option::is_some) => Err(match given_up {
                Ok(reason) => reason.clone().unwrap_or_else(|| GaveUp(String::new())),
                Err(_) => GaveUp("the run ends".to_owned()),
            }),
        }
    }
}

/// One slot: keeps a process at hand and gives it one job at a time.
async fn serve(pool: Arc<Pool>) {
    let mut process: Option<Process> = None;
    while pool.given_up.borrow().is_none() {
        let mut running = match process.take() {
            Some(running) => running,
            None => match Process::start(&pool.spec) {
                Ok(running) => running,
                Err(error) => {
                    pool.failed_start(&format!("can't be started: {error}"));
                    sleep(BACK_OFF).await;
                    continue;
                }
            },
        };
        let next = async { pool.jobs.lock().await.recv().await };
        let job = tokio::select! {
            biased;
            ended = running.child.wait() => {
                let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
                let reason = format!("ended by itself ({how})");
                tracing::info!(reward = %pool.spec.name, "its program {reason}");
                if !running.answered {
                    pool.failed_start(&reason);
                }
                sleep(BACK_OFF).await;
                continue;
            }
            job = next => job,
        };
        let Some(Job { request, reply }) = job else {
            return running.end().await;
        };
        let id = pool.ids.fetch_add(1, Ordering::Relaxed);
        let verdict = match timeout(pool.spec.timeout, running.ask(id, request)).await {
            Ok(Ok(verdict)) => {
                pool.failed_starts.store(0, Ordering::Relaxed);
                process = Some(running);
                verdict
            }
            Ok(Err(reason)) => {
                if !running.answered {
                    pool.failed_start(&reason);
                }
                Verdict::NotJudged(format!("its program {reason}"))
            }
            // A completion may be to blame: no sign that the program does not start.
            Err(_) => Verdict::NotJudged(format!(
                "its program took more than {} s",
                pool.spec.timeout.as_secs_f64()
            )),
        };
        let _ = reply.send(verdict);
    }
}

impl Pool {
    fn failed_start(&self, reason: &str) {
        let failures = self.failed_starts.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < MAX_FAILED_STARTS {
            return;
        }
        let (name, command) = (&self.spec.name, self.spec.command.join(" "));
        let mut text = format!(
            "reward {name:?}: the program `{command}` {reason}; {failures} processes in a row gave \
             no answer. Try it by hand: it gets one JSON object a line on standard input, and \
             answers each with a line {{\"id\": ..., \"reward\": ...}}"
        );
        if let Some(log) = &self.spec.log {
            let end = last_lines(log);
            text += &format!("\nThe end of {}:\n{end}", log.display());
        }
        self.given_up.send_replace(Some(GaveUp(text)));
    }
}

/// A process of the program; killed, with its process group, when it is dropped.
struct Process {
    child: Child,
    /// Its process group, which it leads.
    group: Option<Pid>,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    answered: bool,
}

impl Process {
    fn start(spec: &ExternalSpec) -> std::io::Result<Self> {
        let (program, args) = spec
            .command
            .split_first()
            .ok_or_else(|| std::io::Error::other("no program is named"))?;
        let stderr = match &spec.log {
            Some(path) => {
                let mut file = std::fs::OpenOptions::new();
                file.create(true).append(true).open(path)?.into()
            }
            None => Stdio::inherit(),
        };
        let mut child = Command::new(program)
            .args(args)
            .env_remove(TOKEN_VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("it has no standard input or output"));
        };
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        Ok(Self {
            child,
            group,
            stdin: Some(stdin),
            stdout: BufReader::new(stdout),
            answered: false,
        })
    }

    /// Its verdict; an error says what it did instead.
    async fn ask(&mut self, id: u64, mut request: Value) -> Result<Verdict, String> {
        if let Value::Object(fields) = &mut request {
            fields.insert("id".to_owned(), id.into());
        }
        let died = |error: std::io::Error| format!("died: {error}");
        let line = format!("{request}\n");
        let stdin = self.stdin.as_mut().ok_or("has no standard input")?;
        stdin.write_all(line.as_bytes()).await.map_err(died)?;
        let line = self.read_line().await?;
        let verdict = answer(&line, id)?;
        self.answered = true;
        Ok(verdict)
    }

    async fn read_line(&mut self) -> Result<Vec<u8>, String> {
        let mut line = Vec::new();
        loop {
            let read = self.stdout.fill_buf().await;
            let bytes = read.map_err(|error| format!("can't be read: {error}"))?;
            if bytes.is_empty() {
                return Err("died before it answered".to_owned());
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            line.extend_from_slice(&bytes[..taken]);
            self.stdout.consume(taken + usize::from(end.is_some()));
            if line.len() > MAX_ANSWER {
                return Err(format!("answered with more than {MAX_ANSWER} bytes"));
            }
            if end.is_some() {
                return Ok(line);
            }
        }
    }

    /// No more work: it may end by itself.
    async fn end(mut self) {
        self.stdin = None;
        let _ = timeout(GRACE, self.child.wait()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What it started may outlive it.
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What an answer says; an error says what is wrong with it.
fn answer(line: &[u8], id: u64) -> Result<Verdict, String> {
    let text = String::from_utf8_lossy(line);
    let start: String = text.chars().take(100).collect();
    let wrong = |what: &str| Err(format!("{what}: {start:?}"));
    let Ok(Value::Object(answer)) = serde_json::from_slice(line) else {
        return wrong("answered with a line that is no JSON object");
    };
    if answer.get("id").and_then(Value::as_u64) != Some(id) {
        return wrong(&format!(
            "answered without the id {id} that it was asked by"
        ));
    }
    match answer.get("reward") {
        Some(Value::Null) => {
            let reason = answer.get("reason").and_then(Value::as_str);
            let reason = reason.unwrap_or("its program gives no reason");
            Ok(Verdict::NotJudged(reason.chars().take(1000).collect()))
        }
        Some(Value::Number(value)) if value.as_f64().is_some_and(f64::is_finite) => {
            Ok(Verdict::Scored(value.as_f64().unwrap_or_default()))
        }
        _ => wrong("answered without a number or null as its reward"),
    }
}

#[cfg(test)]
mod tests;
