//! A coordinator's run as a person at a terminal sees it: what `up` and `coordinator` share.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tina_coordinator::{
    CoordinatorError, CoordinatorOptions, RunEvent, RunSummary, config::RunConfig,
    statistics::Estimate,
};
use tina_proto::v1::Phase;
use tokio::{
    signal::unix::SignalKind,
    sync::{mpsc, watch},
};

use crate::{Failure, logging, progress::Progress, shutdown, words};

/// Which run, and how it is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The run's config
    config: PathBuf,
    /// Set a key: section.key=value, e.g. learner.lr=1e-5 or reward.0.weight=2
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Go on where the run of this name was left
    #[arg(long)]
    resume: bool,
    /// Throw away the run of this name, if there is one
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Print one JSON object at the end and nothing else
    #[arg(long)]
    json: bool,
}

/// The last line of output.
#[derive(Serialize)]
struct Report {
    accuracy_before: Option<f64>,
    accuracy_before_interval: Option<[f64; 2]>,
    accuracy_after: Option<f64>,
    accuracy_after_interval: Option<[f64; 2]>,
    steps: u64,
    seconds: f64,
    tokens: u64,
    cost_usd: f64,
    adapter: Option<PathBuf>,
}

/// Runs a coordinator to its end; `launch`: and the processes that the config names.
pub(crate) async fn run(args: &RunArgs, launch: bool) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.sets)?;
    let log = logging::to_run_log();
    let progress = Progress::new(args.json, config.run.steps);
    let length = match (config.run.steps, config.data.epochs) {
        (0, Some(epochs)) => format!("{epochs} epochs of steps"),
        (steps, Some(epochs)) => format!("{steps} steps or {epochs} epochs"),
        (steps, None) => format!("{steps} steps"),
    };
    progress.say(&format!(
        "run {}: {length}, {} prompts x {} completions each, {}",
        config.run.name,
        config.algorithm.prompts_per_step,
        config.algorithm.completions_per_prompt,
        config.model.source,
    ));
    let options = CoordinatorOptions {
        config: config.clone(),
        resume: args.resume,
        overwrite: args.overwrite,
        launch,
        exe: None,
    };
    let (events, heard) = mpsc::unbounded_channel();
    let (stop, stops) = watch::channel(0);
    let signals = tokio::spawn(count_signals(stop));
    let shown = tokio::spawn(show(
        heard,
        stops.clone(),
        progress,
        log,
        launch,
        args.resume,
    ));
    let outcome = tina_coordinator::run(options, events, stops).await;
    signals.abort();
    let _ = shown.await;
    match outcome {
        Ok(summary) => {
            if !args.json {
                tell(&summary, &config);
            } else if summary.stopped_early {
                eprintln!("Stopped early. Go on with: {}", resume_command());
            }
            println!("{}", serde_json::to_string(&report(summary))?);
            Ok(())
        }
        Err(error) => {
            let kept = matches!(
                error,
                CoordinatorError::Failed { steps: 1.., .. } | CoordinatorError::Interrupted { .. }
            );
            if kept {
                eprintln!("Go on with: {}", resume_command());
            }
            Err(error.into())
        }
    }
}

/// Counts requests to stop.
pub(crate) async fn count_signals(stop: watch::Sender<u32>) {
    loop {
        tokio::select! {
            () = shutdown::next(SignalKind::interrupt()) => {}
            () = shutdown::next(SignalKind::terminate()) => {}
        }
        stop.send_modify(|count| *count += 1);
    }
}

/// Shows what happens until the run has ended.
async fn show(
    mut heard: mpsc::UnboundedReceiver<RunEvent>,
    mut stops: watch::Receiver<u32>,
    mut progress: Progress,
    log: logging::RunLog,
    launch: bool,
    resumed: bool,
) {
    let mut first = true;
    let mut step_under_way = false;
    loop {
        let event = tokio::select! {
            Ok(()) = stops.changed() => {
                if *stops.borrow_and_update() == 1 {
                    progress.say(if step_under_way {
                        "finishing this step; Ctrl-C again ends at once"
                    } else {
                        "ending; Ctrl-C again ends at once"
                    });
                }
                continue;
            }
            event = heard.recv() => event,
        };
        let Some(event) = event else { break };
        match event {
            RunEvent::Bound { address, run_dir } => {
                if let Err(error) = log.open(&run_dir.join("logs/coordinator.log")) {
                    progress.say(&format!("no log is kept: {error}"));
                }
                let place = shortest(&run_dir);
                progress.say(&format!("{}; coordinator at {address}", place.display()));
                if !launch {
                    progress.say(&format!(
                        "roles join by: tina learner --coordinator http://{address}, \
                         tina rollout-worker --coordinator http://{address}"
                    ));
                }
            }
            RunEvent::Status(status) => {
                step_under_way = matches!(status.phase(), Phase::Sampling | Phase::Learning);
                if std::mem::take(&mut first) && resumed {
                    progress.skip(&status);
                }
                progress.update(&status);
            }
            RunEvent::Note(text) => progress.say(&text),
            // The status that comes with them has both.
            RunEvent::Step(_) | RunEvent::Eval(_) => {}
        }
    }
    progress.finish();
}

fn report(summary: RunSummary) -> Report {
    let mean = |accuracy: Estimate| accuracy.mean;
    let interval = |accuracy: Estimate| [accuracy.low, accuracy.high];
    Report {
        accuracy_before: summary.accuracy_before.map(mean),
        accuracy_before_interval: summary.accuracy_before.map(interval),
        accuracy_after: summary.accuracy_after.map(mean),
        accuracy_after_interval: summary.accuracy_after.map(interval),
        steps: summary.steps,
        seconds: (summary.seconds * 10.0).round() / 10.0,
        tokens: summary.tokens,
        cost_usd: (summary.cost_usd * 1e6).round() / 1e6,
        adapter: summary.adapter,
    }
}

/// The end of the run, in words.
fn tell(summary: &RunSummary, config: &RunConfig) {
    let percent = |accuracy: Option<Estimate>| {
        accuracy.map_or_else(|| "not measured".to_owned(), words::percent)
    };
    println!();
    if summary.stopped_early {
        println!(
            "Stopped after step {} of {}; everything is saved. Go on with:\n  {}",
            summary.steps,
            summary.planned_steps,
            resume_command()
        );
    } else {
        println!(
            "{} steps in {}, {} tokens sampled, {}",
            summary.steps,
            words::clock(summary.seconds),
            summary.tokens,
            words::dollars(summary.cost_usd)
        );
        if config.eval_problems() > 0 {
            println!(
                "Accuracy on {} held-out problems: {} before, {} after",
                config.eval_problems(),
                percent(summary.accuracy_before),
                percent(summary.accuracy_after)
            );
        }
    }
    if let Some(adapter) = &summary.adapter {
        let source = config.data.source.as_deref().unwrap_or_default();
        let question = if source.starts_with("arithmetic:") {
            "What is 17 + 5?"
        } else {
            "your question"
        };
        println!(
            "The adapter, in PEFT's format: {}",
            shortest(adapter).display()
        );
        println!(
            "Talk to the trained model:\n  {} sample --run {} \"{question}\"",
            program(),
            shortest(&summary.run_dir).display()
        );
    }
}

/// How this program was called.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "tina".to_owned())
}

/// The path from where the person is, if it lies below.
pub(crate) fn shortest(path: &Path) -> PathBuf {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    let relative = here
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    relative.unwrap_or_else(|| path.to_owned())
}

/// The same command, going on.
fn resume_command() -> String {
    format!("{} --resume", same_command())
}

/// This command, but for what begins or goes on with a run.
pub(crate) fn same_command() -> String {
    let given = std::env::args()
        .skip(1)
        .filter(|arg| !["--resume", "--overwrite"].contains(&arg.as_str()));
    let quoted = given.map(|arg| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    });
    format!("{} {}", program(), quoted.collect::<Vec<_>>().join(" "))
}
