//! `tina learner`: turns a coordinator's groups into new adapters.

use std::path::PathBuf;

use tina_learner::LearnerOptions;

use crate::{Failure, connection::Join, shutdown};

/// Join a run as its learner, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    join: Join,
    /// Folder for checkpoints [default: the run's folder, where this machine has it]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let join = &args.join;
    let mut options = LearnerOptions::new(join.client_options()?, join.id("learner"));
    options.device.clone_from(&join.device);
    options.state_dir.clone_from(&args.state_dir);
    Ok(tina_learner::run(options, shutdown::requested(join.exit_with_parent)).await?)
}
