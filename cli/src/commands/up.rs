//! `tina up`: everything on this machine, with one command.

use crate::run::RunArgs;

/// Train: start coordinator, learner and rollout workers as the config says, show how it goes
///
/// Ctrl-C finishes the step, saves, and says how to go on; a second one ends at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) run: RunArgs,
}
