//! The problems of a run.
