//! `tina`: the one binary. Parses the command line and hands over to a role or a client.
//!
//! - `commands`: the subcommands, a file each.
//! - `progress`, `words`, `status_text`: what people read.
//! - `run`: a coordinator's run as a person sees it: `up` and `coordinator`.
//! - `policy`: a loaded model for `sample` and `logprobs`.
//! - `connection`, `shutdown`, `logging`: what several commands share.

mod commands;
mod connection;
mod logging;
mod policy;
mod progress;
mod run;
mod shutdown;
mod status_text;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    certs, check, control, coordinator, data, eval, learner, learner_rank, logprobs, reward,
    rollout_worker, runs, sample, status, token, up, verify,
};

/// Why a command failed; printed with its causes.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Make a small language model better at problems whose answers can be checked: GRPO on a LoRA
/// adapter, with one command on one machine or one config on a cluster.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Start with: tina up deploy/quickstart.toml\n\
    Keys of the config: tina check --keys\n\
    Logs: TINA_LOG=debug tina ... (or warn, info, tina_learner=trace)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Eval(eval::Args),
    Check(check::Args),
    Data(data::Args),
    Status(status::Args),
    Control(control::Args),
    Run(runs::Args),
    Sample(sample::Args),
    Logprobs(logprobs::Args),
    Reward(reward::Args),
    Verify(verify::Args),
    Coordinator(coordinator::Args),
    #[command(name = "rollout-worker")]
    RolloutWorker(rollout_worker::Args),
    Learner(learner::Args),
    #[command(name = "learner-rank")]
    LearnerRank(learner_rank::Args),
    Certs(certs::Args),
    Token(token::Args),
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => block_on(run::run(&args.run, true)),
        Command::Eval(args) => block_on(eval::run(&args)),
        Command::Coordinator(args) => block_on(run::run(&args.run, false)),
        Command::RolloutWorker(args) => {
            logging::to_stderr("info");
            block_on(rollout_worker::run(&args))
        }
        Command::Learner(args) => {
            logging::to_stderr("info");
            block_on(learner::run(&args))
        }
        Command::LearnerRank(args) => {
            logging::to_stderr("info");
            block_on(learner_rank::run(&args))
        }
        Command::Status(args) => {
            logging::to_stderr("warn");
            block_on(status::run(&args))
        }
        Command::Control(args) => {
            logging::to_stderr("warn");
            block_on(control::run(&args))
        }
        Command::Reward(args) => {
            logging::to_stderr("warn");
            block_on(reward::run(&args))
        }
        Command::Check(args) => check::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Run(args) => runs::run(&args),
        Command::Data(args) => {
            logging::to_stderr("warn");
            data::run(&args)
        }
        Command::Verify(args) => verify::run(&args),
        Command::Sample(args) => {
            logging::to_stderr("warn");
            sample::run(&args)
        }
        Command::Logprobs(args) => {
            logging::to_stderr("warn");
            logprobs::run(&args)
        }
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(future);
    // A model still being fetched or loaded on a thread of its own is nobody's any more; to drop
    // the runtime would wait for it.
    runtime.shutdown_background();
    outcome
}

/// An error and its causes, each in a line of its own. An error that ends with the words of its
/// deepest cause has told them all.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let causes: Vec<String> = std::iter::successors(error.source(), |cause| cause.source())
        .map(ToString::to_string)
        .collect();
    if causes.last().is_none_or(|deepest| text.contains(deepest)) {
        return text;
    }
    for (at, cause) in causes.iter().enumerate() {
        if at == 0 || !causes[at - 1].contains(cause) {
            text += &format!("\n  because: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the file can't be read")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("no such disk"));
        assert_eq!(
            chain(&error),
            "the file can't be read\n  because: no such disk"
        );
        assert_eq!(
            chain(&std::io::Error::other("no such disk")),
            "no such disk"
        );
    }
}
