//! `tina check`: the resolved config with where each key was written, or everything that is wrong.

use std::path::PathBuf;

use tina_coordinator::config::RunConfig;

use crate::Failure;

/// Print the resolved config, or everything that is wrong with it; run nothing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's config.
    #[arg(required_unless_present = "keys")]
    config: Option<PathBuf>,
    /// Set a key: section.key=value, e.g. learner.lr=1e-5 or reward.0.weight=2
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print every key that there is instead, with default, unit and meaning (Markdown)
    #[arg(long, conflicts_with = "config")]
    keys: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.config {
        Some(path) => print!("{}", RunConfig::explain(path, &args.sets)?),
        None => print!("{}", RunConfig::reference()),
    }
    Ok(())
}
