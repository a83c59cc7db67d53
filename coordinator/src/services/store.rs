//! Adapters at hand, by digest: published by the learner, fetched by workers.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{Stream, StreamExt as _};
use tina_proto::{
    adapters::{self, Checks, Inbox, Publication},
    v1::{self, AdapterChunk, AdapterRequest, PublishReply, adapters_server},
};
use tonic::{Request, Response, Status, Streaming};

use crate::scheduler::types::Version;

/// Adapters kept beside the policy's: those that a learner publishes before the next one is it.
const KEPT: usize = 2;

/// The newest adapters' bytes, in memory.
#[derive(Debug)]
pub struct AdapterStore {
    inbox: Inbox,
    held: Mutex<Held>,
    /// Bytes of adapters on their way to workers, so far.
    uploaded: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    /// The policy: workers fetch its adapter, whatever else is published.
    pinned: Option<Version>,
    adapters: VecDeque<Adapter>,
}

#[derive(Debug)]
struct Adapter {
    version: Version,
    bytes: Arc<[u8]>,
    /// Made when they are first asked for, where they weren't found on the way.
    checks: Option<Arc<Checks>>,
}

impl AdapterStore {
    /// Takes adapters up to `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            inbox: Inbox::new(limit),
            held: Mutex::default(),
            uploaded: AtomicU64::new(0),
        }
    }

    /// Bytes that were sent to those who fetch.
    pub fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the adapter with this digest.
    pub fn get(&self, digest: &[u8]) -> Option<(Version, Arc<[u8]>)> {
        self.held()
            .adapters
            .iter()
            .find(|held| held.version.digest[..] == *digest)
            .map(|held| (held.version, held.bytes.clone()))
    }

    /// What the pieces of the adapter with this digest must hash to.
    pub fn checks(&self, digest: &[u8]) -> Option<Arc<Checks>> {
        let mut held = self.held();
        let adapter = held
            .adapters
            .iter_mut()
            .find(|held| held.version.digest[..] == *digest)?;
        let checks = &mut adapter.checks;
        Some(
            checks
                .get_or_insert_with(|| Arc::new(Checks::of_bytes(&adapter.bytes)))
                .clone(),
        )
    }

    /// The policy is this one: its adapter is kept until the next, the one before need not be.
    pub fn pin(&self, version: Version) {
        self.held().pinned = Some(version);
    }

    /// Keeps an adapter at hand, in place of the oldest that isn't the policy's.
    pub fn put(&self, version: Version, bytes: Arc<[u8]>) {
        self.keep(version, bytes, None);
    }

    fn keep(&self, version: Version, bytes: Arc<[u8]>, checks: Option<Checks>) {
        let mut held = self.held();
        let Held { pinned, adapters } = &mut *held;
        adapters.retain(|other| other.version.digest != version.digest);
        adapters.push_back(Adapter {
            version,
            bytes,
            checks: checks.map(Arc::new),
        });
        let pinned = pinned.map(|version| version.digest);
        let is_free = |held: &Adapter| Some(held.version.digest) != pinned;
        let surplus = adapters.iter().filter(|held| is_free(held)).count();
        for _ in KEPT..surplus {
            if let Some(oldest) = adapters.iter().position(is_free) {
                adapters.remove(oldest);
            }
        }
    }
}

/// The service `Adapters`.
#[derive(Clone, Debug)]
pub(super) struct Adapters {
    store: Arc<AdapterStore>,
}

impl Adapters {
    pub(super) fn new(store: Arc<AdapterStore>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl adapters_server::Adapters for Adapters {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<AdapterChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let AdapterRequest { digest, offset } = request.into_inner();
        let (version, bytes) = self.store.get(&digest).ok_or_else(|| {
            let name = v1::PolicyVersion { step: 0, digest }.digest_hex();
            Status::not_found(format!(
                "no adapter {name} at hand; a newer one is announced"
            ))
        })?;
        let store = self.store.clone();
        let chunks = adapters::chunks(version.to_wire(), bytes, offset)?.inspect(move |chunk| {
            let length = chunk.as_ref().map_or(0, |chunk| chunk.data.len() as u64);
            store.uploaded.fetch_add(length, Ordering::Relaxed);
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn publish(
        &self,
        request: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        let stored = |version: &v1::PolicyVersion| {
            self.store
                .get(&version.digest)
                .map(|(_, bytes)| bytes.len() as u64)
        };
        let (version, held) = match self
            .store
            .inbox
            .receive(request.into_inner(), stored)
            .await?
        {
            Publication::Held { version, held } => (version, held),
            Publication::Complete {
                version,
                bytes,
                checks,
            } => {
                let held = bytes.len() as u64;
                if let Some(name) = Version::from_wire(&version) {
                    self.store.keep(name, bytes.into(), Some(checks));
                }
                (version, held)
            }
        };
        Ok(Response::new(PublishReply {
            version: Some(version),
            held,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_s_adapter_stays_whatever_is_published_and_goes_after_the_next() {
        let store = AdapterStore::new(1 << 20);
        let version = |step: u64| Version {
            step,
            digest: [step as u8; 32],
        };
        let publish = |step: u64| store.put(version(step), vec![step as u8].into());
        let held = |steps: std::ops::Range<u64>| -> Vec<u64> {
            steps
                .filter(|step| store.get(&version(*step).digest).is_some())
                .collect()
        };
        publish(9);
        store.pin(version(9));
        (1..9).for_each(publish);
        assert_eq!(held(0..20), [7, 8, 9]);
        publish(10);
        store.pin(version(10));
        (11..14).for_each(publish);
        assert_eq!(held(0..20), [10, 12, 13]);
    }
}
