//! The process with all simulated roles in it, which `tina-bench cluster` starts beside a coordinator.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tina_coordinator::services::allow_connections;
use tina_proto::{
    client::ClientOptions,
    v1::{DeviceInfo, RunSpec},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{learner, worker};
use crate::{
    error::{BenchError, Result},
    processes::Process,
    stats::percentile,
};

/// What simulated roles call their model, since no files stand behind it.
pub(super) const MODEL: &str = "simulated";
/// Workers that dial in at a time.
const DIALLING: usize = 32;
/// The longest until all workers are ready.
const READY: Duration = Duration::from_secs(120);
/// After which memory is looked at: what dialling in took is done with.
const SETTLE: Duration = Duration::from_secs(1);

/// Simulated workers and a learner
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Roles {
    /// The coordinator
    #[arg(long)]
    url: String,
    /// Its process
    #[arg(long)]
    pid: u32,
    /// Rollout workers, each with a connection of its own
    #[arg(long)]
    workers: u32,
    /// Slots of each
    #[arg(long)]
    slots: u32,
    /// Tokens of a completion
    #[arg(long)]
    tokens: u64,
    /// Mean time that a completion takes, in microseconds
    #[arg(long)]
    decode_us: u64,
    /// Steps before this one warm up
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..))]
    first_step: u64,
    /// Steps that count; what is sampled ahead of later ones is no part of the figures
    #[arg(long)]
    steps: u64,
}

/// The coordinator, as it was when a batch had arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    at: Instant,
    completions: u64,
    cpu: Duration,
    peak_kib: u64,
}

impl Mark {
    pub(super) fn now(completions: u64, process: Process) -> Self {
        Self {
            at: Instant::now(),
            completions,
            cpu: process.cpu(),
            peak_kib: process.peak_kib(),
        }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Measured {
    /// Handed to the learner, a second.
    pub(crate) completions_per_second: f64,
    pub(crate) completions: u64,
    /// From a completion's sending to the next sample of the same step in its slot.
    pub(crate) dispatch_p50_ms: f64,
    pub(crate) dispatch_p99_ms: f64,
    /// Processor time of the coordinator.
    pub(crate) cpu_us_per_completion: f64,
    /// Growth of the coordinator's memory by a worker that is ready.
    pub(crate) kib_per_worker: f64,
    /// The coordinator's most resident memory, until the last step that counts.
    pub(crate) peak_mib: f64,
}

/// Where all that is simulated runs. The same arithmetic everywhere: probes are compared bit by bit.
pub(super) fn device() -> DeviceInfo {
    DeviceInfo {
        device: "cpu".into(),
        name: "simulated".into(),
        numerics: "cpu-simulated".into(),
        threads: 1,
    }
}

/// What every simulated role computes of the probe.
pub(super) fn probe(spec: &RunSpec) -> Vec<f32> {
    let scored = spec.probe_tokens.iter().skip(1);
    scored.map(|token| -((token % 7) as f32) - 0.5).collect()
}

/// Plays all roles until the run is over, and prints what it saw as a line of JSON.
pub(crate) fn play(roles: &Roles) -> Result<()> {
    allow_connections();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Other(error.to_string()))?;
    let measured = runtime.block_on(measure(roles))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

async fn measure(roles: &Roles) -> Result<Measured> {
    let coordinator = ClientOptions {
        url: roles.url.clone(),
        ..ClientOptions::default()
    };
    let process = Process::new(roles.pid);
    let shared = Arc::new(worker::Shared::new(
        coordinator.clone(),
        roles.slots,
        Duration::from_micros(roles.decode_us),
        roles.first_step,
        roles.tokens,
    ));
    let memory = process.resident_kib();
    let mut workers = JoinSet::new();
    let began = Instant::now();
    for number in 0..roles.workers as usize {
        let ready = (number + 1).saturating_sub(DIALLING);
        await_ready(&shared, ready, &mut workers, began).await?;
        workers.spawn(worker::run(shared.clone(), number as u64));
    }
    await_ready(&shared, roles.workers as usize, &mut workers, began).await?;
    sleep(SETTLE).await;
    let grown = process.resident_kib().saturating_sub(memory);
    // Without a policy nobody samples: the run begins with the learner.
    let marks = learner::run(&coordinator, process).await?;
    while workers.join_next().await.is_some() {
        // The run is over: how their streams ended says nothing any more.
    }
    let before = roles.first_step as usize - 2;
    let timed = marks.get(before..=before + roles.steps as usize);
    let Some((first, timed)) = timed.and_then(<[Mark]>::split_first) else {
        return Err(BenchError::Other("too few steps were done".into()));
    };
    let last = timed.last().unwrap_or(first);
    let completions: u64 = timed.iter().map(|mark| mark.completions).sum();
    let count = completions.max(1) as f64;
    let mut latencies = shared.take_latencies();
    latencies.sort_by(f32::total_cmp);
    let milliseconds = |share| f64::from(percentile(&latencies, share)) * 1e3;
    Ok(Measured {
        completions_per_second: count / (last.at - first.at).as_secs_f64(),
        completions,
        dispatch_p50_ms: milliseconds(0.5),
        dispatch_p99_ms: milliseconds(0.99),
        cpu_us_per_completion: (last.cpu - first.cpu).as_secs_f64() * 1e6 / count,
        kib_per_worker: grown as f64 / f64::from(roles.workers),
        peak_mib: last.peak_kib as f64 / 1024.0,
    })
}

/// Waits until so many are ready; none may have ended.
async fn await_ready(
    shared: &worker::Shared,
    count: usize,
    workers: &mut JoinSet<Result<()>>,
    began: Instant,
) -> Result<()> {
    while shared.ready.load(Ordering::Relaxed) < count {
        if let Some(ended) = workers.try_join_next() {
            ended.map_err(|error| BenchError::Other(error.to_string()))??;
        }
        if began.elapsed() > READY {
            let seconds = READY.as_secs();
            return Err(BenchError::Other(format!(
                "the workers are not ready within {seconds} s"
            )));
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
