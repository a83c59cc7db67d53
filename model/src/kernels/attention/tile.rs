//! Register tiles: the loops that attention spends its time in.

use super::lanes::{LANES, Lanes};

/// Scores of R rows against P groups of 16 keys: `out[r][16 p + j] = q[r] · keys[p][.., j]`. What
/// follows a group, in a page its values, is asked for on the way.
///
/// # Safety
/// `q` has R rows of `width` floats, `q_stride` apart; each of `keys` is `[width][16]`; `out` has R
/// rows of 16 P floats, `out_stride` apart.
#[inline(always)]
pub(super) unsafe fn scores<V: Lanes, const R: usize, const P: usize>(
    q: *const f32,
    q_stride: usize,
    width: usize,
    keys: [*const f32; P],
    out: *mut f32,
    out_stride: usize,
) {
    let mut acc = [[V::splat(0.0); P]; R];
    for d in 0..width {
        // SAFETY: the caller's promise.
        let k: [V; P] = std::array::from_fn(|p| unsafe { V::load(keys[p].add(d * LANES)) });
        for key in keys {
            V::prefetch(key.wrapping_add((width + d) * LANES));
        }
        for r in 0..R {
            // SAFETY: as above.
            let q = V::splat(unsafe { *q.add(r * q_stride + d) });
            for p in 0..P {
                acc[r][p] = q.fma(k[p], acc[r][p]);
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: as above.
            unsafe { acc[r][p].store(out.add(r * out_stride + p * LANES)) };
        }
    }
}

/// [`scores`] of R rows against `count` groups of 16 keys, up to P at a time.
///
/// # Safety
/// As for [`scores`]; `group(i)` for i below `count` is `[width][16]`.
#[inline(always)]
pub(super) unsafe fn all_scores<V: Lanes, const R: usize, const P: usize>(
    q: *const f32,
    q_stride: usize,
    width: usize,
    group: impl Fn(usize) -> *const f32,
    count: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut i = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while i + P <= count {
            let mut keys = [std::ptr::null(); P];
            for p in 0..P {
                keys[p] = group(i + p);
            }
            scores::<V, R, P>(q, q_stride, width, keys, out.add(i * LANES), out_stride);
            i += P;
        }
        while P > 2 && i + 2 <= count {
            let keys = [group(i), group(i + 1)];
            scores::<V, R, 2>(q, q_stride, width, keys, out.add(i * LANES), out_stride);
            i += 2;
        }
        while i < count {
            scores::<V, R, 1>(
                q,
                q_stride,
                width,
                [group(i)],
                out.add(i * LANES),
                out_stride,
            );
            i += 1;
        }
    }
}

/// Where the factors of a sum of rows stand: that of row l for result r at `r * row + l * step`.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) at: *const f32,
    pub(super) row: usize,
    pub(super) step: usize,
}

impl Factors {
    /// From row `l` on.
    ///
    /// # Safety
    /// Row `l` is inside.
    #[inline(always)]
    pub(super) unsafe fn from(self, l: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            at: unsafe { self.at.add(l * self.step) },
            ..self
        }
    }
}

/// `acc[r][c] += Σ_l factors[r, l] · rows[l][16 c ..]`, l from 0 to n in order. What stands `ahead`
/// floats after the rows is asked for on the way.
///
/// # Safety
/// `factors` has R results of n rows; `rows` has n rows of 16 C floats, `stride` apart.
#[inline(always)]
pub(super) unsafe fn sum_rows<V: Lanes, const R: usize, const C: usize>(
    acc: &mut [[V; C]; R],
    factors: Factors,
    rows: *const f32,
    stride: usize,
    n: usize,
    ahead: Option<usize>,
) {
    for l in 0..n {
        if let Some(ahead) = ahead {
            for c in 0..C {
                V::prefetch(rows.wrapping_add(ahead + l * stride + c * LANES));
            }
        }
        // SAFETY: the caller's promise.
        let row: [V; C] =
            std::array::from_fn(|c| unsafe { V::load(rows.add(l * stride + c * LANES)) });
        for r in 0..R {
            // SAFETY: as above.
            let f = V::splat(unsafe { *factors.at.add(r * factors.row + l * factors.step) });
            for c in 0..C {
                acc[r][c] = f.fma(row[c], acc[r][c]);
            }
        }
    }
}

/// R rows of C registers, `stride` floats apart.
///
/// # Safety
/// They can be read.
#[inline(always)]
pub(super) unsafe fn load<V: Lanes, const R: usize, const C: usize>(
    at: *const f32,
    stride: usize,
) -> [[V; C]; R] {
    std::array::from_fn(|r| {
        // SAFETY: the caller's promise.
        std::array::from_fn(|c| unsafe { V::load(at.add(r * stride + c * LANES)) })
    })
}

/// Stores what [`load`] loads.
///
/// # Safety
/// They can be written.
#[inline(always)]
pub(super) unsafe fn store<V: Lanes, const R: usize, const C: usize>(
    acc: &[[V; C]; R],
    at: *mut f32,
    stride: usize,
) {
    for r in 0..R {
        for c in 0..C {
            // SAFETY: the caller's promise.
            unsafe { acc[r][c].store(at.add(r * stride + c * LANES)) };
        }
    }
}

/// Calls `$f::<V, R, ...>` with R = `$rows`, which lies between 1 and M.
macro_rules! by_rows {
    ($rows:expr, $m:ident, |$r:ident| $call:expr) => {
        match $rows {
            1 => {
                const $r: usize = 1;
                $call
            }
            2 => {
                const $r: usize = 2;
                $call
            }
            3 => {
                const $r: usize = 3;
                $call
            }
            4 if $m > 3 => {
                const $r: usize = 4;
                $call
            }
            5 if $m > 3 => {
                const $r: usize = 5;
                $call
            }
            6 if $m > 3 => {
                const $r: usize = 6;
                $call
            }
            _ => {}
        }
    };
}
pub(super) use by_rows;
