//! A policy version's name is its content: `{step, SHA-256 of the adapter's safetensors}`.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use crate::v1::PolicyVersion;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;

/// SHA-256 of an adapter, or of anything else.
pub type Digest = [u8; DIGEST_BYTES];

/// A digest of the wrong length came over the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy version of step {step}: its digest has {found} bytes, a SHA-256 has {DIGEST_BYTES}"
)]
pub struct BadDigest {
    /// The version's step.
    pub step: u64,
    /// Bytes that arrived.
    pub found: usize,
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing into a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl PolicyVersion {
    /// The version of `step` whose adapter has this digest.
    pub fn new(step: u64, digest: Digest) -> Self {
        Self {
            step,
            digest: digest.to_vec(),
        }
    }

    /// The version of `step` whose adapter file holds `bytes`.
    pub fn of_bytes(step: u64, bytes: &[u8]) -> Self {
        Self::new(step, sha256(bytes))
    }

    /// The digest, once its length is checked.
    pub fn checked_digest(&self) -> Result<Digest, BadDigest> {
        self.digest.as_slice().try_into().map_err(|_| BadDigest {
            step: self.step,
            found: self.digest.len(),
        })
    }

    /// The whole digest in lower-case hex.
    pub fn digest_hex(&self) -> String {
        hex(&self.digest)
    }

    /// Step and the digest's first four bytes, for people: `12:ab12cd34`.
    pub fn short(&self) -> ShortVersion<'_> {
        ShortVersion(self)
    }
}

/// Displays a version as `12:ab12cd34`; a digest that is missing as `12:-`.
#[derive(Clone, Copy, Debug)]
pub struct ShortVersion<'a>(&'a PolicyVersion);

impl fmt::Display for ShortVersion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = &self.0.digest;
        match digest.get(..digest.len().min(4)) {
            Some(start) if !start.is_empty() => write!(f, "{}:{}", self.0.step, hex(start)),
            _ => write!(f, "{}:-", self.0.step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_by_step_and_content() {
        let version = PolicyVersion::of_bytes(12, b"abc");
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            version.digest_hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(version.short().to_string(), "12:ba7816bf");
        assert_eq!(version.checked_digest(), Ok(sha256(b"abc")));
        assert_eq!(version, PolicyVersion::new(12, sha256(b"abc")));
        assert_ne!(version, PolicyVersion::of_bytes(12, b"abd"));
        assert_ne!(version, PolicyVersion::of_bytes(13, b"abc"));
    }

    #[test]
    fn a_digest_of_the_wrong_length_is_refused() {
        for found in [0, 1, 31, 33] {
            let version = PolicyVersion {
                step: 3,
                digest: vec![7; found],
            };
            assert_eq!(version.checked_digest(), Err(BadDigest { step: 3, found }));
        }
        assert_eq!(PolicyVersion::default().short().to_string(), "0:-");
    }
}
