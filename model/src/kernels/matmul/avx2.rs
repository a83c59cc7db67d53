//! Tiles of up to six rows by one panel in registers of 8 floats.

use std::arch::x86_64::*;

use super::{super::math::LANES, Add, tile::Tile};

type Sums<const H: usize> = [[__m256; 2]; H];

/// The kernel of f32 by f32 for tiles of `height` rows.
pub(super) fn single(height: usize) -> unsafe fn(&Tile<'_>) {
    match height {
        1 => single_rows::<1>,
        2 => single_rows::<2>,
        3 => single_rows::<3>,
        4 => single_rows::<4>,
        5 => single_rows::<5>,
        _ => single_rows::<6>,
    }
}

/// The kernel of f32 by bf16 for tiles of `height` rows.
pub(super) fn widened(height: usize) -> unsafe fn(&Tile<'_>) {
    match height {
        1 => widened_rows::<1>,
        2 => widened_rows::<2>,
        3 => widened_rows::<3>,
        4 => widened_rows::<4>,
        5 => widened_rows::<5>,
        _ => widened_rows::<6>,
    }
}

/// # Safety
/// The processor has AVX2 and FMA; the tile lies inside x, w and out.
#[target_feature(enable = "avx2,fma")]
unsafe fn single_rows<const H: usize>(tile: &Tile<'_>) {
    // SAFETY: rows and panel are inside x and w by the caller's promise.
    unsafe {
        let mut sums = begin::<H>(tile);
        for k in 0..tile.k {
            let w = tile.w.add(k * LANES);
            let w = [_mm256_load_ps(w), _mm256_load_ps(w.add(8))];
            add_product(tile, k, w, &mut sums);
        }
        end(tile, sums);
    }
}

/// # Safety
/// The processor has AVX2 and FMA; the tile lies inside x, w and out.
#[target_feature(enable = "avx2,fma")]
unsafe fn widened_rows<const H: usize>(tile: &Tile<'_>) {
    // SAFETY: rows and panel are inside x and w by the caller's promise.
    unsafe {
        let mut sums = begin::<H>(tile);
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        for k in 0..tile.k {
            let w = tile.w.add(k / 2 * LANES);
            let pairs = [
                _mm256_load_si256(w.cast()),
                _mm256_load_si256(w.add(8).cast()),
            ];
            let w = pairs.map(|pair| {
                _mm256_castsi256_ps(if k % 2 == 0 {
                    _mm256_slli_epi32::<16>(pair)
                } else {
                    _mm256_and_si256(pair, high)
                })
            });
            add_product(tile, k, w, &mut sums);
        }
        end(tile, sums);
    }
}

/// sums += x\[k\] w.
///
/// # Safety
/// As the kernels'.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_product<const H: usize>(
    tile: &Tile<'_>,
    k: usize,
    w: [__m256; 2],
    sums: &mut Sums<H>,
) {
    for r in 0..H {
        // SAFETY: row r of the tile is inside x.
        let x = unsafe { _mm256_set1_ps(*tile.x.add(r * tile.x_stride).cast::<f32>().add(k)) };
        sums[r][0] = _mm256_fmadd_ps(x, w[0], sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(x, w[1], sums[r][1]);
    }
}

/// The sums that the run of k begins with.
///
/// # Safety
/// As the kernels'.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn begin<const H: usize>(tile: &Tile<'_>) -> Sums<H> {
    let mut sums = [[_mm256_setzero_ps(); 2]; H];
    if !tile.first {
        for r in 0..H {
            // SAFETY: the run before stored it.
            sums[r] = unsafe { load(tile.partial.add(r * tile.partial_stride), LANES) };
        }
    }
    sums
}

/// Sets the sums aside, or finishes and stores them.
///
/// # Safety
/// As the kernels'.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn end<const H: usize>(tile: &Tile<'_>, mut sums: Sums<H>) {
    let finish = &tile.finish;
    let width = LANES.min(tile.columns);
    // SAFETY: all addresses are inside out and what is added to it.
    unsafe {
        if !tile.last {
            for r in 0..H {
                store(tile.partial.add(r * tile.partial_stride), LANES, sums[r]);
            }
            return;
        }
        let bias = finish
            .bias
            .map(|b| load(b.as_ptr().add(tile.column), width));
        let scale = _mm256_set1_ps(finish.scale);
        for r in 0..H {
            for half in 0..2 {
                sums[r][half] = _mm256_mul_ps(scale, sums[r][half]);
                if let Some(bias) = bias {
                    sums[r][half] = _mm256_add_ps(sums[r][half], bias[half]);
                }
            }
        }
        if let Some(thin) = finish.thin {
            let rank = thin.b.inner();
            let low = thin.low.as_ptr().add(tile.row * thin.stride);
            let b = thin.b.groups().add(tile.column * rank);
            for k in 0..rank {
                let w = [
                    _mm256_load_ps(b.add(k * LANES)),
                    _mm256_load_ps(b.add(k * LANES + 8)),
                ];
                for r in 0..H {
                    let x = _mm256_set1_ps(*low.add(r * thin.stride + k));
                    sums[r][0] = _mm256_fmadd_ps(x, w[0], sums[r][0]);
                    sums[r][1] = _mm256_fmadd_ps(x, w[1], sums[r][1]);
                }
            }
        }
        for r in 0..H {
            let out = tile.out.add(r * tile.out_stride);
            let add = match finish.add {
                Add::Nothing => None,
                Add::Out => Some(load(out, width)),
                Add::Rows(rows) => {
                    let at = (tile.row + r) * tile.out_stride + tile.column;
                    Some(load(rows.as_ptr().add(at), width))
                }
            };
            if let Some(add) = add {
                sums[r] = [
                    _mm256_add_ps(sums[r][0], add[0]),
                    _mm256_add_ps(sums[r][1], add[1]),
                ];
            }
            store(out, width, sums[r]);
        }
    }
}

/// The first `width` of 16 floats, zeros behind them.
///
/// # Safety
/// The processor has AVX2; `from` is valid for `width` floats.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const f32, width: usize) -> [__m256; 2] {
    let mut lanes = [0f32; LANES];
    // SAFETY: the caller's promise; `lanes` holds 16.
    unsafe {
        let from = if width == LANES {
            from
        } else {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), width);
            lanes.as_ptr()
        };
        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
    }
}

/// Stores the first `width` of 16 floats.
///
/// # Safety
/// The processor has AVX2; `to` is valid for `width` floats.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(to: *mut f32, width: usize, values: [__m256; 2]) {
    let mut lanes = [0f32; LANES];
    // SAFETY: the caller's promise; `lanes` holds 16.
    unsafe {
        let at = if width == LANES {
            to
        } else {
            lanes.as_mut_ptr()
        };
        _mm256_storeu_ps(at, values[0]);
        _mm256_storeu_ps(at.add(8), values[1]);
        if width < LANES {
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, width);
        }
    }
}
