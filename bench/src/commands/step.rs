//! `tina-bench step`: one whole GRPO step, ours and the peer's in turns.

use std::{path::PathBuf, thread::available_parallelism};

use serde::Serialize;
use tina_coordinator::config::RunConfig;
use tina_model::ModelSource;

use crate::{
    cluster::{Run, Step, Up, work},
    error::{BenchError, Result, require},
    floor::{Floor, floor},
    host::{Scratch, beside, until_interrupted},
    peer::{Peer, PeerDtype, PeerRun, PeerStep},
    stats::median,
    table::{Table, figure, write_json},
};

/// Time one whole GRPO step: real processes, the real model, in turns with TRL's trainer
///
/// 8 prompts x 8 completions of at most 48 tokens, LoRA of rank 16 on all seven projections of
/// SmolLM2-135M-Instruct, two-digit sums, temperature 1 (bench/grpo_step.toml). Figures are medians
/// over all runs' steps without each run's first.
///
/// The floor is the least arithmetic that the step needs: a token costs 0.269 GFLOP forward through
/// all weights of SmolLM2, vocabulary included, and the LoRA 0.0098 more; learning adds a backward
/// pass of the same, with no gradient for frozen weights. docs/performance.md has the sum.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Turns of ours and the peer's
    #[arg(long, default_value_t = 2)]
    runs: u32,
    /// Steps that are timed in each run; one more goes before them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=30))]
    steps: u64,
    /// Model to train instead of the config's: as model.source takes it
    #[arg(long, value_name = "SOURCE")]
    model: Option<String>,
    /// Reward the right answer alone: our learner then skips groups without signal, the peer none
    #[arg(long)]
    answer_only: bool,
    /// Arithmetic that this machine can do at most on all cores, for the floor in seconds
    #[arg(long, value_name = "GFLOPS")]
    peak_gflops: Option<f64>,
    /// Python with bench/peers/requirements.txt installed
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// The same model in Hugging Face layout (bench/peers/convert_smollm2.py makes it); without it
    /// the peer is left out
    #[arg(long, value_name = "FOLDER")]
    peer_model: Option<PathBuf>,
    /// What the peer computes in, each a column
    #[arg(long, value_delimiter = ',', default_value = "bf16")]
    peer_dtype: Vec<PeerDtype>,
    /// Sequences of one of the peer's passes
    #[arg(long, value_name = "N", default_value_t = 16)]
    peer_micro: u32,
    /// The `tina` binary; without it, the one beside this program
    #[arg(long, value_name = "FILE")]
    tina: Option<PathBuf>,
    /// The run's config
    #[arg(long, default_value = "bench/grpo_step.toml")]
    config: PathBuf,
    /// The peer's script
    #[arg(long, default_value = "bench/peers/grpo_step_trl.py")]
    peer_script: PathBuf,
    /// Set a key of the config: section.key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Results {
    threads: usize,
    ours: Vec<Run>,
    first_token_seconds: Vec<f64>,
    /// None when no step's completions all went through the learner: its records don't tell then
    /// how long the prompts were.
    floor: Option<Floor>,
    peak_gflops: Option<f64>,
    peers: Vec<PeerColumn>,
}

#[derive(Serialize)]
struct PeerColumn {
    dtype: PeerDtype,
    runs: Vec<PeerRun>,
}

impl PeerColumn {
    fn steps(&self) -> impl Iterator<Item = &PeerStep> {
        self.runs.iter().flat_map(|run| &run.report.steps)
    }

    fn median(&self, f: impl Fn(&PeerStep) -> f64) -> f64 {
        median(self.steps().map(f))
    }
}

impl Results {
    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.ours.iter().flat_map(|run| &run.steps)
    }

    fn median(&self, f: impl Fn(&Step) -> f64) -> f64 {
        median(self.steps().map(f))
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    until_interrupted(measure(args))
}

async fn measure(args: &Args) -> Result<()> {
    let up = args.up()?;
    let config = RunConfig::load(&up.config, &up.sets)?;
    let peers = args.peers(&config)?;
    // Fetches the model where it is not cached yet, so that no figure has that in it.
    let model = tina_model::open_text(&config.model.source.parse::<ModelSource>()?)?.config;
    let scratch = Scratch::new()?;
    let mut results = Results {
        threads: available_parallelism().map_or(1, usize::from),
        ours: Vec::new(),
        first_token_seconds: Vec::new(),
        floor: None,
        peak_gflops: args.peak_gflops,
        peers: peers
            .iter()
            .map(|peer| PeerColumn {
                dtype: peer.dtype,
                runs: Vec::new(),
            })
            .collect(),
    };
    for turn in 1..=args.runs {
        eprintln!("turn {turn}/{}: start to first token", args.runs);
        results
            .first_token_seconds
            .push(up.first_token(&scratch.folder("first")?).await?);
        eprintln!("turn {turn}/{}: tina, {} steps", args.runs, args.steps + 1);
        results
            .ours
            .push(up.run(&scratch.folder("ours")?, args.steps + 1).await?);
        for (peer, column) in peers.iter().zip(&mut results.peers) {
            eprintln!(
                "turn {turn}/{}: TRL {}, {} steps",
                args.runs,
                peer.dtype,
                args.steps + 1
            );
            column
                .runs
                .extend(peer.run(&scratch.folder("peer")?, args.steps + 1).await?);
        }
    }
    results.peers.retain(|column| !column.runs.is_empty());
    let work = work(results.steps(), config.algorithm.prompts_per_step);
    results.floor = work.map(|work| floor(&model, config.lora.rank as usize, &work));
    print(&results);
    args.out
        .as_deref()
        .map_or(Ok(()), |path| write_json(path, &results))
}

impl Args {
    fn up(&self) -> Result<Up> {
        let tina = match &self.tina {
            Some(path) => path.clone(),
            None => beside("tina")?,
        };
        if !tina.is_file() {
            return Err(BenchError::NoBinary { path: tina });
        }
        require(&self.config, "--config")?;
        let mut sets = vec![format!("run.steps={}", self.steps + 1)];
        sets.extend(
            self.model
                .iter()
                .map(|source| format!("model.source={source}")),
        );
        if self.answer_only {
            sets.extend((1..=3).map(|i| format!("reward.{i}.weight=0")));
        }
        sets.extend(self.sets.iter().cloned());
        Ok(Up {
            tina,
            config: self.config.clone(),
            sets,
        })
    }

    /// The peer once for each dtype; none, and said so, where it can't be.
    fn peers(&self, config: &RunConfig) -> Result<Vec<Peer>> {
        let Some(model) = &self.peer_model else {
            eprintln!("the peer is left out: no --peer-model (bench/README.md says how to get it)");
            return Ok(Vec::new());
        };
        require(model, "--peer-model")?;
        require(&self.peer_script, "--peer-script")?;
        let peer = |dtype: &PeerDtype| Peer {
            python: self.python.clone(),
            script: self.peer_script.clone(),
            model: model.clone(),
            dtype: *dtype,
            shape: vec![
                ("--prompts", config.algorithm.prompts_per_step.to_string()),
                (
                    "--completions",
                    config.algorithm.completions_per_prompt.to_string(),
                ),
                ("--max-tokens", config.sampling.max_tokens.to_string()),
                ("--rank", config.lora.rank.to_string()),
                ("--alpha", config.lora.alpha.to_string()),
                ("--micro", self.peer_micro.to_string()),
            ],
        };
        Ok(self.peer_dtype.iter().map(peer).collect())
    }
}

/// The table: our column first, then one for each peer.
struct Report<'a> {
    results: &'a Results,
    table: Table,
}

impl Report<'_> {
    fn row(&mut self, name: &str, ours: f64, peer: impl Fn(&PeerColumn) -> Option<f64>) {
        let cells = std::iter::once(Some(ours)).chain(self.results.peers.iter().map(peer));
        self.table
            .row(name, cells.map(|cell| cell.map(figure).unwrap_or_default()));
    }

    /// A figure of steps that both have.
    fn both(&mut self, name: &str, ours: impl Fn(&Step) -> f64, peer: impl Fn(&PeerStep) -> f64) {
        self.row(name, self.results.median(ours), |column| {
            Some(column.median(&peer))
        });
    }

    /// A figure of our steps.
    fn ours(&mut self, name: &str, figure: impl Fn(&Step) -> f64) {
        self.only(name, self.results.median(figure));
    }

    /// A figure that the peer has none of.
    fn only(&mut self, name: &str, figure: f64) {
        self.row(name, figure, |_| None);
    }
}

fn print(results: &Results) {
    let (device, numerics) = match results.ours.first() {
        Some(run) => (run.device.as_str(), run.numerics.as_str()),
        None => ("", ""),
    };
    println!(
        "\nOne GRPO step on {} threads ({device}); medians of {} steps",
        results.threads,
        results.steps().count()
    );
    let mut heads = vec![String::new(), format!("tina {numerics}")];
    for column in &results.peers {
        let malloc = column
            .runs
            .first()
            .map_or("", |run| run.report.malloc.as_str());
        heads.push(format!("TRL {} ({malloc})", column.dtype));
    }
    let table = Table::new(heads.iter().map(String::as_str));
    let mut report = Report { results, table };

    let seconds = results.median(|s| s.seconds);
    report.both("step, s", |s| s.seconds, |s| s.seconds);
    report.row("  tina's is 1", 1.0, |c| {
        Some(c.median(|s| s.seconds) / seconds)
    });
    report.both("  sample, s", |s| s.sample, |s| s.sample);
    report.both("  score, s", |s| s.score, |s| s.score);
    report.both("  learn, s", |s| s.learn, |s| s.learn);
    report.ours("    forward, s", |s| s.forward);
    report.ours("    backward, s", |s| s.backward);
    report.ours("    optimiser, s", |s| s.optimizer);
    report.ours("    checkpoint and publishing, s", |s| {
        s.checkpoint + s.publish
    });
    report.ours("  sync, s", |s| s.sync);
    report.ours("coordinator's own work, s", |s| s.coordinator);
    report.ours("all but sampling and learning, %", |s| {
        100.0 * (s.seconds - s.sample - s.learn).max(0.0) / s.seconds
    });
    report.both(
        "tokens sampled",
        |s| s.tokens_sampled as f64,
        |s| s.tokens_sampled as f64,
    );
    report.ours("completions through backward", |s| {
        f64::from(s.completions_trained)
    });

    let together = median(results.ours.iter().map(|run| run.usage.peak_together_mib));
    report.row("peak memory, all processes, MiB", together, |column| {
        Some(median(
            column.runs.iter().map(|run| run.usage.peak_together_mib),
        ))
    });
    for role in ["coordinator", "rollout-worker", "learner"] {
        let peaks = results
            .ours
            .iter()
            .filter_map(|run| run.usage.peak_by_role_mib.get(role));
        report.only(&format!("  {role}, MiB"), median(peaks.copied()));
    }
    let foreign = median(results.ours.iter().map(|run| run.usage.foreign_cpu_share));
    report.row(
        "others' share of the processors, %",
        100.0 * foreign,
        |column| {
            let shares = column.runs.iter().map(|run| run.usage.foreign_cpu_share);
            Some(100.0 * median(shares))
        },
    );
    let start = median(results.ours.iter().map(|run| run.start_seconds));
    report.row("start to first step, s", start, |column| {
        Some(median(
            column.runs.iter().map(|run| run.report.start_seconds),
        ))
    });
    let first = median(results.first_token_seconds.iter().copied());
    report.only("start to first sampled token, s", first);
    let diff = results
        .steps()
        .map(|s| s.logprob_diff_max)
        .fold(0.0, f64::max);
    report.only("worker to learner, largest |log-prob difference|", diff);
    if let Some(gflop) = results.floor.map(|floor| floor.total_gflop()) {
        report.only("floor, GFLOP", gflop);
        report.only("  reached, GFLOP/s", gflop / seconds);
        if let Some(peak) = results.peak_gflops {
            report.only("floor at the machine's peak, s", gflop / peak);
        }
    }
    print!("{}", report.table);
    for column in &results.peers {
        if let Some(PeerRun { report, .. }) = column.runs.first() {
            println!(
                "TRL {}: {}; {} threads",
                column.dtype, report.versions, report.threads
            );
        }
    }
}
