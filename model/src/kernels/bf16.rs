//! bf16: rounding to it and back.

use half::bf16;

use super::{dispatch, team};

/// Values that one task converts at least.
const TASK: usize = 32 * 1024;

/// The bf16 nearest to x, ties to even; NaN stays NaN. `half` gives the same bits, and the compiler
/// makes vector code of this form alone.
#[inline(always)]
pub fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    // NaNs of large payload wrap, and are not taken.
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if nan { quiet } else { nearest } as u16)
}

/// The same value in f32.
#[inline(always)]
pub fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[inline(always)]
fn round_body(x: &[f32], out: &mut [bf16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}

dispatch! {
    /// Rounds on this thread.
    pub(super) fn round_all(x: &[f32], out: &mut [bf16]) = round_body
}

#[inline(always)]
fn widen_body(x: &[bf16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = widen(*x);
    }
}

dispatch! {
    /// Widens on this thread.
    pub(super) fn widen_all(x: &[bf16], out: &mut [f32]) = widen_body
}

/// Rounds every value to the nearest bf16, ties to even; x and out have equal lengths.
pub fn to_bf16(x: &[f32], out: &mut [bf16]) {
    convert(x, out, round_all);
}

/// `convert` over all of `x`, shared out.
pub(super) fn convert<A: Sync, B: Send>(x: &[A], out: &mut [B], convert: fn(&[A], &mut [B])) {
    assert_eq!(x.len(), out.len(), "a conversion keeps the length");
    team::for_each_chunk(out, TASK, |i, out| {
        convert(&x[i * TASK..i * TASK + out.len()], out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_for_every_kind_of_float() {
        let mut bits: Vec<u32> = (0..=u32::MAX).step_by(9_973).collect();
        for special in [
            0u32,
            0x8000_0000,
            1,
            0x8000_0001,
            0x7fff,
            0x8000,
            0x8001,
            0x0001_8000,
            0x007f_ffff,
            0x7f7f_ffff,
            0x7f7f_7fff,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0xffff_ffff,
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
        ] {
            bits.push(special);
        }
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let mut out = vec![bf16::ZERO; x.len()];
        to_bf16(&x, &mut out);
        for (x, got) in x.iter().zip(&out) {
            assert_eq!(
                got.to_bits(),
                bf16::from_f32(*x).to_bits(),
                "{:#x}",
                x.to_bits()
            );
        }
        let mut wide = vec![0f32; x.len()];
        widen_all(&out, &mut wide);
        for i in 0..x.len() {
            assert_eq!(wide[i].to_bits(), out[i].to_f32().to_bits());
        }
    }
}
