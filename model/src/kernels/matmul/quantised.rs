//! Matrices that stay quantised, packed in panels of 16 columns, and how they are read.
//!
//! A panel is a run of blocks of 32 k's. A block is a line of scales, d then m of each column in f16, and
//! behind it the levels: of four bits, four lines of 16 words, whose nibbles are eight k's of a column
//! each; of eight bits, 16 bytes for each k. A weight is `d · level + m` in f32, so products have the bits
//! that they would have with the matrix in f32, in 5 or 9 bits a weight.

use half::f16;

use super::super::{dispatch, math::LANES, team};
use super::groups::{Groups, Plain};
use crate::weights::blocks::{BLOCK, Bits, Blocks};

/// Bytes at the start of a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

// SAFETY: 64 bytes, and zeros are a value.
unsafe impl Plain for Line {}

/// Lines of a block of a panel.
pub(super) const fn block_lines(bits: Bits) -> usize {
    match bits {
        Bits::Four => 5,
        Bits::Eight => 9,
    }
}

/// A matrix of `inner` rows (K) and `columns` (N) that stays quantised. Columns beyond N are zeros.
#[derive(Debug)]
pub struct PackedBlocks {
    inner: usize,
    columns: usize,
    bits: Bits,
    lines: Groups<Line>,
}

impl PackedBlocks {
    /// Packs the transpose of a `[columns, inner]` matrix: the product is then `x · wᵀ`.
    pub fn transposed(w: &Blocks) -> Self {
        let (size, blocks) = (block_lines(w.bits), w.inner / BLOCK);
        let mut lines = Groups::<Line>::zeros(w.rows.div_ceil(LANES) * blocks * size);
        team::for_each_chunk(&mut lines, blocks * size, |panel, lines| {
            let first = panel * LANES;
            for column in first..w.rows.min(first + LANES) {
                let lane = column - first;
                for (b, lines) in lines.chunks_exact_mut(size).enumerate() {
                    let at = column * blocks + b;
                    for (i, scale) in w.scales[at].iter().enumerate() {
                        let bytes = scale.to_le_bytes();
                        lines[0].0[32 * i + 2 * lane..][..2].copy_from_slice(&bytes);
                    }
                    let levels = &w.levels[at * BLOCK..(at + 1) * BLOCK];
                    for (k, level) in levels.iter().enumerate() {
                        match w.bits {
                            Bits::Four => {
                                let byte = 4 * lane + k % 8 / 2;
                                lines[1 + k / 8].0[byte] |= (*level as u8 & 15) << (4 * (k % 2));
                            }
                            Bits::Eight => {
                                lines[1 + k / 4].0[k % 4 * LANES + lane] = *level as u8;
                            }
                        }
                    }
                }
            }
        });
        Self {
            inner: w.inner,
            columns: w.rows,
            bits: w.bits,
            lines,
        }
    }

    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn bits(&self) -> Bits {
        self.bits
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    pub(super) fn groups(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    /// Column `n` into `out`, `inner` values.
    pub(super) fn column(&self, n: usize, out: &mut [f32]) {
        let (panel, lane) = (n / LANES, n % LANES);
        let size = block_lines(self.bits);
        let panel = &self.lines[panel * self.inner / BLOCK * size..];
        for (out, lines) in out.chunks_exact_mut(BLOCK).zip(panel.chunks_exact(size)) {
            let [d, m] = scales(lines, lane);
            for (k, out) in out.iter_mut().enumerate() {
                *out = d.mul_add(f32::from(level(self.bits, lines, k, lane)), m);
            }
        }
    }
}

/// d and m of a column of a block.
#[inline(always)]
fn scales(block: &[Line], lane: usize) -> [f32; 2] {
    [0, 32].map(|at| {
        let at = at + 2 * lane;
        f16::from_le_bytes([block[0].0[at], block[0].0[at + 1]]).to_f32()
    })
}

/// The level of a k and column of a block.
#[inline(always)]
fn level(bits: Bits, block: &[Line], k: usize, lane: usize) -> i8 {
    match bits {
        Bits::Four => {
            let byte = block[1 + k / 8].0[4 * lane + k % 8 / 2];
            (byte >> (4 * (k % 2)) & 15) as i8
        }
        Bits::Eight => block[1 + k / 4].0[k % 4 * LANES + lane] as i8,
    }
}

#[inline(always)]
fn dequantise_body(bits: Bits, lines: &[Line], out: &mut [[f32; LANES]]) {
    let blocks = lines.chunks_exact(block_lines(bits));
    for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
        let (mut d, mut m) = ([0f32; LANES], [0f32; LANES]);
        for lane in 0..LANES {
            [d[lane], m[lane]] = scales(block, lane);
        }
        for (k, out) in out.iter_mut().enumerate() {
            for lane in 0..LANES {
                out[lane] = d[lane].mul_add(f32::from(level(bits, block, k, lane)), m[lane]);
            }
        }
    }
}

dispatch! {
    /// Blocks of a panel as groups of 16 columns, one a k.
    pub(super) fn dequantise(bits: Bits, lines: &[Line], out: &mut [[f32; LANES]]) = dequantise_body
}
