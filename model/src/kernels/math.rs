//! exp, dot products and sums in lanes of 16.
//!
//! Transcendental functions are our own so that they vectorise and give the same bits at every
//! [`Level`](super::Level).

use super::dispatch;

/// Lanes that one accumulator holds.
pub const LANES: usize = 16;

/// exp(x), relative error below 2e-7; 0 below -87.3, finite up to 88.3.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 6 (Cephes' `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 5e-1);
    let y = p.mul_add(r * r, r) + 1.0;
    // The low bits of `shifted` are n: 2^n without a conversion.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { y * scale }
}

/// Sum of 16 lanes, as a tree of fixed shape.
#[inline(always)]
pub fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// sum_i a\[i\] * b\[i\]; the operands have equal lengths.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = x.mul_add(*y, lanes[i]);
    }
    reduce(lanes)
}

/// y += s * x.
#[inline(always)]
pub fn axpy(s: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = s.mul_add(*x, *y);
    }
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *value);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// What the exponentials of a row of logits come to.
#[derive(Clone, Copy, Debug)]
pub struct ExpSum {
    /// Largest of the scaled logits.
    pub max: f32,
    /// sum_i exp(x_i - max).
    pub sum: f64,
    /// sum_i exp(x_i - max) * (x_i - max).
    pub weighted: f64,
}

/// Elements of a logits row that are summed in f32 before the sum goes on in f64.
pub const CHUNK: usize = 512;

#[inline(always)]
fn exp_sum_body(
    logits: &[f32],
    inverse_temperature: f32,
    exps: &mut [f32],
    sums: &mut [f64],
) -> ExpSum {
    let max = max(logits) * inverse_temperature;
    let (mut sum, mut weighted) = (0f64, 0f64);
    for ((xs, es), total) in logits.chunks(CHUNK).zip(exps.chunks_mut(CHUNK)).zip(sums) {
        let mut s = [0f32; LANES];
        let mut w = [0f32; LANES];
        let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
        let (e_chunks, e_rest) = es.as_chunks_mut::<LANES>();
        for (x, e) in x_chunks.iter().zip(e_chunks) {
            for i in 0..LANES {
                let d = x[i].mul_add(inverse_temperature, -max);
                e[i] = exp(d);
                s[i] += e[i];
                w[i] = e[i].mul_add(d, w[i]);
            }
        }
        for (i, (x, e)) in x_rest.iter().zip(e_rest).enumerate() {
            let d = x.mul_add(inverse_temperature, -max);
            *e = exp(d);
            s[i] += *e;
            w[i] = e.mul_add(d, w[i]);
        }
        *total = f64::from(reduce(s));
        sum += *total;
        weighted += f64::from(reduce(w));
    }
    ExpSum { max, sum, weighted }
}

dispatch! {
    /// exp(logit * inverse_temperature - max) of every element into `exps`, and the sum of each
    /// [`CHUNK`] of them into `sums` (`logits.len().div_ceil(CHUNK)` entries).
    pub fn exp_sum(logits: &[f32], inverse_temperature: f32, exps: &mut [f32], sums: &mut [f64]) -> ExpSum = exp_sum_body
}

#[inline(always)]
fn add_body(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

dispatch! {
    /// y += x.
    pub fn add(x: &[f32], y: &mut [f32]) = add_body
}

#[inline(always)]
fn scale_body(factor: f32, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = factor * x;
    }
}

dispatch! {
    /// out = factor * x.
    pub fn scale(factor: f32, x: &[f32], out: &mut [f32]) = scale_body
}

#[inline(always)]
fn largest_body(values: &[f32]) -> f32 {
    max(values)
}

dispatch! {
    /// [`max`], as a function of its own.
    pub fn largest(values: &[f32]) -> f32 = largest_body
}

/// What lies above a bound.
#[derive(Clone, Copy, Debug)]
pub struct Within {
    /// Elements.
    pub count: usize,
    /// The sum of their exponentials.
    pub sum: f64,
}

#[inline(always)]
fn within_body(logits: &[f32], inverse_temperature: f32, bound: f32, exps: &[f32]) -> Within {
    let mut all = Within { count: 0, sum: 0.0 };
    for (xs, es) in logits.chunks(CHUNK).zip(exps.chunks(CHUNK)) {
        let (mut counts, mut sums) = ([0f32; LANES], [0f32; LANES]);
        let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
        let (e_chunks, e_rest) = es.as_chunks::<LANES>();
        for (x, e) in x_chunks.iter().zip(e_chunks) {
            for i in 0..LANES {
                let inside = x[i] * inverse_temperature >= bound;
                counts[i] += if inside { 1.0 } else { 0.0 };
                sums[i] += if inside { e[i] } else { 0.0 };
            }
        }
        for (i, (x, e)) in x_rest.iter().zip(e_rest).enumerate() {
            if x * inverse_temperature >= bound {
                counts[i] += 1.0;
                sums[i] += e;
            }
        }
        all.count += reduce(counts) as usize;
        all.sum += f64::from(reduce(sums));
    }
    all
}

dispatch! {
    /// The elements with logit * inverse_temperature >= bound, and the sum of their `exps`.
    pub fn within(logits: &[f32], inverse_temperature: f32, bound: f32, exps: &[f32]) -> Within = within_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2e-7, "worst relative error {worst}");
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn the_largest_and_what_lies_above_a_bound() {
        for n in [1, 15, 33, 1100] {
            let x: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            let exps: Vec<f32> = x.iter().map(|x| x * 0.01 + 1.0).collect();
            let most = x.iter().cloned().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&x), most);
            let got = within(&x, 0.5, 3.0, &exps);
            let inside = || x.iter().zip(&exps).filter(|(x, _)| **x >= 6.0);
            assert_eq!(got.count, inside().count());
            let sum: f64 = inside().map(|(_, e)| f64::from(*e)).sum();
            assert!((got.sum - sum).abs() <= 1e-6 * sum);
        }
        assert_eq!(largest(&[f32::NAN, 1.0]), 1.0);
    }

    #[test]
    fn exp_sum_equals_f64_for_any_length() {
        for n in [1, 15, 16, 17, 511, 513, 5000] {
            let logits: Vec<f32> = (0..n)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.2)
                .collect();
            let (mut exps, mut sums) = (vec![0f32; n], vec![0f64; n.div_ceil(CHUNK)]);
            let got = exp_sum(&logits, 0.5, &mut exps, &mut sums);
            let xs: Vec<f64> = logits.iter().map(|x| f64::from(*x) * 0.5).collect();
            let max = xs.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = xs.iter().map(|x| (x - max).exp()).sum();
            let weighted: f64 = xs.iter().map(|x| (x - max).exp() * (x - max)).sum();
            assert!((got.sum - sum).abs() / sum < 1e-6);
            assert!((got.weighted - weighted).abs() <= 1e-5 * weighted.abs() + 1e-6);
            assert!((sums.iter().sum::<f64>() - got.sum).abs() < 1e-9 * got.sum);
        }
    }
}
