//! Adapters at hand, by digest: published by the learner, fetched by workers.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures::Stream;
use tina_proto::{
    adapters::{self, Inbox, Publication},
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
}

#[derive(Debug, Default)]
struct Held {
    /// The policy: workers fetch its adapter, whatever else is published.
    pinned: Option<Version>,
    adapters: VecDeque<(Version, Arc<[u8]>)>,
}

impl AdapterStore {
    /// Takes adapters up to `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            inbox: Inbox::new(limit),
            held: Mutex::default(),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the adapter with this digest.
    pub fn get(&self, digest: &[u8]) -> Option<(Version, Arc<[u8]>)> {
        self.held()
            .adapters
            .iter()
            .find(|(version, _)| version.digest[..] == *digest)
            .cloned()
    }

    /// The policy is this one: its adapter is kept until the next, the one before need not be.
    pub fn pin(&self, version: Version) {
        self.held().pinned = Some(version);
    }

    /// Keeps an adapter at hand, in place of the oldest that isn't the policy's.
    pub fn put(&self, version: Version, bytes: Arc<[u8]>) {
        let mut held = self.held();
        let Held { pinned, adapters } = &mut *held;
        adapters.retain(|(other, _)| other.digest != version.digest);
        adapters.push_back((version, bytes));
        let pinned = pinned.map(|version| version.digest);
        let is_free = |(version, _): &(Version, _)| Some(version.digest) != pinned;
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
        let chunks = adapters::chunks(version.to_wire(), bytes, offset)?;
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
            Publication::Complete { version, bytes } => {
                let held = bytes.len() as u64;
                if let Some(name) = Version::from_wire(&version) {
                    self.store.put(name, bytes.into());
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
