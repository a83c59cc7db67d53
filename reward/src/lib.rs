//! Verdicts on text: pure functions from a completion and a gold answer to a number.
