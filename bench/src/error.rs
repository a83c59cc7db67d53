//! Why a benchmark has no figure.

use std::path::{Path, PathBuf};

use tina_coordinator::config::ConfigError;
use tina_learner::{settings::SpecError, trainer::TrainError};
use tina_model::ModelError;
use tina_proto::client::ClientError;

/// Why a benchmark has no figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(
        "{path} is not there: build it with `cargo build --release -p tina` (the benchmark runs \
         the binary that lies beside it, or the one given by --tina)"
    )]
    NoBinary { path: PathBuf },
    #[error(
        "{path} is not there: start the benchmark at the root of the repository, or give {flag}"
    )]
    NoFile { path: PathBuf, flag: &'static str },
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{program} can't be started: {source}")]
    Spawn {
        program: PathBuf,
        source: std::io::Error,
    },
    #[error("{what} ended ({status}); the end of its output:\n{tail}")]
    Ended {
        what: &'static str,
        status: String,
        tail: String,
    },
    #[error("{what} within {seconds} s; the end of its output:\n{tail}")]
    Late {
        what: &'static str,
        seconds: u64,
        tail: String,
    },
    #[error("{what}: only {found} of {expected} steps were reported")]
    Steps {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    /// What is measured is not here, for this reason.
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Other(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("results: {0}")]
    Json(#[from] serde_json::Error),
}

pub(crate) type Result<T> = std::result::Result<T, BenchError>;

impl BenchError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Refuses a path where there is no file.
pub(crate) fn require(path: &Path, flag: &'static str) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    Err(BenchError::NoFile {
        path: path.to_owned(),
        flag,
    })
}
