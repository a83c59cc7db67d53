//! `tina learner`: turns a coordinator's groups into new adapters.

use std::path::PathBuf;

use tina_learner::LearnerOptions;

use crate::{Failure, connection::Credentials, shutdown};

/// Join a run as its learner, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the coordinator, e.g. http://127.0.0.1:7461
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder for checkpoints [default: the run's folder, where this machine has it]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Name of the learner [default: of host and process]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// End when this process, which started this one, is gone
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<u32>,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let id = args
        .id
        .clone()
        .unwrap_or_else(|| super::default_id("learner"));
    let mut options = LearnerOptions::new(args.credentials.client_options(&args.coordinator)?, id);
    options.device.clone_from(&args.device);
    options.state_dir.clone_from(&args.state_dir);
    Ok(tina_learner::run(options, shutdown::requested(args.exit_with_parent)).await?)
}
