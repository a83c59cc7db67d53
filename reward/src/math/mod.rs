//! Whether a completion's final answer equals a gold answer.
//!
//! - [`Verifier`]: the verdict, from a [`MathConfig`].
//! - [`extract`]: where in a text the answer stands. [`parse`]: from its text to an [`expr::Expr`].
//!   [`render`]: from there back to LaTeX. [`equal`]: whether two trees are the same answer.
//!   [`fuel`]: what bounds all of them.
//!
//! `docs/rewards.md` says what is found, what is equal, and where this differs from math-verify.

pub mod config;
pub mod equal;
pub mod expr;
pub mod extract;
pub mod fuel;
pub mod parse;
mod read;
pub mod render;
pub mod verifier;

pub use config::{MathConfig, Reading};
pub use verifier::{Difference, Judgement, Outcome, Unjudged, Verifier};
