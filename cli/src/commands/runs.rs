//! `tina run ...`: what is made of a run's folder, whether the run goes on or has ended.

use clap::Subcommand;

use super::report;
use crate::Failure;

/// Look at a run by its folder
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Report(report::Args),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Report(args) => report::run(args),
    }
}
