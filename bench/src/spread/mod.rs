//! A new adapter on its way to many workers: real processes, real fetching, reading, packing, probing.
//!
//! - `model`: a small model whose adapter is large. `stage`: the coordinator's services, and the workers.
//! - `floor`: the least that the machine needs. `report`: the table.

mod floor;
mod model;
mod report;
mod stage;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use self::{
    floor::Floor,
    model::Subject,
    report::{Line, table},
    stage::Stage,
};
use crate::{
    error::{BenchError, Result},
    host::{Scratch, beside, until_interrupted},
    table::write_json,
};

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Worker processes
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Rank of the adapter; 60 are 74 MB with this model's shape, as 32 in 16 bits are with 1.5B
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=512))]
    rank: u32,
    /// Values of cluster.adapter_fan_out; 0: without relays
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,4")]
    fan_out: Vec<u32>,
    /// What engines do meanwhile
    #[arg(long, value_enum, value_delimiter = ',', default_value = "idle,busy")]
    load: Vec<Load>,
    /// Adapters that are timed, one after the other, after one that warms up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Threads that a worker computes with
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// The `tina` binary; the one beside this program where unset
    #[arg(long)]
    tina: Option<PathBuf>,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What engines do while an adapter is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Load {
    /// Nothing
    Idle,
    /// They decode, all of them, and take the adapter in between two tokens
    Busy,
}

#[derive(Debug, Serialize)]
struct Results {
    adapter_bytes: usize,
    workers: u32,
    floor: Floor,
    lines: Vec<Line>,
}

/// Runs all that was asked for.
pub(crate) fn measure(options: &Options) -> Result<()> {
    let tina = match &options.tina {
        Some(tina) => tina.clone(),
        None => beside("tina")?,
    };
    if !tina.exists() {
        return Err(BenchError::NoBinary { path: tina });
    }
    let scratch = Scratch::new()?;
    let mut subject = Subject::new(&scratch.folder("model")?, options.rank)?;
    let adapter_bytes = subject.adapter_bytes();
    let floor = Floor::measure(adapter_bytes, options.workers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Other(error.to_string()))?;
    // Signals are heard on this thread; services run on the runtime's own.
    let inside = runtime.enter();
    let lines = until_interrupted(async {
        let mut lines = Vec::new();
        for &fan_out in &options.fan_out {
            let folder = scratch.folder("run")?;
            let mut stage = Stage::set(options, fan_out, &tina, &folder, &subject).await?;
            for &load in &options.load {
                eprintln!("fan-out {fan_out}, engines {load:?}");
                lines.push(stage.rounds(options.rounds, load, &mut subject).await?);
            }
            stage.end().await;
        }
        Ok(lines)
    })?;
    drop(inside);
    runtime.shutdown_background();
    print!("{}", table(&lines));
    println!("{floor}");
    match &options.out {
        Some(out) => {
            let workers = options.workers;
            let results = Results {
                adapter_bytes,
                workers,
                floor,
                lines,
            };
            write_json(out, &results)
        }
        None => Ok(()),
    }
}
