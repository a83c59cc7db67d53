//! One benchmark a kernel. Throughput is in elements, and an element is a floating-point operation
//! for products and a byte read or written for the rest: "Gelem/s" reads as GFLOP/s or GB/s.
//!
//!     cargo bench -p tina-model --bench kernels -- product
//!     RAYON_NUM_THREADS=1 cargo bench -p tina-model --bench kernels

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use half::{bf16, f16};
use tina_model::{
    Bits, Blocks, Distribution, Scratch,
    kernels::{
        self,
        bf16::to_bf16,
        matmul::{
            Add, Format, Frozen, Packed, Rows, Store, Then, Thin, matmul, product, thin_gradient,
        },
        rows, team,
    },
};

/// Hidden size, width of the feed-forward layer, vocabulary and rank of the smallest model.
const HIDDEN: usize = 576;
const WIDE: usize = 1536;
const VOCABULARY: usize = 49_152;
const RANK: usize = 16;

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

fn rounded(x: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; x.len()];
    to_bf16(x, &mut out);
    out
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    group
}

/// A matrix of this format.
fn frozen(k: usize, n: usize, format: Format) -> Frozen {
    let w = values(k * n, 2);
    if format != Format::Blocks {
        return Frozen::direct(&w, k, n, format);
    }
    let levels = w.iter().map(|w| ((w + 0.5) * 15.9) as i8);
    Frozen::of_blocks(&Blocks {
        rows: n,
        inner: k,
        bits: Bits::Four,
        scales: vec![[f16::from_f32(0.06), f16::from_f32(-0.5)]; k * n / 32],
        levels: levels.collect(),
    })
}

fn products(c: &mut Criterion) {
    let _hot = team::stay_hot();
    for format in [Format::F32, Format::Bf16, Format::Blocks] {
        let name = match format {
            Format::Blocks => "blocks of four bits",
            _ => kernels::numerics(format),
        };
        let mut group = group(c, &format!("product/{name}"));
        for (m, k, n) in [
            (1, HIDDEN, WIDE),
            (4, HIDDEN, WIDE),
            (16, HIDDEN, WIDE),
            (512, HIDDEN, HIDDEN),
            (512, HIDDEN, WIDE),
            (1024, WIDE, HIDDEN),
            (1, HIDDEN, VOCABULARY),
            (8, HIDDEN, VOCABULARY),
            (64, HIDDEN, VOCABULARY),
        ] {
            let x = values(m * k, 1);
            let x_rounded = rounded(&x);
            let rows = match kernels::matmul::rows_format(format) {
                Format::Bf16 => Rows::Bf16(&x_rounded),
                _ => Rows::F32(&x),
            };
            let w = frozen(k, n, format);
            let mut out = vec![0f32; m * n];
            group.throughput(Throughput::Elements((2 * m * k * n) as u64));
            group.bench_function(BenchmarkId::from_parameter(format!("{m}x{k}x{n}")), |b| {
                b.iter(|| product(black_box(rows), &w, &mut out, Then::default()));
            });
        }
        let (m, k, n) = (512, HIDDEN, HIDDEN);
        let x = values(m * k, 1);
        let w = frozen(k, n, format);
        let low = values(m * RANK, 3);
        let b = Packed::direct(&values(RANK * n, 4), RANK, n);
        let residual = values(m * n, 5);
        let mut out = vec![0f32; m * n];
        group.throughput(Throughput::Elements((2 * m * (k + RANK) * n) as u64));
        group.bench_function("512x576x576, rounding, LoRA, residual", |bench| {
            bench.iter(|| {
                let then = Then {
                    bias: None,
                    lora: Some(Thin {
                        low: &low,
                        stride: RANK,
                        b: &b,
                    }),
                    add: Add::Rows(&residual),
                };
                product(black_box(Rows::F32(&x)), &w, &mut out, then);
            });
        });
    }
}

fn thin_products(c: &mut Criterion) {
    let _hot = team::stay_hot();
    let mut group = group(c, "thin");
    for (m, k, rank) in [
        (1, HIDDEN, 3 * RANK),
        (16, HIDDEN, RANK),
        (512, HIDDEN, RANK),
        (512, WIDE, RANK),
    ] {
        let x = values(m * k, 1);
        let a = Packed::transposed(&values(rank * k, 2), rank, k);
        let mut low = vec![0f32; m * rank];
        group.throughput(Throughput::Elements((2 * m * k * rank) as u64));
        group.bench_function(format!("x·Aᵀ {m}x{k}x{rank}"), |b| {
            b.iter(|| matmul(black_box(&x), &a, &mut low, Store::Scaled(2.0)));
        });
    }
    for (m, n) in [(512, HIDDEN), (512, WIDE), (4096, HIDDEN)] {
        let (u, x) = (values(m * RANK, 1), values(m * n, 2));
        let mut out = vec![0f32; RANK * n];
        group.throughput(Throughput::Elements((2 * m * n * RANK) as u64));
        group.bench_function(format!("gradient {m}x{n}x{RANK}"), |b| {
            b.iter(|| thin_gradient(black_box(&u), RANK, &x, 0.5, &mut out));
        });
    }
}

fn row_kernels(c: &mut Criterion) {
    let _hot = team::stay_hot();
    let mut group = group(c, "rows");
    let (m, n) = (512, HIDDEN);
    let (x, y, weight) = (values(m * n, 1), values(m * n, 2), values(n, 3));
    let (mut out, mut d) = (vec![0f32; m * n], vec![0f32; m * n]);
    let mut half = vec![bf16::ZERO; m * n];
    let bytes = |per: usize| Throughput::Elements((per * m * n) as u64);
    group.throughput(bytes(8));
    group.bench_function("rms_norm", |b| {
        b.iter(|| rows::rms_norm(black_box(&x), &weight, 1e-5, &mut out, None));
    });
    group.throughput(bytes(10));
    group.bench_function("rms_norm, rounded", |b| {
        b.iter(|| {
            let half = Some(half.as_mut_slice());
            rows::rms_norm(black_box(&x), &weight, 1e-5, &mut out, half);
        });
    });
    group.throughput(bytes(12));
    group.bench_function("rms_norm_backward", |b| {
        b.iter(|| rows::rms_norm_backward(black_box(&x), &weight, 1e-5, &y, &mut out));
    });
    group.throughput(bytes(14));
    group.bench_function("silu_mul, rounded", |b| {
        b.iter(|| rows::silu_mul(black_box(&y), &y, &mut out, Some(&mut half)));
    });
    group.throughput(bytes(20));
    group.bench_function("silu_mul_backward", |b| {
        b.iter(|| rows::silu_mul_backward(black_box(&y), &y, &y, &mut out, &mut d));
    });
    let angles = values(m * 32, 4);
    group.throughput(bytes(8));
    group.bench_function("rotate_in_place", |b| {
        b.iter(|| rows::rotate_in_place(black_box(&mut out), n, 0..n, &angles, &angles, 1.0, 64));
    });
    group.throughput(bytes(6));
    group.bench_function("to_bf16", |b| b.iter(|| to_bf16(black_box(&y), &mut half)));
    group.finish();
}

fn distributions(c: &mut Criterion) {
    let mut group = group(c, "distribution");
    let logits: Vec<f32> = values(VOCABULARY, 1).iter().map(|x| 12.0 * x).collect();
    let (mut gradient, mut scratch) = (logits.clone(), Scratch::default());
    let full = Distribution::FULL;
    group.throughput(Throughput::Elements(4 * VOCABULARY as u64));
    group.bench_function("log_prob", |b| {
        b.iter(|| full.log_prob(black_box(&logits), 77, &mut scratch));
    });
    group.bench_function("log_prob_gradient", |b| {
        b.iter(|| full.log_prob_gradient(black_box(&mut gradient), 77, 1.0, &mut scratch));
    });
    let top_p = Distribution {
        top_p: 0.95,
        ..full
    };
    let top_k = Distribution { top_k: 50, ..full };
    for (name, how) in [
        ("sample", full),
        ("sample top_p", top_p),
        ("sample top_k", top_k),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| how.sample(black_box(&logits), 0.7, &mut scratch));
        });
    }
}

fn calls(c: &mut Criterion) {
    let _hot = team::stay_hot();
    let mut group = group(c, "team");
    group.bench_function("for_each", |b| {
        b.iter(|| {
            team::for_each(black_box(2 * team::threads()), |i| {
                black_box(i);
            })
        });
    });
}

criterion_group!(
    benches,
    calls,
    products,
    thin_products,
    row_kernels,
    distributions
);
criterion_main!(benches);
