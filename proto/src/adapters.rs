//! Adapters by content: how their bytes get from one process to another.
//!
//! [`AdapterTransport`] is what workers and learners see. [`GrpcTransport`] is the way that works
//! everywhere: chunks over the service `Adapters`, bounded before anything is allocated, resumed
//! from the bytes that arrived when a stream breaks, and believed only once the SHA-256 agrees.
//! The server's half is [`chunks`] (Fetch) and [`Inbox`] (Publish). [`NcclTransport`] is an extra
//! between GPUs of one machine.
//!
//! Between workers: [`Relay`] hands an adapter on while it arrives and after, [`Relayed`] fetches one from
//! several sources in turn, and [`Checks`] tell piece by piece whether what arrives is the adapter.
//! `assembly` puts the pieces together, in a `transfer` that others may read from.

mod assembly;
mod checks;
mod inbox;
mod nccl;
mod relay;
mod relayed;
mod transfer;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream, future::BoxFuture, stream};
use tokio::time::timeout;
use tonic::{Code, Request, Status, transport::Channel};
use tracing::debug;

use crate::{
    backoff::{Backoff, BackoffOptions},
    client::{
        AuthChannel, AuthInterceptor, CALL_DEADLINE, CHUNK_DEADLINE, STREAM_OPEN_DEADLINE,
        adapters_client,
    },
    v1::{AdapterChunk, AdapterRequest, PolicyVersion, adapters_client::AdaptersClient},
    version::{BadDigest, hex, sha256},
};

pub use checks::{BadChecks, Checks};
pub use inbox::{Inbox, Publication};
pub use nccl::{Collective, NCCL_ID_BYTES, NCCL_INTERFACE_VARIABLE, Nccl, NcclTransport};
pub use relay::{BadRelay, Reach, Relay};
pub use relayed::{Fetched, Relayed, Source};

use assembly::Assembly;

/// Bytes of adapter in one message.
pub const CHUNK_BYTES: usize = 512 << 10;
/// The largest adapter that is taken: rank 128 on all seven projections of a 7B model, twice over.
pub const MAX_ADAPTER_BYTES: u64 = 4 << 30;
/// Attempts in a row that may bring not one byte before a transfer is given up.
const FRUITLESS_ATTEMPTS: u32 = 6;

/// Why an adapter did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The version's name is no name.
    #[error(transparent)]
    BadDigest(#[from] BadDigest),
    /// The content is not what its name says.
    #[error("adapter {version}: its bytes have SHA-256 {found}; the sender holds another adapter")]
    WrongContent {
        /// The version asked for.
        version: String,
        /// Hex digest of what arrived.
        found: String,
    },
    /// A piece is not what it must be.
    #[error("adapter {version}: the piece that ends at byte {end} is not the adapter's")]
    WrongPiece {
        /// The version asked for.
        version: String,
        /// Where the piece ends.
        end: u64,
    },
    /// A chunk that doesn't fit what came before it.
    #[error("adapter {version}: {problem}")]
    BadChunk {
        /// The version asked for.
        version: String,
        /// What is wrong with the chunk.
        problem: String,
    },
    /// The other side says no, and would say so again.
    #[error("adapter {version}: refused: {status}")]
    Refused {
        /// The version asked for.
        version: String,
        /// What the server says.
        status: Box<Status>,
    },
    /// Attempt after attempt without a byte.
    #[error("adapter {version}: gave up after {attempts} attempts at {held} bytes: {last}")]
    GaveUp {
        /// The version asked for.
        version: String,
        /// Attempts since the last byte that arrived.
        attempts: u32,
        /// Bytes that had arrived.
        held: u64,
        /// What ended the last attempt.
        last: String,
    },
    /// The broadcast inside the machine came to nothing.
    #[error("adapter {version}: not broadcast by NCCL: {problem}")]
    Nccl {
        /// The version that was to be broadcast.
        version: String,
        /// What is wrong.
        problem: String,
    },
}

/// Moves adapters between processes, whatever lies between them.
pub trait AdapterTransport: Send + Sync {
    /// The adapter's bytes, verified against the version's digest.
    fn fetch<'a>(
        &'a self,
        version: &'a PolicyVersion,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>>;

    /// Hands the adapter to the other side; returns when it holds and has verified all of it.
    fn publish<'a>(
        &'a self,
        version: &'a PolicyVersion,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<(), TransportError>>;
}

/// Chunks over the service `Adapters`.
#[derive(Clone, Debug)]
pub struct GrpcTransport {
    client: AdaptersClient<AuthChannel>,
    limit: u64,
    backoff: BackoffOptions,
}

/// How one attempt ended short of the whole.
enum Broken {
    /// Worth another attempt.
    Passing(String),
    Final(TransportError),
}

impl Broken {
    fn from_status(version: &PolicyVersion, status: Status) -> Self {
        match status.code() {
            Code::NotFound
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::DataLoss
            | Code::Unimplemented => Self::Final(TransportError::Refused {
                version: version.short().to_string(),
                status: Box::new(status),
            }),
            _ => Self::Passing(status.to_string()),
        }
    }

    fn silent(what: &str, deadline: Duration) -> Self {
        Self::Passing(format!("no {what} within {} s", deadline.as_secs_f64()))
    }
}

/// How long a stream may be silent.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// Before its first answer.
    open: Duration,
    /// Before each chunk.
    chunk: Duration,
}

impl Silence {
    /// Where there is nobody else to ask.
    const PATIENT: Self = Self {
        open: STREAM_OPEN_DEADLINE,
        chunk: CHUNK_DEADLINE,
    };
}

/// Counts attempts that brought nothing, and waits between them.
struct Attempts {
    backoff: Backoff,
    fruitless: u32,
    best: u64,
}

impl Attempts {
    fn new(options: BackoffOptions, version: &PolicyVersion) -> Self {
        let backoff = Backoff::new(options, Backoff::seed_for(&version.digest_hex()));
        Self {
            backoff,
            fruitless: 0,
            best: 0,
        }
    }

    async fn after(
        &mut self,
        version: &PolicyVersion,
        held: u64,
        last: String,
    ) -> Result<(), TransportError> {
        if held > self.best {
            self.best = held;
            self.fruitless = 0;
            self.backoff.reset();
        }
        self.fruitless += 1;
        let version = version.short().to_string();
        if self.fruitless >= FRUITLESS_ATTEMPTS {
            return Err(TransportError::GaveUp {
                version,
                attempts: self.fruitless,
                held,
                last,
            });
        }
        debug!(%version, held, %last, "adapter transfer broke; trying again");
        tokio::time::sleep(self.backoff.next_wait()).await;
        Ok(())
    }
}

impl GrpcTransport {
    /// Over this channel, with [`MAX_ADAPTER_BYTES`] as the limit.
    pub fn new(channel: Channel, auth: AuthInterceptor) -> Self {
        Self {
            client: adapters_client(channel, auth),
            limit: MAX_ADAPTER_BYTES,
            backoff: BackoffOptions::default(),
        }
    }

    /// Refuses adapters above this many bytes, before anything is allocated for them.
    #[must_use]
    pub fn with_limit(self, bytes: u64) -> Self {
        Self {
            limit: bytes,
            ..self
        }
    }

    /// How to wait between attempts.
    #[must_use]
    pub fn with_backoff(self, backoff: BackoffOptions) -> Self {
        Self { backoff, ..self }
    }

    /// One stream. `silence` is the longest that is waited for its opening, and for each chunk.
    async fn fetch_once(&self, assembly: &mut Assembly, silence: Silence) -> Result<(), Broken> {
        let version = assembly.version().clone();
        let request = AdapterRequest {
            digest: version.digest.clone(),
            offset: assembly.held(),
        };
        let mut client = self.client.clone();
        let mut chunks = timeout(silence.open, client.fetch(request))
            .await
            .map_err(|_| Broken::silent("answer", silence.open))?
            .map_err(|status| Broken::from_status(&version, status))?
            .into_inner();
        while !assembly.is_complete() {
            let chunk = timeout(silence.chunk, chunks.message())
                .await
                .map_err(|_| Broken::silent("chunk", silence.chunk))?
                .map_err(|status| Broken::from_status(&version, status))?
                .ok_or_else(|| Broken::Passing("the stream ended early".to_owned()))?;
            assembly.push(chunk).map_err(Broken::Final)?;
        }
        Ok(())
    }

    /// Stream after stream, each from the bytes that arrived, until all are there.
    async fn fetch_into(&self, assembly: &mut Assembly) -> Result<(), TransportError> {
        let version = assembly.version().clone();
        let mut attempts = Attempts::new(self.backoff, &version);
        loop {
            match self.fetch_once(assembly, Silence::PATIENT).await {
                Ok(()) => return Ok(()),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Passing(why)) => {
                    attempts.after(&version, assembly.held(), why).await?;
                }
            }
        }
    }

    /// Sends from what the server holds on; returns what it holds then.
    async fn publish_once(
        &self,
        version: &PolicyVersion,
        bytes: &Arc<[u8]>,
    ) -> Result<u64, Broken> {
        let total = bytes.len() as u64;
        let question = AdapterChunk {
            version: Some(version.clone()),
            offset: 0,
            total,
            data: Vec::new(),
        };
        let held = self
            .send(version, stream::iter([question]), CALL_DEADLINE)
            .await?;
        if held >= total {
            return Ok(held);
        }
        let rest = chunk_iter(version.clone(), Arc::clone(bytes), held);
        // A line of one MiB a second is the slowest that is waited for.
        let deadline = CHUNK_DEADLINE + Duration::from_secs((total - held) >> 20);
        self.send(version, stream::iter(rest), deadline).await
    }

    /// As [`AdapterTransport::publish`], of bytes that need no copy. Whether they are what the
    /// version's name says is found out where they arrive.
    pub async fn publish_shared(
        &self,
        version: &PolicyVersion,
        bytes: &Arc<[u8]>,
    ) -> Result<(), TransportError> {
        version.checked_digest()?;
        let mut attempts = Attempts::new(self.backoff, version);
        let mut held = 0;
        loop {
            match self.publish_once(version, bytes).await {
                Ok(now) if now >= bytes.len() as u64 => return Ok(()),
                Ok(now) => {
                    held = now;
                    let why = format!("the server holds {now} of {} bytes", bytes.len());
                    attempts.after(version, held, why).await?;
                }
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Passing(why)) => attempts.after(version, held, why).await?,
            }
        }
    }

    async fn send(
        &self,
        version: &PolicyVersion,
        chunks: impl Stream<Item = AdapterChunk> + Send + 'static,
        deadline: Duration,
    ) -> Result<u64, Broken> {
        let mut client = self.client.clone();
        let reply = timeout(deadline, client.publish(Request::new(chunks)))
            .await
            .map_err(|_| Broken::silent("reply", deadline))?
            .map_err(|status| Broken::from_status(version, status))?;
        Ok(reply.into_inner().held)
    }
}

impl AdapterTransport for GrpcTransport {
    fn fetch<'a>(
        &'a self,
        version: &'a PolicyVersion,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>> {
        async move {
            let mut assembly = Assembly::new(version.clone(), self.limit)?;
            self.fetch_into(&mut assembly).await?;
            Ok(Arc::unwrap_or_clone(assembly.finish()?))
        }
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        version: &'a PolicyVersion,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<(), TransportError>> {
        async move {
            let digest = version.checked_digest()?;
            let found = sha256(bytes);
            if found != digest {
                return Err(wrong_content(version, &found));
            }
            self.publish_shared(version, &bytes.into()).await
        }
        .boxed()
    }
}

/// The server's answer to Fetch: the adapter's chunks from `offset` on, or why there is none.
pub fn chunks(
    version: PolicyVersion,
    bytes: Arc<[u8]>,
    offset: u64,
) -> Result<impl Stream<Item = Result<AdapterChunk, Status>> + Send + 'static, Status> {
    let total = bytes.len() as u64;
    if offset > total {
        return Err(Status::out_of_range(format!(
            "adapter {}: offset {offset} lies beyond its {total} bytes",
            version.short()
        )));
    }
    Ok(stream::iter(chunk_iter(version, bytes, offset).map(Ok)))
}

/// The first chunk carries the version; all carry offset and total.
fn chunk_iter(
    version: PolicyVersion,
    bytes: Arc<[u8]>,
    offset: u64,
) -> impl Iterator<Item = AdapterChunk> + Send + 'static {
    let total = bytes.len();
    let start = usize::try_from(offset).unwrap_or(total).min(total);
    let mut version = Some(version);
    (start..total)
        .step_by(CHUNK_BYTES)
        .map(move |from| AdapterChunk {
            version: version.take(),
            offset: from as u64,
            total: total as u64,
            data: bytes[from..total.min(from + CHUNK_BYTES)].to_vec(),
        })
}

fn wrong_content(version: &PolicyVersion, found: &[u8]) -> TransportError {
    TransportError::WrongContent {
        version: version.short().to_string(),
        found: hex(found),
    }
}

#[cfg(test)]
mod tests;
