//! Whether a completion's final answer equals a gold answer.
//!
//! - `extract`: where in a text the answer stands. `parse`: from its text to an [`expr::Expr`].
//!   `equal`: whether two trees are the same answer. [`fuel`]: what bounds all three.

pub mod equal;
pub mod expr;
pub mod fuel;
pub mod parse;
pub mod render;
