//! Which cryptography TLS uses, and where a caller finds its certificates.

/// The environment variable with the authority's certificate file, where none is named.
pub const CA_VARIABLE: &str = "TINA_CA";
/// That with the caller's own certificate file.
pub const CERT_VARIABLE: &str = "TINA_CERT";
/// That with its private key's file.
pub const KEY_VARIABLE: &str = "TINA_KEY";

/// Settles on ring for the whole process. rustls chooses by itself only where a program holds one
/// kind of cryptography; this one may hold two (downloads bring their own), and then TLS would
/// panic. Call it before TLS is set up; what was settled before stays.
pub fn choose_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
