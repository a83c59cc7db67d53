//! What surrounds this program: a folder of its own, the program beside it, and who tells it to end.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{BenchError, Result};

/// Waits for `work`, or until somebody wants this program to end. What is dropped then ends its
/// processes and takes its files away.
pub(crate) fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let internal = |error: std::io::Error| BenchError::Other(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(internal)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
        tokio::select! {
            done = work => done,
            _ = tokio::signal::ctrl_c() => Err(BenchError::Other("interrupted".into())),
            _ = terminate.recv() => Err(BenchError::Other("told to end".into())),
        }
    })
}

/// This program's own file.
pub(crate) fn own() -> Result<PathBuf> {
    std::env::current_exe().map_err(BenchError::file(Path::new("this program")))
}

/// A program that lies where this one does.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    Ok(own()?.with_file_name(name))
}

/// A folder that is gone when the benchmark is over.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        #[allow(clippy::disallowed_methods, reason = "a name that no other has")]
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("tina-bench-{}-{:x}", std::process::id(), now.as_nanos());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(BenchError::file(&path))?;
        Ok(Self(path))
    }

    /// An empty folder of this name.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(BenchError::file(&path))?;
        }
        fs::create_dir_all(&path).map_err(BenchError::file(&path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
