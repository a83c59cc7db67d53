//! `tina rollout-worker`: samples completions for a coordinator.

use tina_rollout_worker::WorkerOptions;

use crate::{Failure, connection::Credentials, shutdown};

/// Join a run as a rollout worker, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the coordinator, e.g. http://127.0.0.1:7461
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Sequences to decode at a time [default: as the run's config says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
    /// Name of the worker, unique in the run [default: of host and process]
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
        .unwrap_or_else(|| super::default_id("worker"));
    let mut options = WorkerOptions::new(args.credentials.client_options(&args.coordinator)?, id);
    options.device.clone_from(&args.device);
    options.slots = args.slots;
    Ok(tina_rollout_worker::run(options, shutdown::requested(args.exit_with_parent)).await?)
}
