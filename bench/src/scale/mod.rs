//! A real coordinator under many simulated workers: what it takes to hand out samples, to take
//! completions in, score and journal them, and to hand batches on.
//!
//! - `side`: the process with the simulated roles; `worker`, `learner`: those.
//! - `ray`: the same hand-off between Ray actors. `report`: the table.

mod learner;
mod ray;
mod report;
mod side;
mod worker;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::side::{Roles, play};
use self::{
    ray::Ray,
    report::{Line, Load, table},
    side::Measured,
};
use crate::{
    child::{Ending, Program},
    cluster::Up,
    error::{BenchError, Result, require},
    host::{Scratch, beside, own},
    processes::Others,
    stats::median,
    table::write_json,
};

/// Steps that warm up.
const WARM_UP: u64 = 2;
/// The longest that a run may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Numbers of simulated workers
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    workers: Vec<u32>,
    /// Slots of a worker
    #[arg(long, default_value_t = 4)]
    slots: u32,
    /// Values of algorithm.max_staleness
    #[arg(long, value_delimiter = ',', default_value = "0,2")]
    staleness: Vec<u64>,
    /// What workers do with a sample
    #[arg(long, value_enum, value_delimiter = ',', default_value = "full,paced")]
    load: Vec<Load>,
    /// Prompts of a step
    #[arg(long, default_value_t = 1000)]
    prompts: u32,
    /// Completions of a prompt
    #[arg(long, default_value_t = 8)]
    completions: u32,
    /// Tokens of a completion
    #[arg(long, default_value_t = 512)]
    tokens: u64,
    /// Steps that are timed, after two that warm up
    #[arg(long, default_value_t = 4)]
    steps: u64,
    /// Completions a second, all workers together, of the paced load
    #[arg(long, default_value_t = 2500)]
    rate: u32,
    /// Runs of each; figures are medians
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The `tina` binary; the one beside this program where unset
    #[arg(long)]
    tina: Option<PathBuf>,
    /// The run's config
    #[arg(long, default_value = "bench/cluster.toml")]
    config: PathBuf,
    /// Set a key of the config: section.key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Python with bench/peers/requirements-ray.txt installed; without it the peer is left out
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// The peer's script
    #[arg(long, default_value = "bench/peers/hand_off_ray.py")]
    peer_script: PathBuf,
    /// Processes that the peer's simulated workers are spread over
    #[arg(long, default_value_t = 2)]
    peer_actors: u32,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs all that was asked for.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    let tina = match &options.tina {
        Some(tina) => tina.clone(),
        None => beside("tina")?,
    };
    if !tina.exists() {
        return Err(BenchError::NoBinary { path: tina });
    }
    require(&options.config, "--config")?;
    let scratch = Scratch::new()?;
    let mut lines = Vec::new();
    for &workers in &options.workers {
        for &load in &options.load {
            for &staleness in &options.staleness {
                let up = options.up(tina.clone(), staleness);
                let one = async || options.ours(&up, &scratch, workers, load).await;
                let medians = medians(options.runs, one).await?;
                lines.push(Line::new("tina", workers, Some(staleness), load, medians));
            }
        }
    }
    if let Some(python) = &options.python {
        let ray = Ray {
            python: python.clone(),
            script: options.peer_script.clone(),
        };
        match options.peers(&ray, &scratch).await {
            Ok(peers) => lines.extend(peers),
            Err(BenchError::Absent(why)) => eprintln!("the peer is left out: {why}"),
            Err(error) => return Err(error),
        }
    }
    print!("{}", table(&lines));
    match &options.out {
        Some(out) => write_json(out, &lines),
        None => Ok(()),
    }
}

impl Options {
    /// Mean time of a completion, in microseconds, that makes the load with so many workers.
    fn decode_us(&self, workers: u32, load: Load) -> u64 {
        let slots = f64::from(workers) * f64::from(self.slots);
        match load {
            Load::Full => 0,
            Load::Paced => (slots / f64::from(self.rate) * 1e6) as u64,
        }
    }

    /// Steps in all: those at the end are there to be sampled ahead as in the middle of a run.
    fn all_steps(&self, staleness: u64) -> u64 {
        WARM_UP + self.steps + staleness
    }

    /// The coordinator.
    fn up(&self, tina: PathBuf, staleness: u64) -> Up {
        let keys = [
            format!("run.steps={}", self.all_steps(staleness)),
            format!("sampling.max_tokens={}", self.tokens),
            format!("algorithm.prompts_per_step={}", self.prompts),
            format!("algorithm.completions_per_prompt={}", self.completions),
            format!("algorithm.max_staleness={staleness}"),
            format!("rollout.slots={}", self.slots),
        ];
        Up {
            tina,
            config: self.config.clone(),
            sets: keys.into_iter().chain(self.sets.iter().cloned()).collect(),
        }
    }

    async fn ours(&self, up: &Up, scratch: &Scratch, workers: u32, load: Load) -> Result<Measured> {
        let running = up.start(&scratch.folder("run")?)?;
        let roles = async |url: String, pid: u32| {
            let args = [
                ("--url", url),
                ("--pid", pid.to_string()),
                ("--workers", workers.to_string()),
                ("--slots", self.slots.to_string()),
                ("--tokens", self.tokens.to_string()),
                ("--decode-us", self.decode_us(workers, load).to_string()),
                ("--first-step", (WARM_UP + 1).to_string()),
                ("--steps", self.steps.to_string()),
            ];
            let args = args
                .into_iter()
                .flat_map(|(key, value)| [key.into(), value.into()]);
            let command = ["side".into(), "cluster".into()].into_iter();
            let program = Program {
                what: "the simulated roles",
                program: own()?,
                args: command.chain(args).collect(),
                envs: Vec::new(),
                limit: LIMIT,
            };
            measured(program.run(&scratch.folder("side")?).await?)
        };
        running.beside(roles).await
    }

    async fn peers(&self, ray: &Ray, scratch: &Scratch) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for &workers in &self.workers {
            for &load in &self.load {
                let one = async || ray.run(self, scratch, workers, load).await;
                let medians = medians(self.runs, one).await?;
                lines.push(Line::new("ray", workers, None, load, medians));
            }
        }
        Ok(lines)
    }
}

/// What a side printed last.
fn measured(ending: Ending) -> Result<Measured> {
    match ending {
        Ending::Done { output, .. } => Ok(serde_json::from_str(
            output.lines().last().unwrap_or_default(),
        )?),
        Ending::Absent(why) => Err(BenchError::Absent(why)),
    }
}

/// The medians of so many runs, and the most that others had of the processors.
async fn medians(runs: u32, one: impl AsyncFn() -> Result<Measured>) -> Result<(Measured, f64)> {
    let (mut all, mut foreign) = (Vec::new(), 0.0f64);
    for _ in 0..runs.max(1) {
        let others = Others::start();
        all.push(one().await?);
        foreign = foreign.max(others.share());
    }
    let of = |part: fn(&Measured) -> f64| median(all.iter().map(part));
    let measured = Measured {
        completions_per_second: of(|m| m.completions_per_second),
        completions: all.iter().map(|m| m.completions).sum(),
        dispatch_p50_ms: of(|m| m.dispatch_p50_ms),
        dispatch_p99_ms: of(|m| m.dispatch_p99_ms),
        cpu_us_per_completion: of(|m| m.cpu_us_per_completion),
        kib_per_worker: of(|m| m.kib_per_worker),
        peak_mib: of(|m| m.peak_mib),
    };
    Ok((measured, foreign))
}
