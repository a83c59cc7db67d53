//! Why a run can't begin or go on.

use std::path::PathBuf;

use tina_model::ModelError;

use crate::{data::DataError, journal::JournalError, services::DoorError};

/// Why a run can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// A run of this name has steps already.
    #[error(
        "{run_dir} holds a run of {steps} steps: --resume goes on with it, --overwrite throws it \
         away, another run.name leaves it be"
    )]
    Exists {
        /// The run's folder.
        run_dir: PathBuf,
        /// Steps done.
        steps: u64,
    },
    /// There is nothing to go on with.
    #[error(
        "{run_dir} holds no run to go on with: leave --resume out to begin it, or see that \
         run.name and run.dir are right"
    )]
    NoRun {
        /// The run's folder.
        run_dir: PathBuf,
    },
    /// Another coordinator has the folder.
    #[error("{run_dir} is in use by another coordinator")]
    InUse {
        /// The run's folder.
        run_dir: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The model can't be had.
    #[error("model {name}: {source}")]
    Model {
        /// As the config names it.
        name: String,
        /// Why.
        source: Box<ModelError>,
    },
    /// The problems can't be had.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A reward can't be made.
    #[error(transparent)]
    Reward(#[from] tina_reward::RewardError),
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Nobody can dial in.
    #[error(transparent)]
    Doors(#[from] DoorError),
    /// The run failed; what is done is kept.
    #[error("{reason}")]
    Failed {
        /// Why, and what to do.
        reason: String,
        /// Steps done.
        steps: u64,
        /// The run's folder.
        run_dir: PathBuf,
    },
    /// Ended at once, on a second request to stop.
    #[error("stopped at once after {steps} steps; --resume goes on from there")]
    Interrupted {
        /// Steps done.
        steps: u64,
    },
    /// A value of the config that this model or these problems don't allow.
    #[error("{key}: {message}")]
    Unfit {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Ended on request while model and data were loading.
    #[error("stopped before the run began")]
    NotBegun,
    /// Part of the machinery is gone.
    #[error("{0}")]
    Internal(String),
}
