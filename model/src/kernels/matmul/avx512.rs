//! Tiles of `H` rows by `P` panels in `H · P` registers of 16 floats.

use std::arch::x86_64::*;

use half::bf16;

use super::{
    super::math::LANES,
    Add,
    quantised::block_lines,
    tile::{MOST_LINES, Tile},
};
use crate::weights::blocks::{BLOCK, Bits};

/// Sets the sums aside, or finishes and stores them.
macro_rules! end {
    ($tile:ident, $sums:ident, $H:ident, $P:ident) => {
        if !$tile.last {
            for r in 0..$H {
                for p in 0..$P {
                    let at = $tile.partial.add(r * $tile.partial_stride + p * LANES);
                    _mm512_storeu_ps(at, $sums[r][p]);
                }
            }
            return;
        }
        let mut masks = [u16::MAX; $P];
        for (p, mask) in masks.iter_mut().enumerate() {
            let left = $tile.columns - p * LANES;
            if left < LANES {
                *mask = (1 << left) - 1;
            }
        }
        let scale = _mm512_set1_ps($tile.finish.scale);
        for r in 0..$H {
            for p in 0..$P {
                $sums[r][p] = _mm512_mul_ps(scale, $sums[r][p]);
            }
        }
        if let Some(bias) = $tile.finish.bias {
            for p in 0..$P {
                let at = bias.as_ptr().add($tile.column + p * LANES);
                let bias = _mm512_maskz_loadu_ps(masks[p], at);
                for r in 0..$H {
                    $sums[r][p] = _mm512_add_ps($sums[r][p], bias);
                }
            }
        }
        if let Some(thin) = $tile.finish.thin {
            let rank = thin.b.inner();
            let low = thin.low.as_ptr().add($tile.row * thin.stride);
            let b = thin.b.groups().add($tile.column * rank);
            for k in 0..rank {
                let mut w = [_mm512_setzero_ps(); $P];
                for p in 0..$P {
                    w[p] = _mm512_load_ps(b.add((p * rank + k) * LANES));
                }
                for r in 0..$H {
                    let x = _mm512_set1_ps(*low.add(r * thin.stride + k));
                    for p in 0..$P {
                        $sums[r][p] = _mm512_fmadd_ps(x, w[p], $sums[r][p]);
                    }
                }
            }
        }
        let add = match $tile.finish.add {
            Add::Nothing => None,
            Add::Out => Some($tile.out.cast_const()),
            Add::Rows(rows) => Some(
                rows.as_ptr()
                    .add($tile.row * $tile.out_stride + $tile.column),
            ),
        };
        for r in 0..$H {
            for p in 0..$P {
                let at = r * $tile.out_stride + p * LANES;
                if let Some(add) = add {
                    let add = _mm512_maskz_loadu_ps(masks[p], add.add(at));
                    $sums[r][p] = _mm512_add_ps($sums[r][p], add);
                }
                _mm512_mask_storeu_ps($tile.out.add(at), masks[p], $sums[r][p]);
            }
        }
    };
}

/// Fetches the tile's share of the panels that come next, when group `k` of w is read.
macro_rules! fetch {
    ($tile:ident, $k:ident) => {
        for line in 0..MOST_LINES {
            if line < $tile.fetch_lines {
                let at = ($k * $tile.fetch_lines + line) * LANES;
                _mm_prefetch::<_MM_HINT_T1>($tile.fetch.wrapping_add(at).cast());
            }
        }
    };
}

/// Defines a kernel: sums begin at zero or where the run of k before left them, `$step` adds to them,
/// and they are set aside or finished and stored. A macro, as a function that takes the sums would
/// have them in memory throughout.
macro_rules! kernel {
    ($(#[$meta:meta])* $features:literal $name:ident($tile:ident, $sums:ident) $step:block) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The processor has the features; the tile lies inside x, w and out.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const H: usize, const P: usize>($tile: &Tile<'_>) {
            let mut $sums = [[_mm512_setzero_ps(); P]; H];
            // SAFETY: rows and panels are inside x, w, out and what is added to it by the caller's
            // promise, the run before stored its sums, and columns beyond N are masked off.
            unsafe {
                if !$tile.first {
                    for r in 0..H {
                        for p in 0..P {
                            let at = $tile.partial.add(r * $tile.partial_stride + p * LANES);
                            $sums[r][p] = _mm512_loadu_ps(at);
                        }
                    }
                }
                $step
                end!($tile, $sums, H, P);
            }
        }
    };
}

kernel! {
    /// f32 by f32.
    "avx512f" single(tile, sums) {
        for k in 0..tile.k {
            let mut w = [_mm512_setzero_ps(); P];
            fetch!(tile, k);
            for p in 0..P {
                let panel = tile.w.add(p * tile.w_stride);
                w[p] = _mm512_load_ps(panel.add(k * LANES));
            }
            for r in 0..H {
                let x = tile.x.add(r * tile.x_stride).cast::<f32>();
                let x = _mm512_set1_ps(*x.add(k));
                for p in 0..P {
                    sums[r][p] = _mm512_fmadd_ps(x, w[p], sums[r][p]);
                }
            }
        }
    }
}

kernel! {
    /// bf16 by bf16, two k's an instruction.
    "avx512f,avx512bf16" dot(tile, sums) {
        let pairs = tile.k / 2;
        for k in 0..pairs {
            let mut w = [_mm512_setzero_si512(); P];
            fetch!(tile, k);
            for p in 0..P {
                let panel = tile.w.add(p * tile.w_stride);
                w[p] = _mm512_load_si512(panel.add(k * LANES).cast());
            }
            for r in 0..H {
                let x = tile.x.add(r * tile.x_stride).cast::<i32>();
                let x = as_bf16(_mm512_set1_epi32(x.add(k).read_unaligned()));
                for p in 0..P {
                    sums[r][p] = _mm512_dpbf16_ps(sums[r][p], x, as_bf16(w[p]));
                }
            }
        }
        if tile.k % 2 == 1 {
            for r in 0..H {
                let x = tile.x.add(r * tile.x_stride).cast::<bf16>();
                let x = i32::from(x.add(tile.k - 1).read().to_bits());
                let x = as_bf16(_mm512_set1_epi32(x));
                for p in 0..P {
                    let w = tile.w.add(p * tile.w_stride + pairs * LANES);
                    let w = as_bf16(_mm512_load_si512(w.cast()));
                    sums[r][p] = _mm512_dpbf16_ps(sums[r][p], x, w);
                }
            }
        }
    }
}

kernel! {
    /// f32 by bf16, widened in registers.
    "avx512f" widened(tile, sums) {
        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for k in 0..tile.k {
            let mut w = [_mm512_setzero_ps(); P];
            for p in 0..P {
                let pair = tile.w.add(p * tile.w_stride + k / 2 * LANES);
                let pair = _mm512_load_si512(pair.cast());
                w[p] = _mm512_castsi512_ps(if k % 2 == 0 {
                    _mm512_slli_epi32::<16>(pair)
                } else {
                    _mm512_and_si512(pair, high)
                });
            }
            for r in 0..H {
                let x = tile.x.add(r * tile.x_stride).cast::<f32>();
                let x = _mm512_set1_ps(*x.add(k));
                for p in 0..P {
                    sums[r][p] = _mm512_fmadd_ps(x, w[p], sums[r][p]);
                }
            }
        }
    }
}

/// d and m of a block's 16 columns.
///
/// # Safety
/// The processor has AVX-512F; `block` is a line of scales.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scales(block: *const f32) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe { [0, 8].map(|at| _mm512_cvtph_ps(_mm256_load_si256(block.add(at).cast()))) }
}

/// Adds one k's products with P groups of weights.
macro_rules! add_k {
    ($tile:ident, $sums:ident, $k:expr, $w:ident) => {
        for r in 0..H {
            let x = $tile.x.add(r * $tile.x_stride).cast::<f32>();
            let x = _mm512_set1_ps(*x.add($k));
            for p in 0..P {
                $sums[r][p] = _mm512_fmadd_ps(x, $w[p], $sums[r][p]);
            }
        }
    };
}

kernel! {
    /// f32 by blocks of four bits.
    "avx512f" four_bits(tile, sums) {
        let mask = _mm512_set1_epi32(15);
        for b in 0..tile.k / BLOCK {
            let mut block = [tile.w; P];
            let mut scale = [[_mm512_setzero_ps(); 2]; P];
            for p in 0..P {
                let at = p * tile.w_stride + b * block_lines(Bits::Four) * LANES;
                block[p] = tile.w.add(at);
                scale[p] = scales(block[p]);
            }
            for line in 0..BLOCK / 8 {
                let mut levels = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    levels[p] = _mm512_load_si512(block[p].add((1 + line) * LANES).cast());
                }
                for j in 0..8 {
                    let mut w = [_mm512_setzero_ps(); P];
                    for p in 0..P {
                        let [d, m] = scale[p];
                        let level = _mm512_cvtepi32_ps(_mm512_and_si512(levels[p], mask));
                        w[p] = _mm512_fmadd_ps(d, level, m);
                        levels[p] = _mm512_srli_epi32::<4>(levels[p]);
                    }
                    add_k!(tile, sums, b * BLOCK + line * 8 + j, w);
                }
            }
        }
    }
}

kernel! {
    /// f32 by blocks of eight bits.
    "avx512f" eight_bits(tile, sums) {
        for b in 0..tile.k / BLOCK {
            let mut block = [tile.w; P];
            let mut scale = [[_mm512_setzero_ps(); 2]; P];
            for p in 0..P {
                let at = p * tile.w_stride + b * block_lines(Bits::Eight) * LANES;
                block[p] = tile.w.add(at);
                scale[p] = scales(block[p]);
            }
            for k in 0..BLOCK {
                let mut w = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    let [d, m] = scale[p];
                    let levels = _mm_load_si128(block[p].add(LANES + k * LANES / 4).cast());
                    let level = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels));
                    w[p] = _mm512_fmadd_ps(d, level, m);
                }
                add_k!(tile, sums, b * BLOCK + k, w);
            }
        }
    }
}

/// Blocks of a panel from `from` on to groups of 16 columns from `to` on, one a k.
///
/// # Safety
/// The processor has AVX-512F; the blocks can be read, the groups written, each at the start of a cache line.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dequantise(bits: Bits, from: *const f32, blocks: usize, to: *mut f32) {
    let mask = _mm512_set1_epi32(15);
    for b in 0..blocks {
        // SAFETY: the caller's promise.
        unsafe {
            let block = from.add(b * block_lines(bits) * LANES);
            let to = to.add(b * BLOCK * LANES);
            let [d, m] = scales(block);
            let mut levels = mask;
            for k in 0..BLOCK {
                let level = match bits {
                    Bits::Four => {
                        if k % 8 == 0 {
                            levels = _mm512_load_si512(block.add((1 + k / 8) * LANES).cast());
                        }
                        let level = _mm512_and_si512(levels, mask);
                        levels = _mm512_srli_epi32::<4>(levels);
                        level
                    }
                    Bits::Eight => {
                        let levels = block.add(LANES + k * LANES / 4);
                        _mm512_cvtepi8_epi32(_mm_load_si128(levels.cast()))
                    }
                };
                let w = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(level), m);
                _mm512_store_ps(to.add(k * LANES), w);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are 32 bf16.
    unsafe { std::mem::transmute(pairs) }
}
