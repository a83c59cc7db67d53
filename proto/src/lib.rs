//! The wire of Tina: package `tina.v1` (`proto/tina/v1/*.proto`) and what every end of it shares.
//!
//! - [`v1`]: messages, clients and servers, generated at build time.
//! - [`FILE_DESCRIPTOR_SET`]: for gRPC server reflection.
//! - [`version`]: what a policy version's digest is, and how a person reads it.
//! - [`client`]: dialling a coordinator: deadlines, keep-alive, size limits, TLS, what a caller shows.
//! - [`auth`]: roles, which calls are for whom, and how a caller shows what it is.
//! - [`backoff`]: how long to wait before dialling again (pure).
//! - [`door`]: what every port that others dial has in common.
//! - [`host`]: what a person knows a machine by.
//! - [`platform`]: connections and threads: the system's, or a simulated world's.
//! - [`tls`]: which cryptography TLS uses, and where a caller finds its certificates.
//! - [`adapters`]: adapters by content over the wire: chunked, bounded, resumable, verified.

pub mod adapters;
pub mod auth;
pub mod backoff;
pub mod client;
pub mod door;
pub mod host;
pub mod platform;
pub mod tls;
pub mod version;

/// Generated from `proto/tina/v1/*.proto`; the field docs stand there.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("tina.v1");
}

/// The encoded `FileDescriptorSet` of package `tina.v1`.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/tina_descriptor.bin"));
