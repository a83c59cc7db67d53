//! Sums, scaled roundings and turns in place.

use half::bf16;

use super::{bf16::round, dispatch, team};

/// Floats that one task should touch at least: below that, threads cost more than they give.
const TASK: usize = 16 * 1024;

#[inline(always)]
fn add_body(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

dispatch! {
    fn add_chunk(out: &mut [f32], x: &[f32]) = add_body
}

/// out += x, element by element; equal lengths.
pub fn add(out: &mut [f32], x: &[f32]) {
    team::for_each_chunk(out, TASK, |i, out| add_chunk(out, &x[i * TASK..][..out.len()]));
}

#[inline(always)]
fn scaled_to_bf16_body(x: &[f32], scale: f32, out: &mut [bf16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(x * scale);
    }
}

dispatch! {
    /// out = scale * x, rounded, on this thread; equal lengths.
    pub fn scaled_to_bf16(x: &[f32], scale: f32, out: &mut [bf16]) = scaled_to_bf16_body
}

#[inline(always)]
fn turn_body(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32, width: usize) {
    let half = width / 2;
    for x in x.chunks_exact_mut(width) {
        let (a, b) = x.split_at_mut(half);
        for i in 0..half {
            let s = sign * sin[i];
            let (p, q) = (a[i], b[i]);
            a[i] = p * cos[i] - q * s;
            b[i] = q * cos[i] + p * s;
        }
    }
}

dispatch! {
    fn turn_row(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32, width: usize) = turn_body
}

/// Rotary embedding in place, in the half-split form (Hugging Face's `rotate_half`): x
/// `[rows, heads * width]`, cos and sin `[rows, width / 2]`. `sign` 1 turns forward; −1 turns back,
/// which is the gradient.
pub fn rotate_in_place(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32, width: usize) {
    let half = width / 2;
    let rows = cos.len().checked_div(half).unwrap_or(0);
    if rows == 0 {
        return;
    }
    let stride = x.len() / rows;
    let some = (TASK / stride.max(1)).max(1);
    team::for_each_chunk(x, some * stride, |i, x| {
        for (r, x) in x.chunks_exact_mut(stride).enumerate() {
            let at = (i * some + r) * half;
            turn_row(x, &cos[at..at + half], &sin[at..at + half], sign, width);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn turning_back_undoes_a_turn() {
        let (rows, heads, width) = (3, 2, 8);
        let x = wave(rows * heads * width, 0.31);
        let angles = wave(rows * width / 2, 2.3);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut there = x.clone();
        rotate_in_place(&mut there, &cos, &sin, 1.0, width);
        // Row 1, head 1, pair 2 by hand.
        let at = (heads + 1) * width + 2;
        let angle = width / 2 + 2;
        let want = x[at] * cos[angle] - x[at + 4] * sin[angle];
        assert!((there[at] - want).abs() < 1e-6);
        rotate_in_place(&mut there, &cos, &sin, -1.0, width);
        for (a, b) in there.iter().zip(&x) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn sums_and_scaled_roundings_reach_every_element() {
        let (x, mut out) = (wave(40_000, 0.1), vec![1.0; 40_000]);
        add(&mut out, &x);
        assert!(out.iter().zip(&x).all(|(o, x)| *o == 1.0 + x));
        let mut half = vec![bf16::ZERO; 40_000];
        scaled_to_bf16(&x, 0.5, &mut half);
        assert!(half.iter().zip(&x).all(|(h, x)| *h == bf16::from_f32(x * 0.5)));
    }
}
