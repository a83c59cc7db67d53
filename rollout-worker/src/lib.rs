//! Samples completions: a batched decoding engine and its service loop.
