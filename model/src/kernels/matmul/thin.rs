//! `out += s · uᵀ · x`: the gradient of a LoRA factor, summed over the rows of a pass.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::super::{Level, level, math::LANES, team};

/// Ranks of one register tile.
const TILE_RANKS: usize = 8;
/// Groups of 16 columns of one register tile.
const TILE_GROUPS: usize = 3;
/// Columns of one task: a register tile's.
const TASK: usize = TILE_GROUPS * LANES;

/// `out += s · uᵀ · x`: u `[rows, rank]`, x `[rows, n]`, out `[rank, n]`, all row-major.
///
/// An output is summed over the rows in order, then scaled and added, whatever the threads.
///
/// # Panics
/// When a slice's length is not that of the shapes: a fault of the caller's code.
pub fn thin_gradient(u: &[f32], rank: usize, x: &[f32], scale: f32, out: &mut [f32]) {
    gradient_at(level(), u, rank, x, scale, out);
}

/// [`thin_gradient`] at a level that the processor has.
pub(super) fn gradient_at(
    level: Level,
    u: &[f32],
    rank: usize,
    x: &[f32],
    scale: f32,
    out: &mut [f32],
) {
    let rows = u.len().checked_div(rank).unwrap_or(0);
    let n = out.len().checked_div(rank).unwrap_or(0);
    assert!(
        u.len() == rows * rank && x.len() == rows * n && out.len() == rank * n,
        "thin_gradient: a slice has the wrong length"
    );
    if rows == 0 || n == 0 {
        return;
    }
    let part = Part {
        u: u.as_ptr(),
        x: x.as_ptr(),
        out: out.as_mut_ptr(),
        rows,
        rank,
        n,
        scale,
        columns: 0,
    };
    let place = Place(part);
    team::for_each(n.div_ceil(TASK), |task| {
        let place = &place;
        let first = task * TASK;
        let columns = TASK.min(n - first);
        for r in (0..rank).step_by(TILE_RANKS) {
            // SAFETY: the tile lies inside u, x and out; tasks write disjoint columns.
            unsafe {
                let part = Part {
                    u: place.0.u.add(r),
                    x: place.0.x.add(first),
                    out: place.0.out.add(r * n + first),
                    columns,
                    ..place.0
                };
                part.run(level, TILE_RANKS.min(rank - r));
            }
        }
    });
}

/// A tile: its first rank's u, its first column's x, its corner of out.
#[derive(Clone, Copy)]
struct Part {
    u: *const f32,
    x: *const f32,
    out: *mut f32,
    rows: usize,
    rank: usize,
    n: usize,
    scale: f32,
    /// Columns, up to [`TASK`].
    columns: usize,
}

/// What tasks share.
struct Place(Part);

// SAFETY: tasks read u and x and write disjoint columns of out.
unsafe impl Sync for Place {}

impl Part {
    /// # Safety
    /// The tile of `ranks` ranks lies inside u, x and out; the level was found.
    unsafe fn run(&self, level: Level, ranks: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            let kernel: Option<unsafe fn(&Self)> = match level {
                Level::Avx512 | Level::Avx512Bf16 => Some(match ranks {
                    1 => avx512::<1>,
                    2 => avx512::<2>,
                    3 => avx512::<3>,
                    4 => avx512::<4>,
                    5 => avx512::<5>,
                    6 => avx512::<6>,
                    7 => avx512::<7>,
                    _ => avx512::<8>,
                }),
                _ => None,
            };
            if let Some(kernel) = kernel {
                // SAFETY: the level was found; the tile is the caller's promise.
                return unsafe { kernel(self) };
            }
            if level == Level::Avx2 {
                // SAFETY: as above.
                return unsafe { avx2(self, ranks) };
            }
        }
        // SAFETY: the caller's promise.
        unsafe { plain(self, ranks) }
    }
}

/// # Safety
/// As [`Part::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(part: &Part, ranks: usize) {
    // SAFETY: the caller's promise.
    unsafe { plain(part, ranks) }
}

/// One rank at a time, in loops that the compiler makes vector code of.
///
/// # Safety
/// As [`Part::run`].
#[inline(always)]
unsafe fn plain(part: &Part, ranks: usize) {
    for r in 0..ranks {
        let mut sums = [0f32; TASK];
        for row in 0..part.rows {
            // SAFETY: the row is inside u and x.
            let (u, x) = unsafe {
                (
                    *part.u.add(row * part.rank + r),
                    std::slice::from_raw_parts(part.x.add(row * part.n), part.columns),
                )
            };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = u.mul_add(*x, *sum);
            }
        }
        // SAFETY: the rank's columns are inside out, and this task's.
        let out = unsafe { std::slice::from_raw_parts_mut(part.out.add(r * part.n), part.columns) };
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = part.scale.mul_add(*sum, *out);
        }
    }
}

/// `R` ranks by three groups of columns in `3 R` registers.
///
/// # Safety
/// The processor has AVX-512F; the tile lies inside u, x and out.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(part: &Part) {
    let mut masks = [0u16; TILE_GROUPS];
    for (group, mask) in masks.iter_mut().enumerate() {
        let left = part.columns.saturating_sub(group * LANES).min(LANES);
        *mask = ((1u32 << left) - 1) as u16;
    }
    let mut sums = [[_mm512_setzero_ps(); TILE_GROUPS]; R];
    // SAFETY: addresses are inside u, x and out, or masked off beyond the tile's columns.
    unsafe {
        for row in 0..part.rows {
            let from = part.x.add(row * part.n);
            let mut x = [_mm512_setzero_ps(); TILE_GROUPS];
            for g in 0..TILE_GROUPS {
                x[g] = _mm512_maskz_loadu_ps(masks[g], from.wrapping_add(g * LANES));
            }
            for r in 0..R {
                let u = _mm512_set1_ps(*part.u.add(row * part.rank + r));
                for g in 0..TILE_GROUPS {
                    sums[r][g] = _mm512_fmadd_ps(u, x[g], sums[r][g]);
                }
            }
        }
        let scale = _mm512_set1_ps(part.scale);
        for r in 0..R {
            for g in 0..TILE_GROUPS {
                let at = part.out.wrapping_add(r * part.n + g * LANES);
                let before = _mm512_maskz_loadu_ps(masks[g], at);
                let sum = _mm512_fmadd_ps(scale, sums[r][g], before);
                _mm512_mask_storeu_ps(at, masks[g], sum);
            }
        }
    }
}
