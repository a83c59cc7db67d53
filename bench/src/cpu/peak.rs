//! Loops that keep a core's arithmetic units, or its way to memory, as busy as can be.
//!
//! Every loop has twelve chains of operations that don't depend on each other, in registers: enough
//! to hide the latency of any unit so far.

#![allow(
    unsafe_code,
    reason = "vector instructions are called where the processor was asked for them"
)]

use std::hint::black_box;

/// Independent chains.
const CHAINS: usize = 12;

/// A loop, and what one of its rounds computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// Operations of a round; a multiplication and an addition are two.
    pub(crate) operations: f64,
    pub(crate) run: fn(u64),
}

fn kernel(name: &'static str, lanes: usize, run: fn(u64)) -> Kernel {
    Kernel {
        name,
        operations: (2 * CHAINS * lanes) as f64,
        run,
    }
}

/// Multiplications and additions of f32 in the widest registers there are.
pub(crate) fn f32_kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512 F.
            return kernel("AVX-512", 16, |rounds| unsafe { x86::f32_avx512(rounds) });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return kernel("AVX2", 8, |rounds| unsafe { x86::f32_avx2(rounds) });
        }
    }
    kernel("portable", 8, portable)
}

/// Dot products of pairs of bf16 added to f32, where the processor has them.
pub(crate) fn bf16_kernel() -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has AVX-512 F and BF16.
        let run = |rounds| unsafe { x86::bf16_avx512(rounds) };
        return Some(kernel("AVX-512 BF16", 32, run));
    }
    None
}

/// What any target does, as the compiler sees fit.
fn portable(rounds: u64) {
    let (a, b) = (black_box(0.5f32), black_box(1e-3f32));
    let mut sums: [[f32; 8]; CHAINS] =
        std::array::from_fn(|chain| std::array::from_fn(|lane| black_box((chain + lane) as f32)));
    for _ in 0..rounds {
        for lane in sums.iter_mut().flatten() {
            *lane = if cfg!(target_arch = "aarch64") {
                lane.mul_add(a, b)
            } else {
                *lane * a + b
            };
        }
    }
    black_box(sums);
}

/// Sum of the words: each is read once.
pub(crate) fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let chunks = words.chunks_exact(sums.len());
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, hint::black_box};

    use super::CHAINS;

    // Each chain starts at a value of its own that the compiler does not know: it would compute
    // equal chains once.

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(rounds: u64) {
        let (a, b) = (
            _mm512_set1_ps(black_box(0.5)),
            _mm512_set1_ps(black_box(1e-3)),
        );
        let mut sums = [b; CHAINS];
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(black_box(chain as f32));
        }
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(rounds: u64) {
        let (a, b) = (
            _mm256_set1_ps(black_box(0.5)),
            _mm256_set1_ps(black_box(1e-3)),
        );
        let mut sums = [b; CHAINS];
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set1_ps(black_box(chain as f32));
        }
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(rounds: u64) {
        let pairs = |x: f32| {
            let x = _mm512_set1_ps(black_box(x));
            _mm512_cvtne2ps_pbh(x, x)
        };
        let (a, b) = (pairs(0.5), pairs(1e-3));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(black_box(chain as f32));
        }
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_processor_runs() {
        (f32_kernel().run)(10);
        portable(10);
        if let Some(kernel) = bf16_kernel() {
            (kernel.run)(10);
        }
    }

    #[test]
    fn words_are_summed() {
        let words: Vec<u64> = (0..64).collect();
        assert_eq!(sum(&words), 63 * 32);
    }
}
