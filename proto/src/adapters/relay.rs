//! A worker's half of `Adapters`: handing on what it has, also of what is still coming.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CHUNK_BYTES,
    transfer::{Progress, Stage, Transfer},
};
use crate::{
    client::CHUNK_DEADLINE,
    v1::{AdapterChunk, AdapterRequest, PolicyVersion, PublishReply, adapters_server::Adapters},
};

/// How long somebody who asks for an adapter that nobody here has heard of waits for it: its
/// announcement may have reached him first.
const UNHEARD: Duration = Duration::from_secs(2);
/// Chunks on their way to one reader.
const AHEAD: usize = 2;
/// Characters of a relay's address.
const MAX_ADDRESS: usize = 256;

/// Where a relay can be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By workers of its own machine: it listens on loopback.
    Machine,
    /// By all.
    Everyone,
}

/// An address that a relay can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a relay's address {address:?}: {problem}")]
pub struct BadRelay {
    /// As it was given, cut.
    pub address: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Reach {
    /// Of a relay at this address: `http://IP:PORT` on loopback, `https://HOST:PORT` anywhere. Nobody
    /// sends a token beyond loopback without TLS.
    ///
    /// # Errors
    /// It is neither.
    pub fn of(address: &str) -> Result<Self, BadRelay> {
        let bad = |problem| {
            Err(BadRelay {
                address: address.chars().take(MAX_ADDRESS).collect(),
                problem,
            })
        };
        if address.len() > MAX_ADDRESS || !address.bytes().all(|byte| byte.is_ascii_graphic()) {
            return bad("it is too long, or no visible ASCII");
        }
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let Some((host, port)) = rest.rsplit_once(':') else {
            return bad("it has no port");
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || port.parse::<u16>().is_err() {
            return bad("it must be a host and a port");
        }
        let loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
        match scheme {
            "http" if host.parse().is_ok_and(loopback) => Ok(Self::Machine),
            "http" => bad("beyond loopback it must be https"),
            "https" if host.parse().is_ok_and(loopback) => Ok(Self::Machine),
            "https" => Ok(Self::Everyone),
            _ => bad("its scheme is neither http nor https"),
        }
    }
}

/// Serves the newest adapter of this process to others: what is right of it while it comes, all of it
/// after. The service refuses more readers than its bound, and Publish.
#[derive(Clone, Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    held: Mutex<Option<Arc<Transfer>>>,
    /// Changes with `held`.
    changes: watch::Sender<u64>,
    readers: Arc<Semaphore>,
    sent: AtomicU64,
}

impl Relay {
    /// For so many readers at a time.
    pub fn new(readers: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                held: Mutex::default(),
                changes: watch::Sender::new(0),
                readers: Arc::new(Semaphore::new(readers.min(Semaphore::MAX_PERMITS))),
                sent: AtomicU64::new(0),
            }),
        }
    }

    /// Hands on an adapter that came here whole, by whatever way, in place of the one before.
    pub fn hold(&self, version: PolicyVersion, bytes: Arc<Vec<u8>>) {
        self.begin(Arc::new(Transfer::whole(version, bytes)));
    }

    /// Bytes handed on so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Hands on an adapter that is coming, in place of the one before: who reads that gets its end.
    pub(super) fn begin(&self, transfer: Arc<Transfer>) {
        *self.held() = Some(transfer);
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<Transfer>>> {
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, digest: &[u8]) -> Option<Arc<Transfer>> {
        let held = self.held();
        held.as_ref()
            .filter(|held| held.version().digest == digest)
            .cloned()
    }

    /// The adapter with this digest, when it is here.
    async fn wait_for(&self, digest: &[u8]) -> Option<Arc<Transfer>> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            if let Some(found) = self.find(digest) {
                return Some(found);
            }
            changes.changed().await.ok()?;
        }
    }

    async fn hand_on(
        self,
        transfer: Arc<Transfer>,
        from: u64,
        reader: mpsc::Sender<Result<AdapterChunk, Status>>,
        _place: OwnedSemaphorePermit,
    ) {
        let mut offset = from;
        let mut version = Some(transfer.version().clone());
        let mut arrivals = transfer.progress();
        loop {
            let more = move |progress: &Progress| {
                progress.good > offset || progress.stage != Stage::Coming
            };
            let progress = tokio::select! {
                progress = timeout(CHUNK_DEADLINE, arrivals.wait_for(more)) => match progress {
                    Ok(Ok(progress)) => *progress,
                    _ => {
                        let silent = Status::unavailable("this worker's own source is silent");
                        let _ = reader.try_send(Err(silent));
                        return;
                    }
                },
                () = reader.closed() => return,
            };
            let name = transfer.version().short();
            let (total, whole) = (progress.total, progress.stage == Stage::Whole);
            if whole && offset > total {
                let beyond = format!("adapter {name}: offset {offset} is beyond its {total} bytes");
                let _ = reader.try_send(Err(Status::out_of_range(beyond)));
                return;
            }
            let data = transfer.read(offset, CHUNK_BYTES);
            if data.is_empty() {
                if !whole {
                    let lost = format!("adapter {name}: this worker could not get all of it");
                    let _ = reader.try_send(Err(Status::unavailable(lost)));
                }
                return;
            }
            let length = data.len() as u64;
            let chunk = AdapterChunk {
                version: version.take(),
                offset,
                total,
                data,
            };
            // A reader that lives but doesn't read gives up its place.
            if reader
                .send_timeout(Ok(chunk), CHUNK_DEADLINE)
                .await
                .is_err()
            {
                return;
            }
            self.shared.sent.fetch_add(length, Ordering::Relaxed);
            offset += length;
        }
    }
}

#[tonic::async_trait]
impl Adapters for Relay {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<AdapterChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let AdapterRequest { digest, offset } = request.into_inner();
        let readers = self.shared.readers.clone();
        let place = readers.try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("this worker hands on to as many as it is to")
        })?;
        let found = timeout(UNHEARD, self.wait_for(&digest)).await;
        let transfer = found.ok().flatten().ok_or_else(|| {
            let name = PolicyVersion { step: 0, digest }.digest_hex();
            Status::not_found(format!("this worker has no adapter {name}"))
        })?;
        let (reader, mut chunks) = mpsc::channel(AHEAD);
        tokio::spawn(self.clone().hand_on(transfer, offset, reader, place));
        Ok(Response::new(Box::pin(stream::poll_fn(move |context| {
            chunks.poll_recv(context)
        }))))
    }

    async fn publish(
        &self,
        _: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        Err(Status::unimplemented(
            "adapters are published at the coordinator",
        ))
    }
}

#[cfg(test)]
mod tests;
