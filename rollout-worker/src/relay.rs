//! The port where a worker hands adapters on to others. The same doors as the coordinator's: loopback by
//! itself, and beyond it a token (or mutual TLS) and TLS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tina_proto::{
    adapters::Relay,
    auth::{Admission, Gate, TokenCheck},
    door::{Lack, ServerTls, lacks, server},
    v1::adapters_server::AdaptersServer,
};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;

/// The longest request: a digest and an offset.
const MAX_REQUEST: usize = 4096;

/// Where a worker hands adapters on.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// Port 0: any that is free.
    pub listen: SocketAddr,
    /// The name or address that other machines reach this one by; `None`: `listen`'s.
    pub host: Option<String>,
    /// What other workers are shown, and have to show.
    pub tls: Option<ServerTls>,
}

impl Default for RelayOptions {
    /// On loopback.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            host: None,
            tls: None,
        }
    }
}

/// Why a worker can't hand adapters on as it is told to.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Beyond loopback without a token or TLS.
    #[error(
        "adapters handed on at {address} can be had from other machines: {missing}, or listen on \
         127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
        /// What is missing, and what to set.
        missing: &'static str,
    },
    /// Others would not know where to go.
    #[error("{0} is no address that other machines can dial: say by which they reach this one")]
    Nameless(SocketAddr),
    /// The system won't let us listen.
    #[error("can't hand adapters on at {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate is no use.
    #[error("the certificate for handing adapters on: {0}")]
    Tls(tonic::transport::Error),
}

impl RelayOptions {
    /// Whether nobody asked for anything else.
    pub(crate) fn is_default(&self) -> bool {
        let default = Self::default();
        self.listen == default.listen && self.host.is_none() && self.tls.is_none()
    }

    /// Whether it may listen there.
    pub(crate) fn check(&self, token: bool) -> Result<(), RelayError> {
        let address = self.listen;
        if let Some(lack) = lacks(address.ip(), token || self.is_mutual(), self.tls.is_some()) {
            let missing = match lack {
                Lack::Callers => {
                    "set a token (TINA_TOKEN or --token-file) or mutual TLS (--relay-client-ca)"
                }
                Lack::Tls => "set --relay-cert and --relay-key",
            };
            return Err(RelayError::Open { address, missing });
        }
        if address.ip().is_unspecified() && self.host.is_none() {
            return Err(RelayError::Nameless(address));
        }
        Ok(())
    }

    fn is_mutual(&self) -> bool {
        self.tls.as_ref().is_some_and(ServerTls::is_mutual)
    }

    /// As other workers dial it, once the port is known.
    fn url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.host {
            Some(host) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{}", SocketAddr::new(self.listen.ip(), port)),
        }
    }
}

/// Serves [`Relay`] until it is dropped.
#[derive(Debug)]
pub(crate) struct RelayServer {
    address: String,
    relay: Relay,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RelayServer {
    /// Begins to listen. Each adapter goes to `fan_out` others, and to as many again that have lost
    /// their own source; who comes beyond that is sent away. To be called on a runtime.
    pub(crate) fn start(
        options: &RelayOptions,
        token: Option<&str>,
        fan_out: u32,
    ) -> Result<Self, RelayError> {
        options.check(token.is_some())?;
        let address = options.listen;
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        };
        let failed = |source| RelayError::Bind { address, source };
        let listener = bind().map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let relay = Relay::new(2 * fan_out as usize);
        let mut server = server(options.tls.as_ref())
            .map_err(RelayError::Tls)?
            .max_concurrent_streams(4);
        let adapters = AdaptersServer::new(relay.clone()).max_decoding_message_size(MAX_REQUEST);
        let admission = Admission::new(TokenCheck::new(token), options.is_mutual());
        let service = Gate::new(adapters, admission);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = server.add_service(service).serve_with_incoming(incoming);
        Ok(Self {
            address: options.url(port),
            relay,
            task: tokio::spawn(serving),
        })
    }

    /// Where others dial.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn relay(&self) -> &Relay {
        &self.relay
    }
}

#[cfg(test)]
mod tests {
    use tina_proto::{
        adapters::{AdapterTransport as _, GrpcTransport, Reach},
        client::{ClientOptions, connect},
        v1::PolicyVersion,
    };

    use super::*;

    #[test]
    fn beyond_loopback_a_token_and_tls_are_demanded() {
        let options = |listen: &str, tls: bool, host: bool| RelayOptions {
            listen: listen.parse().unwrap(),
            host: host.then(|| "host.example".to_owned()),
            tls: tls.then(|| ServerTls {
                cert_pem: b"cert".to_vec(),
                key_pem: b"key".to_vec(),
                client_ca_pem: None,
            }),
        };
        assert!(options("127.0.0.1:0", false, false).check(false).is_ok());
        assert!(options("[::1]:0", false, false).check(false).is_ok());
        let refused = |options: RelayOptions, token| options.check(token).unwrap_err().to_string();
        for open in ["0.0.0.0:0", "10.0.0.1:7"] {
            assert!(refused(options(open, true, true), false).contains("token"));
            assert!(refused(options(open, false, true), true).contains("relay-cert"));
            assert!(options(open, true, true).check(true).is_ok());
        }
        assert!(options("10.0.0.1:7", true, false).check(true).is_ok());
        assert!(refused(options("0.0.0.0:0", true, false), true).contains("0.0.0.0"));
        let url = options("10.0.0.1:7", true, false).url(8);
        assert_eq!(url, "https://10.0.0.1:8");
        assert_eq!(Reach::of(&url), Ok(Reach::Everyone));
        let url = options("0.0.0.0:7", true, true).url(8);
        assert_eq!(url, "https://host.example:8");
    }

    #[tokio::test]
    async fn only_who_has_the_token_gets_adapters() {
        let server = RelayServer::start(&RelayOptions::default(), Some("right"), 1).unwrap();
        assert_eq!(Reach::of(server.address()), Ok(Reach::Machine));
        let bytes = vec![5; 1000];
        let version = PolicyVersion::of_bytes(1, &bytes);
        server.relay().hold(version.clone(), bytes.clone().into());
        for (token, welcome) in [(None, false), (Some("wrong"), false), (Some("right"), true)] {
            let options = ClientOptions {
                url: server.address().to_owned(),
                token: token.map(str::to_owned),
                ..ClientOptions::default()
            };
            let channel = connect(&options).await.unwrap();
            let grpc = GrpcTransport::new(channel, options.interceptor().unwrap());
            match grpc.fetch(&version).await {
                Ok(fetched) => assert!(welcome && fetched == bytes),
                Err(error) => {
                    assert!(!welcome && error.to_string().contains("token"), "{error}");
                }
            }
        }
    }
}
