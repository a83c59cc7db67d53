//! `tina-bench cpu`: every figure of a CPU, ours and the peers' in turns in one run.

use crate::{
    cpu::run::{Options, measure},
    error::Result,
    host::until_interrupted,
};

/// Time sampling, learning and whole steps on this CPU, in turns with the peers
///
/// Each figure: ours, the best peer's, the ratio (above 1: ours is better), the floor (what the
/// machine could do at most, measured first), the share of it that ours reaches, and peak memory.
/// Every side runs in a fresh process; figures are medians over the rounds. A peer that is not here
/// is skipped, and that is said.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    until_interrupted(measure(&args.options))
}
