//! Dispatch, scoring, grouping, journal, status; launching a cluster from one config.
//!
//! - [`config`]: the run's config, plain data parsed once.
//! - [`data`]: the problems.
//! - [`scheduler`]: the heart, a pure state machine.
//! - [`journal`]: what a run must not lose, in SQLite.
//! - [`scoring`]: from a completion's tokens to its rewards.

pub mod config;
pub mod data;
pub mod journal;
pub mod scheduler;
pub mod scoring;
