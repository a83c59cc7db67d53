//! Rank 0's door: where other ranks dial in, and who may.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tina_proto::{
    adapters::Nccl,
    auth::{Admission, Gate, TokenCheck},
    door::{Lack, ServerTls, dialled_here, lacks, server},
    v1::{RunSpec, ranks_server::RanksServer},
};
use tokio::{net::TcpListener, runtime::Handle, sync::oneshot, task::JoinHandle, time::sleep};
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use super::{ADDRESS_FILE, HubCrew, hub::Hub};
use crate::settings::RankSettings;

/// The largest message of a rank: a pass's log-probs, or a chunk of a gradient.
const MESSAGE_BYTES: usize = 16 << 20;
/// How long ranks may take to go when they are told to.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);

/// How a learner listens for its other ranks.
#[derive(Clone, Debug)]
pub struct DoorOptions {
    /// Address and port; port 0: any free one. Beyond loopback a token (or mutual TLS) and TLS are demanded.
    pub listen: String,
    /// What ranks are shown, and have to show.
    pub tls: Option<ServerTls>,
    /// Beyond loopback without TLS; a token is needed all the same.
    pub insecure: bool,
}

impl Default for DoorOptions {
    /// Loopback, any free port, no TLS.
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            tls: None,
            insecure: false,
        }
    }
}

/// Why ranks can't dial in.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address makes no sense.
    #[error("--ranks-listen {0:?} isn't an IP address and a port, e.g. 127.0.0.1:7462")]
    Address(String),
    /// Beyond loopback without a token or TLS.
    #[error("{address} can be reached from other machines: {missing}, or listen on 127.0.0.1")]
    Open {
        /// The address.
        address: SocketAddr,
        /// What is missing, and what to set.
        missing: &'static str,
    },
    /// The system won't let us listen.
    #[error("can't listen on {address} for other ranks: {source} (learner.ranks_listen)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS can't be set up.
    #[error("TLS for other ranks can't be set up: {0}")]
    Tls(String),
}

/// An open door; it closes when this is dropped.
pub(crate) struct Door {
    hub: Hub,
    address: SocketAddr,
    /// Where the address is written down.
    file: Option<PathBuf>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    _stop: oneshot::Sender<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Another learner's address may stand there by now.
            if std::fs::read_to_string(file).is_ok_and(|text| text == self.note()) {
                let _ = std::fs::remove_file(file);
            }
        }
        self.server.abort();
        // Connections outlive the server's task.
        self.hub.disband();
    }
}

impl Door {
    /// Listens for the ranks beside this one that the run has; in its folder, where this machine has
    /// that, the address is written down. `nccl`: by which gradients may come, and
    /// the GPU that this rank computes on.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub(crate) async fn open(
        options: &DoorOptions,
        token: Option<&str>,
        spec: &RunSpec,
        shared: RankSettings,
        nccl: Option<(Nccl, String)>,
    ) -> Result<(Self, HubCrew), DoorError> {
        let address = options.listen.parse::<SocketAddr>();
        let address = address.map_err(|_| DoorError::Address(options.listen.clone()))?;
        let private = options.tls.is_some() || options.insecure;
        let mutual = options.tls.as_ref().is_some_and(ServerTls::is_mutual);
        if let Some(lack) = lacks(address.ip(), token.is_some() || mutual, private) {
            let missing = remedy(lack);
            return Err(DoorError::Open { address, missing });
        }
        let failed = |source| DoorError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let most = shared.ranks.saturating_sub(1) as usize;
        let (hub, heard) = Hub::new(spec.clone(), most, nccl);
        let crew = HubCrew::new(hub.clone(), heard, Handle::current(), shared.timeout);
        let mut server = server(options.tls.as_ref())
            .map_err(|error| DoorError::Tls(format!("{error:?}")))?
            .max_concurrent_streams(16);
        let service = RanksServer::new(hub.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let service = Gate::new(service, Admission::new(TokenCheck::new(token), mutual));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let router = server.add_service(service);
        let serving = router.serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        });
        let mut door = Self {
            hub,
            address,
            file: None,
            server: tokio::spawn(serving),
            _stop: stop,
        };
        info!(%address, others = most, "listening for other ranks");
        door.write_address(Path::new(&spec.run_dir));
        Ok((door, crew))
    }

    /// The address as ranks on this machine dial it.
    fn note(&self) -> String {
        format!("{}\n", dialled_here(self.address))
    }

    /// Ranks that are started on this machine find rank 0 by it.
    fn write_address(&mut self, run_dir: &Path) {
        if !run_dir.is_absolute() || !run_dir.is_dir() {
            return;
        }
        let file = run_dir.join(ADDRESS_FILE);
        // Whole or not at all: ranks read it at any time.
        let fresh = run_dir.join(format!(".{ADDRESS_FILE}.{}", std::process::id()));
        let written =
            std::fs::write(&fresh, self.note()).and_then(|()| std::fs::rename(&fresh, &file));
        match written {
            Ok(()) => self.file = Some(file),
            Err(error) => {
                warn!(%error, file = %file.display(), "the address can't be written down")
            }
        }
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ranks that are there.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.hub.count()
    }

    /// Tells all ranks to end, and gives them time to hear it.
    pub(crate) async fn close(self, reason: &str) {
        self.hub.close(reason);
        let began = tokio::time::Instant::now();
        while self.hub.count() > 0 && began.elapsed() < FAREWELL_DEADLINE {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What to set.
fn remedy(lack: Lack) -> &'static str {
    match lack {
        Lack::Callers => {
            "give the run's token (--token-file or TINA_TOKEN) or mutual TLS (--ranks-client-ca)"
        }
        Lack::Tls => {
            "give --ranks-cert and --ranks-key (or --ranks-insecure on a network that you trust)"
        }
    }
}
