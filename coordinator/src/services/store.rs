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

/// Adapters kept: the policy's, the one before, and the one that is just being published.
const KEPT: usize = 3;

/// The newest adapters' bytes, in memory.
#[derive(Debug)]
pub struct AdapterStore {
    inbox: Inbox,
    held: Mutex<VecDeque<(Version, Arc<[u8]>)>>,
}

impl AdapterStore {
    /// Takes adapters up to `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            inbox: Inbox::new(limit),
            held: Mutex::default(),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, VecDeque<(Version, Arc<[u8]>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the adapter with this digest.
    pub fn get(&self, digest: &[u8]) -> Option<(Version, Arc<[u8]>)> {
        self.held()
            .iter()
            .find(|(version, _)| version.digest[..] == *digest)
            .cloned()
    }

    fn keep(&self, version: Version, bytes: Arc<[u8]>) {
        let mut held = self.held();
        held.retain(|(other, _)| other.digest != version.digest);
        held.push_back((version, bytes));
        while held.len() > KEPT {
            held.pop_front();
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
                    self.store.keep(name, bytes.into());
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
