//! The run's folder.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::CoordinatorError;
use crate::{config::RunConfig, journal};

/// File in a run's folder with the address of its coordinator, while there is one.
pub const ADDRESS_FILE: &str = "coordinator.addr";

/// File in a run's folder with its journal.
pub const JOURNAL_FILE: &str = "run.db";

/// File in a run's folder with its resolved config.
pub const CONFIG_FILE: &str = "config.toml";

/// All that a run leaves in its folder.
const PARTS: [&str; 10] = [
    JOURNAL_FILE,
    "run.db-wal",
    "run.db-shm",
    CONFIG_FILE,
    ADDRESS_FILE,
    "learner.addr",
    "adapters",
    "checkpoints",
    "logs",
    "report",
];

/// The folder of a run, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    name: String,
    _lock: File,
}

impl Folder {
    /// Takes the folder for a new run, or for going on with the one in it. What is in it stays as
    /// it is: what else can go wrong at the start comes first.
    pub(crate) fn claim(
        config: &RunConfig,
        resume: bool,
        overwrite: bool,
    ) -> Result<Self, CoordinatorError> {
        let given = config.run_dir();
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CoordinatorError::File { path, source }
        };
        if resume && !given.join(JOURNAL_FILE).exists() {
            return Err(CoordinatorError::NoRun { run_dir: given });
        }
        fs::create_dir_all(&given).map_err(at(&given))?;
        let path = given.canonicalize().map_err(at(&given))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CoordinatorError::InUse { run_dir: path });
            }
            Err(TryLockError::Error(source)) => return Err(at(&lock_path)(source)),
        }
        let folder = Self {
            path,
            name: config.run.name.clone(),
            _lock: lock,
        };
        if !resume && !overwrite {
            let steps = journal::steps_done(&folder.journal())?;
            if steps > 0 {
                return Err(CoordinatorError::Exists {
                    run_dir: folder.path,
                    steps,
                });
            }
        }
        Ok(folder)
    }

    /// Removes what an earlier run left.
    pub(crate) fn clear(&self) -> Result<(), CoordinatorError> {
        for part in PARTS {
            let path = self.path.join(part);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(CoordinatorError::File { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the places that the run writes to, and keeps the resolved config.
    pub(super) fn furnish(&self, config: &RunConfig) -> Result<(), CoordinatorError> {
        for part in ["checkpoints", "logs"] {
            let path = self.path.join(part);
            if let Err(source) = fs::create_dir_all(&path) {
                return Err(CoordinatorError::File { path, source });
            }
        }
        self.replace(CONFIG_FILE, &config.to_toml())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL_FILE)
    }

    pub(super) fn adapters(&self) -> PathBuf {
        self.path.join("adapters")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(super) fn log(&self, role: &str) -> PathBuf {
        self.logs().join(format!("{role}.log"))
    }

    /// A name that no other run has; a label only, nothing is computed from it.
    #[allow(clippy::disallowed_methods, reason = "a label")]
    pub(super) fn new_run_id(&self) -> String {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        format!(
            "{}-{:x}-{:x}",
            self.name,
            since.as_millis(),
            tina_proto::platform::process_id()
        )
    }

    /// For whoever asks about the run on this machine: host and port of `url`.
    pub(super) fn write_address(&self, url: &str) -> Result<(), CoordinatorError> {
        let address = url.split_once("://").map_or(url, |(_, address)| address);
        self.replace(ADDRESS_FILE, &format!("{address}\n"))
    }

    /// Writes a file, whole or not at all.
    pub(crate) fn replace(&self, name: &str, text: &str) -> Result<(), CoordinatorError> {
        let path = self.path.join(name);
        let fresh = self.path.join(format!(".{name}.new"));
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| CoordinatorError::File { path, source })
    }

    pub(super) fn forget_address(&self) {
        let _ = fs::remove_file(self.path.join(ADDRESS_FILE));
    }
}
