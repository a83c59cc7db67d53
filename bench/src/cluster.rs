//! A real run: `tina up` as a process with its roles as processes, watched over its status service.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tina_proto::{
    client::{ClientOptions, connect, status_client},
    v1::{Phase, RunStatus, StepRecord, WatchStatusRequest},
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    error::{BenchError, Result},
    floor::Work,
    processes::{Usage, Watch},
    stats::median,
};

const WHAT: &str = "tina up";
/// The longest until the coordinator listens; the model may have to be fetched.
const LISTENING: Duration = Duration::from_secs(600);
/// The longest silence of the status service, which reports every second.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest from the last report to the end of the process.
const ENDING: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) tina: PathBuf,
    pub(crate) config: PathBuf,
    /// `KEY=VALUE`, as `--set` takes them.
    pub(crate) sets: Vec<String>,
}

/// One step of a run, in seconds where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    /// Clock on the wall from the step before to this one, as an onlooker sees them reported.
    pub(crate) seconds: f64,
    pub(crate) sample: f64,
    pub(crate) score: f64,
    pub(crate) learn: f64,
    pub(crate) sync: f64,
    /// The coordinator's own work, most of it beside the others'.
    pub(crate) coordinator: f64,
    /// Of the learner's time.
    pub(crate) forward: f64,
    pub(crate) backward: f64,
    pub(crate) optimizer: f64,
    pub(crate) checkpoint: f64,
    pub(crate) publish: f64,
    pub(crate) tokens_sampled: u64,
    pub(crate) completions: u64,
    /// Completions that went through the backward pass.
    pub(crate) completions_trained: u32,
    /// Rows of the learner's forward passes.
    pub(crate) rows_forwarded: u64,
    pub(crate) truncated_share: f64,
    pub(crate) logprob_diff_max: f64,
}

/// A run that is done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// From the start of the process to the first batch of completions being asked for.
    pub(crate) start_seconds: f64,
    /// Without the first, whose beginning no report marks.
    pub(crate) steps: Vec<Step>,
    pub(crate) usage: Usage,
    /// As the worker names its device.
    pub(crate) device: String,
    pub(crate) numerics: String,
}

/// A `tina up` that runs.
pub(crate) struct Running {
    child: Child,
    watch: Watch,
    started: Instant,
    run_dir: PathBuf,
    output: PathBuf,
}

impl Up {
    /// Starts it; all that it writes goes under `folder`.
    pub(crate) fn start(&self, folder: &Path) -> Result<Running> {
        let output = folder.join("output.txt");
        let file = File::create(&output).map_err(BenchError::file(&output))?;
        let errors = file.try_clone().map_err(BenchError::file(&output))?;
        let mut command = Command::new(&self.tina);
        command
            .arg("up")
            .arg(&self.config)
            .args(["--json", "--set"]);
        command
            .arg(format!("run.dir={}", folder.display()))
            .args(["--set", "run.name=bench"]);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .kill_on_drop(true);
        let started = Instant::now();
        let spawned = command.spawn();
        let child = spawned.map_err(|source| BenchError::Spawn {
            program: self.tina.clone(),
            source,
        })?;
        let watch = Watch::start(child.id().unwrap_or_default());
        Ok(Running {
            child,
            watch,
            started,
            run_dir: folder.join("bench"),
            output,
        })
    }

    /// Runs it to its end. `steps`: how many it takes.
    pub(crate) async fn run(&self, folder: &Path, steps: u64) -> Result<Run> {
        let mut running = self.start(folder)?;
        let mut log = StepLog::default();
        let mut newest = RunStatus::default();
        running
            .watch_status(|status, at| {
                log.take(status, at);
                // The last report can come after the roles have left.
                if !status.workers.is_empty() {
                    newest = status.clone();
                }
                status.step >= steps
            })
            .await?;
        running.finish().await?;
        if log.records.len() < steps as usize {
            let (found, expected) = (log.records.len(), steps as usize);
            return Err(BenchError::Steps {
                what: WHAT,
                found,
                expected,
            });
        }
        let device = newest
            .workers
            .into_iter()
            .next()
            .and_then(|worker| worker.device);
        let device = device.unwrap_or_default();
        let usage = running.watch.usage();
        running.watch.end();
        Ok(Run {
            start_seconds: log.sampling_since.unwrap_or_default().as_secs_f64(),
            steps: log.steps(),
            usage,
            device: device.name,
            numerics: device.numerics,
        })
    }

    /// Seconds from the start of the process to the first sampled token: the run evaluates one
    /// problem, with one token, before its first step. It is ended then.
    pub(crate) async fn first_token(&self, folder: &Path) -> Result<f64> {
        let mut up = self.clone();
        up.sets
            .extend(["eval.problems=1", "eval.max_tokens=1"].map(str::to_owned));
        let mut running = up.start(folder)?;
        let mut seen = None;
        running
            .watch_status(|status, at| {
                let sampled = !status.evals.is_empty() || status.tokens_sampled > 0;
                if sampled && seen.is_none() {
                    seen = Some(at.as_secs_f64());
                }
                sampled
            })
            .await?;
        let _ = running.child.kill().await;
        running.watch.end();
        seen.ok_or_else(|| BenchError::Other(format!("{WHAT} ended before its first token")))
    }
}

impl Running {
    /// Waits until it listens, has `other` go beside it (which is told its address and the number of
    /// its process), and waits for its end; an `other` that fails ends it.
    pub(crate) async fn beside<T>(
        mut self,
        other: impl AsyncFnOnce(String, u32) -> Result<T>,
    ) -> Result<T> {
        let url = self.address().await?;
        let pid = self.child.id().unwrap_or_default();
        let done = other(url, pid).await;
        if done.is_err() {
            let _ = self.child.start_kill();
        }
        let ended = self.finish().await;
        self.watch.end();
        let done = done?;
        ended.map(|()| done)
    }

    /// Gives each report, with its time since the start, to `enough` until that says so or the
    /// run is over.
    async fn watch_status(
        &mut self,
        mut enough: impl FnMut(&RunStatus, Duration) -> bool,
    ) -> Result<()> {
        let options = ClientOptions {
            url: self.address().await?,
            ..ClientOptions::default()
        };
        let mut client = status_client(connect(&options).await?, options.interceptor()?);
        let request = WatchStatusRequest { interval_ms: 1000 };
        let opened = timeout(SILENCE, client.watch_status(request)).await;
        let mut stream = match opened {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Err(BenchError::Other(format!("watching {WHAT}: {status}"))),
            Err(_) => return Err(self.late("no report", SILENCE)),
        };
        loop {
            match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(status))) => {
                    let over = matches!(status.phase(), Phase::Done | Phase::Failed);
                    if enough(&status, self.started.elapsed()) || over {
                        return Ok(());
                    }
                }
                // It ends, or has ended; `finish` says how.
                Ok(_) => return Ok(()),
                Err(_) => return Err(self.late("no report", SILENCE)),
            }
        }
    }

    /// The coordinator's address, once it listens.
    async fn address(&mut self) -> Result<String> {
        let file = self.run_dir.join("coordinator.addr");
        while self.started.elapsed() < LISTENING {
            if let Ok(text) = fs::read_to_string(&file)
                && !text.trim().is_empty()
            {
                return Ok(text.trim().to_owned());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.ended(status.to_string()));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(self.late("no coordinator listens", LISTENING))
    }

    async fn finish(&mut self) -> Result<()> {
        match timeout(ENDING, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.ended(status.to_string())),
            Ok(Err(source)) => Err(BenchError::File {
                path: self.output.clone(),
                source,
            }),
            Err(_) => Err(self.late("no end", ENDING)),
        }
    }

    fn ended(&self, status: String) -> BenchError {
        BenchError::Ended {
            what: WHAT,
            status,
            tail: tail(&self.output),
        }
    }

    fn late(&self, what: &'static str, limit: Duration) -> BenchError {
        BenchError::Late {
            what,
            seconds: limit.as_secs(),
            tail: tail(&self.output),
        }
    }
}

/// The last lines of what a process printed.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Steps, and when each was first reported.
#[derive(Debug, Default)]
struct StepLog {
    records: BTreeMap<u64, (StepRecord, Duration)>,
    sampling_since: Option<Duration>,
}

impl StepLog {
    fn take(&mut self, status: &RunStatus, at: Duration) {
        if status.phase() == Phase::Sampling && self.sampling_since.is_none() {
            self.sampling_since = Some(at);
        }
        for record in &status.tail {
            self.records
                .entry(record.step)
                .or_insert_with(|| (record.clone(), at));
        }
    }

    /// Every step that comes right after another.
    fn steps(&self) -> Vec<Step> {
        let pairs = self.records.values().zip(self.records.values().skip(1));
        pairs
            .filter(|((before, _), (record, _))| before.step + 1 == record.step)
            .map(|((_, from), (record, to))| step(record, to.saturating_sub(*from)))
            .collect()
    }
}

fn step(record: &StepRecord, took: Duration) -> Step {
    let learner = record.learner.unwrap_or_default();
    let mean = record.completion_tokens_mean.max(f64::MIN_POSITIVE);
    Step {
        step: record.step,
        seconds: took.as_secs_f64(),
        sample: record.seconds_sample,
        score: record.seconds_score,
        learn: record.seconds_learn,
        sync: record.seconds_sync,
        coordinator: record.seconds_coordinator,
        forward: learner.seconds_forward,
        backward: learner.seconds_backward,
        optimizer: learner.seconds_optimizer,
        checkpoint: learner.seconds_checkpoint,
        publish: learner.seconds_publish,
        tokens_sampled: record.tokens_sampled,
        completions: (record.tokens_sampled as f64 / mean).round() as u64,
        completions_trained: learner.completions_trained,
        rows_forwarded: learner.tokens_forwarded,
        truncated_share: record.truncated_share,
        logprob_diff_max: learner.logprob_diff_max,
    }
}

/// What a step computed. Its records tell the prompts' tokens (each prompt counted once) when all
/// completions went through the learner.
pub(crate) fn work<'a>(steps: impl Iterator<Item = &'a Step>, prompts: u32) -> Option<Work> {
    let steps: Vec<&Step> = steps.collect();
    let all: Vec<f64> = steps
        .iter()
        .filter(|s| u64::from(s.completions_trained) == s.completions)
        .map(|s| (s.rows_forwarded + s.completions - s.tokens_sampled) as f64)
        .collect();
    if all.is_empty() {
        return None;
    }
    let prompt_tokens = median(all);
    Some(Work {
        prompt_tokens,
        prompt_length: prompt_tokens / f64::from(prompts),
        completions: median(steps.iter().map(|s| s.completions as f64)),
        completion_tokens: median(steps.iter().map(|s| s.tokens_sampled as f64)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: Phase, steps: &[u64]) -> RunStatus {
        let record = |step: &u64| StepRecord {
            step: *step,
            tokens_sampled: 30,
            completion_tokens_mean: 7.5,
            ..Default::default()
        };
        RunStatus {
            phase: phase.into(),
            tail: steps.iter().map(record).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_step_lasts_from_the_report_of_the_one_before() {
        let mut log = StepLog::default();
        let at = Duration::from_secs;
        log.take(&status(Phase::Starting, &[]), at(1));
        log.take(&status(Phase::Sampling, &[]), at(2));
        log.take(&status(Phase::Sampling, &[1]), at(9));
        log.take(&status(Phase::Learning, &[1]), at(11));
        log.take(&status(Phase::Sampling, &[1, 2]), at(14));
        // Step 3 was never reported on its own: the time of step 4 is not known.
        log.take(&status(Phase::Done, &[2, 4]), at(30));
        assert_eq!(log.sampling_since, Some(at(2)));
        let steps: Vec<_> = log.steps().iter().map(|s| (s.step, s.seconds)).collect();
        assert_eq!(steps, [(2, 5.0)]);
        assert_eq!(log.steps()[0].completions, 4);
    }
}
