//! `tina-bench adapters`: how long it takes until all workers have a new adapter.

use crate::{
    error::Result,
    spread::{Options, measure},
};

/// Time how a new adapter reaches many rollout workers, with and without relays
///
/// The coordinator's own services in this process; the workers are real processes (`tina
/// rollout-worker`) on loopback, with a model of random weights whose adapter has the size asked for.
/// From the announcement to the acknowledgement that an adapter is taken in, the pause that a worker's
/// engine sees, and what the coordinator uploads.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    measure(&args.options)
}
