//! The versions that sampled a completion, as the journal keeps them.

use tina_proto::v1::{PolicyVersion, VersionSpan};

/// Bytes of one span: first token (u32), step (u64), digest (32 bytes), little-endian.
const SPAN: usize = 4 + 8 + 32;

pub(super) fn to_bytes(spans: &[VersionSpan]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(spans.len() * SPAN);
    for span in spans {
        let version = span.version.clone().unwrap_or_default();
        let mut digest = version.digest;
        digest.resize(32, 0);
        bytes.extend_from_slice(&span.start.to_le_bytes());
        bytes.extend_from_slice(&version.step.to_le_bytes());
        bytes.extend_from_slice(&digest);
    }
    bytes
}

pub(super) fn from_bytes(bytes: &[u8]) -> Vec<VersionSpan> {
    let (spans, _) = bytes.as_chunks::<SPAN>();
    let read = |span: &[u8; SPAN]| {
        let (start, rest) = span.split_first_chunk::<4>()?;
        let (step, digest) = rest.split_first_chunk::<8>()?;
        Some(VersionSpan {
            start: u32::from_le_bytes(*start),
            version: Some(PolicyVersion {
                step: u64::from_le_bytes(*step),
                digest: digest.to_vec(),
            }),
        })
    };
    spans.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_come_back_as_they_were() {
        let span = |start: u32, step: u64| VersionSpan {
            start,
            version: Some(PolicyVersion {
                step,
                digest: vec![step as u8; 32],
            }),
        };
        let spans = [span(0, 3), span(17, 4), span(900, 1 << 40)];
        assert_eq!(from_bytes(&to_bytes(&spans)), spans);
        assert_eq!(from_bytes(&[]), []);
    }
}
