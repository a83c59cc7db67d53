//! Dispatch, scoring, grouping, journal, status; launching a cluster from one config.
//!
//! - [`config`]: the run's config, plain data parsed once.
//! - [`data`]: the problems.
//! - [`scheduler`]: the heart, a pure state machine.

pub mod config;
pub mod data;
pub mod scheduler;
