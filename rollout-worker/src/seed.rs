//! Seeds belong to samples: the random numbers of a completion are a function of (run seed, prompt
//! key, sample index, policy version) and of nothing else.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};
use tina_proto::version::Digest;

/// Bytes of a prompt key.
pub const PROMPT_KEY_BYTES: usize = 32;

/// One uniform number for each token of one completion, in order.
#[derive(Clone, Debug)]
pub struct Uniforms {
    rng: ChaCha8Rng,
}

impl Uniforms {
    /// ChaCha8, seeded with the SHA-256 of run seed, prompt key, sample index and adapter digest
    /// (integers in little-endian order).
    pub fn new(
        run_seed: u64,
        prompt_key: &[u8; PROMPT_KEY_BYTES],
        sample_index: u32,
        version: &Digest,
    ) -> Self {
        let seed = Sha256::new()
            .chain_update(run_seed.to_le_bytes())
            .chain_update(prompt_key)
            .chain_update(sample_index.to_le_bytes())
            .chain_update(version)
            .finalize();
        Self {
            rng: ChaCha8Rng::from_seed(seed.into()),
        }
    }

    /// The next number in [0, 1): the high 53 bits of one 64-bit word.
    pub fn next_uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(run_seed: u64, key: u8, index: u32, version: u8) -> [f64; 3] {
        let mut uniforms = Uniforms::new(run_seed, &[key; 32], index, &[version; 32]);
        std::array::from_fn(|_| uniforms.next_uniform())
    }

    /// From an independent ChaCha8 and SHA-256 (Python): a change here changes every run.
    #[test]
    fn the_numbers_of_a_sample_never_change() {
        assert_eq!(first(42, 1, 3, 2), GOLDEN);
    }

    const GOLDEN: [f64; 3] = [0.8141448704101035, 0.3067683273273343, 0.5054630041666139];

    #[test]
    fn each_part_of_the_name_changes_the_numbers() {
        let base = first(42, 1, 3, 2);
        for other in [
            first(43, 1, 3, 2),
            first(42, 9, 3, 2),
            first(42, 1, 4, 2),
            first(42, 1, 3, 9),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, first(42, 1, 3, 2));
    }

    #[test]
    fn numbers_lie_in_the_half_open_unit_interval_and_spread() {
        let mut uniforms = Uniforms::new(0, &[0; 32], 0, &[0; 32]);
        let draws: Vec<f64> = (0..10_000).map(|_| uniforms.next_uniform()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
    }
}
