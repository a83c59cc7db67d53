//! Files mapped into memory.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{ModelError, Result};

/// A file's bytes, mapped for reading rather than copied.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    bytes: Mmap,
}

impl MappedFile {
    /// Maps a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let metadata = file.metadata().map_err(ModelError::io(path))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(ModelError::bad_file(
                path,
                "expected a file that is not empty",
            ));
        }
        #[allow(
            unsafe_code,
            reason = "a mapping is the only way to read weights without a copy"
        )]
        // SAFETY: the mapping is private and read-only, and lives as long as its owner. Model files
        // are written once: the caches Tina fills rename finished files into place, as the Hub's
        // cache does. Someone who overwrites a model under a running process breaks that, as with
        // every program that maps its weights; only bytes are read through it, all of which are
        // checked as they are interpreted.
        let bytes = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
        })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
