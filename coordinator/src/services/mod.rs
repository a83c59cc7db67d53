//! The coordinator's doors: tonic services that check what arrives and hand it to the run.
//!
//! - [`Doors`]: binding and serving; who may come in.
//! - `streams`: workers and the learner. `ask`: status and control. `store`: adapters.
//! - [`Limits`]: what a message may hold, by the run's config.

mod ask;
mod limits;
mod store;
mod streams;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tina_proto::{
    FILE_DESCRIPTOR_SET,
    auth::{Admission, Gate, Role, TokenCheck, TokenError, read_token, role_of_token},
    door::{Lack, ServerTls, dialled_here, lacks, server},
    platform::Listener,
    v1::{
        self, adapters_server::AdaptersServer, control_server::ControlServer,
        learning_server::LearningServer, rollouts_server::RolloutsServer,
        status_server::StatusServer,
    },
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    Server,
    server::{Router, TcpIncoming},
};

pub use self::{
    limits::Limits,
    store::AdapterStore,
    streams::{Inbound, Outbox},
};
use crate::{config::ClusterSection, journal::Journal};

/// Why nobody can dial in.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address makes no sense.
    #[error("cluster.listen {0:?} isn't an IP address and a port, e.g. 127.0.0.1:7461")]
    Address(String),
    /// Beyond loopback without a token or TLS.
    #[error("{address} can be reached from other machines: {missing}, or listen on 127.0.0.1")]
    Open {
        /// The address.
        address: SocketAddr,
        /// What is missing, and what to set.
        missing: &'static str,
    },
    /// The token can't be read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token of a role where the secret is needed.
    #[error(
        "the coordinator's token (cluster.token_file or TINA_TOKEN) is that of the role {0}: it needs \
         the secret that roles' tokens are made from"
    )]
    RoleToken(Role),
    /// A certificate or key can't be read.
    #[error("{path}: can't be read")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The system won't let us listen.
    #[error(
        "can't listen on {address}: {source}; is another coordinator running? (cluster.listen)"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS or reflection can't be set up.
    #[error("the services can't be set up: {0}")]
    Setup(String),
}

/// What all services share.
#[derive(Debug)]
pub struct Shared {
    /// Where messages go.
    pub inbound: tokio::sync::mpsc::Sender<Inbound>,
    /// Streams so far.
    pub sessions: AtomicU64,
    /// What a message may hold.
    pub limits: Limits,
    /// What roles are told of the run.
    pub spec: v1::RunSpec,
    /// Time between heartbeats.
    pub heartbeat_ms: u32,
    /// Adapters at hand.
    pub adapters: Arc<AdapterStore>,
    /// The newest report.
    pub status: watch::Receiver<Arc<v1::RunStatus>>,
    /// For lists out of the past.
    pub journal: Journal,
}

/// A bound listener, and who may come in.
pub struct Doors {
    listener: Listener,
    address: SocketAddr,
    secret: Option<String>,
    tls: Option<ServerTls>,
}

/// The server's side of TLS, as the config has it.
fn tls(cluster: &ClusterSection) -> Result<Option<ServerTls>, DoorError> {
    let (Some(cert), Some(key)) = (&cluster.tls_cert, &cluster.tls_key) else {
        return Ok(None);
    };
    Ok(Some(ServerTls {
        cert_pem: read(cert)?,
        key_pem: read(key)?,
        client_ca_pem: cluster.tls_client_ca.as_deref().map(read).transpose()?,
    }))
}

impl Doors {
    /// Binds as the config says. Beyond loopback a token (or mutual TLS) is demanded, and TLS too
    /// unless `cluster.insecure` is set.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub async fn bind(cluster: &ClusterSection) -> Result<Self, DoorError> {
        let address: SocketAddr = cluster
            .listen
            .parse()
            .map_err(|_| DoorError::Address(cluster.listen.clone()))?;
        let secret = read_token(cluster.token_file.as_deref().map(Path::new))?;
        if let Some(role) = secret.as_deref().and_then(role_of_token) {
            return Err(DoorError::RoleToken(role));
        }
        let tls = tls(cluster)?;
        let known = secret.is_some() || tls.as_ref().is_some_and(ServerTls::is_mutual);
        let private = tls.is_some() || cluster.insecure;
        if let Some(lack) = lacks(address.ip(), known, private) {
            let missing = remedy(lack);
            return Err(DoorError::Open { address, missing });
        }
        allow_connections();
        let failed = |source| DoorError::Bind { address, source };
        let listener = Listener::bind(address).await.map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            secret,
            tls,
        })
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The shared secret, for the roles that are launched here.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// True when clients must show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.tls.as_ref().is_some_and(ServerTls::is_mutual)
    }

    /// Where roles on this machine dial.
    pub fn local_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", dialled_here(self.address))
    }

    /// Serves until `stop`; the task ends when all calls have.
    ///
    /// # Errors
    /// TLS or reflection can't be set up.
    pub async fn serve(
        self,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, DoorError> {
        let admission = Admission::new(TokenCheck::new(self.secret.as_deref()), self.is_mutual());
        let server = server(self.tls.as_ref())
            .map_err(|error| DoorError::Setup(format!("TLS: {error:?}")))?
            .max_concurrent_streams(64);
        let router = routes(server, &shared, &admission).await?;
        let stopped = stop.cancelled_owned();
        Ok(match self.listener {
            Listener::System(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped))
            }
            Listener::Simulated(simulated) => {
                let incoming = simulated.incoming;
                tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped))
            }
        })
    }
}

async fn routes(
    mut server: Server,
    shared: &Arc<Shared>,
    admission: &Admission,
) -> Result<Router, DoorError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let streams = streams::Streams::new(shared.clone());
    let ask = ask::Ask::new(shared.clone());
    let store = store::Adapters::new(shared.adapters.clone());
    let rollouts = RolloutsServer::new(streams.clone())
        .max_decoding_message_size(shared.limits.worker_message_bytes());
    let learning =
        LearningServer::new(streams).max_decoding_message_size(Limits::LEARNER_MESSAGE_BYTES);
    let adapters =
        AdaptersServer::new(store).max_decoding_message_size(Limits::ADAPTER_MESSAGE_BYTES);
    let status = StatusServer::new(ask.clone()).max_decoding_message_size(4096);
    let control = ControlServer::new(ask).max_decoding_message_size(4096);
    health
        .set_serving::<RolloutsServer<streams::Streams>>()
        .await;
    health
        .set_serving::<LearningServer<streams::Streams>>()
        .await;
    health
        .set_serving::<AdaptersServer<store::Adapters>>()
        .await;
    health.set_serving::<StatusServer<ask::Ask>>().await;
    health.set_serving::<ControlServer<ask::Ask>>().await;

    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error| DoorError::Setup(format!("reflection: {error}"));
    let reflection_v1 = reflection().build_v1().map_err(failed)?;
    let reflection_v1alpha = reflection().build_v1alpha().map_err(failed)?;
    Ok(server
        // Whether it serves may be asked without a token.
        .add_service(health_service)
        .add_service(Gate::new(rollouts, admission.clone()))
        .add_service(Gate::new(learning, admission.clone()))
        .add_service(Gate::new(adapters, admission.clone()))
        .add_service(Gate::new(status, admission.clone()))
        .add_service(Gate::new(control, admission.clone()))
        .add_service(Gate::new(reflection_v1, admission.clone()))
        .add_service(Gate::new(reflection_v1alpha, admission.clone())))
}

/// Lets this process have as many files and connections open as the system allows it; by default that is
/// often 1,024 only, and each worker is a connection.
pub fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("open files stay limited to {:?}: {error}", limit.current);
    }
}

fn read(path: &str) -> Result<Vec<u8>, DoorError> {
    std::fs::read(path).map_err(|source| DoorError::Pem {
        path: path.into(),
        source,
    })
}

/// What to set.
fn remedy(lack: Lack) -> &'static str {
    match lack {
        Lack::Callers => {
            "set a token (cluster.token_file or TINA_TOKEN) or mutual TLS (cluster.tls_client_ca)"
        }
        Lack::Tls => "set cluster.tls_cert and cluster.tls_key (or cluster.insecure = true)",
    }
}
