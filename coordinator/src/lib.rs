//! Dispatch, scoring, grouping, journal, status; launching a cluster from one config.
//!
//! - [`run()`]: a whole run, from config to summary. [`RunEvent`]: what happens meanwhile.
//! - [`evaluation`]: adapters on suites of problems, without training.
//! - [`certs`]: certificates for a cluster.
//! - [`config`]: the run's config, plain data parsed once.
//! - [`data`]: the problems.
//! - [`scheduler`]: the heart, a pure state machine; simulated under faults.
//! - [`journal`]: what a run must not lose, in SQLite.
//! - [`relays`]: from whom a worker gets a new adapter (pure).
//! - [`report`]: one page about a run, from its journal.
//! - [`scoring`]: from a completion's tokens to its rewards.
//! - [`statistics`]: pass@1, pass@k and differences with intervals.
//! - [`services`]: the doors: gRPC streams, adapters, status, control.
//! - [`status`]: records and reports.
//! - [`supervise`]: the processes of this machine.

pub mod certs;
pub mod config;
pub mod data;
pub mod evaluation;
pub mod journal;
pub mod relays;
pub mod report;
mod run;
pub mod scheduler;
pub mod scoring;
pub mod services;
pub mod statistics;
pub mod status;
pub mod supervise;

pub use run::{
    ADDRESS_FILE, CONFIG_FILE, CoordinatorError, CoordinatorOptions, JOURNAL_FILE, RunEvent,
    RunSummary, run,
};
