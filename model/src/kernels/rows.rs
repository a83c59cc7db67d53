//! Row kernels: RMSNorm, SiLU·up, rotary embedding, forward and backward.
//!
//! Rows are shared out between threads in chunks; each is computed as if it were alone.

use rayon::prelude::*;

use super::{
    dispatch,
    math::{self, dot},
};

/// Floats that one task should touch at least: below that, threads cost more than they give.
const TASK_FLOATS: usize = 16 * 1024;

/// Rows a task takes.
fn rows_per_task(width: usize) -> usize {
    (TASK_FLOATS / width.max(1)).max(1)
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let inverse = inverse_rms(x, eps);
        for i in 0..width {
            out[i] = x[i] * inverse * weight[i];
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

dispatch! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

/// out = x / sqrt(mean(x²) + eps) * weight, row by row; x and out `[rows, width]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let chunk = rows_per_task(weight.len()) * weight.len();
    x.par_chunks(chunk)
        .zip(out.par_chunks_mut(chunk))
        .for_each(|(x, out)| rms_norm_rows(x, weight, eps, out));
}

#[inline(always)]
fn rms_norm_backward_body(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
    for ((x, d_out), d_x) in rows.zip(d_x.chunks_exact_mut(width)) {
        let inverse = inverse_rms(x, eps);
        for i in 0..width {
            d_x[i] = d_out[i] * weight[i];
        }
        // d/dx of x·r(x): r (g − x̂ mean(g x̂)), with g = d_out * weight and x̂ = x r.
        let mean = dot(d_x, x) * inverse * inverse / width as f32;
        for i in 0..width {
            d_x[i] = inverse * (d_x[i] - x[i] * mean);
        }
    }
}

dispatch! {
    fn rms_norm_backward_rows(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) = rms_norm_backward_body
}

/// The gradient of [`rms_norm`] with respect to x; the weight is frozen.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) {
    let chunk = rows_per_task(weight.len()) * weight.len();
    x.par_chunks(chunk)
        .zip(d_out.par_chunks(chunk))
        .zip(d_x.par_chunks_mut(chunk))
        .for_each(|((x, d_out), d_x)| rms_norm_backward_rows(x, weight, eps, d_out, d_x));
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

#[inline(always)]
fn silu_mul_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for i in 0..out.len() {
        out[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

dispatch! {
    fn silu_mul_chunk(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul_body
}

/// out = silu(gate) * up, element by element.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gate.par_chunks(TASK_FLOATS)
        .zip(up.par_chunks(TASK_FLOATS))
        .zip(out.par_chunks_mut(TASK_FLOATS))
        .for_each(|((gate, up), out)| silu_mul_chunk(gate, up, out));
}

#[inline(always)]
fn silu_mul_backward_body(
    gate: &[f32],
    up: &[f32],
    d_out: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    for i in 0..d_out.len() {
        let s = sigmoid(gate[i]);
        let silu = gate[i] * s;
        d_up[i] = d_out[i] * silu;
        d_gate[i] = d_out[i] * up[i] * (s + silu * (1.0 - s));
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
    gate.par_chunks(TASK_FLOATS)
        .zip(up.par_chunks(TASK_FLOATS))
        .zip(d_out.par_chunks(TASK_FLOATS))
        .zip(d_gate.par_chunks_mut(TASK_FLOATS))
        .zip(d_up.par_chunks_mut(TASK_FLOATS))
        .for_each(|((((gate, up), d_out), d_gate), d_up)| {
            silu_mul_backward_chunk(gate, up, d_out, d_gate, d_up);
        });
}

#[inline(always)]
fn rotate_body(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, width: usize, out: &mut [f32]) {
    let half = width / 2;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (a, b) = x.split_at(half);
        let (out_a, out_b) = out.split_at_mut(half);
        for i in 0..half {
            let s = sign * sin[i];
            out_a[i] = a[i] * cos[i] - b[i] * s;
            out_b[i] = b[i] * cos[i] + a[i] * s;
        }
    }
}

dispatch! {
    fn rotate_row(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, width: usize, out: &mut [f32]) = rotate_body
}

/// Rotary embedding in the half-split form (Hugging Face's `rotate_half`): x `[rows, heads * width]`,
/// cos and sin `[rows, width / 2]`. `sign` 1 turns forward; −1 turns back, which is the gradient.
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, width: usize, out: &mut [f32]) {
    let half = width / 2;
    let rows = cos.len().checked_div(half).unwrap_or(0);
    if rows == 0 {
        return;
    }
    let stride = x.len() / rows;
    let chunk = rows_per_task(stride);
    x.par_chunks(chunk * stride)
        .zip(out.par_chunks_mut(chunk * stride))
        .zip(
            cos.par_chunks(chunk * half)
                .zip(sin.par_chunks(chunk * half)),
        )
        .for_each(|((x, out), (cos, sin))| {
            let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
            for ((x, out), (cos, sin)) in x
                .chunks_exact(stride)
                .zip(out.chunks_exact_mut(stride))
                .zip(angles)
            {
                rotate_row(x, cos, sin, sign, width, out);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;

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
            rms_norm(x, &weight, 1e-5, &mut out);
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
            silu_mul(gate, up, &mut out);
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
}
