//! The run's folder.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::CoordinatorError;
use crate::{config::RunConfig, journal};

/// File in a run's folder with the address of its coordinator, while there is one.
pub const ADDRESS_FILE: &str = "coordinator.addr";

/// All that a run leaves in its folder.
const PARTS: [&str; 8] = [
    "run.db",
    "run.db-wal",
    "run.db-shm",
    "config.toml",
    ADDRESS_FILE,
    "adapters",
    "checkpoints",
    "logs",
];

/// The folder of a run, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    name: String,
    _lock: File,
}

impl Folder {
    /// Makes the folder ready for a new run, or for going on with the one in it.
    pub(super) fn prepare(
        config: &RunConfig,
        resume: bool,
        overwrite: bool,
    ) -> Result<Self, CoordinatorError> {
        let given = config.run_dir();
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CoordinatorError::File { path, source }
        };
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
        if !resume {
            if !overwrite {
                let steps = journal::steps_done(&folder.journal())?;
                if steps > 0 {
                    return Err(CoordinatorError::Exists {
                        run_dir: folder.path,
                        steps,
                    });
                }
            }
            for part in PARTS {
                let part = folder.path.join(part);
                let removed = if part.is_dir() {
                    fs::remove_dir_all(&part)
                } else {
                    fs::remove_file(&part)
                };
                match removed {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(at(&part)(error));
                    }
                    _ => {}
                }
            }
        }
        for part in ["checkpoints", "logs"] {
            let part = folder.path.join(part);
            fs::create_dir_all(&part).map_err(at(&part))?;
        }
        let resolved = folder.path.join("config.toml");
        fs::write(&resolved, config.to_toml()).map_err(at(&resolved))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("run.db")
    }

    pub(super) fn adapters(&self) -> PathBuf {
        self.path.join("adapters")
    }

    pub(super) fn log(&self, role: &str) -> PathBuf {
        self.path.join("logs").join(format!("{role}.log"))
    }

    /// A name that no other run has; a label only, nothing is computed from it.
    pub(super) fn new_run_id(&self) -> String {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        format!(
            "{}-{:x}-{:x}",
            self.name,
            since.as_millis(),
            std::process::id()
        )
    }

    pub(super) fn write_address(&self, address: SocketAddr) -> Result<(), CoordinatorError> {
        let path = self.path.join(ADDRESS_FILE);
        let fresh = self.path.join(".coordinator.addr.new");
        fs::write(&fresh, format!("{address}\n"))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| CoordinatorError::File { path, source })
    }

    pub(super) fn forget_address(&self) {
        let _ = fs::remove_file(self.path.join(ADDRESS_FILE));
    }
}
