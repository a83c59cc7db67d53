//! Causal attention, one query row at a time: keys in order of position, scores, softmax, values.
//!
//! Keys and values come as a list of [`Keys`], runs of rows `[len, kv_heads * head_dim]`: a group's
//! prompt first, then the sequence's own rows. The learner's rows and the worker's cache are read by
//! the same code in the same order.

use rayon::prelude::*;

use super::{
    dispatch,
    math::{axpy, dot, softmax},
};

/// A run of keys and values, rows of `kv_heads * head_dim` floats.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Keys, after rotation.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// The shape of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; each serves `queries / keys` query heads in turn.
    pub keys: usize,
    /// Floats of one head.
    pub width: usize,
}

impl Heads {
    /// Floats of one row of keys.
    pub fn key_row(&self) -> usize {
        self.keys * self.width
    }

    /// Floats of one row of queries.
    pub fn query_row(&self) -> usize {
        self.queries * self.width
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

#[inline(always)]
fn attend_body(q: &[f32], keys: &[Keys<'_>], heads: Heads, scores: &mut [f32], out: &mut [f32]) {
    let (width, row) = (heads.width, heads.key_row());
    let share = heads.queries / heads.keys;
    let scale = heads.scale();
    for h in 0..heads.queries {
        let at = (h / share) * width;
        let q = &q[h * width..(h + 1) * width];
        let mut slots = scores.iter_mut();
        for run in keys {
            for (k, score) in run.k.chunks_exact(row).zip(&mut slots) {
                *score = dot(q, &k[at..at + width]) * scale;
            }
        }
        softmax(scores);
        let out = &mut out[h * width..(h + 1) * width];
        out.fill(0.0);
        let mut weights = scores.iter();
        for run in keys {
            for (v, weight) in run.v.chunks_exact(row).zip(&mut weights) {
                axpy(*weight, &v[at..at + width], out);
            }
        }
    }
}

dispatch! {
    /// One row: q and out `[queries * width]`; `scores` has one place a key, over all of `keys`.
    pub fn attend(q: &[f32], keys: &[Keys<'_>], heads: Heads, scores: &mut [f32], out: &mut [f32]) = attend_body
}

/// Rows of a pass that form one sequence, or one completion after a shared prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of its own.
    pub start: usize,
    /// Rows of its own.
    pub len: usize,
    /// Rows of the prompt it continues: (start, length), all visible to it.
    pub prefix: Option<(usize, usize)>,
}

impl Segment {
    /// Keys that row `i` of this segment sees.
    fn visible(&self, i: usize) -> usize {
        self.prefix.map_or(0, |p| p.1) + i + 1
    }

    fn keys<'a>(&self, i: usize, k: &'a [f32], v: &'a [f32], row: usize) -> [Keys<'a>; 2] {
        let run = |start: usize, len: usize| Keys {
            k: &k[start * row..(start + len) * row],
            v: &v[start * row..(start + len) * row],
        };
        let (start, len) = self.prefix.unwrap_or((0, 0));
        [run(start, len), run(self.start, i + 1)]
    }
}

/// Attention of all rows of a pass: q and out `[rows, queries * width]`, k and v
/// `[rows, keys * width]`; the segments cover the rows in order.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    heads: Heads,
    out: &mut [f32],
) {
    let (query_row, key_row) = (heads.query_row(), heads.key_row());
    let mut rows = Vec::with_capacity(out.len() / query_row.max(1));
    for segment in segments {
        rows.extend((0..segment.len).map(|i| (segment, i)));
    }
    out.par_chunks_mut(query_row)
        .zip(q.par_chunks(query_row))
        .zip(rows.par_iter())
        .with_min_len(8)
        .for_each_init(
            Vec::new,
            |scores: &mut Vec<f32>, ((out, q), (segment, i))| {
                scores.clear();
                scores.resize(segment.visible(*i), 0.0);
                attend(q, &segment.keys(*i, k, v, key_row), heads, scores, out);
            },
        );
}

/// What the backward pass of one row and one query head reads and writes.
struct RowGradient<'a> {
    q: &'a [f32],
    d_out: &'a [f32],
    d_q: &'a mut [f32],
}

/// Keys, values and their gradients of one tree (a sequence, or a prompt and its completions) for
/// one key head: rows of `width` floats, the tree's rows in order.
struct TreeHead {
    k: Vec<f32>,
    v: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

#[inline(always)]
fn row_backward_body(
    row: RowGradient<'_>,
    tree: &mut TreeHead,
    runs: [(usize, usize); 2],
    width: usize,
    scale: f32,
    p: &mut Vec<f32>,
    d_p: &mut Vec<f32>,
) {
    let RowGradient { q, d_out, d_q } = row;
    p.clear();
    d_p.clear();
    for (start, len) in runs {
        let range = start * width..(start + len) * width;
        for (k, v) in tree.k[range.clone()]
            .chunks_exact(width)
            .zip(tree.v[range].chunks_exact(width))
        {
            p.push(dot(q, k) * scale);
            d_p.push(dot(d_out, v));
        }
    }
    softmax(p);
    // d softmax: ds_j = p_j (dp_j − Σ_i p_i dp_i)
    let mean = dot(p, d_p);
    d_q.fill(0.0);
    let mut at = 0;
    for (start, len) in runs {
        for j in start..start + len {
            let d_s = p[at] * (d_p[at] - mean) * scale;
            let range = j * width..(j + 1) * width;
            axpy(d_s, &tree.k[range.clone()], d_q);
            axpy(d_s, q, &mut tree.d_k[range.clone()]);
            axpy(p[at], d_out, &mut tree.d_v[range]);
            at += 1;
        }
    }
}

dispatch! {
    fn row_backward(
        row: RowGradient<'_>,
        tree: &mut TreeHead,
        runs: [(usize, usize); 2],
        width: usize,
        scale: f32,
        p: &mut Vec<f32>,
        d_p: &mut Vec<f32>,
    ) = row_backward_body
}

/// Gradients of [`forward`] with respect to q, k and v, given that of its result.
///
/// Trees and key heads are shared out between threads; inside one, rows add to the gradients of the
/// keys in order, so the result doesn't depend on the threads.
pub fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    heads: Heads,
    d_out: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (width, query_row, key_row) = (heads.width, heads.query_row(), heads.key_row());
    let share = heads.queries / heads.keys;
    // A tree is a segment without a prefix and those after it that continue it.
    let mut trees: Vec<&[Segment]> = Vec::new();
    let mut first = 0;
    for i in 1..=segments.len() {
        if i == segments.len() || segments[i].prefix.is_none() {
            trees.push(&segments[first..i]);
            first = i;
        }
    }
    let tasks: Vec<(&[Segment], usize)> = trees
        .iter()
        .flat_map(|t| (0..heads.keys).map(move |h| (*t, h)))
        .collect();
    let parts: Vec<(usize, usize, Vec<f32>, TreeHead)> = tasks
        .into_par_iter()
        .map(|(tree, key_head)| {
            let base = tree[0].start;
            let rows: usize = tree.iter().map(|s| s.len).sum();
            let column = |m: &[f32]| -> Vec<f32> {
                (base..base + rows)
                    .flat_map(|r| {
                        let at = r * key_row + key_head * width;
                        m[at..at + width].iter().copied()
                    })
                    .collect()
            };
            let mut state = TreeHead {
                k: column(k),
                v: column(v),
                d_k: vec![0.0; rows * width],
                d_v: vec![0.0; rows * width],
            };
            let mut d_q = vec![0.0; rows * share * width];
            let (mut p, mut d_p) = (Vec::new(), Vec::new());
            for segment in tree {
                for i in 0..segment.len {
                    let r = segment.start + i;
                    let prefix = segment.prefix.map_or((0, 0), |(s, n)| (s - base, n));
                    for s in 0..share {
                        let at = r * query_row + (key_head * share + s) * width;
                        let to = ((r - base) * share + s) * width;
                        row_backward(
                            RowGradient {
                                q: &q[at..at + width],
                                d_out: &d_out[at..at + width],
                                d_q: &mut d_q[to..to + width],
                            },
                            &mut state,
                            [prefix, (segment.start - base, i + 1)],
                            width,
                            heads.scale(),
                            &mut p,
                            &mut d_p,
                        );
                    }
                }
            }
            (base, key_head, d_q, state)
        })
        .collect();
    let mut d = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (base, key_head, part_q, part) in parts {
        for (r, from) in part_q.chunks_exact(share * width).enumerate() {
            let at = (base + r) * query_row + key_head * share * width;
            d.0[at..at + share * width].copy_from_slice(from);
        }
        for (to, from) in [(&mut d.1, &part.d_k), (&mut d.2, &part.d_v)] {
            for (r, from) in from.chunks_exact(width).enumerate() {
                let at = (base + r) * key_row + key_head * width;
                to[at..at + width].copy_from_slice(from);
            }
        }
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads {
        queries: 4,
        keys: 2,
        width: 8,
    };

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    fn tree() -> Vec<Segment> {
        vec![
            Segment {
                start: 0,
                len: 3,
                prefix: None,
            },
            Segment {
                start: 3,
                len: 2,
                prefix: Some((0, 3)),
            },
            Segment {
                start: 5,
                len: 3,
                prefix: Some((0, 3)),
            },
            Segment {
                start: 8,
                len: 2,
                prefix: None,
            },
        ]
    }

    fn naive(q: &[f32], k: &[f32], v: &[f32], row: usize, seen: &[usize]) -> Vec<f64> {
        let mut out = Vec::new();
        for h in 0..HEADS.queries {
            let at = (h / 2) * HEADS.width;
            let q = &q[row * HEADS.query_row() + h * HEADS.width..][..HEADS.width];
            let s: Vec<f64> = seen
                .iter()
                .map(|&j| {
                    let k = &k[j * HEADS.key_row() + at..][..HEADS.width];
                    q.iter()
                        .zip(k)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>()
                        / (HEADS.width as f64).sqrt()
                })
                .collect();
            let max = s.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..HEADS.width {
                out.push(
                    seen.iter()
                        .zip(&e)
                        .map(|(&j, e)| e / sum * f64::from(v[j * HEADS.key_row() + at + d]))
                        .sum(),
                );
            }
        }
        out
    }

    #[test]
    fn rows_see_their_prompt_and_their_own_past_only() {
        let (q, k, v) = (wave(320, 0.7), wave(160, 0.43), wave(160, 1.3));
        let mut out = vec![0.0; 320];
        forward(&q, &k, &v, &tree(), HEADS, &mut out);
        for (row, seen) in [
            (2, vec![0, 1, 2]),
            (4, vec![0, 1, 2, 3, 4]),
            (6, vec![0, 1, 2, 5, 6]),
            (9, vec![8, 9]),
        ] {
            let want = naive(&q, &k, &v, row, &seen);
            for (a, b) in out[row * HEADS.query_row()..].iter().zip(want) {
                assert!((f64::from(*a) - b).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_completion_after_a_shared_prompt_has_the_bits_it_has_alone() {
        let (q, k, v) = (wave(320, 0.7), wave(160, 0.43), wave(160, 1.3));
        let mut shared = vec![0.0; 320];
        forward(&q, &k, &v, &tree(), HEADS, &mut shared);
        let pick = |m: &[f32], row: usize| -> Vec<f32> {
            [0, 1, 2, 5, 6, 7]
                .iter()
                .flat_map(|r| m[r * row..(r + 1) * row].to_vec())
                .collect()
        };
        let (q, k, v) = (
            pick(&q, HEADS.query_row()),
            pick(&k, HEADS.key_row()),
            pick(&v, HEADS.key_row()),
        );
        let mut alone = vec![0.0; q.len()];
        let whole = [Segment {
            start: 0,
            len: 6,
            prefix: None,
        }];
        forward(&q, &k, &v, &whole, HEADS, &mut alone);
        assert_eq!(alone, pick(&shared, HEADS.query_row()));
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (q, k, v, probe) = (
            wave(320, 0.7),
            wave(160, 0.43),
            wave(160, 1.3),
            wave(320, 0.9),
        );
        let loss = |q: &[f32], k: &[f32], v: &[f32]| -> f64 {
            let mut out = vec![0.0; 320];
            forward(q, k, v, &tree(), HEADS, &mut out);
            out.iter()
                .zip(&probe)
                .map(|(o, p)| f64::from(*o) * f64::from(*p))
                .sum()
        };
        let (d_q, d_k, d_v) = backward(&q, &k, &v, &tree(), HEADS, &probe);
        let h = 1e-2f32;
        for i in (0..160).step_by(7) {
            let nudge = |m: &[f32], by: f32| {
                let mut m = m.to_vec();
                m[i] += by;
                m
            };
            let slope = |up: f64, down: f64| ((up - down) / (2.0 * f64::from(h))) as f32;
            let want_q = slope(loss(&nudge(&q, h), &k, &v), loss(&nudge(&q, -h), &k, &v));
            let want_k = slope(loss(&q, &nudge(&k, h), &v), loss(&q, &nudge(&k, -h), &v));
            let want_v = slope(loss(&q, &k, &nudge(&v, h)), loss(&q, &k, &nudge(&v, -h)));
            for (got, want) in [(d_q[i], want_q), (d_k[i], want_k), (d_v[i], want_v)] {
                assert!(
                    (got - want).abs() < 2e-3 * (1.0 + want.abs()),
                    "{i}: {got} against {want}"
                );
            }
        }
    }
}
