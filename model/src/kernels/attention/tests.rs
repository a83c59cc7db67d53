//! Attention against f64, and one definition of the bits.
use super::{backward::backward_at, forward::attend_at, pass::forward_at, *};
use crate::kernels::{Level, level};

const SHAPES: [Heads; 6] = [
    shape(4, 2, 8),
    shape(9, 3, 64),
    shape(4, 4, 16),
    shape(7, 1, 80),
    shape(4, 1, 128),
    shape(3, 1, 20),
];

const LENGTHS: [usize; 8] = [1, 15, 16, 17, 31, 33, 100, 600];

const fn shape(queries: usize, keys: usize, width: usize) -> Heads {
    Heads {
        queries,
        keys,
        width,
    }
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n)
        .map(|i| (i as f32 * step).sin() + 0.3 * (i as f32 * 0.011).cos())
        .collect()
}

fn own(start: usize, len: usize) -> Segment {
    Segment {
        start,
        len,
        prefix: None,
    }
}

fn bits(m: &[f32]) -> Vec<u32> {
    m.iter().map(|x| x.to_bits()).collect()
}

/// Rows of a matrix.
fn pick(m: &[f32], row: usize, rows: impl IntoIterator<Item = usize>) -> Vec<f32> {
    rows.into_iter()
        .flat_map(|r| m[r * row..(r + 1) * row].to_vec())
        .collect()
}

/// Keys that a row of a pass sees, in order.
fn seen(segments: &[Segment], row: usize) -> Vec<usize> {
    let s = segments
        .iter()
        .find(|s| (s.start..s.start + s.len).contains(&row))
        .unwrap();
    let (start, len) = s.prefix.unwrap_or((0, 0));
    (start..start + len).chain(s.start..=row).collect()
}

fn naive(heads: Heads, q: &[f32], k: &[f32], v: &[f32], row: usize, seen: &[usize]) -> Vec<f64> {
    let width = heads.width;
    let mut out = Vec::new();
    for h in 0..heads.queries {
        let at = h / heads.share() * width;
        let q = &q[row * heads.query_row() + h * width..][..width];
        let score = |j: &usize| {
            let k = &k[j * heads.key_row() + at..][..width];
            let terms = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b));
            terms.sum::<f64>() / (width as f64).sqrt()
        };
        let s: Vec<f64> = seen.iter().map(score).collect();
        let max = s.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        for d in 0..width {
            let value = |j: usize| f64::from(v[j * heads.key_row() + at + d]);
            out.push(seen.iter().zip(&e).map(|(j, e)| e / sum * value(*j)).sum());
        }
    }
    out
}

/// A pass with trees whose prompts end on and beside page borders.
fn pass() -> (usize, Vec<Segment>) {
    let mut segments = Vec::new();
    let mut at = 0;
    for (prompt, completions) in [
        (5, vec![3, 20]),
        (16, vec![1, 16, 17]),
        (33, vec![40, 2]),
        (70, vec![]),
    ] {
        let prefix = Some((at, prompt));
        segments.push(own(at, prompt));
        at += prompt;
        for len in completions {
            segments.push(Segment {
                start: at,
                len,
                prefix,
            });
            at += len;
        }
    }
    (at, segments)
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn inputs(heads: Heads, rows: usize) -> Inputs {
    Inputs {
        q: wave(rows * heads.query_row(), 0.7),
        k: wave(rows * heads.key_row(), 0.43),
        v: wave(rows * heads.key_row(), 1.3),
    }
}

impl Inputs {
    fn forward(&self, heads: Heads, segments: &[Segment]) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        forward(&self.q, &self.k, &self.v, segments, heads, &mut out, None);
        out
    }

    fn rows(&self, heads: Heads, rows: &[usize]) -> Self {
        Self {
            q: pick(&self.q, heads.query_row(), rows.iter().copied()),
            k: pick(&self.k, heads.key_row(), rows.iter().copied()),
            v: pick(&self.v, heads.key_row(), rows.iter().copied()),
        }
    }
}

#[test]
fn rows_see_their_prompt_and_their_own_past_only() {
    for heads in SHAPES {
        let (rows, segments) = pass();
        let x = inputs(heads, rows);
        let out = x.forward(heads, &segments);
        for row in 0..rows {
            let want = naive(heads, &x.q, &x.k, &x.v, row, &seen(&segments, row));
            for (a, b) in out[row * heads.query_row()..].iter().zip(want) {
                assert!(
                    (f64::from(*a) - b).abs() < 1e-5,
                    "{heads:?} row {row}: {a} against {b}"
                );
            }
        }
    }
}

#[test]
fn long_rows_are_right_across_chunks() {
    let heads = shape(3, 1, 16);
    let x = inputs(heads, 1100);
    let out = x.forward(heads, &[own(0, 1100)]);
    for row in [511, 512, 513, 1023, 1024, 1099] {
        let all: Vec<usize> = (0..=row).collect();
        let want = naive(heads, &x.q, &x.k, &x.v, row, &all);
        for (a, b) in out[row * heads.query_row()..].iter().zip(want) {
            assert!(
                (f64::from(*a) - b).abs() < 1e-5,
                "row {row}: {a} against {b}"
            );
        }
    }
}

#[test]
fn a_completion_after_a_shared_prompt_has_the_bits_it_has_alone() {
    for heads in SHAPES {
        let (rows, segments) = pass();
        let x = inputs(heads, rows);
        let out = x.forward(heads, &segments);
        for s in &segments {
            let whole = seen(&segments, s.start + s.len - 1);
            let alone = x.rows(heads, &whole).forward(heads, &[own(0, whole.len())]);
            let want = pick(&out, heads.query_row(), whole);
            assert_eq!(bits(&alone), bits(&want), "{heads:?} {s:?}");
        }
    }
}

#[test]
fn one_by_one_and_in_chunks_over_pages_gives_the_bits_of_a_pass() {
    for heads in SHAPES {
        for len in LENGTHS.into_iter().chain([1050]) {
            let (row, key_row) = (heads.query_row(), heads.key_row());
            let x = inputs(heads, len);
            let want = bits(&x.forward(heads, &[own(0, len)]));
            let mut pages = Pages::new(heads, 2, 4);
            let mut table: Vec<u32> = Vec::new();
            while table.len() * PAGE < len {
                table.extend(pages.grow().rev());
            }
            let mut out = vec![0.0; len * row];
            for i in 0..len {
                let places = Places::new(vec![(table[i / PAGE], i % PAGE)]).unwrap();
                let keys = i * key_row..(i + 1) * key_row;
                pages.append(1, &places, &x.k[keys.clone()], &x.v[keys]);
                let span = Span {
                    start: 0,
                    len: 1,
                    first: i,
                    table: &table,
                };
                let queries = i * row..(i + 1) * row;
                attend(
                    &pages,
                    1,
                    &[span],
                    &x.q[queries.clone()],
                    &mut out[queries],
                    None,
                );
            }
            assert_eq!(bits(&out), want, "{heads:?}: one by one, {len}");
            for chunk in [1, 7, 16, 37, 512] {
                if chunk == 1 && len > 100 {
                    continue;
                }
                let mut out = vec![0.0; len * row];
                for first in (0..len).step_by(chunk) {
                    let n = chunk.min(len - first);
                    let keys = first * key_row..(first + n) * key_row;
                    pages.write(0, &table, first, &x.k[keys.clone()], &x.v[keys]);
                    let span = Span {
                        start: 0,
                        len: n,
                        first,
                        table: &table,
                    };
                    let queries = first * row..(first + n) * row;
                    attend(
                        &pages,
                        0,
                        &[span],
                        &x.q[queries.clone()],
                        &mut out[queries],
                        None,
                    );
                }
                assert_eq!(bits(&out), want, "{heads:?}: in chunks of {chunk}, {len}");
            }
        }
    }
}

#[test]
fn levels_give_the_same_bits() {
    for heads in SHAPES {
        let (rows, mut segments) = pass();
        segments.push(own(rows, 530));
        let rows = rows + 530;
        let x = inputs(heads, rows);
        let want = bits(&x.forward(heads, &segments));
        for lower in [Level::Portable, Level::Avx2] {
            if lower < level() {
                let mut out = vec![0.0; x.q.len()];
                forward_at(lower, &x.q, &x.k, &x.v, &segments, heads, &mut out, None);
                assert_eq!(bits(&out), want, "{heads:?} {lower:?}");
            }
        }
    }
}

#[test]
fn what_stands_beyond_a_sequence_is_never_looked_at() {
    let heads = shape(4, 2, 24);
    let x = inputs(heads, 21);
    let want = bits(&x.forward(heads, &[own(0, 21)]));
    let mut pages = Pages::new(heads, 1, 2);
    let table: Vec<u32> = pages.grow().collect();
    let poison = vec![f32::NAN; 32 * heads.key_row()];
    pages.write(0, &table, 0, &poison, &poison);
    pages.write(0, &table, 0, &x.k, &x.v);
    let mut out = vec![0.0; x.q.len()];
    let span = Span {
        start: 0,
        len: 21,
        first: 0,
        table: &table,
    };
    attend_at(level(), &pages, 0, &[span], &x.q, &mut out, None);
    assert_eq!(bits(&out), want);
}

#[test]
fn a_copy_of_a_page_is_whole_and_its_own() {
    let heads = shape(2, 1, 8);
    let mut pages = Pages::new(heads, 2, 1);
    let (a, b) = (pages.grow().start, pages.grow().start);
    let x = inputs(heads, 16);
    for layer in 0..2 {
        pages.write(layer, &[a], 0, &x.k, &x.v);
    }
    pages.copy(a, b);
    assert_eq!(pages.page(1, a), pages.page(1, b));
    pages.write(1, &[b], 3, &x.v[..8], &x.k[..8]);
    assert_ne!(pages.page(1, a), pages.page(1, b));
    assert_eq!(pages.page(0, a), pages.page(0, b));
    assert!(Places::new(vec![(a, 3), (a, 4)]).is_none());
}

/// d_q, d_k and d_v of Σ out · probe.
fn gradients(
    x: &Inputs,
    heads: Heads,
    segments: &[Segment],
    probe: &[f32],
    how: (Level, usize),
) -> [Vec<f32>; 3] {
    let rows = x.q.len() / heads.query_row();
    let (mut out, mut stats) = (vec![0.0; x.q.len()], vec![0.0; rows * heads.stats_row()]);
    forward(
        &x.q,
        &x.k,
        &x.v,
        segments,
        heads,
        &mut out,
        Some(&mut stats),
    );
    let mut d = [&x.q, &x.k, &x.v].map(|m| vec![f32::NAN; m.len()]);
    let [d_q, d_k, d_v] = &mut d;
    backward_at(
        how, &x.q, &x.k, &x.v, &out, probe, &stats, segments, heads, d_q, d_k, d_v,
    );
    d
}

/// The same in f64.
fn naive_gradients(x: &Inputs, heads: Heads, segments: &[Segment], probe: &[f32]) -> [Vec<f64>; 3] {
    let (width, query_row, key_row) = (heads.width, heads.query_row(), heads.key_row());
    let mut d = [&x.q, &x.k, &x.v].map(|m| vec![0f64; m.len()]);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let scale = 1.0 / (width as f64).sqrt();
    for row in 0..x.q.len() / query_row {
        let seen = seen(segments, row);
        for h in 0..heads.queries {
            let at = row * query_row + h * width;
            let key = |j: usize| j * key_row + h / heads.share() * width;
            let (q, d_out) = (&x.q[at..at + width], &probe[at..at + width]);
            let s: Vec<f64> = seen
                .iter()
                .map(|j| dot(q, &x.k[key(*j)..key(*j) + width]) * scale)
                .collect();
            let max = s.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - max).exp()).sum();
            let p: Vec<f64> = s.iter().map(|s| (s - max).exp() / sum).collect();
            let d_p: Vec<f64> = seen
                .iter()
                .map(|j| dot(d_out, &x.v[key(*j)..key(*j) + width]))
                .collect();
            let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
            for (i, j) in seen.iter().enumerate() {
                let d_s = p[i] * (d_p[i] - mean) * scale;
                for c in 0..width {
                    d[0][at + c] += d_s * f64::from(x.k[key(*j) + c]);
                    d[1][key(*j) + c] += d_s * f64::from(q[c]);
                    d[2][key(*j) + c] += p[i] * f64::from(d_out[c]);
                }
            }
        }
    }
    d
}

#[test]
fn gradients_equal_those_in_f64_however_they_are_shared_out() {
    for heads in SHAPES {
        let (rows, mut segments) = pass();
        let long = 530 * usize::from(heads.width == 16);
        if long > 0 {
            segments.push(own(rows, long));
            segments.push(Segment {
                start: rows + long,
                len: 40,
                prefix: Some((rows, long)),
            });
        }
        let rows = rows + long + 40 * usize::from(long > 0);
        let x = inputs(heads, rows);
        let probe = wave(x.q.len(), 0.9);
        let got = gradients(&x, heads, &segments, &probe, (level(), 1));
        let want = naive_gradients(&x, heads, &segments, &probe);
        for (got, want) in got.iter().zip(&want) {
            for (i, (a, b)) in got.iter().zip(want).enumerate() {
                let error = (f64::from(*a) - b).abs();
                assert!(
                    error < 2e-5 * (1.0 + b.abs()),
                    "{heads:?} {i}: {a} against {b}"
                );
            }
        }
        for how in [(level(), 1000), (Level::Avx2, 1), (Level::Portable, 1000)] {
            if how.0 < level() && heads.width > 64 {
                continue;
            }
            let again = gradients(&x, heads, &segments, &probe, how);
            for (a, b) in got.iter().zip(&again) {
                assert_eq!(bits(a), bits(b), "{heads:?} {how:?}");
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let heads = shape(4, 2, 8);
    let (rows, segments) = pass();
    let x = inputs(heads, rows);
    let probe = wave(x.q.len(), 0.9);
    let got = gradients(&x, heads, &segments, &probe, (level(), 1));
    let loss = |x: &Inputs| -> f64 {
        let out = x.forward(heads, &segments);
        out.iter()
            .zip(&probe)
            .map(|(o, p)| f64::from(*o) * f64::from(*p))
            .sum()
    };
    let h = 1e-2f32;
    for i in (0..x.k.len()).step_by(397) {
        for which in 0..3 {
            let nudged = |by: f32| {
                let mut x = Inputs {
                    q: x.q.clone(),
                    k: x.k.clone(),
                    v: x.v.clone(),
                };
                [&mut x.q, &mut x.k, &mut x.v][which][i] += by;
                loss(&x)
            };
            let want = ((nudged(h) - nudged(-h)) / (2.0 * f64::from(h))) as f32;
            let got = got[which][i];
            assert!(
                (got - want).abs() < 5e-3 * (1.0 + want.abs()),
                "{which} {i}: {got} against {want}"
            );
        }
    }
}
