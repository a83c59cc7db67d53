//! Whatever arrives, from a file or a wire, is answered with a value or an error: never with a
//! panic, never with more memory than its size accounts for, and in bounded time.
//!
//! A [`Target`] is one door: a function that takes any bytes, and some valid inputs to begin from.
//! - [`files`]: models, tokenizers, adapters. [`texts`]: configs, data, templates, answers.
//!   [`wire`]: messages of every stream, up to what they do to the scheduler. [`ranks`]: those between
//!   a learner's ranks.
//! - [`mutate`]: valid inputs, broken.
//!
//! `tests/mutations.rs` breaks each target's inputs some thousands of times on any toolchain; the
//! same functions are targets for cargo-fuzz in `fuzz/`: `cargo +nightly fuzz run gguf`, in this
//! folder, after `TINA_FUZZ_CORPUS=fuzz/corpus cargo test --release -p tina-fuzz corpus`, which
//! writes the valid inputs there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

pub mod files;
pub mod mutate;
pub mod ranks;
pub mod texts;
pub mod wire;

use std::{fs, path::PathBuf};

use tempfile::TempDir;

/// A door to knock at.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of cargo-fuzz's target.
    pub name: &'static str,
    /// Takes any bytes; a panic is a bug.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that a test tries: some ten seconds' worth for all targets together.
    pub mutations: u64,
}

macro_rules! targets {
    ($($module:ident :: $name:ident x $mutations:literal,)*) => {
        /// All doors.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $module::$name::run,
            seeds: $module::$name::seeds,
            mutations: $mutations,
        }),*];
    };
}

targets! {
    files::gguf x 5_000,
    files::safetensors x 5_000,
    files::shard_index x 5_000,
    files::hf_config x 20_000,
    files::tokenizer x 20_000,
    files::adapter x 40_000,
    files::adapter_config x 20_000,
    texts::config x 20_000,
    texts::json_lines x 20_000,
    texts::parquet x 10_000,
    texts::chat_template x 20_000,
    texts::verify x 20_000,
    wire::worker_stream x 50_000,
    wire::learner_stream x 50_000,
    wire::worker_commands x 20_000,
    wire::learner_commands x 20_000,
    wire::adapter_chunks x 20_000,
    ranks::rank_commands x 20_000,
    ranks::rank_messages x 20_000,
}

/// A place in a folder of this thread's own.
fn place(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: TempDir = TempDir::new().expect("a folder");
    }
    FOLDER.with(|folder| folder.path().join(name))
}

/// A file there, with these bytes.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = place(name);
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        fs::create_dir_all(folder).expect("a folder");
    }
    // Some file systems wait for the disk where a file is cut and written again.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("written");
    path
}
