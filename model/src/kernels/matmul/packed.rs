//! Matrices packed once for the kernels: panels of 16 columns, K after K.

use half::bf16;

use super::super::{
    bf16::{round, widen},
    math::LANES,
    team,
};
use super::groups::{Groups, Plain};
use super::quantised::PackedBlocks;
use crate::weights::blocks::Blocks;

/// Sixteen columns of one k.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Group(pub(super) [f32; LANES]);

/// Sixteen columns of two k's, the two side by side.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pairs([[bf16; 2]; LANES]);

// SAFETY: floats, 64 of their bytes, and zeros are a value.
unsafe impl Plain for Group {}
// SAFETY: as above.
unsafe impl Plain for Pairs {}

/// A matrix of `inner` rows (K) and `columns` (N) in f32: panel p holds columns 16p .. 16p+16, and
/// inside it each k is one aligned group of 16 floats. Columns beyond N are zeros.
#[derive(Debug)]
pub struct Packed {
    inner: usize,
    columns: usize,
    groups: Groups<Group>,
}

/// The same in bf16, two k's to a group, as the dot-product instructions want them; an odd K is
/// padded with a zero.
#[derive(Debug)]
pub struct PackedBf16 {
    inner: usize,
    columns: usize,
    groups: Groups<Pairs>,
}

/// Runs `f(panel, groups of the panel)` for all panels.
fn each_panel<G: Send>(groups: &mut [G], steps: usize, f: impl Fn(usize, &mut [G]) + Sync) {
    team::for_each_chunk(groups, steps, f);
}

/// The columns that a panel has of `columns`.
fn width(panel: usize, columns: usize) -> usize {
    LANES.min(columns - panel * LANES)
}

impl Packed {
    /// Packs the transpose of a row-major `[columns, inner]` matrix: the product is then `x · wᵀ`, a
    /// linear layer's forward.
    pub fn transposed(w: &[f32], columns: usize, inner: usize) -> Self {
        assert_eq!(w.len(), columns * inner, "the matrix has the wrong length");
        let mut groups = Groups::<Group>::zeros(columns.div_ceil(LANES) * inner);
        each_panel(&mut groups, inner, |panel, groups| {
            for lane in 0..width(panel, columns) {
                let row = &w[(panel * LANES + lane) * inner..][..inner];
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

    /// Packs a row-major `[inner, columns]` matrix: the product is then `x · w`, the gradient of a
    /// linear layer's input.
    pub fn direct(w: &[f32], inner: usize, columns: usize) -> Self {
        assert_eq!(w.len(), columns * inner, "the matrix has the wrong length");
        let mut groups = Groups::<Group>::zeros(columns.div_ceil(LANES) * inner);
        each_panel(&mut groups, inner, |panel, groups| {
            let (first, width) = (panel * LANES, width(panel, columns));
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

    pub(super) fn groups(&self) -> *const f32 {
        self.groups.as_ptr().cast()
    }
}

impl PackedBf16 {
    /// As [`Packed::transposed`]; values are rounded to the nearest bf16, ties to even.
    pub fn transposed(w: &[f32], columns: usize, inner: usize) -> Self {
        assert_eq!(w.len(), columns * inner, "the matrix has the wrong length");
        Self::filled(inner, columns, |panel, groups| {
            for lane in 0..width(panel, columns) {
                let row = &w[(panel * LANES + lane) * inner..][..inner];
                for (group, values) in groups.iter_mut().zip(row.chunks(2)) {
                    for (place, value) in group.0[lane].iter_mut().zip(values) {
                        *place = round(*value);
                    }
                }
            }
        })
    }

    /// As [`Packed::direct`]; values are rounded to the nearest bf16, ties to even.
    pub fn direct(w: &[f32], inner: usize, columns: usize) -> Self {
        assert_eq!(w.len(), columns * inner, "the matrix has the wrong length");
        Self::filled(inner, columns, |panel, groups| {
            let (first, width) = (panel * LANES, width(panel, columns));
            for (group, rows) in groups.iter_mut().zip(w.chunks(2 * columns)) {
                for (half, row) in rows.chunks_exact(columns).enumerate() {
                    for (place, value) in group.0.iter_mut().zip(&row[first..first + width]) {
                        place[half] = round(*value);
                    }
                }
            }
        })
    }

    fn filled(inner: usize, columns: usize, fill: impl Fn(usize, &mut [Pairs]) + Sync) -> Self {
        let steps = inner.div_ceil(2);
        let mut groups = Groups::<Pairs>::zeros(columns.div_ceil(LANES) * steps);
        each_panel(&mut groups, steps, fill);
        Self {
            inner,
            columns,
            groups,
        }
    }

    fn column(&self, n: usize, out: &mut [f32]) {
        let (panel, lane) = (n / LANES, n % LANES);
        let groups = &self.groups[panel * self.inner.div_ceil(2)..];
        for (o, group) in out.chunks_mut(2).zip(groups) {
            for (o, value) in o.iter_mut().zip(&group.0[lane]) {
                *o = widen(*value);
            }
        }
    }

    pub(super) fn groups(&self) -> *const f32 {
        self.groups.as_ptr().cast()
    }
}

/// What a frozen matrix is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Weights and rows in f32.
    F32,
    /// Weights rounded to bf16, rows too where [`rows_format`](super::rows_format) says so; sums in f32.
    Bf16,
    /// Weights in the blocks that they are stored in, rows in f32: the bits of [`Format::F32`] in a sixth of
    /// its memory. Matrices without such blocks, and those that gradients go back through, are kept in f32 and
    /// bf16.
    Blocks,
}

/// A frozen matrix of `inner` rows (K) and `columns` (N), packed for [`product`](super::product).
#[derive(Debug)]
pub enum Frozen {
    /// [`Format::F32`].
    F32(Packed),
    /// [`Format::Bf16`].
    Bf16(PackedBf16),
    /// [`Format::Blocks`].
    Blocks(PackedBlocks),
}

impl Frozen {
    /// Packs the transpose of a row-major `[columns, inner]` matrix: the product is then `x · wᵀ`.
    pub fn transposed(w: &[f32], columns: usize, inner: usize, format: Format) -> Self {
        match format {
            Format::F32 | Format::Blocks => Self::F32(Packed::transposed(w, columns, inner)),
            Format::Bf16 => Self::Bf16(PackedBf16::transposed(w, columns, inner)),
        }
    }

    /// Packs a row-major `[inner, columns]` matrix: the product is then `x · w`.
    pub fn direct(w: &[f32], inner: usize, columns: usize, format: Format) -> Self {
        match format {
            Format::F32 => Self::F32(Packed::direct(w, inner, columns)),
            Format::Bf16 | Format::Blocks => Self::Bf16(PackedBf16::direct(w, inner, columns)),
        }
    }

    /// Packs the transpose of a `[columns, inner]` matrix in blocks: the product is then `x · wᵀ`.
    pub fn of_blocks(w: &Blocks) -> Self {
        Self::Blocks(PackedBlocks::transposed(w))
    }

    /// What it is kept in.
    pub fn format(&self) -> Format {
        match self {
            Self::F32(_) => Format::F32,
            Self::Bf16(_) => Format::Bf16,
            Self::Blocks(_) => Format::Blocks,
        }
    }

    /// K: the length of a row of x.
    pub fn inner(&self) -> usize {
        match self {
            Self::F32(w) => w.inner,
            Self::Bf16(w) => w.inner,
            Self::Blocks(w) => w.inner(),
        }
    }

    /// N: the length of a row of the product.
    pub fn columns(&self) -> usize {
        match self {
            Self::F32(w) => w.columns,
            Self::Bf16(w) => w.columns,
            Self::Blocks(w) => w.columns(),
        }
    }

    /// Column `n` into `out` (`inner` values): a row of the matrix that was given to
    /// [`Frozen::transposed`].
    pub fn column(&self, n: usize, out: &mut [f32]) {
        match self {
            Self::F32(w) => w.column(n, out),
            Self::Bf16(w) => w.column(n, &mut out[..w.inner]),
            Self::Blocks(w) => w.column(n, out),
        }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(w) => size_of_val(&*w.groups),
            Self::Bf16(w) => size_of_val(&*w.groups),
            Self::Blocks(w) => w.bytes(),
        }
    }
}
