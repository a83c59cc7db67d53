//! How an adapter comes here: from other workers, from the coordinator, or from the learner's GPU.

use std::sync::Arc;

use tina_proto::{
    adapters::{
        AdapterTransport as _, Checks, Fetched, GrpcTransport, NcclTransport, Relay, Relayed,
        Source,
    },
    client::ClientOptions,
    platform,
    v1::{AdapterLeg, PolicyVersion},
};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    adapter::{AdapterLoader, ReadyAdapter},
    state::Route,
};

/// Sources of one adapter that are tried.
const MAX_SOURCES: usize = 8;

/// What a fetch came to.
pub(super) struct FetchDone {
    pub(super) version: PolicyVersion,
    pub(super) adapter: Result<Box<ReadyAdapter>, String>,
    pub(super) legs: Vec<AdapterLeg>,
}

/// The way by a route's sources; what is no use of them is left out.
pub(super) fn by(
    route: Route,
    plain: Relayed,
    version: &PolicyVersion,
    bytes: u64,
    coordinator: &ClientOptions,
) -> Relayed {
    let Some(checks) = route.checks else {
        return plain;
    };
    let checks = match Checks::from_wire(&checks, version, bytes) {
        Ok(checks) => checks,
        Err(error) => {
            warn!(%error, "fetching from the coordinator alone");
            return plain;
        }
    };
    let sources = route.sources.into_iter().take(MAX_SOURCES);
    let sources = sources.filter_map(|source| {
        Source::new(source.worker_id, &source.relay, coordinator)
            .inspect_err(|problem| warn!(problem, "a source is left out"))
            .ok()
    });
    plain.with_sources(sources.collect(), checks, route.depth)
}

/// How an adapter comes here.
pub(super) enum Way {
    Relayed(Box<Relayed>),
    /// And is handed on once it is here.
    Nccl(Box<NcclTransport<GrpcTransport>>, Option<Relay>),
}

impl Way {
    async fn fetch(&self, version: &PolicyVersion) -> Fetched {
        match self {
            Self::Relayed(relayed) => relayed.fetch(version).await,
            Self::Nccl(nccl, relay) => {
                let bytes = nccl.fetch(version).await.map(Arc::new);
                if let (Ok(bytes), Some(relay)) = (&bytes, relay) {
                    relay.hold(version.clone(), bytes.clone());
                }
                let legs = Vec::new();
                Fetched { bytes, legs }
            }
        }
    }
}

/// Fetches an adapter and makes it ready, while the engine samples on under the old one.
pub(super) async fn fetch(way: Way, loader: AdapterLoader, version: PolicyVersion) -> FetchDone {
    let started = Instant::now();
    let Fetched { bytes, legs } = way.fetch(&version).await;
    let adapter = match bytes {
        Ok(bytes) => {
            let seconds = started.elapsed().as_secs_f64();
            let from = legs.iter().rev().find(|leg| leg.problem.is_empty());
            let from = from.map_or("the coordinator", |leg| &leg.worker_id);
            info!(version = %version.short(), bytes = bytes.len(), seconds, from, "adapter fetched");
            let name = version.clone();
            let ready = platform::aside(move || loader.load_verified(name, &bytes));
            match ready.await {
                Ok(ready) => ready.map(Box::new),
                Err(error) => Err(format!("adapter {}: {error}", version.short())),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    FetchDone {
        version,
        adapter,
        legs,
    }
}
