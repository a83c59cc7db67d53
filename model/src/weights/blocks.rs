//! Quantised matrices as files store them: rows in blocks of 32 weights with a scale of their own.

use candle_core::quantized::GgmlDType;
use half::f16;

/// Weights of a block.
pub(crate) const BLOCK: usize = 32;

/// Bits of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 0 to 15.
    Four,
    /// −128 to 127.
    Eight,
}

/// A matrix `[rows, inner]` in blocks of [`BLOCK`] weights of a row: a weight is `d · level + m`, rounded to
/// f32 once, which is what dequantising gives.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Rows.
    pub rows: usize,
    /// Weights of a row, a multiple of [`BLOCK`].
    pub inner: usize,
    /// Of a level.
    pub bits: Bits,
    /// d and m of each block, row by row; m is 0 where levels have eight bits.
    pub scales: Vec<[f16; 2]>,
    /// Of each weight, row by row.
    pub levels: Vec<i8>,
}

impl Blocks {
    /// From the bytes of a GGUF tensor of `rows` rows: Q4_0, Q4_1 and Q8_0. `None` for other types and for
    /// blocks that can't be kept so.
    pub(crate) fn of_gguf(bytes: &[u8], dtype: GgmlDType, rows: usize) -> Option<Self> {
        let (bits, header) = match dtype {
            GgmlDType::Q4_0 => (Bits::Four, 2),
            GgmlDType::Q4_1 => (Bits::Four, 4),
            GgmlDType::Q8_0 => (Bits::Eight, 2),
            _ => return None,
        };
        let size = dtype.type_size();
        let count = bytes.len() / size;
        if rows == 0 || !bytes.len().is_multiple_of(size) || !count.is_multiple_of(rows) {
            return None;
        }
        let mut scales = Vec::with_capacity(count);
        let mut levels = Vec::with_capacity(count * BLOCK);
        for block in bytes.chunks_exact(size) {
            let (head, stored) = block.split_at(header);
            let half = |at: usize| f16::from_le_bytes([head[at], head[at + 1]]);
            let d = half(0);
            let m = match dtype {
                GgmlDType::Q4_1 => half(2),
                // d (q − 8): eight times d is exact.
                GgmlDType::Q4_0 => f16::from_f32(-8.0 * d.to_f32()),
                _ => f16::ZERO,
            };
            if !d.is_finite() || !m.is_finite() {
                return None;
            }
            scales.push([d, m]);
            match bits {
                Bits::Four => {
                    levels.extend(stored.iter().map(|pair| (pair & 15) as i8));
                    levels.extend(stored.iter().map(|pair| (pair >> 4) as i8));
                }
                Bits::Eight => levels.extend(stored.iter().map(|level| *level as i8)),
            }
        }
        Some(Self {
            rows,
            inner: count / rows * BLOCK,
            bits,
            scales,
            levels,
        })
    }

    /// The same with row `from(i)` as row i.
    pub(crate) fn reordered(self, from: impl Fn(usize) -> usize) -> Self {
        let blocks = self.inner / BLOCK;
        let rows: Vec<usize> = (0..self.rows).map(from).collect();
        fn moved<T: Copy>(values: &[T], rows: &[usize], row: usize) -> Vec<T> {
            let rows = rows.iter().map(|r| &values[r * row..(r + 1) * row]);
            rows.flatten().copied().collect()
        }
        Self {
            scales: moved(&self.scales, &rows, blocks),
            levels: moved(&self.levels, &rows, self.inner),
            ..self
        }
    }

    /// Weight `at`, counted row by row.
    pub fn weight(&self, at: usize) -> f32 {
        let [d, m] = self.scales[at / BLOCK];
        d.to_f32().mul_add(f32::from(self.levels[at]), m.to_f32())
    }
}
