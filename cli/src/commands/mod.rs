//! The subcommands, a file each.

pub(crate) mod check;
pub(crate) mod control;
pub(crate) mod coordinator;
pub(crate) mod learner;
pub(crate) mod logprobs;
pub(crate) mod rollout_worker;
pub(crate) mod sample;
pub(crate) mod status;
pub(crate) mod up;

/// A name for a role started by hand: unique by host and process.
pub(crate) fn default_id(role: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let separator = if host.is_empty() { "" } else { "-" };
    format!("{role}{separator}{host}-{}", std::process::id())
}
