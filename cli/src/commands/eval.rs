//! `tina eval`: how good adapters are, with error bars.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tina_coordinator::{
    RunEvent,
    config::RunConfig,
    evaluation::{BASE, Evaluated, EvaluationOptions, PromptStyle, evaluate},
};
use tokio::sync::{mpsc, watch};

use crate::{Failure, logging, progress::Progress, run};

/// Tokens of a completion at most, temperature and top-p of the paper's evaluation.
const MAX_TOKENS: u32 = 32_768;
const TEMPERATURE: f64 = 0.6;
const TOP_P: f64 = 0.95;

/// How problems are asked.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Prompt {
    /// The paper's user message, no system message
    Paper,
    /// As the run asks
    Config,
}

/// Evaluate adapters on suites of problems: pass@1 and pass@k with 95 % intervals
///
/// Samples on the workers that the config names (rollout.workers); nothing is trained. What is
/// killed goes on where it was by the same command. The report is printed, and kept in
/// runs/NAME/evals/ID as report.json and report.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Suites: aime24, aime25, amc23, math500, minerva, gpqa, gsm8k, held-out (the run's own problems), or \
a .jsonl or .parquet file.
Adapters: base (the model as it is), a step of the run, best, latest, or a folder in PEFT's format.")]
pub(crate) struct Args {
    /// Config of the run: model, shape of the adapters, workers, seed
    config: PathBuf,
    /// Suites, with commas between them
    #[arg(
        long = "suite",
        value_name = "NAME|FILE",
        required = true,
        value_delimiter = ','
    )]
    suites: Vec<String>,
    /// Adapters, with commas between them; the first is what the others are compared with [default:
    /// base, and the run's best if it has one]
    #[arg(long = "adapter", value_name = "NAME|DIR", value_delimiter = ',')]
    adapters: Vec<String>,
    /// Completions of a problem
    #[arg(long, default_value_t = 1, value_name = "K")]
    samples: u32,
    /// 0: greedy
    #[arg(long, default_value_t = TEMPERATURE, value_name = "T")]
    temperature: f64,
    /// Smallest set of likeliest tokens with this probability together
    #[arg(long, default_value_t = TOP_P, value_name = "P")]
    top_p: f64,
    /// Longest completion; lowered to what the model's context leaves
    #[arg(long, default_value_t = MAX_TOKENS, value_name = "TOKENS")]
    max_tokens: u32,
    /// How problems are asked (held-out ones always as the run does)
    #[arg(long, value_enum, default_value = "paper")]
    prompt: Prompt,
    /// Folder with NAME.jsonl or NAME.parquet of suites
    #[arg(long, value_name = "DIR")]
    suite_dir: Option<PathBuf>,
    /// Fetch suites that are not at hand from the Hugging Face hub
    #[arg(long)]
    download: bool,
    /// The first so many problems of each suite
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The evaluation's folder, instead of one below the run's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Start no workers: they are started by hand, with tina rollout-worker
    #[arg(long)]
    no_launch: bool,
    /// Set a key of the config: section.key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the report as one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

/// Evaluates, and prints the report.
pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.sets)?;
    let mut adapters = args.adapters.clone();
    if adapters.is_empty() {
        adapters.push(BASE.to_owned());
        if config.run_dir().join("adapters/best").exists() {
            adapters.push("best".to_owned());
        }
    }
    let launch = !args.no_launch && config.cluster.launch;
    let options = EvaluationOptions {
        config,
        suites: args.suites.clone(),
        suite_dir: args.suite_dir.clone(),
        download: args.download,
        adapters,
        samples: args.samples,
        temperature: args.temperature,
        top_p: args.top_p,
        max_tokens: args.max_tokens,
        prompt: match args.prompt {
            Prompt::Paper => PromptStyle::Paper,
            Prompt::Config => PromptStyle::Config,
        },
        limit: args.limit,
        out: args.out.clone(),
        launch,
        exe: None,
    };
    let log = logging::to_run_log();
    let names = Arc::new(OnceLock::new());
    let progress = Progress::of_evaluation(args.json, names.clone());
    let (events, heard) = mpsc::unbounded_channel();
    let (stop, stops) = watch::channel(0);
    let signals = tokio::spawn(run::count_signals(stop));
    let shown = tokio::spawn(show(heard, stops.clone(), progress, log, launch));
    let plan = |adapters: &[String]| drop(names.set(adapters.to_vec()));
    let outcome = evaluate(options, plan, events, stops).await;
    signals.abort();
    let _ = shown.await;
    let Evaluated {
        report,
        folder,
        stopped_early,
    } = outcome?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("\n{}", report.markdown());
        println!("The report: {}/report.md", run::shortest(&folder).display());
    }
    if stopped_early {
        eprintln!("Stopped early. Go on with: {}", run::same_command());
    }
    Ok(())
}

/// Shows what happens until the evaluation has ended.
async fn show(
    mut heard: mpsc::UnboundedReceiver<RunEvent>,
    mut stops: watch::Receiver<u32>,
    mut progress: Progress,
    log: logging::RunLog,
    launch: bool,
) {
    loop {
        let event = tokio::select! {
            Ok(()) = stops.changed() => {
                if *stops.borrow_and_update() == 1 {
                    progress.say("ending; what is sampled is kept");
                }
                continue;
            }
            event = heard.recv() => event,
        };
        match event {
            None => break,
            Some(RunEvent::Bound { address, run_dir }) => {
                if let Err(error) = log.open(&run_dir.join("logs/coordinator.log")) {
                    progress.say(&format!("no log is kept: {error}"));
                }
                let place = run::shortest(&run_dir);
                progress.say(&format!("{}; coordinator at {address}", place.display()));
                if !launch {
                    progress.say(&format!(
                        "workers join by: tina rollout-worker --coordinator http://{address}"
                    ));
                }
            }
            Some(RunEvent::Status(status)) => progress.update(&status),
            Some(RunEvent::Note(text)) => progress.say(&text),
            Some(RunEvent::Step(_) | RunEvent::Eval(_)) => {}
        }
    }
    progress.finish();
}
