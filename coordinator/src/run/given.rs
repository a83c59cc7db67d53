//! Adapters to evaluate: named up front, read when their turn comes.

use std::{path::PathBuf, sync::Arc};

use tina_model::adapter_digest;

use super::shell::Shell;
use crate::scheduler::types::Version;

/// One of the adapters to evaluate.
#[derive(Clone, Debug)]
pub(crate) struct GivenAdapter {
    /// Its place among them, and its digest.
    pub(crate) version: Version,
    /// Its bytes, or where they are.
    pub(crate) weights: Weights,
}

/// An adapter's bytes: adapters may be large and many, so that files stay on disk.
#[derive(Clone, Debug)]
pub(crate) enum Weights {
    /// Made here.
    Bytes(Arc<[u8]>),
    /// `adapter_model.safetensors`.
    File(PathBuf),
}

impl Weights {
    /// # Errors
    /// Why the file can't be read.
    pub(crate) fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => std::fs::read(path)
                .map(Into::into)
                .map_err(|error| format!("{}: can't be read: {error}", path.display())),
        }
    }
}

impl Shell {
    /// Puts a given adapter where workers fetch it, as it becomes the policy.
    pub(super) fn offer_given(&mut self, version: Version) {
        let mut given = self.parts.given.iter();
        let Some(adapter) = given.find(|adapter| adapter.version == version) else {
            return;
        };
        match adapter.weights.read() {
            Ok(bytes) if adapter_digest(&bytes) == version.digest => {
                self.parts.shared.adapters.put(version, bytes);
            }
            Ok(_) => self.fail(format!(
                "the adapter {version} changed since the evaluation began: bring the old one back"
            )),
            Err(error) => self.fail(error),
        }
    }
}
