//! What the pieces of an adapter must hash to.

use sha2::{Digest as _, Sha256};

use super::CHUNK_BYTES;
use crate::{
    v1::{AdapterChecks, PolicyVersion},
    version::{DIGEST_BYTES, Digest},
};

/// Sizes of a piece that are taken: below, a list is longer than it is worth; above, too much is
/// thrown away with one that is wrong.
const PIECE_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(4 << 20);

/// SHA-256 of an adapter's bytes up to the end of each of its pieces.
///
/// Of beginnings and not of the pieces by themselves: whoever receives an adapter hashes it from its
/// beginning anyway, since that is its name, so that to know each piece costs no more. The last of them
/// is the name itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    total: u64,
    piece: u64,
    digests: Vec<Digest>,
}

/// A list that is none of this adapter's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the checks of adapter {version}: {problem}")]
pub struct BadChecks {
    /// The version that they are of.
    pub version: String,
    /// What is wrong.
    pub problem: String,
}

impl Checks {
    /// Of the whole adapter.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut hash = Sha256::new();
        let digests = bytes
            .chunks(CHUNK_BYTES)
            .map(|piece| {
                hash.update(piece);
                hash.clone().finalize().into()
            })
            .collect();
        Self::found(bytes.len() as u64, digests)
    }

    /// Of an adapter of `total` bytes whose pieces of [`CHUNK_BYTES`] were hashed as they came.
    pub(super) fn found(total: u64, digests: Vec<Digest>) -> Self {
        Self {
            total,
            piece: CHUNK_BYTES as u64,
            digests,
        }
    }

    /// As they come with the announcement of a version of `total` bytes.
    ///
    /// # Errors
    /// There are not as many as pieces, or the last is not the version's name.
    pub fn from_wire(
        checks: &AdapterChecks,
        version: &PolicyVersion,
        total: u64,
    ) -> Result<Self, BadChecks> {
        let bad = |problem: String| BadChecks {
            version: version.short().to_string(),
            problem,
        };
        let piece = u64::from(checks.piece_bytes);
        if !PIECE_BYTES.contains(&piece) {
            return Err(bad(format!("pieces of {piece} bytes")));
        }
        let (digests, rest) = checks.digests.as_chunks::<DIGEST_BYTES>();
        let pieces = total.div_ceil(piece);
        if pieces == 0 || digests.len() as u64 != pieces || !rest.is_empty() {
            return Err(bad(format!(
                "{} bytes of digests for {pieces} pieces",
                checks.digests.len()
            )));
        }
        if digests.last().map(|last| &last[..]) != Some(&version.digest[..]) {
            return Err(bad("they end in another adapter's name".to_owned()));
        }
        Ok(Self {
            total,
            piece,
            digests: digests.to_vec(),
        })
    }

    /// As they go with an announcement.
    pub fn to_wire(&self) -> AdapterChecks {
        AdapterChecks {
            piece_bytes: self.piece as u32,
            digests: self.digests.concat(),
        }
    }

    /// Bytes of the adapter.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of a piece.
    pub(super) fn piece(&self) -> u64 {
        self.piece
    }

    /// What the bytes up to `end`, where a piece ends, must hash to.
    pub(super) fn at(&self, end: u64) -> Option<&Digest> {
        let piece = usize::try_from(end.div_ceil(self.piece)).ok()?;
        self.digests.get(piece.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_that_are_not_the_adapters_are_refused() {
        let bytes = vec![7; 2 * CHUNK_BYTES + 9];
        let version = PolicyVersion::of_bytes(3, &bytes);
        let total = bytes.len() as u64;
        let checks = Checks::of_bytes(&bytes);
        let wire = checks.to_wire();
        assert_eq!(wire.digests.len(), 3 * DIGEST_BYTES);
        assert_eq!(Checks::from_wire(&wire, &version, total), Ok(checks));
        let other = PolicyVersion::of_bytes(3, b"other");
        let cases = [
            (wire.clone(), &other, total, "another adapter's name"),
            (
                wire.clone(),
                &version,
                total + CHUNK_BYTES as u64,
                "4 pieces",
            ),
            (wire.clone(), &version, 0, "0 pieces"),
            (
                AdapterChecks {
                    digests: wire.digests[1..].to_vec(),
                    ..wire.clone()
                },
                &version,
                total,
                "95 bytes",
            ),
            (
                AdapterChecks {
                    piece_bytes: 1,
                    ..wire
                },
                &version,
                total,
                "pieces of 1 bytes",
            ),
        ];
        for (wire, version, total, words) in cases {
            let error = Checks::from_wire(&wire, version, total).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
