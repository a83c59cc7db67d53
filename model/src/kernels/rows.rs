//! Row kernels: RMSNorm, SiLU·up, rotary embedding, forward and backward.
//!
//! Rows are shared out between threads in chunks; each is computed as if it were alone. Where a
//! product in bf16 follows, its rows are rounded in the same pass.

use std::ops::Range;

use half::bf16;

use super::{
    bf16::round,
    dispatch,
    math::{self, dot},
    team::{self, Shared},
};

/// Floats that one task should touch at least: below that, threads cost more than they give.
const TASK_FLOATS: usize = 16 * 1024;

/// Runs `f(first row, rows)` over all rows, about [`TASK_FLOATS`] at a time.
fn each_rows(rows: usize, width: usize, f: impl Fn(usize, usize) + Sync) {
    let chunk = (TASK_FLOATS / width.max(1)).max(1);
    team::for_each(rows.div_ceil(chunk), |i| {
        let first = i * chunk;
        f(first, chunk.min(rows - first));
    });
}

/// Rows of `width` in a slice.
fn rows_of(len: usize, width: usize) -> usize {
    len.checked_div(width).unwrap_or(0)
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rounded: &mut [bf16]) {
    let width = weight.len();
    let mut rounded = rounded.chunks_exact_mut(width);
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let inverse = inverse_rms(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * weight;
        }
        if let Some(rounded) = rounded.next() {
            for (rounded, out) in rounded.iter_mut().zip(out) {
                *rounded = round(*out);
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

dispatch! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rounded: &mut [bf16]) = rms_norm_body
}

/// out = x / sqrt(mean(x²) + eps) * weight, row by row; x and out `[rows, width]`. `rounded`: out in
/// bf16 as well.
pub fn rms_norm(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    rounded: Option<&mut [bf16]>,
) {
    let width = weight.len();
    let (out, rounded) = (Shared::new(out), Rounded::new(rounded));
    each_rows(rows_of(x.len(), width), width, |first, rows| {
        let (at, len) = (first * width, rows * width);
        // SAFETY: tasks take disjoint rows.
        let (out, rounded) = unsafe { (out.part(at, len), rounded.part(at, len)) };
        rms_norm_rows(&x[at..at + len], weight, eps, out, rounded);
    });
}

/// Rows in bf16 that are written where somebody asks for them.
struct Rounded<'a>(Option<Shared<'a, bf16>>);

impl<'a> Rounded<'a> {
    fn new(rows: Option<&'a mut [bf16]>) -> Self {
        Self(rows.map(Shared::new))
    }

    /// See [`Shared::part`]; empty where nobody asks.
    #[allow(clippy::mut_from_ref, reason = "disjoint by the caller's promise")]
    unsafe fn part(&self, from: usize, len: usize) -> &mut [bf16] {
        match &self.0 {
            // SAFETY: the caller's promise.
            Some(rows) => unsafe { rows.part(from, len) },
            None => &mut [],
        }
    }
}

#[inline(always)]
fn rms_norm_backward_body(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
    for ((x, d_out), d_x) in rows.zip(d_x.chunks_exact_mut(width)) {
        let inverse = inverse_rms(x, eps);
        for ((d_x, d_out), weight) in d_x.iter_mut().zip(d_out).zip(weight) {
            *d_x = d_out * weight;
        }
        // d/dx of x·r(x): r (g − x̂ mean(g x̂)), with g = d_out * weight and x̂ = x r.
        let mean = dot(d_x, x) * inverse * inverse / width as f32;
        for (d_x, x) in d_x.iter_mut().zip(x) {
            *d_x = inverse * (*d_x - x * mean);
        }
    }
}

dispatch! {
    fn rms_norm_backward_rows(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) = rms_norm_backward_body
}

/// The gradient of [`rms_norm`] with respect to x; the weight is frozen.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) {
    let width = weight.len();
    let d_x = Shared::new(d_x);
    each_rows(rows_of(x.len(), width), width, |first, rows| {
        let part = first * width..(first + rows) * width;
        // SAFETY: tasks take disjoint rows.
        let d_x = unsafe { d_x.part(part.start, part.len()) };
        rms_norm_backward_rows(&x[part.clone()], weight, eps, &d_out[part], d_x);
    });
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

#[inline(always)]
fn silu_mul_body(gate: &[f32], up: &[f32], out: &mut [f32], rounded: &mut [bf16]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(*gate) * up;
    }
    for (rounded, out) in rounded.iter_mut().zip(out) {
        *rounded = round(*out);
    }
}

dispatch! {
    fn silu_mul_chunk(gate: &[f32], up: &[f32], out: &mut [f32], rounded: &mut [bf16]) = silu_mul_body
}

/// Elements that are worked on before they are rounded, so that they are still in the first-level
/// cache.
const ROUNDED_AT_ONCE: usize = 2048;

/// out = silu(gate) * up, element by element. `rounded`: out in bf16 as well.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32], rounded: Option<&mut [bf16]>) {
    let len = out.len();
    let (out, rounded) = (Shared::new(out), Rounded::new(rounded));
    each_rows(len, 1, |first, count| {
        for at in (first..first + count).step_by(ROUNDED_AT_ONCE) {
            let part = at..(first + count).min(at + ROUNDED_AT_ONCE);
            // SAFETY: tasks take disjoint elements.
            let (out, rounded) =
                unsafe { (out.part(at, part.len()), rounded.part(at, part.len())) };
            silu_mul_chunk(&gate[part.clone()], &up[part], out, rounded);
        }
    });
}

#[inline(always)]
fn silu_mul_backward_body(
    gate: &[f32],
    up: &[f32],
    d_out: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let given = gate.iter().zip(up).zip(d_out);
    for (((gate, up), d_out), (d_gate, d_up)) in given.zip(d_gate.iter_mut().zip(d_up)) {
        let s = sigmoid(*gate);
        let silu = gate * s;
        *d_up = d_out * silu;
        *d_gate = d_out * up * (s + silu * (1.0 - s));
    }
}

dispatch! {
    fn silu_mul_backward_chunk(gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) = silu_mul_backward_body
}

/// The gradients of [`silu_mul`] with respect to gate and up.
pub fn silu_mul_backward(
    gate: &[f32],
    up: &[f32],
    d_out: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let (d_gate, d_up) = (Shared::new(d_gate), Shared::new(d_up));
    each_rows(d_out.len(), 1, |first, count| {
        let part = first..first + count;
        // SAFETY: tasks take disjoint elements.
        let (d_gate, d_up) = unsafe { (d_gate.part(first, count), d_up.part(first, count)) };
        let (gate, up) = (&gate[part.clone()], &up[part.clone()]);
        silu_mul_backward_chunk(gate, up, &d_out[part], d_gate, d_up);
    });
}

#[inline(always)]
fn rotate_body(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    for head in row.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
            let s = sign * sin;
            (*a, *b) = (*a * cos - *b * s, *b * cos + *a * s);
        }
    }
}

dispatch! {
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) = rotate_body
}

/// Rotary embedding in the half-split form (Hugging Face's `rotate_half`), in place: x rows of
/// `stride` floats, of which those of `columns`, heads of `width` each, are turned; cos and sin
/// `[rows, width / 2]`. `sign` 1 turns forward; −1 turns back, which is the gradient.
pub fn rotate_in_place(
    x: &mut [f32],
    stride: usize,
    columns: Range<usize>,
    cos: &[f32],
    sin: &[f32],
    sign: f32,
    width: usize,
) {
    let half = width / 2;
    if half == 0 || columns.is_empty() {
        return;
    }
    let rows = rows_of(x.len(), stride);
    let x = Shared::new(x);
    each_rows(rows, columns.len(), |first, rows| {
        for row in first..first + rows {
            // SAFETY: tasks take disjoint rows.
            let turned = unsafe { x.part(row * stride + columns.start, columns.len()) };
            let angles = row * half..(row + 1) * half;
            rotate_row(turned, &cos[angles.clone()], &sin[angles], sign);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`rotate_in_place`] of all columns, into out.
    fn rotate(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, width: usize, out: &mut [f32]) {
        out.copy_from_slice(x);
        let stride = rows_of(x.len(), rows_of(cos.len(), width / 2));
        rotate_in_place(out, stride, 0..stride, cos, sin, sign, width);
    }

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// d loss / d x by central differences, where loss = sum(out * probe).
    fn numeric(x: &[f32], probe: &[f32], f: &dyn Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        let loss = |x: &[f32]| -> f64 {
            f(x).iter()
                .zip(probe)
                .map(|(o, p)| f64::from(*o) * f64::from(*p))
                .sum()
        };
        (0..x.len())
            .map(|i| {
                let h = 1e-2;
                let (mut up, mut down) = (x.to_vec(), x.to_vec());
                up[i] += h;
                down[i] -= h;
                ((loss(&up) - loss(&down)) / (2.0 * f64::from(h))) as f32
            })
            .collect()
    }

    fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
        for (a, b) in a.iter().zip(b) {
            assert!(
                (a - b).abs() <= tolerance * (1.0 + b.abs()),
                "{a} against {b}"
            );
        }
    }

    #[test]
    fn rms_norm_and_its_gradient() {
        let (x, weight, probe) = (wave(60, 0.7), wave(20, 0.3), wave(60, 1.1));
        let f = |x: &[f32]| {
            let mut out = vec![0.0; x.len()];
            rms_norm(x, &weight, 1e-5, &mut out, None);
            out
        };
        let out = f(&x);
        let mean: f64 = x[..20].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 20.0;
        let want = f64::from(x[3]) / (mean + 1e-5).sqrt() * f64::from(weight[3]);
        assert!((f64::from(out[3]) - want).abs() < 1e-6);
        let mut d_x = vec![0.0; 60];
        rms_norm_backward(&x, &weight, 1e-5, &probe, &mut d_x);
        assert_close(&d_x, &numeric(&x, &probe, &f), 2e-3);
    }

    #[test]
    fn silu_mul_and_its_gradients() {
        let (gate, up, probe) = (wave(33, 0.9), wave(33, 0.4), wave(33, 1.7));
        let f = |gate: &[f32], up: &[f32]| {
            let mut out = vec![0.0; gate.len()];
            silu_mul(gate, up, &mut out, None);
            out
        };
        let want = f64::from(gate[5]) / (1.0 + (-f64::from(gate[5])).exp()) * f64::from(up[5]);
        assert!((f64::from(f(&gate, &up)[5]) - want).abs() < 1e-6);
        let (mut d_gate, mut d_up) = (vec![0.0; 33], vec![0.0; 33]);
        silu_mul_backward(&gate, &up, &probe, &mut d_gate, &mut d_up);
        assert_close(&d_gate, &numeric(&gate, &probe, &|g| f(g, &up)), 2e-3);
        assert_close(&d_up, &numeric(&up, &probe, &|u| f(&gate, u)), 2e-3);
    }

    #[test]
    fn turning_back_undoes_a_turn() {
        let (rows, heads, width) = (3, 2, 8);
        let x = wave(rows * heads * width, 0.31);
        let angles = wave(rows * width / 2, 2.3);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let (mut there, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        rotate(&x, &cos, &sin, 1.0, width, &mut there);
        rotate(&there, &cos, &sin, -1.0, width, &mut back);
        assert_close(&back, &x, 1e-6);
        // Row 1, head 1, pair 2 by hand.
        let at = (heads + 1) * width + 2;
        let angle = width / 2 + 2;
        let want = x[at] * cos[angle] - x[at + 4] * sin[angle];
        assert!((there[at] - want).abs() < 1e-6);
    }

    #[test]
    fn rotation_in_place_leaves_other_columns_alone() {
        let (rows, width, stride) = (3, 8, 29);
        let x = wave(rows * stride, 0.31);
        let angles = wave(rows * width / 2, 2.3);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut turned = x.clone();
        rotate_in_place(&mut turned, stride, 5..21, &cos, &sin, 1.0, width);
        for row in 0..rows {
            let at = |column: usize| row * stride + column;
            let angles = row * width / 2..(row + 1) * width / 2;
            let mut want = vec![0.0; 16];
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            rotate(&x[at(5)..at(21)], cos, sin, 1.0, width, &mut want);
            assert_eq!(turned[at(5)..at(21)], want);
            assert_eq!(turned[at(0)..at(5)], x[at(0)..at(5)]);
            assert_eq!(turned[at(21)..at(29)], x[at(21)..at(29)]);
        }
    }

    #[test]
    fn rounded_rows_are_the_rows_rounded() {
        let (rows, width) = (37, 1000);
        let (x, up, weight) = (
            wave(rows * width, 0.7),
            wave(rows * width, 0.2),
            wave(width, 0.3),
        );
        let rounding =
            |rows: &[f32]| -> Vec<bf16> { rows.iter().map(|v| bf16::from_f32(*v)).collect() };
        let (mut out, mut rounded) = (vec![0.0; x.len()], vec![bf16::ZERO; x.len()]);
        rms_norm(&x, &weight, 1e-5, &mut out, Some(&mut rounded));
        assert_eq!(rounded, rounding(&out));
        let mut again = vec![0.0; x.len()];
        silu_mul(&x, &up, &mut out, Some(&mut rounded));
        silu_mul(&x, &up, &mut again, None);
        assert_eq!(out, again);
        assert_eq!(rounded, rounding(&out));
    }

    #[test]
    fn a_row_alone_has_the_bits_it_has_in_any_batch() {
        let (rows, width) = (70, 577);
        let (x, up, weight) = (
            wave(rows * width, 0.7),
            wave(rows * width, 0.2),
            wave(width, 0.3),
        );
        let (mut normed, mut mixed) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        rms_norm(&x, &weight, 1e-5, &mut normed, None);
        silu_mul(&x, &up, &mut mixed, None);
        for row in 0..rows {
            let part = row * width..(row + 1) * width;
            let mut one = vec![0.0; width];
            rms_norm(&x[part.clone()], &weight, 1e-5, &mut one, None);
            assert_eq!(one, normed[part.clone()]);
            silu_mul(&x[part.clone()], &up[part.clone()], &mut one, None);
            assert_eq!(one, mixed[part]);
        }
    }
}
