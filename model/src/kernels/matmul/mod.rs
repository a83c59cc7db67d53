//! Products with a packed matrix: `out = x · W`, W packed once in panels of 16 columns.
//!
//! Every output is summed over k from 0 to K in order, whatever the batch, the threads and the
//! blocks, so its bits depend on its row of x and its column of W alone. What follows the product
//! (scale, bias, LoRA's thin product, residual) is added in one fixed order while the sums are in
//! registers.
//!
//! - `packed`: the layouts, `quantised` those of matrices that stay so; `groups`: their memory
//! - `tile`: tasks, blocks, and which kernel computes a tile
//! - `avx512`, `avx2`, `portable`: the kernels
//! - `thin`: the gradient of a thin factor, `uᵀ · x`

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod groups;
mod packed;
mod portable;
mod quantised;
#[cfg(test)]
mod tests;
mod thin;
mod tile;

use std::cell::RefCell;

use half::bf16;

use self::tile::{Finish, Job, Kind};
pub use self::{
    packed::{Format, Frozen, Packed, PackedBf16},
    quantised::PackedBlocks,
    thin::thin_gradient,
};
use super::{
    Level,
    bf16::{convert, round_all, widen_all},
    level,
};

/// Rows of x, `[rows, K]`.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16.
    Bf16(&'a [bf16]),
}

impl Rows<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }
}

/// A thin product behind the frozen one: `+ low · B`.
#[derive(Clone, Copy, Debug)]
pub struct Thin<'a> {
    /// Rows of `stride` floats, of which the first `b.inner()` are read: `s · x Aᵀ`. Modules that
    /// share x can share the rows: each gets the slice from its first column on.
    pub low: &'a [f32],
    /// Floats from one row of `low` to the next.
    pub stride: usize,
    /// `[rank, N]`.
    pub b: &'a Packed,
}

/// What is added last.
#[derive(Clone, Copy, Debug, Default)]
pub enum Add<'a> {
    /// Nothing: out is overwritten.
    #[default]
    Nothing,
    /// What out holds.
    Out,
    /// Rows `[rows, N]`.
    Rows(&'a [f32]),
}

/// What follows the product, in this order: `x · W + bias + low · B + add`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Then<'a> {
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// LoRA.
    pub lora: Option<Thin<'a>>,
    /// A residual, say.
    pub add: Add<'a>,
}

/// What becomes of [`matmul`]'s product.
#[derive(Clone, Copy, Debug)]
pub enum Store {
    /// out = x · W
    Set,
    /// out = s (x · W)
    Scaled(f32),
}

/// How products of a format are computed on this machine, for two processes to compare: `f32`,
/// `bf16-dot` (weights and rows in bf16, AVX512-BF16) or `bf16-fma` (weights in bf16, rows and
/// arithmetic in f32). Equal names give equal bits.
pub fn numerics(format: Format) -> &'static str {
    match kind(format, level()) {
        Kind::F32 | Kind::Blocks(_) => "f32",
        Kind::Dot => "bf16-dot",
        Kind::Widened => "bf16-fma",
    }
}

/// What a product with a matrix of `format` reads its rows in on this machine: bf16 where the
/// processor multiplies bf16, otherwise f32, whose bits nothing is gained by rounding away.
pub fn rows_format(format: Format) -> Format {
    match kind(format, level()) {
        Kind::Dot => Format::Bf16,
        Kind::F32 | Kind::Widened | Kind::Blocks(_) => Format::F32,
    }
}

fn kind(format: Format, level: Level) -> Kind {
    match format {
        Format::F32 | Format::Blocks => Kind::F32,
        Format::Bf16 if level == Level::Avx512Bf16 => Kind::Dot,
        Format::Bf16 => Kind::Widened,
    }
}

/// `out = x · W + bias + low · B + add`: x `[rows, K]`, out `[rows, N]`, both row-major. Rows are
/// rounded to bf16 where [`rows_format`] says so.
///
/// # Panics
/// When a slice's length is not that of the shapes: a fault of the caller's code.
pub fn product(x: Rows<'_>, w: &Frozen, out: &mut [f32], then: Then<'_>) {
    product_at(level(), x, w, out, then);
}

/// [`product`] at a level that the processor has.
fn product_at(level: Level, x: Rows<'_>, w: &Frozen, out: &mut [f32], then: Then<'_>) {
    let finish = Finish {
        scale: 1.0,
        bias: then.bias,
        thin: then.lora,
        add: then.add,
    };
    let (weights, kind) = match w {
        Frozen::F32(w) => (w.groups(), kind(Format::F32, level)),
        Frozen::Bf16(w) => (w.groups(), kind(Format::Bf16, level)),
        Frozen::Blocks(w) => (w.groups(), Kind::Blocks(w.bits())),
    };
    multiply(
        level,
        kind,
        x,
        (weights, w.inner(), w.columns()),
        out,
        finish,
    );
}

/// `out = x · W` or `out = s (x · W)`: x `[rows, K]`, out `[rows, N]`, both row-major.
///
/// # Panics
/// When a slice's length is not that of the shapes: a fault of the caller's code.
pub fn matmul(x: &[f32], w: &Packed, out: &mut [f32], store: Store) {
    matmul_at(level(), x, w, out, store);
}

/// [`matmul`] at a level that the processor has.
fn matmul_at(level: Level, x: &[f32], w: &Packed, out: &mut [f32], store: Store) {
    let scale = match store {
        Store::Set => 1.0,
        Store::Scaled(s) => s,
    };
    let finish = Finish {
        scale,
        bias: None,
        thin: None,
        add: Add::Nothing,
    };
    let w = (w.groups(), w.inner(), w.columns());
    multiply(level, Kind::F32, Rows::F32(x), w, out, finish);
}

/// Checks the shapes, brings x to the type that the kernels read, and runs.
fn multiply(
    level: Level,
    kind: Kind,
    x: Rows<'_>,
    (w, inner, columns): (*const f32, usize, usize),
    out: &mut [f32],
    finish: Finish<'_>,
) {
    let rows = out.len().checked_div(columns).unwrap_or(0);
    assert!(
        x.len() == rows * inner && out.len() == rows * columns,
        "product: x or out has the wrong length"
    );
    assert!(
        finish.bias.is_none_or(|b| b.len() == columns),
        "product: the bias has the wrong length"
    );
    if let Some(Thin { low, stride, b }) = finish.thin {
        let rank = b.inner();
        assert!(
            b.columns() == columns
                && stride >= rank
                && low.len() >= rows.saturating_sub(1) * stride + rank,
            "product: the thin product has the wrong shape"
        );
    }
    if let Add::Rows(add) = finish.add {
        assert!(
            add.len() == out.len(),
            "product: what is added has the wrong length"
        );
    }
    if out.is_empty() {
        return;
    }
    assert!(inner > 0, "product: a sum over nothing");
    let out = out.as_mut_ptr();
    let go = |x: *const u8| {
        let job = Job {
            level,
            kind,
            x,
            w,
            rows,
            inner,
            columns,
            out,
            finish,
        };
        // SAFETY: the lengths were checked above, and `out` is borrowed for the call.
        unsafe { tile::run(&job) }
    };
    match (kind, x) {
        (Kind::Dot, Rows::Bf16(x)) => go(x.as_ptr().cast()),
        (Kind::F32 | Kind::Widened | Kind::Blocks(_), Rows::F32(x)) => go(x.as_ptr().cast()),
        (Kind::Dot, Rows::F32(x)) => ROUNDED.with_borrow_mut(|scratch| {
            scratch.resize(x.len(), bf16::ZERO);
            convert(x, scratch, round_all);
            go(scratch.as_ptr().cast());
        }),
        (_, Rows::Bf16(x)) => WIDENED.with_borrow_mut(|scratch| {
            scratch.resize(x.len(), 0.0);
            convert(x, scratch, widen_all);
            go(scratch.as_ptr().cast());
        }),
    }
}

thread_local! {
    /// Rows of a caller in the type that the kernels read.
    static ROUNDED: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}
