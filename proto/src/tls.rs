//! Which cryptography TLS uses.

/// Settles on ring for the whole process. rustls chooses by itself only where a program holds one
/// kind of cryptography; this one may hold two (downloads bring their own), and then TLS would
/// panic. Call it before TLS is set up; what was settled before stays.
pub fn choose_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
