//! The server's half of Publish.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use futures::{Stream, StreamExt as _};
use tokio::{sync::Semaphore, time::timeout};
use tonic::Status;

use super::{Assembly, Checks, MAX_ADAPTER_BYTES, TransportError};
use crate::{
    client::CHUNK_DEADLINE,
    v1::{AdapterChunk, PolicyVersion},
};

/// Publish streams at a time, and broken ones whose bytes are kept for the next attempt.
const PLACES: usize = 2;

/// Receives published adapters. What arrived on a stream that broke is kept, so that the sender
/// goes on from there; memory is bounded by a few adapters of the largest size.
#[derive(Debug)]
pub struct Inbox {
    limit: u64,
    streams: Semaphore,
    partial: Mutex<VecDeque<Assembly>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new(MAX_ADAPTER_BYTES)
    }
}

/// What a Publish stream came to.
#[derive(Debug, PartialEq)]
pub enum Publication {
    /// The sender asked, or stopped early: this much is held. To be answered as it stands.
    Held {
        /// The adapter's version.
        version: PolicyVersion,
        /// Bytes held of it.
        held: u64,
    },
    /// All of it, verified: to be stored, then answered with its size.
    Complete {
        /// The adapter's version.
        version: PolicyVersion,
        /// The safetensors file.
        bytes: Vec<u8>,
        /// Of its pieces, found while they came.
        checks: Checks,
    },
}

/// An assembly under way; one that is dropped short of the whole goes back into the inbox, also
/// when the call is cancelled because its sender went away.
struct Receiving<'a> {
    inbox: &'a Inbox,
    assembly: Option<Assembly>,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if let Some(assembly) = self.assembly.take().filter(|assembly| assembly.held() > 0) {
            let mut partial = self.inbox.partial();
            if partial.len() >= PLACES {
                partial.pop_front();
            }
            partial.push_back(assembly);
        }
    }
}

impl From<TransportError> for Status {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::WrongContent { .. } => Status::data_loss(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        }
    }
}

impl Inbox {
    /// Refuses adapters above `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            streams: Semaphore::new(PLACES),
            partial: Mutex::default(),
        }
    }

    fn partial(&self) -> std::sync::MutexGuard<'_, VecDeque<Assembly>> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, digest: &[u8]) -> Option<Assembly> {
        let mut partial = self.partial();
        let at = partial
            .iter()
            .position(|assembly| assembly.version().digest == digest)?;
        partial.remove(at)
    }

    /// Reads one Publish stream. `stored` tells the size of an adapter that is kept already.
    pub async fn receive<S>(
        &self,
        mut stream: S,
        stored: impl FnOnce(&PolicyVersion) -> Option<u64>,
    ) -> Result<Publication, Status>
    where
        S: Stream<Item = Result<AdapterChunk, Status>> + Unpin,
    {
        let _place = self
            .streams
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many adapters are being published"))?;
        let first = next(&mut stream)
            .await?
            .ok_or_else(|| Status::invalid_argument("a publication without a chunk"))?;
        let version = first
            .version
            .clone()
            .ok_or_else(|| Status::invalid_argument("the first chunk names no version"))?;
        if let Some(held) = stored(&version) {
            return Ok(Publication::Held { version, held });
        }
        let fresh = Assembly::new(version.clone(), self.limit)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let question = first.data.is_empty();
        // Data at offset 0 starts over, whatever was held.
        let kept = self
            .take(&version.digest)
            .filter(|_| question || first.offset > 0);
        let mut receiving = Receiving {
            inbox: self,
            assembly: Some(kept.unwrap_or(fresh)),
        };
        let mut upcoming = if question {
            next(&mut stream).await?
        } else {
            Some(first)
        };
        while let Some(assembly) = &mut receiving.assembly {
            let Some(chunk) = upcoming.take() else {
                return Ok(Publication::Held {
                    version,
                    held: assembly.held(),
                });
            };
            if let Err(error) = assembly.push(chunk) {
                receiving.assembly = None;
                return Err(error.into());
            }
            if assembly.is_complete() {
                break;
            }
            upcoming = next(&mut stream).await?;
        }
        let whole = receiving.assembly.take();
        let whole = whole.ok_or_else(|| Status::internal("the assembly was lost"))?;
        let (bytes, checks) = whole.finish_with_checks()?;
        Ok(Publication::Complete {
            version,
            bytes,
            checks,
        })
    }
}

async fn next<S>(stream: &mut S) -> Result<Option<AdapterChunk>, Status>
where
    S: Stream<Item = Result<AdapterChunk, Status>> + Unpin,
{
    timeout(CHUNK_DEADLINE, stream.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no chunk came in time"))?
        .transpose()
}
