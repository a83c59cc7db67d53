//! The learner's part in NCCL broadcasts, where the run asks for them and it computes on a GPU.

use std::sync::Arc;

use tina_proto::{
    adapters::{AdapterTransport, Nccl, NcclTransport},
    v1::{BroadcastAdapter, PolicyVersion, RunSpec},
};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// What is offered and done.
#[derive(Debug, Default)]
pub(super) struct Broadcasts(Option<Nccl>);

impl Broadcasts {
    /// Takes part in them where the run says so.
    pub(super) fn follow(&mut self, spec: &RunSpec, device: &str, nccl: &Nccl) {
        let wanted = spec.adapter_transport == "nccl" && device.starts_with("cuda");
        self.0 = wanted.then(|| nccl.clone());
    }

    /// The id of a group that the coordinator may make; empty: none.
    pub(super) async fn offer(&self) -> Vec<u8> {
        match &self.0 {
            Some(nccl) => nccl.offer().await,
            None => Vec::new(),
        }
    }

    /// Broadcasts the adapter held, if it is the one that is meant, beside whatever comes next:
    /// whether it works concerns the workers alone, who have gRPC. `grpc` is not used.
    pub(super) fn start(
        &self,
        order: BroadcastAdapter,
        (version, bytes): (PolicyVersion, Arc<[u8]>),
        grpc: impl AdapterTransport + 'static,
    ) -> Option<JoinHandle<()>> {
        let (Some(nccl), Some(group)) = (self.0.clone(), order.nccl) else {
            warn!("the coordinator asks for a broadcast that was not offered");
            return None;
        };
        if order.version.as_ref() != Some(&version) {
            warn!(held = %version.short(), "the coordinator asks for a broadcast of another adapter");
            return None;
        }
        let transport = NcclTransport::new(nccl, group, bytes.len() as u64, grpc);
        Some(tokio::spawn(async move {
            match transport.publish(&version, &bytes).await {
                Ok(()) => info!(version = %version.short(), "adapter broadcast by NCCL"),
                Err(error) => warn!(%error, "the workers fetch it by gRPC"),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_learner_offers_nothing_that_it_was_not_asked_for_or_can_not_do() {
        let spec = |transport: &str| RunSpec {
            adapter_transport: transport.to_owned(),
            ..RunSpec::default()
        };
        let mut broadcasts = Broadcasts::default();
        for (transport, device) in [("", "cuda:0"), ("grpc", "cuda:0"), ("nccl", "cpu")] {
            broadcasts.follow(&spec(transport), device, &Nccl::on_device(device));
            assert!(broadcasts.0.is_none() && broadcasts.offer().await.is_empty());
        }
        broadcasts.follow(&spec("nccl"), "cuda:0", &Nccl::on_device("cuda:0"));
        assert!(broadcasts.0.is_some());
    }
}
