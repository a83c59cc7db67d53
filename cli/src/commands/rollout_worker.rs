//! `tina rollout-worker`: samples completions for a coordinator.

use tina_proto::auth::Role;
use tina_rollout_worker::WorkerOptions;

use crate::{Failure, connection::Join, shutdown};

/// Join a run as a rollout worker, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    join: Join,
    /// Sequences to decode at a time [default: as the run's config says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let join = &args.join;
    let mut options = WorkerOptions::new(join.client_options(Role::Worker)?, join.id(Role::Worker));
    options.device.clone_from(&join.device);
    options.slots = args.slots;
    Ok(tina_rollout_worker::run(options, shutdown::requested(join.exit_with_parent)).await?)
}
