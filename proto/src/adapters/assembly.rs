//! The pieces of one adapter, put together and checked.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{CHUNK_BYTES, Checks, TransportError, transfer::Transfer, wrong_content};
use crate::{
    v1::{AdapterChunk, PolicyVersion},
    version::{BadDigest, Digest},
};

/// The bytes of one adapter as they arrive, in order; memory grows with what came, never beyond
/// the limit.
#[derive(Debug)]
pub(crate) struct Assembly {
    version: PolicyVersion,
    limit: u64,
    total: Option<u64>,
    transfer: Arc<Transfer>,
    held: u64,
    /// Of what is held; kept up with it, so that hashing goes on while the rest is on its way.
    hash: Sha256,
    /// What beginnings must hash to.
    checks: Option<Checks>,
    /// What they did hash to, where that is not known.
    found: Vec<Digest>,
    /// The end of the last piece that is right, and the hash there.
    sure: (u64, Sha256),
}

impl Drop for Assembly {
    fn drop(&mut self) {
        self.transfer.break_off();
    }
}

impl Assembly {
    pub(crate) fn new(version: PolicyVersion, limit: u64) -> Result<Self, BadDigest> {
        version.checked_digest()?;
        Ok(Self {
            transfer: Arc::new(Transfer::new(version.clone())),
            version,
            limit,
            total: None,
            held: 0,
            hash: Sha256::new(),
            checks: None,
            found: Vec::new(),
            sure: (0, Sha256::new()),
        })
    }

    /// Believes nothing but what these say. To be called before the first chunk.
    #[must_use]
    pub(super) fn with_checks(mut self, checks: Option<Checks>) -> Self {
        self.checks = checks;
        self
    }

    pub(crate) fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// For readers.
    pub(super) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.total == Some(self.held)
    }

    fn piece(&self) -> u64 {
        self.checks
            .as_ref()
            .map_or(CHUNK_BYTES as u64, Checks::piece)
    }

    pub(crate) fn push(&mut self, chunk: AdapterChunk) -> Result<(), TransportError> {
        let total = self.fits(&chunk)?;
        self.total = Some(total);
        let piece = self.piece();
        let mut data = &chunk.data[..];
        while !data.is_empty() {
            let room = usize::try_from(piece - self.held % piece).unwrap_or(data.len());
            let (part, rest) = data.split_at(room.min(data.len()));
            self.transfer.append(part);
            self.hash.update(part);
            self.held += part.len() as u64;
            data = rest;
            if self.held.is_multiple_of(piece) || self.held == total {
                self.end_piece(total)?;
            }
        }
        Ok(())
    }

    /// The adapter's size, if the chunk is one of it and comes next.
    fn fits(&self, chunk: &AdapterChunk) -> Result<u64, TransportError> {
        let bad = |problem: String| TransportError::BadChunk {
            version: self.version.short().to_string(),
            problem,
        };
        if chunk
            .version
            .as_ref()
            .is_some_and(|version| version.digest != self.version.digest)
        {
            return Err(bad("a chunk of another version came".to_owned()));
        }
        let known = self.checks.as_ref().map(Checks::total);
        let total = self.total.or(known).unwrap_or(chunk.total);
        if chunk.total != total {
            return Err(bad(format!(
                "its size was {total} and is now {}",
                chunk.total
            )));
        }
        if total == 0 || total > self.limit {
            return Err(bad(format!(
                "its size is {total} bytes; 1 to {} are taken",
                self.limit
            )));
        }
        if chunk.offset != self.held {
            return Err(bad(format!(
                "a chunk came at offset {}, where {} was next",
                chunk.offset, self.held
            )));
        }
        if chunk.data.len() as u64 > total - self.held {
            return Err(bad(format!("more than its {total} bytes came")));
        }
        Ok(total)
    }

    fn end_piece(&mut self, total: u64) -> Result<(), TransportError> {
        let found: Digest = self.hash.clone().finalize().into();
        let Some(checks) = &self.checks else {
            self.found.push(found);
            return Ok(());
        };
        if checks.at(self.held) == Some(&found) {
            self.sure = (self.held, self.hash.clone());
            self.transfer.good(self.held, total);
            return Ok(());
        }
        let error = TransportError::WrongPiece {
            version: self.version.short().to_string(),
            end: self.held,
        };
        self.settle();
        Err(error)
    }

    /// Forgets what could not be checked yet, so that a wrong piece is of one source alone. Where
    /// nothing can be checked, all is kept.
    pub(super) fn settle(&mut self) {
        if self.checks.is_some() {
            let (held, hash) = &self.sure;
            self.transfer.truncate(*held);
            (self.held, self.hash) = (*held, hash.clone());
        }
    }

    fn verify(&self) -> Result<(), TransportError> {
        let found = self.hash.clone().finalize();
        if found[..] == self.version.digest[..] {
            Ok(())
        } else {
            Err(wrong_content(&self.version, &found))
        }
    }

    /// The bytes, if they are what the version's name says.
    pub(crate) fn finish(self) -> Result<Arc<Vec<u8>>, TransportError> {
        self.verify()?;
        Ok(self.transfer.complete())
    }

    /// The same, and the checks of its pieces.
    pub(super) fn finish_with_checks(mut self) -> Result<(Vec<u8>, Checks), TransportError> {
        self.verify()?;
        let found = Checks::found(self.held, std::mem::take(&mut self.found));
        let checks = self.checks.take().unwrap_or(found);
        let bytes = self.transfer.complete();
        drop(self);
        Ok((Arc::unwrap_or_clone(bytes), checks))
    }
}
