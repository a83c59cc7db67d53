//! Seeds of everything random in learning: each a function of the run's seed and its purpose.

use sha2::{Digest as _, Sha256};

/// Seed of the initial adapter.
pub(crate) fn adapter(run_seed: u64) -> u64 {
    derive(b"tina learner: initial adapter", &[run_seed])
}

/// Seed of LoRA dropout in one optimiser update of one step.
pub(crate) fn dropout(run_seed: u64, step: u64, iteration: u32) -> u64 {
    derive(
        b"tina learner: dropout",
        &[run_seed, step, iteration.into()],
    )
}

fn derive(purpose: &[u8], numbers: &[u64]) -> u64 {
    let mut hash = Sha256::new_with_prefix(purpose);
    for number in numbers {
        hash.update(number.to_le_bytes());
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purpose_run_step_and_iteration_all_change_the_seed() {
        let seeds = [
            adapter(1),
            adapter(2),
            dropout(1, 0, 0),
            dropout(2, 0, 0),
            dropout(1, 1, 0),
            dropout(1, 0, 1),
        ];
        let distinct: std::collections::BTreeSet<u64> = seeds.into_iter().collect();
        assert_eq!(distinct.len(), seeds.len());
        assert_eq!(dropout(1, 2, 3), dropout(1, 2, 3));
    }
}
