//! The policy's kernels for a CPU: plain functions on `f32` slices.
//!
//! Every kernel computes a row by one fixed sequence of operations, whatever else is in the batch
//! and however many threads share the work, so a token's log-prob is the same to the last bit in a
//! worker that decodes it beside 63 others and in a learner that runs whole sequences. Products are
//! accumulated over K in order with fused multiply-adds; there is no other order to choose.
//!
//! - [`team`]: the threads that share the work
//! - [`matmul`]: products with a matrix packed once (frozen weights, LoRA factors, the vocabulary)
//! - [`bf16`]: rounding to bf16 and back
//! - [`attention`]: causal attention over pages of keys and values, and its backward pass
//! - [`rows`]: RMSNorm, SiLU·up, rotary embedding
//! - [`math`]: exp, dot products and sums in lanes of 16
//!
//! Loops over lanes of 16 are compiled three times (AVX-512, AVX2 + FMA, the target's baseline) and
//! chosen at run time ([`level`]); all three give the same bits. The one exception has a name of its own
//! ([`numerics`]): products of bf16 by the processor's dot-product instruction, whose sums round
//! otherwise than fused multiply-adds.

#![allow(
    unsafe_code,
    reason = "vector instructions and disjoint writes from several threads"
)]

pub mod attention;
pub mod bf16;
pub mod elementwise;
pub mod math;
pub mod matmul;
pub mod rows;
pub mod team;

pub use self::matmul::numerics;

use std::sync::OnceLock;

/// What the processor offers, found once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The target's baseline (on aarch64 that includes NEON).
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with BF16's dot products.
    Avx512Bf16,
}

/// The level that kernels run at on this machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (fma, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") => Level::Avx512Bf16,
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// The levels that this machine can run, the lowest first.
#[cfg(test)]
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    let all = [
        Level::Portable,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Bf16,
    ];
    all.into_iter().filter(|l| *l <= level())
}

/// Defines `$name` as `$body` compiled for each [`Level`] and chosen at run time. `$body` must be
/// `#[inline(always)]`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match $crate::kernels::level() {
                    $crate::kernels::Level::Avx512 | $crate::kernels::Level::Avx512Bf16 => {
                        // SAFETY: `level` found these features on this processor.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::kernels::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::Level::Portable => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatch;
