//! `tina-bench cluster`: a real coordinator under up to a thousand simulated workers.

use crate::{
    error::Result,
    host::until_interrupted,
    scale::{Options, measure},
};

/// Time the coordinator's hand-off with many simulated rollout workers, beside Ray's
///
/// A real coordinator with its journal, over loopback; workers and learner are simulated, each worker
/// with a connection of its own. Under full load workers answer at once: completions a second through
/// dispatch, scoring, journal and hand-over to the learner. Paced, all workers together come to a given
/// rate: the latency from sending a completion to the next sample in its slot.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    until_interrupted(measure(&args.options))
}
