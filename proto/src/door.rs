//! What every port that others dial has in common: loopback by itself, and beyond it callers that are
//! known, over TLS.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tonic::transport::{Certificate, Error, Identity, Server, ServerTlsConfig};

use crate::{
    client::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT},
    tls::choose_cryptography,
};

/// A connection's TLS must be settled by then.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What a server shows, and what it asks to be shown.
#[derive(Clone)]
pub struct ServerTls {
    /// Its certificate chain (PEM).
    pub cert_pem: Vec<u8>,
    /// The private key (PEM).
    pub key_pem: Vec<u8>,
    /// The authority (PEM) of the certificates that clients have to show (mutual TLS); `None`: they
    /// needn't.
    pub client_ca_pem: Option<Vec<u8>>,
}

impl ServerTls {
    /// True when clients must show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.client_ca_pem.is_some()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("cert_pem", &self.cert_pem.len())
            .field("mutual", &self.is_mutual())
            .finish_non_exhaustive()
    }
}

/// What a port beyond loopback lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Callers are not known: neither a token nor a certificate is asked for.
    Callers,
    /// Who is on the way can read along.
    Tls,
}

/// What a port on this address lacks. `known`: callers show a token or a certificate; `private`: TLS,
/// or the user's word that the network may be trusted.
pub fn lacks(ip: IpAddr, known: bool, private: bool) -> Option<Lack> {
    if ip.to_canonical().is_loopback() {
        None
    } else if !known {
        Some(Lack::Callers)
    } else if !private {
        Some(Lack::Tls)
    } else {
        None
    }
}

/// An address that is listened on, as this machine dials it.
pub fn dialled_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// A server that notices when a peer has gone without a word.
///
/// # Errors
/// Certificates or key are no use.
pub fn server(tls: Option<&ServerTls>) -> Result<Server, Error> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT));
    let Some(tls) = tls else {
        return Ok(server);
    };
    choose_cryptography();
    let config = ServerTlsConfig::new()
        .identity(Identity::from_pem(&tls.cert_pem, &tls.key_pem))
        .timeout(HANDSHAKE_DEADLINE);
    server.tls_config(match &tls.client_ca_pem {
        Some(authority) => config.client_ca_root(Certificate::from_pem(authority)),
        None => config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_known_callers_and_tls_are_demanded() {
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(lacks(local.parse().unwrap(), false, false), None);
        }
        for open in ["0.0.0.0", "::", "10.0.0.1"] {
            let ip = open.parse().unwrap();
            assert_eq!(lacks(ip, false, true), Some(Lack::Callers));
            assert_eq!(lacks(ip, false, false), Some(Lack::Callers));
            assert_eq!(lacks(ip, true, false), Some(Lack::Tls));
            assert_eq!(lacks(ip, true, true), None);
        }
    }

    #[test]
    fn an_address_of_all_interfaces_is_dialled_on_loopback() {
        let here = |address: &str| dialled_here(address.parse().unwrap()).to_string();
        assert_eq!(here("0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(here("[::]:7"), "[::1]:7");
        assert_eq!(here("10.0.0.1:7"), "10.0.0.1:7");
    }

    #[test]
    fn debug_shows_no_key() {
        let tls = ServerTls {
            cert_pem: b"cert".to_vec(),
            key_pem: b"s3cret".to_vec(),
            client_ca_pem: None,
        };
        assert_eq!(
            format!("{tls:?}"),
            "ServerTls { cert_pem: 4, mutual: false, .. }"
        );
        assert!(server(Some(&tls)).is_err(), "no certificate");
    }
}
