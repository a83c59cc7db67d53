//! Products with a packed matrix: `out = x · W`, W packed once in panels of 16 columns.
//!
//! Layout: panel p holds columns 16p .. 16p+16; inside it, row k is one aligned group of 16 floats.
//! A tile of up to 8 rows by 3 panels stays in registers while k runs from 0 to K in order, so an
//! output's bits depend on its row of x and its column of W alone.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use self::x86::avx512;
use super::{Level, level, math::LANES};

/// Rows of x in one register tile.
const TILE_ROWS: usize = 8;
/// Panels in one register tile.
const TILE_PANELS: usize = 3;
/// Rows of x that a task carries through the panels, so that they stay in the second-level cache.
const BLOCK_ROWS: usize = 96;
/// Steps of k between spills of the tile, so that a panel of W stays in the second-level cache.
const BLOCK_K: usize = 1536;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Group([f32; LANES]);

/// A matrix of `inner` rows (K) and `columns` (N), packed for [`matmul`].
#[derive(Debug)]
pub struct Packed {
    inner: usize,
    columns: usize,
    groups: Vec<Group>,
}

impl Packed {
    /// Packs the transpose of a row-major `[columns, inner]` matrix: [`matmul`] then computes
    /// `x · wᵀ`, a linear layer's forward.
    pub fn transposed(w: &[f32], columns: usize, inner: usize) -> Self {
        debug_assert_eq!(w.len(), columns * inner);
        let mut groups = vec![Group([0.0; LANES]); columns.div_ceil(LANES) * inner];
        groups
            .par_chunks_mut(inner.max(1))
            .enumerate()
            .for_each(|(panel, groups)| {
                for (lane, row) in w
                    .chunks_exact(inner)
                    .skip(panel * LANES)
                    .take(LANES)
                    .enumerate()
                {
                    for (group, value) in groups.iter_mut().zip(row) {
                        group.0[lane] = *value;
                    }
                }
            });
        Self {
            inner,
            columns,
            groups,
        }
    }

    /// Packs a row-major `[inner, columns]` matrix: [`matmul`] then computes `x · w`, the gradient
    /// of a linear layer's input.
    pub fn direct(w: &[f32], inner: usize, columns: usize) -> Self {
        debug_assert_eq!(w.len(), columns * inner);
        let mut groups = vec![Group([0.0; LANES]); columns.div_ceil(LANES) * inner];
        groups
            .par_chunks_mut(inner.max(1))
            .enumerate()
            .for_each(|(panel, groups)| {
                let first = panel * LANES;
                let width = LANES.min(columns - first);
                for (group, row) in groups.iter_mut().zip(w.chunks_exact(columns)) {
                    group.0[..width].copy_from_slice(&row[first..first + width]);
                }
            });
        Self {
            inner,
            columns,
            groups,
        }
    }

    /// K: the length of a row of x.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// N: the length of a row of the product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Column `n` into `out` (`inner` values): a row of the matrix that was given to
    /// [`Packed::transposed`].
    pub fn column(&self, n: usize, out: &mut [f32]) {
        let (panel, lane) = (n / LANES, n % LANES);
        for (o, group) in out.iter_mut().zip(&self.groups[panel * self.inner..]) {
            *o = group.0[lane];
        }
    }

    fn panels(&self) -> usize {
        self.columns.div_ceil(LANES)
    }
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug)]
pub enum Store {
    /// out = x · W
    Set,
    /// out += s (x · W)
    AddScaled(f32),
}

/// `out = x · W` or `out += s (x · W)`: x `[rows, K]`, out `[rows, N]`, both row-major.
///
/// # Panics
/// When a slice's length is not that of the shapes: a fault of the caller's code.
pub fn matmul(x: &[f32], w: &Packed, out: &mut [f32], store: Store) {
    let (k, n) = (w.inner, w.columns);
    let rows = out.len().checked_div(n).unwrap_or(0);
    assert!(
        x.len() == rows * k && out.len() == rows * n,
        "matmul: x or out has the wrong length"
    );
    if rows == 0 || k == 0 {
        return;
    }
    let out = Out {
        ptr: out.as_mut_ptr(),
        stride: n,
    };
    // Tasks are blocks of rows by runs of panels, about four a thread; which thread takes one
    // doesn't change a bit.
    let threads = rayon::current_num_threads();
    let row_blocks = rows.div_ceil(BLOCK_ROWS);
    let panels = w.panels();
    let runs = (4 * threads)
        .div_ceil(row_blocks)
        .min(panels.div_ceil(TILE_PANELS))
        .max(1);
    let run = panels.div_ceil(runs).next_multiple_of(TILE_PANELS);
    let runs = panels.div_ceil(run);
    let task = |index: usize| {
        let (block, part) = (index / runs, index % runs);
        let first = block * BLOCK_ROWS;
        let last = rows.min(first + BLOCK_ROWS);
        let from = part * run;
        let to = panels.min(from + run);
        // SAFETY: tasks cover disjoint rectangles of `out`, inside its length by construction.
        unsafe {
            rectangle(
                &x[first * k..last * k],
                w,
                from..to,
                out.offset(first),
                store,
            )
        }
    };
    let work = rows * k * n;
    if threads == 1 || work < 1 << 16 {
        (0..row_blocks * runs).for_each(task);
    } else {
        (0..row_blocks * runs).into_par_iter().for_each(task);
    }
}

/// Where a task writes: rows of `stride` floats.
#[derive(Clone, Copy)]
struct Out {
    ptr: *mut f32,
    stride: usize,
}

// SAFETY: tasks that share an `Out` write disjoint parts (see `matmul`).
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// The same matrix from row `row` on.
    ///
    /// # Safety
    /// `row` is inside the matrix.
    unsafe fn offset(self, row: usize) -> Self {
        // SAFETY: the caller's promise.
        let ptr = unsafe { self.ptr.add(row * self.stride) };
        Self { ptr, ..self }
    }
}

/// One task: all rows of `x` through the panels of `range`.
///
/// # Safety
/// `out` is valid for the rows of `x` and the columns of `range`, and nobody else touches them.
unsafe fn rectangle(x: &[f32], w: &Packed, range: std::ops::Range<usize>, out: Out, store: Store) {
    let k = w.inner;
    let rows = x.len() / k;
    let mut k0 = 0;
    while k0 < k {
        let k1 = k.min(k0 + BLOCK_K);
        let mut panel = range.start;
        while panel < range.end {
            let width = TILE_PANELS.min(range.end - panel);
            let mut row = 0;
            while row < rows {
                let height = TILE_ROWS.min(rows - row);
                let tile = Tile {
                    x,
                    w,
                    row,
                    panel,
                    k0,
                    k1,
                    out,
                    store,
                };
                // SAFETY: the tile lies inside x, w and out.
                unsafe { run_tile(&tile, height, width) };
                row += height;
            }
            panel += width;
        }
        k0 = k1;
    }
}

/// A register tile's place.
struct Tile<'a> {
    x: &'a [f32],
    w: &'a Packed,
    row: usize,
    panel: usize,
    k0: usize,
    k1: usize,
    out: Out,
    store: Store,
}

/// # Safety
/// The tile's rows and panels lie inside x, w and out.
unsafe fn run_tile(tile: &Tile<'_>, height: usize, width: usize) {
    macro_rules! by_shape {
        ($kernel:ident) => {
            match (height, width) {
                (8, 3) => $kernel::<8, 3>,
                (8, 2) => $kernel::<8, 2>,
                (8, 1) => $kernel::<8, 1>,
                (7, 3) => $kernel::<7, 3>,
                (7, 2) => $kernel::<7, 2>,
                (7, 1) => $kernel::<7, 1>,
                (6, 3) => $kernel::<6, 3>,
                (6, 2) => $kernel::<6, 2>,
                (6, 1) => $kernel::<6, 1>,
                (5, 3) => $kernel::<5, 3>,
                (5, 2) => $kernel::<5, 2>,
                (5, 1) => $kernel::<5, 1>,
                (4, 3) => $kernel::<4, 3>,
                (4, 2) => $kernel::<4, 2>,
                (4, 1) => $kernel::<4, 1>,
                (3, 3) => $kernel::<3, 3>,
                (3, 2) => $kernel::<3, 2>,
                (3, 1) => $kernel::<3, 1>,
                (2, 3) => $kernel::<2, 3>,
                (2, 2) => $kernel::<2, 2>,
                (2, 1) => $kernel::<2, 1>,
                (_, 3) => $kernel::<1, 3>,
                (_, 2) => $kernel::<1, 2>,
                _ => $kernel::<1, 1>,
            }
        };
    }
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            let kernel: unsafe fn(&Tile<'_>) = by_shape!(avx512);
            // SAFETY: AVX-512 was found; the tile is the caller's promise.
            unsafe { kernel(tile) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            // Sixteen registers of eight floats hold a tile of 4 rows by one panel.
            for dr in (0..height).step_by(4) {
                for dp in 0..width {
                    let part = Tile {
                        row: tile.row + dr,
                        panel: tile.panel + dp,
                        ..*tile
                    };
                    // SAFETY: AVX2 and FMA were found; the part lies inside the tile.
                    unsafe {
                        match height - dr {
                            1 => x86::avx2::<1>(&part),
                            2 => x86::avx2::<2>(&part),
                            3 => x86::avx2::<3>(&part),
                            _ => x86::avx2::<4>(&part),
                        }
                    }
                }
            }
        }
        _ => {
            for dr in 0..height {
                for dp in 0..width {
                    let part = Tile {
                        row: tile.row + dr,
                        panel: tile.panel + dp,
                        ..*tile
                    };
                    // SAFETY: the part lies inside the tile.
                    unsafe { lanes(&part) };
                }
            }
        }
    }
}

/// The first row and panel of a tile in plain arrays: the portable kernel, and what the others' bits
/// are compared to.
///
/// # Safety
/// The tile lies inside x, w and out.
unsafe fn lanes(tile: &Tile<'_>) {
    let (k, n) = (tile.w.inner, tile.w.columns);
    let groups = &tile.w.groups[tile.panel * k..(tile.panel + 1) * k];
    let x = &tile.x[tile.row * k..(tile.row + 1) * k];
    let first = tile.panel * LANES;
    let width = LANES.min(n - first);
    // SAFETY: inside out, by the caller's promise.
    let out = unsafe {
        let at = tile.out.ptr.add(tile.row * tile.out.stride + first);
        std::slice::from_raw_parts_mut(at, width)
    };
    let mut acc = [0f32; LANES];
    if tile.k0 > 0 && matches!(tile.store, Store::Set) {
        acc[..width].copy_from_slice(out);
    }
    for (a, group) in x[tile.k0..tile.k1].iter().zip(&groups[tile.k0..tile.k1]) {
        for (sum, w) in acc.iter_mut().zip(&group.0) {
            *sum = a.mul_add(*w, *sum);
        }
    }
    for (place, sum) in out.iter_mut().zip(acc) {
        *place = match tile.store {
            Store::Set => sum,
            Store::AddScaled(s) => s.mul_add(sum, *place),
        };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Store, Tile};

    /// `H` rows by one panel in `2 H` registers. Written out, as the compiler makes scalar code of
    /// the plain arrays.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; the tile lies inside x, w and out.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<const H: usize>(tile: &Tile<'_>) {
        let (k, n) = (tile.w.inner, tile.w.columns);
        let first = tile.panel * LANES;
        let width = LANES.min(n - first);
        let mut acc = [[_mm256_setzero_ps(); 2]; H];
        // SAFETY: every address below is inside x, w's panel (k groups) or the first `width` columns
        // of out from `first` on.
        unsafe {
            let x = tile.x.as_ptr().add(tile.row * k);
            let w = tile.w.groups.as_ptr().add(tile.panel * k).cast::<f32>();
            let out = tile.out.ptr.add(tile.row * tile.out.stride + first);
            if tile.k0 > 0 && matches!(tile.store, Store::Set) {
                for r in 0..H {
                    acc[r] = load(out.add(r * tile.out.stride), width);
                }
            }
            for kk in tile.k0..tile.k1 {
                let low = _mm256_load_ps(w.add(kk * LANES));
                let high = _mm256_load_ps(w.add(kk * LANES + 8));
                for r in 0..H {
                    let a = _mm256_set1_ps(*x.add(r * k + kk));
                    acc[r][0] = _mm256_fmadd_ps(a, low, acc[r][0]);
                    acc[r][1] = _mm256_fmadd_ps(a, high, acc[r][1]);
                }
            }
            for r in 0..H {
                let at = out.add(r * tile.out.stride);
                let value = match tile.store {
                    Store::Set => acc[r],
                    Store::AddScaled(s) => {
                        let (s, before) = (_mm256_set1_ps(s), load(at, width));
                        [
                            _mm256_fmadd_ps(s, acc[r][0], before[0]),
                            _mm256_fmadd_ps(s, acc[r][1], before[1]),
                        ]
                    }
                };
                let mut lanes = [0f32; LANES];
                let to = if width == LANES {
                    at
                } else {
                    lanes.as_mut_ptr()
                };
                _mm256_storeu_ps(to, value[0]);
                _mm256_storeu_ps(to.add(8), value[1]);
                if width < LANES {
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), at, width);
                }
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

    /// `H` rows by `P` panels in `H * P` registers.
    ///
    /// # Safety
    /// The processor has AVX-512F; the tile lies inside x, w and out.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512<const H: usize, const P: usize>(tile: &Tile<'_>) {
        let (k, n) = (tile.w.inner, tile.w.columns);
        let mut acc = [[_mm512_setzero_ps(); P]; H];
        let mut masks = [0u16; P];
        for (p, mask) in masks.iter_mut().enumerate() {
            let left = n - (tile.panel + p) * LANES;
            *mask = if left >= LANES {
                u16::MAX
            } else {
                (1u16 << left) - 1
            };
        }
        // SAFETY: every address below is inside x, w's panels (k groups each) or out (masked).
        unsafe {
            let x = tile.x.as_ptr().add(tile.row * k);
            let w = tile.w.groups.as_ptr().add(tile.panel * k).cast::<f32>();
            let out = tile
                .out
                .ptr
                .add(tile.row * tile.out.stride + tile.panel * LANES);
            if tile.k0 > 0 && matches!(tile.store, Store::Set) {
                for r in 0..H {
                    for p in 0..P {
                        let at = out.add(r * tile.out.stride + p * LANES);
                        acc[r][p] = _mm512_maskz_loadu_ps(masks[p], at);
                    }
                }
            }
            for kk in tile.k0..tile.k1 {
                let mut group = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    group[p] = _mm512_load_ps(w.add((p * k + kk) * LANES));
                }
                for r in 0..H {
                    let a = _mm512_set1_ps(*x.add(r * k + kk));
                    for p in 0..P {
                        acc[r][p] = _mm512_fmadd_ps(a, group[p], acc[r][p]);
                    }
                }
            }
            for r in 0..H {
                for p in 0..P {
                    let at = out.add(r * tile.out.stride + p * LANES);
                    let value = match tile.store {
                        Store::Set => acc[r][p],
                        Store::AddScaled(s) => {
                            let before = _mm512_maskz_loadu_ps(masks[p], at);
                            _mm512_fmadd_ps(_mm512_set1_ps(s), acc[r][p], before)
                        }
                    };
                    _mm512_mask_storeu_ps(at, masks[p], value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state as f32 / u32::MAX as f32) - 0.5
            })
            .collect()
    }

    const SHAPES: [(usize, usize, usize); 7] = [
        (1, 3, 5),
        (8, 64, 48),
        (9, 33, 50),
        (7, 1600, 17),
        (100, 576, 192),
        (3, 16, 1),
        (17, 2, 100),
    ];

    #[test]
    fn products_equal_f64_for_both_packings() {
        for (m, k, n) in SHAPES {
            let (x, w) = (values(m * k, 1), values(k * n, 2));
            let w_t: Vec<f32> = (0..n * k).map(|i| w[(i % k) * n + i / k]).collect();
            let mut out = vec![0f32; m * n];
            matmul(&x, &Packed::direct(&w, k, n), &mut out, Store::Set);
            for r in 0..m {
                for c in 0..n {
                    let want: f64 = (0..k)
                        .map(|i| f64::from(x[r * k + i]) * f64::from(w[i * n + c]))
                        .sum();
                    assert!(
                        (f64::from(out[r * n + c]) - want).abs() < 1e-4,
                        "{m} {k} {n}"
                    );
                }
            }
            let mut again = vec![0f32; m * n];
            matmul(&x, &Packed::transposed(&w_t, n, k), &mut again, Store::Set);
            assert_eq!(out, again);
        }
    }

    #[test]
    fn a_row_alone_has_the_bits_it_has_in_any_batch() {
        for (m, k, n) in SHAPES {
            let (x, w) = (values(m * k, 3), values(k * n, 4));
            let w = Packed::direct(&w, k, n);
            let mut all = vec![0f32; m * n];
            matmul(&x, &w, &mut all, Store::Set);
            for r in 0..m {
                let mut one = vec![0f32; n];
                matmul(&x[r * k..(r + 1) * k], &w, &mut one, Store::Set);
                assert_eq!(one, all[r * n..(r + 1) * n]);
            }
        }
    }

    #[test]
    fn the_scalar_kernel_gives_the_same_bits() {
        for (m, k, n) in SHAPES.into_iter().filter(|s| s.1 <= BLOCK_K) {
            let (x, w) = (values(m * k, 5), values(k * n, 6));
            let packed = Packed::direct(&w, k, n);
            let mut fast = vec![0f32; m * n];
            matmul(&x, &packed, &mut fast, Store::Set);
            for r in 0..m {
                for c in 0..n {
                    let slow = (0..k).fold(0f32, |a, i| x[r * k + i].mul_add(w[i * n + c], a));
                    assert_eq!(slow.to_bits(), fast[r * n + c].to_bits());
                }
            }
        }
    }

    #[test]
    fn the_portable_kernel_gives_the_same_bits() {
        for (store, seed) in [(Store::Set, 10), (Store::AddScaled(0.5), 11)] {
            for (m, k, n) in SHAPES {
                let (x, w) = (values(m * k, seed), values(k * n, 12));
                let packed = Packed::direct(&w, k, n);
                let before = values(m * n, 13);
                let (mut fast, mut plain) = (before.clone(), before);
                matmul(&x, &packed, &mut fast, store);
                for (row, panel) in (0..m).flat_map(|r| (0..packed.panels()).map(move |p| (r, p))) {
                    for k0 in (0..k).step_by(BLOCK_K) {
                        let tile = Tile {
                            x: &x,
                            w: &packed,
                            row,
                            panel,
                            k0,
                            k1: k.min(k0 + BLOCK_K),
                            out: Out {
                                ptr: plain.as_mut_ptr(),
                                stride: n,
                            },
                            store,
                        };
                        // SAFETY: the tile lies inside x, packed and plain.
                        unsafe { lanes(&tile) };
                    }
                }
                assert_eq!(fast, plain, "{m} {k} {n}");
            }
        }
    }

    #[test]
    fn add_scaled_adds_to_what_is_there() {
        let (m, k, n) = (5, 24, 20);
        let (x, w) = (values(m * k, 7), Packed::direct(&values(k * n, 8), k, n));
        let mut product = vec![0f32; m * n];
        matmul(&x, &w, &mut product, Store::Set);
        let mut out = vec![1f32; m * n];
        matmul(&x, &w, &mut out, Store::AddScaled(2.0));
        for (o, p) in out.iter().zip(&product) {
            assert!((o - (1.0 + 2.0 * p)).abs() < 1e-5);
        }
    }

    #[test]
    fn columns_come_back_as_they_went_in() {
        let (n, k) = (21, 10);
        let w = values(n * k, 9);
        let packed = Packed::transposed(&w, n, k);
        let mut row = vec![0f32; k];
        for i in 0..n {
            packed.column(i, &mut row);
            assert_eq!(row, w[i * k..(i + 1) * k]);
        }
    }
}
