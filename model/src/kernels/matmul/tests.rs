use super::{super::levels, thin::gradient_at, *};
use crate::weights::blocks::{BLOCK, Bits, Blocks};

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32) - 0.5
        })
        .collect()
}

fn coarse(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Rows, K, N: whole and broken tiles, one panel and many, K beyond a block, K odd.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 3, 5),
    (8, 64, 48),
    (9, 33, 50),
    (3, 1, 1),
    (7, 2501, 17),
    (5, 4097, 33),
    (100, 576, 192),
    (97, 40, 64),
    (3, 16, 1),
    (4, 64, 200),
    (17, 2, 100),
    (53, 31, 16),
    (30, 30, 32),
    (2, 128, 99),
];

/// Everything that can follow a product.
struct Extras {
    bias: Vec<f32>,
    low: Vec<f32>,
    stride: usize,
    b: Packed,
    add: Vec<f32>,
}

impl Extras {
    const RANK: usize = 5;

    fn new(rows: usize, columns: usize) -> Self {
        let stride = Self::RANK + 2;
        Self {
            bias: values(columns, 21),
            low: values(rows * stride, 22),
            stride,
            b: Packed::direct(&values(Self::RANK * columns, 23), Self::RANK, columns),
            add: values(rows * columns, 24),
        }
    }

    fn then_of(&self, row: usize, rows: usize) -> Then<'_> {
        let n = self.bias.len();
        Then {
            bias: Some(&self.bias),
            lora: Some(Thin {
                low: &self.low[row * self.stride..(row + rows) * self.stride],
                stride: self.stride,
                b: &self.b,
            }),
            add: Add::Rows(&self.add[row * n..(row + rows) * n]),
        }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let mut b = vec![0f32; Self::RANK];
        self.b.column(column, &mut b);
        let low = &self.low[row * self.stride..];
        let thin: f64 = low
            .iter()
            .zip(&b)
            .map(|(x, b)| f64::from(*x) * f64::from(*b))
            .sum();
        f64::from(self.bias[column]) + thin + f64::from(self.add[row * self.bias.len() + column])
    }
}

#[test]
fn products_equal_f64_at_every_level_for_both_packings() {
    for ((m, k, n), format) in each_shape() {
        let (mut x, mut w) = (values(m * k, 1), values(k * n, 2));
        if format == Format::Bf16 {
            (x, w) = (coarse(&x), coarse(&w));
        }
        let w_t: Vec<f32> = (0..n * k).map(|i| w[(i % k) * n + i / k]).collect();
        let extras = Extras::new(m, n);
        for level in levels() {
            let mut out = vec![f32::NAN; m * n];
            let packed = Frozen::direct(&w, k, n, format);
            product_at(
                level,
                Rows::F32(&x),
                &packed,
                &mut out,
                extras.then_of(0, m),
            );
            for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
                let want: f64 = (0..k)
                    .map(|i| f64::from(x[r * k + i]) * f64::from(w[i * n + c]))
                    .sum();
                let error = (f64::from(out[r * n + c]) - want - extras.at(r, c)).abs();
                assert!(error < 1e-4, "{m} {k} {n} {format:?} {level:?}: {error}");
            }
            let mut again = vec![0f32; m * n];
            let packed = Frozen::transposed(&w_t, n, k, format);
            product_at(
                level,
                Rows::F32(&x),
                &packed,
                &mut again,
                extras.then_of(0, m),
            );
            assert_eq!(bits(&out), bits(&again));
        }
    }
}

fn each_shape() -> impl Iterator<Item = ((usize, usize, usize), Format)> {
    SHAPES
        .into_iter()
        .flat_map(|shape| [Format::F32, Format::Bf16].map(|format| (shape, format)))
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_any_batch() {
    for format in [Format::F32, Format::Bf16] {
        for (k, n) in [(67, 100), (130, 16), (65, 20), (64, 48)] {
            let (x, w) = (values(70 * k, 3), values(k * n, 4));
            let w = Frozen::direct(&w, k, n, format);
            let extras = Extras::new(70, n);
            for level in levels() {
                let rows = |first: usize, m: usize| {
                    let mut out = vec![0f32; m * n];
                    let x = Rows::F32(&x[first * k..(first + m) * k]);
                    product_at(level, x, &w, &mut out, extras.then_of(first, m));
                    bits(&out)
                };
                let alone: Vec<u32> = (0..70).flat_map(|r| rows(r, 1)).collect();
                for m in 1..=70 {
                    let first = 70 - m;
                    assert_eq!(rows(first, m), alone[first * n..], "{m} {k} {n} {level:?}");
                }
            }
        }
    }
}

#[test]
fn fused_multiply_adds_give_the_scalar_bits_at_every_level() {
    for ((m, k, n), format) in each_shape() {
        let (x, mut w) = (values(m * k, 5), values(k * n, 6));
        let packed = Frozen::direct(&w, k, n, format);
        if format == Format::Bf16 {
            w = coarse(&w);
        }
        let extras = Extras::new(m, n);
        let mut b = vec![0f32; Extras::RANK];
        let mut want = vec![0f32; m * n];
        for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let mut sum = (0..k).fold(0f32, |a, i| x[r * k + i].mul_add(w[i * n + c], a));
            sum += extras.bias[c];
            extras.b.column(c, &mut b);
            for (low, b) in extras.low[r * extras.stride..].iter().zip(&b) {
                sum = low.mul_add(*b, sum);
            }
            want[r * n + c] = sum + extras.add[r * n + c];
        }
        for level in levels().filter(|l| kind(format, *l) != Kind::Dot) {
            let mut out = vec![0f32; m * n];
            product_at(
                level,
                Rows::F32(&x),
                &packed,
                &mut out,
                extras.then_of(0, m),
            );
            assert_eq!(bits(&out), bits(&want), "{m} {k} {n} {format:?} {level:?}");
        }
    }
}

/// One step of the dot-product instruction: the odd product first, each sum rounded to nearest.
fn dot_step(sum: f32, x: [f32; 2], w: [f32; 2]) -> f32 {
    x[0].mul_add(w[0], x[1].mul_add(w[1], sum))
}

#[test]
fn the_dot_product_gives_its_scalar_reference_bits() {
    if level() < Level::Avx512Bf16 {
        return;
    }
    for (m, k, n) in SHAPES {
        let (x, w) = (coarse(&values(m * k, 7)), coarse(&values(k * n, 8)));
        let packed = Frozen::direct(&w, k, n, Format::Bf16);
        let mut out = vec![0f32; m * n];
        product(Rows::F32(&x), &packed, &mut out, Then::default());
        for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let mut sum = 0f32;
            for i in (0..k).step_by(2) {
                let pair =
                    |at: &dyn Fn(usize) -> f32| [at(i), if i + 1 < k { at(i + 1) } else { 0.0 }];
                sum = dot_step(sum, pair(&|i| x[r * k + i]), pair(&|i| w[i * n + c]));
            }
            assert_eq!(sum.to_bits(), out[r * n + c].to_bits(), "{m} {k} {n}");
        }
    }
}

#[test]
fn rows_in_bf16_and_rows_rounded_to_it_are_one() {
    let (m, k, n) = (13, 35, 70);
    let x = values(m * k, 9);
    let rounded: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
    for format in [Format::F32, Format::Bf16] {
        let w = Frozen::direct(&values(k * n, 10), k, n, format);
        for level in levels() {
            let (mut a, mut b) = (vec![0f32; m * n], vec![0f32; m * n]);
            let x = coarse(&x);
            product_at(level, Rows::F32(&x), &w, &mut a, Then::default());
            product_at(level, Rows::Bf16(&rounded), &w, &mut b, Then::default());
            assert_eq!(bits(&a), bits(&b));
        }
    }
}

/// A matrix in blocks, `[columns, inner]`, with scales of both signs and all levels.
fn blocks(columns: usize, inner: usize, bits: Bits) -> Blocks {
    let count = columns * inner / BLOCK;
    let half = |v: f32| half::f16::from_f32(v);
    let scales = values(2 * count, 31);
    let scales = scales.chunks_exact(2).map(|s| match bits {
        Bits::Four => [half(s[0]), half(s[1])],
        Bits::Eight => [half(s[0] / 16.0), half::f16::ZERO],
    });
    let level = |v: f32| match bits {
        Bits::Four => ((v + 0.5) * 15.99) as i8,
        Bits::Eight => (v * 255.9).round() as i8,
    };
    Blocks {
        rows: columns,
        inner,
        bits,
        scales: scales.collect(),
        levels: values(columns * inner, 32).into_iter().map(level).collect(),
    }
}

#[test]
fn matrices_in_blocks_give_the_bits_of_f32_at_every_level() {
    for bits_of_a_level in [Bits::Four, Bits::Eight] {
        // One tile and several, whole and broken panels, K in several runs.
        for (m, k, n) in [
            (1, 32, 5),
            (3, 96, 48),
            (4, 64, 200),
            (7, 1056, 33),
            (8, 64, 50),
            (9, 2080, 17),
            (100, 576, 192),
        ] {
            let w = blocks(n, k, bits_of_a_level);
            let dense: Vec<f32> = (0..n * k).map(|i| w.weight(i)).collect();
            let (packed, wide) = (
                Frozen::of_blocks(&w),
                Frozen::transposed(&dense, n, k, Format::F32),
            );
            assert_eq!((packed.inner(), packed.columns()), (k, n));
            let extras = Extras::new(m, n);
            let x = values(m * k, 33);
            for level in levels() {
                let run = |w: &Frozen| {
                    let mut out = vec![f32::NAN; m * n];
                    product_at(level, Rows::F32(&x), w, &mut out, extras.then_of(0, m));
                    bits(&out)
                };
                assert_eq!(
                    run(&packed),
                    run(&wide),
                    "{m} {k} {n} {bits_of_a_level:?} {level:?}"
                );
            }
            let mut column = vec![0f32; k];
            for c in 0..n {
                packed.column(c, &mut column);
                assert_eq!(bits(&column), bits(&dense[c * k..(c + 1) * k]));
            }
            let bytes = match bits_of_a_level {
                Bits::Four => 20,
                Bits::Eight => 36,
            };
            assert_eq!(packed.bytes(), n.div_ceil(16) * 16 * k / BLOCK * bytes);
        }
    }
}

#[test]
fn what_out_holds_can_be_added() {
    let (m, k, n) = (6, 24, 20);
    let (x, w) = (values(m * k, 11), values(k * n, 12));
    let before = values(m * n, 13);
    for format in [Format::F32, Format::Bf16] {
        let w = Frozen::direct(&w, k, n, format);
        for level in levels() {
            let (mut a, mut b) = (before.clone(), vec![0f32; m * n]);
            let then = |add| Then {
                add,
                ..Then::default()
            };
            product_at(level, Rows::F32(&x), &w, &mut a, then(Add::Out));
            product_at(level, Rows::F32(&x), &w, &mut b, then(Add::Rows(&before)));
            assert_eq!(bits(&a), bits(&b));
        }
    }
}

#[test]
fn stores_scale() {
    let (m, k, n) = (5, 24, 20);
    let (x, w) = (values(m * k, 14), Packed::direct(&values(k * n, 15), k, n));
    for level in levels() {
        let at = |store, from: f32| {
            let mut out = vec![from; m * n];
            matmul_at(level, &x, &w, &mut out, store);
            out
        };
        let product = at(Store::Set, f32::NAN);
        let scaled: Vec<f32> = product.iter().map(|p| 2.5 * p).collect();
        assert_eq!(at(Store::Scaled(2.5), f32::NAN), scaled);
    }
}

#[test]
fn columns_come_back_as_they_went_in() {
    let (n, k) = (21, 11);
    let w = values(n * k, 16);
    for (format, want) in [(Format::F32, w.clone()), (Format::Bf16, coarse(&w))] {
        let packed = Frozen::transposed(&w, n, k, format);
        let mut row = vec![0f32; k];
        for i in 0..n {
            packed.column(i, &mut row);
            assert_eq!(row, want[i * k..(i + 1) * k]);
        }
        let groups = n.div_ceil(16) * if format == Format::F32 { 11 } else { 6 };
        assert_eq!(packed.bytes(), groups * 64);
    }
}

#[test]
fn a_matrix_in_mapped_memory_is_like_any() {
    // Above a huge page, so mapped.
    let (m, k, n) = (3, 701, 1601);
    let (x, w) = (coarse(&values(m * k, 25)), coarse(&values(k * n, 26)));
    for format in [Format::F32, Format::Bf16] {
        let packed = Frozen::direct(&w, k, n, format);
        assert!(packed.bytes() > 2 << 20);
        let mut out = vec![0f32; m * n];
        product(Rows::F32(&x), &packed, &mut out, Then::default());
        let want: f64 = (0..k)
            .map(|i| f64::from(x[2 * k + i]) * f64::from(w[i * n + n - 1]))
            .sum();
        assert!((f64::from(out[m * n - 1]) - want).abs() < 1e-4);
    }
}

#[test]
fn thin_gradients_give_the_scalar_bits_at_every_level() {
    for (rows, rank, n) in [
        (1, 1, 1),
        (40, 16, 100),
        (333, 5, 48),
        (7, 19, 577),
        (2, 8, 47),
    ] {
        let (u, x) = (values(rows * rank, 17), values(rows * n, 18));
        let before = values(rank * n, 19);
        let mut want = before.clone();
        for (r, c) in (0..rank).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let step = |sum: f32, row: usize| u[row * rank + r].mul_add(x[row * n + c], sum);
            let sum = (0..rows).fold(0f32, step);
            want[r * n + c] = 0.75f32.mul_add(sum, want[r * n + c]);
        }
        for level in levels() {
            let mut out = before.clone();
            gradient_at(level, &u, rank, &x, 0.75, &mut out);
            assert_eq!(bits(&out), bits(&want), "{rows} {rank} {n} {level:?}");
        }
    }
}
