//! Dispatch, scoring, grouping, journal, status; launching a cluster from one config.
