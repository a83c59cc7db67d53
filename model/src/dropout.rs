//! LoRA dropout whose mask is a function of what is dropped, not of when it is computed.
//!
//! A value's fate depends on (seed, row key, layer, module, column) alone, so micro-batches of any
//! size, and a layer that is computed again in the backward pass, drop the same values.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::kernels::team;

/// Rows that a task takes.
const ROWS: usize = 16;

/// Dropout of one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a value is dropped, in [0, 1).
    pub p: f32,
    /// The step's seed.
    pub seed: u64,
}

/// Dropout in front of one LoRA pair.
#[derive(Clone, Debug)]
pub(crate) struct DropMask {
    /// One key a row of the pass.
    keys: Arc<Vec<u64>>,
    /// Seed of the step, layer and module together.
    seed: u64,
    threshold: u64,
    keep_scale: f32,
}

impl DropMask {
    pub(crate) fn new(dropout: Dropout, keys: &Arc<Vec<u64>>, layer: usize, module: usize) -> Self {
        let place = mix(dropout.seed ^ mix((layer as u64) << 8 | module as u64));
        Self {
            keys: keys.clone(),
            seed: place,
            threshold: (f64::from(dropout.p) * u64::MAX as f64) as u64,
            keep_scale: 1.0 / (1.0 - dropout.p),
        }
    }

    /// x `[rows, width]` with its dropped values 0 and the others scaled by 1 / (1 − p).
    pub(crate) fn apply(&self, x: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        team::for_each_chunk(&mut out, ROWS * width, |chunk, out| {
            let rows = out.chunks_exact_mut(width).zip(&self.keys[chunk * ROWS..]);
            for ((out, key), x) in rows.zip(x[chunk * ROWS * width..].chunks_exact(width)) {
                let row = mix(self.seed ^ key);
                for (i, (o, x)) in out.iter_mut().zip(x).enumerate() {
                    let kept = mix(row.wrapping_add(i as u64)) >= self.threshold;
                    *o = if kept { x * self.keep_scale } else { 0.0 };
                }
            }
        });
        out
    }

    /// The factors themselves, `[rows, width]` f32 on `device`.
    pub(crate) fn tensor(&self, width: usize, device: &Device) -> Result<Tensor> {
        let rows = self.keys.len();
        Tensor::from_vec(
            self.apply(&vec![1.0; rows * width], width),
            (rows, width),
            device,
        )
    }
}

/// SplitMix64's finaliser: a bijection that scatters neighbouring numbers.
pub(crate) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_share_it_says_and_keeps_the_mean() {
        let keys = Arc::new((0..200).map(mix).collect::<Vec<_>>());
        let mask = DropMask::new(Dropout { p: 0.25, seed: 7 }, &keys, 3, 1);
        let out = mask.apply(&vec![1.0; 200 * 100], 100);
        let zeros = out.iter().filter(|x| **x == 0.0).count() as f64 / 20_000.0;
        assert!((zeros - 0.25).abs() < 0.02, "{zeros}");
        assert!((out.iter().sum::<f32>() / 20_000.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn a_row_is_dropped_alike_in_any_batch_and_apart_from_other_places() {
        let row = |keys: Vec<u64>, at: usize, layer: usize| {
            let rows = keys.len();
            let mask = DropMask::new(Dropout { p: 0.5, seed: 1 }, &Arc::new(keys), layer, 0);
            mask.apply(&vec![1.0; rows * 64], 64)[at * 64..(at + 1) * 64].to_vec()
        };
        assert_eq!(row(vec![5, 6, 7], 1, 0), row(vec![6], 0, 0));
        assert_ne!(row(vec![6], 0, 0), row(vec![6], 0, 1));
        assert_ne!(row(vec![6], 0, 0), row(vec![7], 0, 0));
    }
}
