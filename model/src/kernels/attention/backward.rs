//! Gradients of a pass's attention.
//!
//! Keys are cut into strips: at most [`CHUNK`](super::CHUNK) of one segment. A strip collects the gradients of its
//! own keys and values from the rows that see it, in order; a row's gradient is the sum over the
//! strips it sees, in order of position. So the result is the same whether strips of a tree (a
//! sequence, or a prompt and its completions) are computed one after another or at once. Weights
//! are computed again from [`forward`](super::forward())'s `stats`, as in FlashAttention
//! (arXiv 2205.14135).

use super::{
    Heads, PAGE, Segment,
    lanes::{LANES, Lanes, by_level},
    pages::{Shape, transpose},
    pass::{Strip, strips},
    tile::{self, Factors, by_rows},
    with_scratch,
};
use crate::kernels::{
    Level, level,
    team::{self, Shared},
};

/// Rows (over positions and the query heads of a key head) of a block, at least.
const ROWS: usize = 48;
/// Keys of a block: with its rows, weights that stay near.
const KEYS: usize = 64;
/// Floats from one row of weights to the next.
const STRIDE: usize = KEYS + LANES;

/// Bytes of queries' gradients that strips may hold at once: they grow with the square of a
/// sequence's length.
const PARTS_BYTES: usize = 256 << 20;

/// What the tasks of a call share.
struct Call<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    d_out: &'a [f32],
    stats: &'a [f32],
    heads: Heads,
    shape: Shape,
    d_k: Shared<'a, f32>,
    d_v: Shared<'a, f32>,
}

/// Where the gradients of the queries go: that of a row's `h`-th query head of the key head at
/// `base + row * stride + h * width`.
struct Queries<'a> {
    to: &'a Shared<'a, f32>,
    base: isize,
    stride: usize,
}

impl Queries<'_> {
    fn at(&self, row: usize) -> usize {
        (self.base + (row * self.stride) as isize) as usize
    }
}

/// Gradients of [`forward`](super::forward()) with respect to q, k and v, given that of its result,
/// its result and its stats: all as there. Every float of `d_q`, `d_k` and `d_v` is written.
///
/// # Panics
/// When a slice's length is not that of the shapes: a fault of the caller's code.
pub fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    d_out: &[f32],
    stats: &[f32],
    segments: &[Segment],
    heads: Heads,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let threads = team::threads();
    backward_at(
        (level(), threads),
        q,
        k,
        v,
        out,
        d_out,
        stats,
        segments,
        heads,
        d_q,
        d_k,
        d_v,
    );
}

pub(super) fn backward_at(
    (level, threads): (Level, usize),
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    d_out: &[f32],
    stats: &[f32],
    segments: &[Segment],
    heads: Heads,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let rows: usize = segments.iter().map(|s| s.len).sum();
    let (wide, narrow) = (rows * heads.query_row(), rows * heads.key_row());
    assert!(
        [q.len(), out.len(), d_out.len(), d_q.len()] == [wide; 4]
            && [k.len(), v.len(), d_k.len(), d_v.len()] == [narrow; 4]
            && stats.len() == rows * heads.stats_row(),
        "attention backward: a slice has the wrong length"
    );
    let mut end = 0;
    for s in segments {
        assert!(
            s.start == end && s.prefix.is_none_or(|(at, len)| at + len <= s.start),
            "attention backward: segments out of order"
        );
        end += s.len;
    }
    let trees = strips(segments);
    let (share, width) = (heads.share(), heads.width);
    let call = Call {
        q,
        k,
        v,
        out,
        d_out,
        stats,
        heads,
        shape: Shape::new(heads),
        d_k: Shared::new(d_k),
        d_v: Shared::new(d_v),
    };
    let d_q = Shared::new(d_q);
    let room = |strip: &Strip| scratch_room(call.shape, share, strip.keys.len());
    // Rows of queries that strips would hold gradients of, all at once.
    let held: usize = trees.iter().flatten().map(|s| s.rows().len()).sum();
    let fits = held * heads.query_row() * size_of::<f32>() <= PARTS_BYTES;
    if trees.len() * heads.keys >= 2 * threads || !fits {
        team::for_each(trees.len() * heads.keys, |i| {
            let (tree, key_head) = (&trees[i / heads.keys], i % heads.keys);
            let queries = Queries {
                to: &d_q,
                base: (key_head * share * width) as isize,
                stride: heads.query_row(),
            };
            for s in tree {
                with_scratch(room(s), |m| strip(level, &call, s, key_head, &queries, m));
            }
        });
        return;
    }
    // Few trees: strips at once, each with its own gradients of the queries, then their sums.
    let strips: Vec<&Strip> = trees.iter().flatten().collect();
    let mut ends = Vec::with_capacity(strips.len() * heads.keys);
    let mut total = 0;
    for s in &strips {
        for _ in 0..heads.keys {
            total += s.rows().len() * share * width;
            ends.push(total);
        }
    }
    let mut parts = vec![0f32; total];
    let parts = Shared::new(&mut parts);
    let part = |s: usize, key_head: usize| {
        let size = strips[s].rows().len() * share * width;
        let start = ends[s * heads.keys + key_head] - size;
        Queries {
            to: &parts,
            base: start as isize - (strips[s].keys.start * share * width) as isize,
            stride: share * width,
        }
    };
    team::for_each(ends.len(), |i| {
        let (s, key_head) = (i / heads.keys, i % heads.keys);
        let queries = part(s, key_head);
        with_scratch(room(strips[s]), |m| {
            strip(level, &call, strips[s], key_head, &queries, m);
        });
    });
    let block = 64;
    team::for_each(rows.div_ceil(block), |i| {
        let block = i * block..rows.min((i + 1) * block);
        for (s, strip) in strips.iter().enumerate() {
            for run in &strip.seen_by {
                for row in run.rows.start.max(block.start)..run.rows.end.min(block.end) {
                    for key_head in 0..heads.keys {
                        let (from, size) = (part(s, key_head).at(row), share * width);
                        let to = row * heads.query_row() + key_head * size;
                        // SAFETY: the strips are done; a row is one task's.
                        let (from, to) = unsafe { (parts.part(from, size), d_q.part(to, size)) };
                        add(to, from, strip.first == 0);
                    }
                }
            }
        }
    });
}

/// to += from, or to = from at the first strip of a row.
#[inline(always)]
fn add(to: &mut [f32], from: &[f32], first: bool) {
    if first {
        to.copy_from_slice(from);
    } else {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

/// Positions of a block of rows.
fn block_positions(share: usize) -> usize {
    ROWS.div_ceil(share)
}

/// Floats of scratch memory that a strip of `n` keys takes.
fn scratch_room(shape: Shape, share: usize, n: usize) -> usize {
    let (rows, keys) = (block_positions(share) * share, n.next_multiple_of(PAGE));
    keys * (2 * shape.width + 3 * shape.padded)
        + rows * (3 * shape.padded + 2 * STRIDE + 4)
        + shape.padded
}

/// A strip's matrices for one key head; keys up to whole pages.
struct Keys {
    /// Keys and values, transposed: `[page][width][16]`.
    k_pages: *const f32,
    v_pages: *const f32,
    /// Keys `[n][padded]` and the gradients of keys and values.
    k: *const f32,
    d_k: *mut f32,
    d_v: *mut f32,
}

/// A block of rows for one key head: `[rows][padded]`, or a number each.
struct Rows {
    n: usize,
    /// Scaled queries, gradients of the result, and gradients of the queries.
    q: *const f32,
    d_out: *const f32,
    d_q: *mut f32,
    /// Weights, and gradients of the scores: `[rows][STRIDE]`.
    p: *mut f32,
    d_s: *mut f32,
    /// Largest score, 1 / sum, d_out · out; keys of the strip that are seen.
    numbers: *const [f32; 4],
}

impl Rows {
    /// Keys of the strip that row `r` sees.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    unsafe fn seen(&self, r: usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe { (*self.numbers.add(r))[3] as usize }
    }
}

#[inline(always)]
fn strip_body<V: Lanes, const M: usize, const P: usize, const C: usize>(
    call: &Call<'_>,
    strip: &Strip,
    key_head: usize,
    queries: &Queries<'_>,
    scratch: &mut [f32],
) {
    let Shape { width, padded, .. } = call.shape;
    let (heads, share) = (call.heads, call.heads.share());
    let n = strip.keys.len();
    let full = n.next_multiple_of(PAGE);
    let block_rows = block_positions(share) * share;
    let (k_pages, rest) = scratch.split_at_mut(full * width);
    let (v_pages, rest) = rest.split_at_mut(full * width);
    let (k, rest) = rest.split_at_mut(full * padded);
    let (d_k, rest) = rest.split_at_mut(full * padded);
    let (d_v, rest) = rest.split_at_mut(full * padded);
    let (p, rest) = rest.split_at_mut(block_rows * STRIDE);
    let (d_s, rest) = rest.split_at_mut(block_rows * STRIDE);
    let (q, rest) = rest.split_at_mut(block_rows * padded);
    let (d_out, rest) = rest.split_at_mut(block_rows * padded);
    let (d_q, rest) = rest.split_at_mut(block_rows * padded);
    let (out, rest) = rest.split_at_mut(padded);
    let (numbers, _) = rest.as_chunks_mut::<4>();
    d_k.fill(0.0);
    d_v.fill(0.0);
    let key = |m: &[f32], j: usize| -> *const f32 {
        m[(strip.keys.start + j) * heads.key_row() + key_head * width..][..width].as_ptr()
    };
    for (j, to) in k.chunks_exact_mut(padded).enumerate().take(n) {
        // SAFETY: `key` is `width` floats.
        to[..width].copy_from_slice(unsafe { std::slice::from_raw_parts(key(call.k, j), width) });
    }
    for page in 0..full / PAGE {
        let groups = page * PAGE * width..(page + 1) * PAGE * width;
        for (m, to) in [(call.k, &mut *k_pages), (call.v, &mut *v_pages)] {
            let rows: [Option<&[f32]>; LANES] = std::array::from_fn(|lane| {
                let j = page * PAGE + lane;
                // SAFETY: as above.
                (j < n).then(|| unsafe { std::slice::from_raw_parts(key(m, j), width) })
            });
            transpose(level(), &rows, width, &mut to[groups.clone()]);
        }
    }
    let keys = Keys {
        k_pages: k_pages.as_ptr(),
        v_pages: v_pages.as_ptr(),
        k: k.as_ptr(),
        d_k: d_k.as_mut_ptr(),
        d_v: d_v.as_mut_ptr(),
    };
    for run in &strip.seen_by {
        for from in run.rows.clone().step_by(block_rows / share) {
            let block = from..run.rows.end.min(from + block_rows / share);
            let rows = block.len() * share;
            d_q[..rows * padded].fill(0.0);
            for r in 0..rows {
                let (row, head) = (from + r / share, key_head * share + r % share);
                let at = row * heads.query_row() + head * width;
                let place = r * padded..r * padded + width;
                for (to, x) in q[place.clone()].iter_mut().zip(&call.q[at..at + width]) {
                    *to = x * heads.scale();
                }
                d_out[place.clone()].copy_from_slice(&call.d_out[at..at + width]);
                d_out[place.end..(r + 1) * padded].fill(0.0);
                out[..width].copy_from_slice(&call.out[at..at + width]);
                out[width..].fill(0.0);
                let mut dot = V::splat(0.0);
                for at in (0..padded).step_by(LANES) {
                    // SAFETY: both rows have `padded` floats.
                    dot = unsafe {
                        let d = V::load(d_out[r * padded..].as_ptr().add(at));
                        d.fma(V::load(out.as_ptr().add(at)), dot)
                    };
                }
                let stats = &call.stats[(row * heads.queries + head) * 2..][..2];
                let seen = (run.first + row - run.rows.start).min(run.most);
                numbers[r] = [stats[0], stats[1], dot.sum(), seen as f32];
            }
            let rows = Rows {
                n: rows,
                q: q.as_ptr(),
                d_out: d_out.as_ptr(),
                d_q: d_q.as_mut_ptr(),
                p: p.as_mut_ptr(),
                d_s: d_s.as_mut_ptr(),
                numbers: numbers.as_ptr(),
            };
            // SAFETY: the matrices above have the strip's keys and the block's rows.
            unsafe { block_body::<V, M, P, C>(call.shape, &keys, &rows) };
            for (i, row) in block.enumerate() {
                // SAFETY: the tasks of a call have different rows, or heads, or parts.
                let to = unsafe { queries.to.part(queries.at(row), share * width) };
                for (h, to) in to.chunks_exact_mut(width).enumerate() {
                    let from = &mut d_q[(i * share + h) * padded..][..width];
                    for x in from.iter_mut() {
                        *x *= heads.scale();
                    }
                    add(to, from, strip.first == 0);
                }
            }
        }
    }
    for j in 0..n {
        let at = (strip.keys.start + j) * heads.key_row() + key_head * width;
        for (d, from) in [(&call.d_k, &*d_k), (&call.d_v, &*d_v)] {
            // SAFETY: a strip's keys of one head are one task's.
            let to = unsafe { d.part(at, width) };
            to.copy_from_slice(&from[j * padded..j * padded + width]);
        }
    }
}

by_level! {
    /// One strip, one key head.
    fn strip(
        call: &Call<'_>,
        strip: &Strip,
        key_head: usize,
        queries: &Queries<'_>,
        scratch: &mut [f32],
    ) = strip_body
}

/// A block of rows against a strip.
///
/// # Safety
/// The matrices are as their fields say.
#[inline(always)]
unsafe fn block_body<V: Lanes, const M: usize, const P: usize, const C: usize>(
    shape: Shape,
    keys: &Keys,
    rows: &Rows,
) {
    let padded = shape.padded;
    // SAFETY: the caller's promise; a block has rows.
    let most = unsafe { rows.seen(rows.n - 1) };
    for from in (0..most).step_by(KEYS) {
        let to = most.min(from + KEYS);
        let tiles = rows.n.div_ceil(M);
        for t in 0..tiles {
            let (first, end) = (t * rows.n / tiles, (t + 1) * rows.n / tiles);
            // SAFETY: rows of the block, keys of the strip.
            by_rows!(end - first, M, |R| unsafe {
                weights::<V, R, P, C>(shape, keys, rows, first, from);
            });
        }
        let mut row = 0;
        for page in (from..to).step_by(PAGE) {
            // Earlier rows don't see this page.
            // SAFETY: rows of the block.
            while unsafe { rows.seen(row) } <= page {
                row += 1;
            }
            let count = PAGE.min(to - page);
            let tiles = count.div_ceil(M);
            for t in 0..tiles {
                let (first, end) = (t * count / tiles, (t + 1) * count / tiles);
                let factors = |m: *mut f32| Factors {
                    at: m.wrapping_add(row * STRIDE + page - from + first),
                    row: 1,
                    step: STRIDE,
                };
                let place = (page + first) * padded;
                let (p, d_s) = (factors(rows.p), factors(rows.d_s));
                // SAFETY: keys of the strip, rows of the block.
                by_rows!(end - first, M, |R| unsafe {
                    let (d_out, q) = (rows.d_out.add(row * padded), rows.q.add(row * padded));
                    let (d_v, d_k) = (keys.d_v.add(place), keys.d_k.add(place));
                    add_rows::<V, R, C>(p, d_out, padded, rows.n - row, d_v);
                    add_rows::<V, R, C>(d_s, q, padded, rows.n - row, d_k);
                });
            }
        }
    }
}

/// Weights and gradients of the scores of R rows from `first` on against the keys from `from` on,
/// and what they add to the gradients of the queries.
///
/// # Safety
/// The matrices are as their fields say.
#[inline(always)]
unsafe fn weights<V: Lanes, const R: usize, const P: usize, const C: usize>(
    shape: Shape,
    keys: &Keys,
    rows: &Rows,
    first: usize,
    from: usize,
) {
    let Shape { width, padded, .. } = shape;
    // SAFETY: the caller's promise, here and below.
    unsafe {
        let n: [usize; R] =
            std::array::from_fn(|r| rows.seen(first + r).saturating_sub(from).min(KEYS));
        let count = n[R - 1].div_ceil(PAGE);
        let (p, d_s) = (rows.p.add(first * STRIDE), rows.d_s.add(first * STRIDE));
        let products = [(rows.q, keys.k_pages, p), (rows.d_out, keys.v_pages, d_s)];
        for (x, pages, to) in products {
            let x = x.add(first * padded);
            let page = |i: usize| pages.add((from + i * PAGE) * width);
            tile::all_scores::<V, R, P>(x, padded, width, page, count, to, STRIDE);
        }
        for r in 0..R {
            let [max, inverse, dot, _] = (*rows.numbers.add(first + r)).map(V::splat);
            for i in 0..count {
                let at = r * STRIDE + i * PAGE;
                let seen = n[r].saturating_sub(i * PAGE);
                let weight = V::load(p.add(at)).sub(max).exp().mul(inverse);
                let weight = weight.first(seen, 0.0);
                // d softmax: ds_j = p_j (dp_j − Σ_i p_i dp_i), and the sum is d_out · out.
                let d = weight.mul(V::load(d_s.add(at)).sub(dot)).first(seen, 0.0);
                weight.store(p.add(at));
                d.store(d_s.add(at));
            }
        }
        if count > 0 {
            let factors = Factors {
                at: d_s,
                row: STRIDE,
                step: 1,
            };
            let k = keys.k.add(from * padded);
            add_rows::<V, R, C>(factors, k, padded, n[R - 1], rows.d_q.add(first * padded));
        }
    }
}

/// `to[r] += Σ_l factors[r, l] · rows[l]`: rows of `padded` floats.
///
/// # Safety
/// R rows of `to`, n of `rows`, and their factors are there.
#[inline(always)]
unsafe fn add_rows<V: Lanes, const R: usize, const C: usize>(
    factors: Factors,
    rows: *const f32,
    padded: usize,
    n: usize,
    to: *mut f32,
) {
    let columns = padded / LANES;
    let mut c = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while c + C <= columns {
            let (from, to) = (rows.add(c * LANES), to.add(c * LANES));
            let mut acc = tile::load::<V, R, C>(to, padded);
            tile::sum_rows(&mut acc, factors, from, padded, n, None);
            tile::store(&acc, to, padded);
            c += C;
        }
        while c < columns {
            let (from, to) = (rows.add(c * LANES), to.add(c * LANES));
            let mut acc = tile::load::<V, R, 1>(to, padded);
            tile::sum_rows(&mut acc, factors, from, padded, n, None);
            tile::store(&acc, to, padded);
            c += 1;
        }
    }
}
