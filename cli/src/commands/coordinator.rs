//! `tina coordinator`: that role alone; learner and workers are started by hand.

use crate::run::RunArgs;

/// Run the coordinator alone; learner and rollout workers join by their own commands
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) run: RunArgs,
}
