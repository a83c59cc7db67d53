//! Sums and scaled roundings.

use half::bf16;

use super::{bf16::round, dispatch, math, team};

/// Floats that one task should touch at least: below that, threads cost more than they give.
const TASK: usize = 16 * 1024;

/// out += x, element by element; equal lengths.
pub fn add(out: &mut [f32], x: &[f32]) {
    team::for_each_chunk(out, TASK, |i, out| {
        math::add(&x[i * TASK..][..out.len()], out)
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn sums_and_scaled_roundings_reach_every_element() {
        let (x, mut out) = (wave(40_000, 0.1), vec![1.0; 40_000]);
        add(&mut out, &x);
        assert!(out.iter().zip(&x).all(|(o, x)| *o == 1.0 + x));
        let mut half = vec![bf16::ZERO; 40_000];
        scaled_to_bf16(&x, 0.5, &mut half);
        assert!(
            half.iter()
                .zip(&x)
                .all(|(h, x)| *h == bf16::from_f32(x * 0.5))
        );
    }
}
