//! Dialling a coordinator: TLS, the token, keep-alive, and every deadline and size limit.

use std::{fmt, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::v1::{
    adapters_client::AdaptersClient, control_client::ControlClient,
    learning_client::LearningClient, ranks_client::RanksClient, rollouts_client::RolloutsClient,
    status_client::StatusClient,
};

/// The largest message that either end takes. Adapters travel in chunks far below it.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Deadline for the TCP (and TLS) connection.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for a call that is answered with one message.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for a stream's first answer, its headers.
pub const STREAM_OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Longest silence between two chunks of an adapter.
pub const CHUNK_DEADLINE: Duration = Duration::from_secs(30);
/// HTTP/2 pings: a peer that went away without a word is noticed after interval + timeout.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for a ping's answer.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a coordinator is and how to be let in.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`.
    pub url: String,
    /// The shared secret, or a token that follows from it.
    pub token: Option<String>,
    /// The certificate (PEM) of the authority that signed the coordinator's; makes the call TLS.
    pub ca_pem: Option<Vec<u8>>,
    /// What is shown to a coordinator that asks for a certificate (mutual TLS).
    pub identity: Option<ClientIdentity>,
}

/// A client's certificate and its private key.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate chain (PEM), the client's own first.
    pub cert_pem: Vec<u8>,
    /// The private key (PEM).
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("cert_pem", &self.cert_pem.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("url", &self.url)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("ca_pem", &self.ca_pem.as_ref().map(Vec::len))
            .field("identity", &self.identity)
            .finish()
    }
}

/// Why a coordinator can't be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address makes no sense.
    #[error("coordinator address {url:?}: {problem}; write it as http://HOST:PORT")]
    BadUrl {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS without an authority to trust.
    #[error("coordinator address {url:?}: https needs the authority's certificate (a PEM file)")]
    NoAuthority {
        /// As it was given.
        url: String,
    },
    /// A client's certificate without TLS.
    #[error(
        "coordinator address {url:?}: a client's certificate needs the authority's beside it (a PEM \
         file)"
    )]
    NoTls {
        /// As it was given.
        url: String,
    },
    /// A certificate or the key is no use.
    #[error(
        "the certificates for {url} (the authority's, or the client's own and its key): {}",
        innermost(source)
    )]
    BadCertificate {
        /// The coordinator.
        url: String,
        /// What TLS says.
        source: tonic::transport::Error,
    },
    /// A token that can't stand in a header.
    #[error("the token holds characters that a header can't carry; use visible ASCII")]
    BadToken,
    /// Nobody answers, or not as they should.
    #[error("no coordinator answers at {url}: {}", innermost(source))]
    Connect {
        /// The coordinator.
        url: String,
        /// What the transport says.
        source: tonic::transport::Error,
    },
}

/// tonic's own message is "transport error"; the cause at the bottom is what helps.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

impl ClientOptions {
    /// The address with its scheme: https when there is an authority's certificate.
    pub fn full_url(&self) -> Result<String, ClientError> {
        let bad = |problem: &str| ClientError::BadUrl {
            url: self.url.clone(),
            problem: problem.to_owned(),
        };
        let url = self.url.trim().trim_end_matches('/');
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        if rest.is_empty() || rest.contains(['/', '@']) {
            return Err(bad("it must be a host and a port"));
        }
        let tls = self.ca_pem.is_some();
        match scheme {
            _ if self.identity.is_some() && !tls => Err(ClientError::NoTls {
                url: self.url.clone(),
            }),
            "https" if !tls => Err(ClientError::NoAuthority {
                url: self.url.clone(),
            }),
            "http" | "https" | "" => Ok(format!("{}://{rest}", if tls { "https" } else { "http" })),
            _ => Err(bad("its scheme is neither http nor https")),
        }
    }

    /// Adds this token to every call.
    pub fn interceptor(&self) -> Result<AuthInterceptor, ClientError> {
        AuthInterceptor::new(self.token.as_deref())
    }
}

/// Dials once; the caller backs off and tries again (see [`crate::backoff`]).
pub async fn connect(options: &ClientOptions) -> Result<Channel, ClientError> {
    let url = options.full_url()?;
    let mut endpoint = Endpoint::from_shared(url.clone())
        .map_err(|error| ClientError::BadUrl {
            url: options.url.clone(),
            problem: error.to_string(),
        })?
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if let Some(pem) = &options.ca_pem {
        crate::tls::choose_cryptography();
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        if let Some(ClientIdentity { cert_pem, key_pem }) = &options.identity {
            tls = tls.identity(Identity::from_pem(cert_pem, key_pem));
        }
        endpoint = endpoint
            .tls_config(tls)
            .map_err(|source| ClientError::BadCertificate {
                url: url.clone(),
                source,
            })?;
    }
    crate::platform::connect(endpoint)
        .await
        .map_err(|source| ClientError::Connect { url, source })
}

/// What a status says to a person: its message, or what its code stands for; of a connection that
/// broke, what broke it.
pub fn reason(status: &Status) -> String {
    use std::error::Error as _;
    if let Some(source) = status.source() {
        return innermost(source);
    }
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    }
}

/// `message` with [`CALL_DEADLINE`].
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// Adds `authorization: Bearer TOKEN` to every call.
#[derive(Clone)]
pub struct AuthInterceptor {
    header: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for AuthInterceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthInterceptor")
            .field("has_token", &self.header.is_some())
            .finish()
    }
}

impl AuthInterceptor {
    /// Without a token it adds nothing.
    pub fn new(token: Option<&str>) -> Result<Self, ClientError> {
        let header = token
            .map(|token| {
                let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
                    .parse()
                    .map_err(|_| ClientError::BadToken)?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        Ok(Self { header })
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request
                .metadata_mut()
                .insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// A channel whose calls carry the token.
pub type AuthChannel = InterceptedService<Channel, AuthInterceptor>;

/// For rollout workers.
pub fn rollouts_client(channel: Channel, auth: AuthInterceptor) -> RolloutsClient<AuthChannel> {
    RolloutsClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// For learners.
pub fn learning_client(channel: Channel, auth: AuthInterceptor) -> LearningClient<AuthChannel> {
    LearningClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// For the learner's other ranks, which dial in to the learner.
pub fn ranks_client(channel: Channel, auth: AuthInterceptor) -> RanksClient<AuthChannel> {
    RanksClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// For whoever needs or makes adapters; mostly through [`crate::adapters::GrpcTransport`].
pub fn adapters_client(channel: Channel, auth: AuthInterceptor) -> AdaptersClient<AuthChannel> {
    AdaptersClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// For those who ask.
pub fn status_client(channel: Channel, auth: AuthInterceptor) -> StatusClient<AuthChannel> {
    StatusClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// For those who order.
pub fn control_client(channel: Channel, auth: AuthInterceptor) -> ControlClient<AuthChannel> {
    ControlClient::with_interceptor(channel, auth)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str, ca: bool) -> ClientOptions {
        ClientOptions {
            url: url.to_owned(),
            token: Some("s3cret".to_owned()),
            ca_pem: ca.then(|| b"-----BEGIN".to_vec()),
            identity: None,
        }
    }

    fn identity() -> Option<ClientIdentity> {
        Some(ClientIdentity {
            cert_pem: b"-----BEGIN".to_vec(),
            key_pem: b"s3cret".to_vec(),
        })
    }

    #[test]
    fn the_scheme_follows_the_certificate() {
        let full = |url, ca| options(url, ca).full_url().unwrap();
        assert_eq!(full("127.0.0.1:7", false), "http://127.0.0.1:7");
        assert_eq!(full("http://a.b:7/", false), "http://a.b:7");
        assert_eq!(full("http://a.b:7", true), "https://a.b:7");
        assert_eq!(full("https://a.b:7", true), "https://a.b:7");
    }

    #[test]
    fn a_bad_address_is_named_in_the_error() {
        for (url, ca) in [
            ("", false),
            ("ftp://a:1", false),
            ("http://a:1/path", false),
            ("https://a:1", false),
        ] {
            let error = options(url, ca).full_url().unwrap_err().to_string();
            assert!(error.contains(&format!("{url:?}")), "{error}");
        }
    }

    #[tokio::test]
    async fn a_certificate_without_tls_or_that_is_none_is_an_error_before_dialling() {
        let mut with_identity = options("127.0.0.1:1", false);
        with_identity.identity = identity();
        let error = connect(&with_identity).await.unwrap_err();
        assert!(matches!(error, ClientError::NoTls { .. }), "{error}");
        with_identity.ca_pem = Some(b"none".to_vec());
        let error = connect(&with_identity).await.unwrap_err();
        assert!(
            matches!(error, ClientError::BadCertificate { .. }),
            "{error}"
        );
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[test]
    fn debug_never_shows_the_token_or_a_key() {
        let mut options = options("a:1", true);
        options.identity = identity();
        assert!(!format!("{options:?}").contains("s3cret"));
        assert!(!format!("{:?}", options.interceptor().unwrap()).contains("s3cret"));
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_says_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = connect(&options(&address, false))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&address) && error.contains("refused"),
            "{error}"
        );
    }
}
