//! Finds in texts: each expected value was read off math-verify 0.9.0's `parse`.
