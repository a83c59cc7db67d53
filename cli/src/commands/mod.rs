//! The subcommands, a file each.

pub(crate) mod certs;
pub(crate) mod check;
pub(crate) mod control;
pub(crate) mod coordinator;
pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod learner;
pub(crate) mod learner_rank;
pub(crate) mod logprobs;
pub(crate) mod report;
pub(crate) mod reward;
pub(crate) mod rollout_worker;
pub(crate) mod runs;
pub(crate) mod sample;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod verify;

/// A name for a role started by hand: unique by host and process.
pub(crate) fn default_id(role: &str) -> String {
    format!("{role}-{}-{}", tina_proto::host::name(), std::process::id())
}
