//! Rows over pages: decoding, prompts in chunks, and the rows of a pass.

use std::ops::Range;

use super::{
    CHUNK, Heads, PAGE, Pages,
    lanes::{LANES, Lanes, by_level},
    pages::Shape,
    tile::{self, Factors, by_rows},
    with_scratch,
};
use crate::kernels::{
    Level, level,
    team::{self, Shared},
};

/// Query rows at consecutive positions of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// First of its rows of q and out.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Position of the first of them.
    pub first: usize,
    /// The sequence's pages, by position / [`PAGE`]; they hold the keys of these rows, too.
    pub table: &'a [u32],
}

/// Positions of a span that a task computes.
const BLOCK: usize = 32;

/// Floats from one row of scores to the next: a chunk, and a register more so that rows don't fall
/// on the same lines of the cache.
const STRIDE: usize = CHUNK + LANES;

/// Rows of the highest register tile.
const ROWS: usize = 6;

/// What the tasks of a call share.
struct Call<'a> {
    q: &'a [f32],
    heads: Heads,
    shape: Shape,
    pages: &'a Pages,
    layer: usize,
    spans: &'a [Span<'a>],
    out: Shared<'a, f32>,
    stats: Option<Shared<'a, f32>>,
    /// Results of chunks, `part` floats each.
    parts: Shared<'a, f32>,
}

/// Rows of a span for one key head.
struct Task {
    span: usize,
    /// Rows of the span.
    rows: Range<usize>,
    key_head: usize,
    /// One chunk alone, whose result goes to that place of `parts`.
    part: Option<(usize, usize)>,
}

/// Attention of `spans`, in the order of their rows, over their pages of one layer: q and out `[rows, queries * width]`; stats,
/// where they are wanted, `[rows, queries, 2]`: the largest score and 1 / Σ exp(score - largest).
///
/// # Panics
/// When a span lies outside of q, out or its table, or before the last one: a fault of the caller's code.
pub fn attend(
    pages: &Pages,
    layer: usize,
    spans: &[Span<'_>],
    q: &[f32],
    out: &mut [f32],
    stats: Option<&mut [f32]>,
) {
    attend_at(level(), pages, layer, spans, q, out, stats);
}

pub(super) fn attend_at(
    level: Level,
    pages: &Pages,
    layer: usize,
    spans: &[Span<'_>],
    q: &[f32],
    out: &mut [f32],
    stats: Option<&mut [f32]>,
) {
    let heads = pages.heads();
    let rows = out.len() / heads.query_row();
    assert!(
        q.len() == out.len()
            && stats
                .as_ref()
                .is_none_or(|s| s.len() == rows * heads.stats_row()),
        "attend: q, out or stats has the wrong length"
    );
    let mut end = 0;
    for s in spans {
        assert!(
            end <= s.start && s.start + s.len <= rows && s.first + s.len <= s.table.len() * PAGE,
            "attend: a span out of order, or outside of its rows or pages"
        );
        end = s.start + s.len;
    }
    let shape = Shape::new(heads);
    // A long sequence that decodes beside few others is shared out by chunks.
    let blocks: usize = spans.iter().map(|s| s.len.div_ceil(BLOCK)).sum();
    let few = blocks * heads.keys < 4 * team::threads();
    let (mut tasks, mut parts) = (Vec::with_capacity(blocks * heads.keys), 0);
    for (i, span) in spans.iter().enumerate() {
        let chunks = (span.first + span.len).div_ceil(CHUNK);
        for from in (0..span.len).step_by(BLOCK) {
            let rows = from..span.len.min(from + BLOCK);
            for key_head in 0..heads.keys {
                let task = |part| Task {
                    span: i,
                    rows: rows.clone(),
                    key_head,
                    part,
                };
                if few && span.len == 1 && chunks > 1 {
                    tasks.extend((0..chunks).map(|c| task(Some((c, parts + c)))));
                    parts += chunks;
                } else {
                    tasks.push(task(None));
                }
            }
        }
    }
    let mut part_memory = vec![0f32; parts * heads.share() * (shape.padded + 2)];
    let call = Call {
        q,
        heads,
        shape,
        pages,
        layer,
        spans,
        out: Shared::new(out),
        stats: stats.map(Shared::new),
        parts: Shared::new(&mut part_memory),
    };
    let room = ROWS * (STRIDE + 3 * shape.padded);
    team::for_each(tasks.len(), |i| {
        with_scratch(room, |scratch| block(level, &call, &tasks[i], scratch));
    });
    if parts > 0 {
        join(level, &call, &tasks);
    }
}

/// State of R rows: largest score, sum of exponentials, weighted values `[R][padded]`.
struct State<const R: usize> {
    max: [f32; R],
    sum: [f32; R],
    values: *mut f32,
}

#[inline(always)]
fn block_body<V: Lanes, const M: usize, const P: usize, const C: usize>(
    call: &Call<'_>,
    task: &Task,
    scratch: &mut [f32],
) {
    let rows = task.rows.len() * call.heads.share();
    // Tiles of even heights.
    let tiles = rows.div_ceil(M);
    for t in 0..tiles {
        let (from, to) = (t * rows / tiles, (t + 1) * rows / tiles);
        by_rows!(to - from, M, |R| tile_rows::<V, R, P, C>(
            call, task, from, scratch
        ));
    }
}

by_level! {
    /// One task.
    fn block(call: &Call<'_>, task: &Task, scratch: &mut [f32]) = block_body
}

/// Rows `from..from + R` of a task, counted over positions and the query heads of a key head.
#[inline(always)]
fn tile_rows<V: Lanes, const R: usize, const P: usize, const C: usize>(
    call: &Call<'_>,
    task: &Task,
    from: usize,
    scratch: &mut [f32],
) {
    let Shape { width, padded, .. } = call.shape;
    let (share, span) = (call.heads.share(), &call.spans[task.span]);
    let row = |r: usize| task.rows.start + (from + r) / share;
    let head = |r: usize| task.key_head * share + (from + r) % share;
    let (q, rest) = scratch.split_at_mut(R * padded);
    let (scores, rest) = rest.split_at_mut(R * STRIDE);
    let (values, rest) = rest.split_at_mut(R * padded);
    let more = &mut rest[..R * padded];
    let scale = call.heads.scale();
    for r in 0..R {
        let at = (span.start + row(r)) * call.heads.query_row() + head(r) * width;
        for (to, x) in q[r * padded..].iter_mut().zip(&call.q[at..at + width]) {
            *to = x * scale;
        }
    }
    let seen: [usize; R] = std::array::from_fn(|r| span.first + row(r) + 1);
    let mut state = State::<R> {
        max: [0.0; R],
        sum: [0.0; R],
        values: values.as_mut_ptr(),
    };
    let chunks = match task.part {
        Some((chunk, _)) => chunk..chunk + 1,
        None => 0..seen[R - 1].div_ceil(CHUNK),
    };
    let first = chunks.start;
    for chunk in chunks {
        let n = seen.map(|n| n.saturating_sub(chunk * CHUNK).min(CHUNK));
        if chunk == first {
            // SAFETY: the scratch slices hold R rows each.
            unsafe { one_chunk::<V, R, P, C>(call, task, chunk, n, q, scores, &mut state) };
            continue;
        }
        let mut next = State::<R> {
            max: [0.0; R],
            sum: [0.0; R],
            values: more.as_mut_ptr(),
        };
        // SAFETY: as above.
        unsafe {
            one_chunk::<V, R, P, C>(call, task, chunk, n, q, scores, &mut next);
            for r in (0..R).filter(|r| n[*r] > 0) {
                let add = (
                    next.max[r],
                    next.sum[r],
                    next.values.add(r * padded).cast_const(),
                );
                let to = state.values.add(r * padded);
                (state.max[r], state.sum[r]) =
                    combine::<V>(state.max[r], state.sum[r], to, add, padded);
            }
        }
    }
    for r in 0..R {
        // SAFETY: row r of the state.
        let values = unsafe { std::slice::from_raw_parts(state.values.add(r * padded), padded) };
        if let Some((_, part)) = task.part {
            let size = padded + 2;
            // SAFETY: each part is one task's.
            let part = unsafe { call.parts.part((part * share + from + r) * size, size) };
            (part[0], part[1]) = (state.max[r], state.sum[r]);
            part[2..].copy_from_slice(values);
        } else {
            finish::<V>(
                call,
                span.start + row(r),
                head(r),
                state.max[r],
                state.sum[r],
                values,
            );
        }
    }
}

/// The softmax of a chunk: `n[r]` of its positions are seen by row r, no fewer by the next row.
///
/// # Safety
/// `q` has R rows of `padded` floats, `scores` R of `STRIDE`, and `state.values` R of `padded`.
#[inline(always)]
unsafe fn one_chunk<V: Lanes, const R: usize, const P: usize, const C: usize>(
    call: &Call<'_>,
    task: &Task,
    chunk: usize,
    n: [usize; R],
    q: &[f32],
    scores: &mut [f32],
    state: &mut State<R>,
) {
    let Shape { width, padded, .. } = call.shape;
    let count = n[R - 1].div_ceil(PAGE);
    let table = &call.spans[task.span].table[chunk * (CHUNK / PAGE)..][..count];
    let at = task.key_head * call.shape.head();
    let page = |i: usize| call.pages.page(call.layer, table[i])[at..].as_ptr();
    let out = scores.as_mut_ptr();
    // SAFETY: pages of this shape; the caller's promise for q and scores.
    unsafe { tile::all_scores::<V, R, P>(q.as_ptr(), padded, width, page, count, out, STRIDE) };
    for r in (0..R).filter(|r| n[*r] > 0) {
        // SAFETY: row r of the scores, of which the first n[r] are there.
        (state.max[r], state.sum[r]) = unsafe { softmax::<V>(out.add(r * STRIDE), n[r]) };
    }
    // The positions that all rows see, then those that only the later ones do.
    let p = Factors {
        at: scores.as_ptr(),
        row: STRIDE,
        step: 1,
    };
    let values = |i: usize, column: usize| page(i).wrapping_add(call.shape.keys() + column * LANES);
    let columns = padded / LANES;
    let mut c = 0;
    while c + C <= columns {
        // SAFETY: pages of this shape; R rows of factors and results.
        unsafe {
            sum_values::<V, R, C>(
                p,
                |i| values(i, c),
                0,
                n[0],
                padded,
                state.values.add(c * LANES),
            )
        };
        c += C;
    }
    while c < columns {
        // SAFETY: as above.
        unsafe {
            sum_values::<V, R, 1>(
                p,
                |i| values(i, c),
                0,
                n[0],
                padded,
                state.values.add(c * LANES),
            )
        };
        c += 1;
    }
    for r in (1..R).filter(|r| n[*r] > n[0]) {
        for c in 0..columns {
            // SAFETY: as above, for row r.
            unsafe {
                let p = Factors {
                    at: p.at.add(r * STRIDE),
                    ..p
                };
                let to = state.values.add(r * padded + c * LANES);
                sum_values::<V, 1, 1>(p, |i| values(i, c), n[0], n[r], padded, to);
            }
        }
    }
}

/// Adds the values of positions `from..to` of a chunk to R rows of C registers; from 0 when `from`
/// is 0. `page` is where the values of a page stand.
///
/// # Safety
/// As for [`tile::sum_rows`].
#[inline(always)]
unsafe fn sum_values<V: Lanes, const R: usize, const C: usize>(
    p: Factors,
    page: impl Fn(usize) -> *const f32,
    from: usize,
    to: usize,
    padded: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = if from == 0 {
            [[V::splat(0.0); C]; R]
        } else {
            tile::load::<V, R, C>(out, padded)
        };
        let mut j = from;
        while j < to {
            let lane = j % PAGE;
            let n = (PAGE - lane).min(to - j);
            let rows = page(j / PAGE).add(lane * padded);
            // The next key head's keys follow.
            let ahead = Some(PAGE * padded);
            tile::sum_rows(&mut acc, p.from(j), rows, padded, n, ahead);
            j += n;
        }
        tile::store(&acc, out, padded);
    }
}

/// exp(score - largest) of the first n scores, zeros up to a whole register; the largest and the sum.
///
/// # Safety
/// `scores` has n floats, filled up to whole registers; n > 0.
#[inline(always)]
unsafe fn softmax<V: Lanes>(scores: *mut f32, n: usize) -> (f32, f32) {
    let last = (n - 1) / LANES;
    let (mut max, mut sum) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
    // SAFETY: the caller's promise.
    unsafe {
        let end = scores.add(last * LANES);
        let masked = V::load(end).first(n - last * LANES, f32::NEG_INFINITY);
        masked.store(end);
        for i in 0..=last {
            max = max.max(V::load(scores.add(i * LANES)));
        }
        let largest = max.largest();
        let max = V::splat(largest);
        for i in 0..=last {
            let at = scores.add(i * LANES);
            let p = V::load(at).sub(max).exp();
            p.store(at);
            sum = sum.add(p);
        }
        (largest, sum.sum())
    }
}

/// Adds a later chunk's (max, sum, values) to those of the chunks before it.
///
/// # Safety
/// Both `values` have `padded` floats.
#[inline(always)]
unsafe fn combine<V: Lanes>(
    max: f32,
    sum: f32,
    values: *mut f32,
    add: (f32, f32, *const f32),
    padded: usize,
) -> (f32, f32) {
    let larger = if add.0 > max { add.0 } else { max };
    let weight = |m: f32| V::splat(m - larger).exp();
    let (old, new) = (weight(max), weight(add.0));
    let total = V::splat(sum).fma(old, V::splat(add.1).mul(new));
    for at in (0..padded).step_by(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let more = V::load(add.2.add(at)).mul(new);
            V::load(values.add(at)).fma(old, more).store(values.add(at));
        }
    }
    (larger, total.array()[0])
}

/// A row's result: its weighted values over the sum of its weights.
#[inline(always)]
fn finish<V: Lanes>(call: &Call<'_>, row: usize, head: usize, max: f32, sum: f32, values: &[f32]) {
    let width = call.shape.width;
    let inverse = 1.0 / sum;
    let at = row * call.heads.query_row() + head * width;
    // SAFETY: a row and head are one task's, or that of the one thread that joins parts.
    let out = unsafe { call.out.part(at, width) };
    for (o, v) in out.iter_mut().zip(values) {
        *o = v * inverse;
    }
    if let Some(stats) = &call.stats {
        // SAFETY: as above.
        let stats = unsafe { stats.part((row * call.heads.queries + head) * 2, 2) };
        stats.copy_from_slice(&[max, inverse]);
    }
}

#[inline(always)]
fn join_body<V: Lanes, const M: usize, const P: usize, const C: usize>(
    call: &Call<'_>,
    tasks: &[Task],
) {
    let (share, padded) = (call.heads.share(), call.shape.padded);
    let size = padded + 2;
    let first = |t: &&Task| matches!(t.part, Some((0, _)));
    for task in tasks.iter().filter(first) {
        let span = &call.spans[task.span];
        let part = task.part.map_or(0, |p| p.1);
        let chunks = (span.first + task.rows.end).div_ceil(CHUNK);
        for r in 0..share {
            // SAFETY: the tasks are done; these parts don't overlap.
            let state = unsafe { call.parts.part((part * share + r) * size, size) };
            let ((head, values), mut of) = (state.split_at_mut(2), [0.0; 2]);
            of.copy_from_slice(head);
            for chunk in 1..chunks {
                // SAFETY: as above; both have `padded` values.
                unsafe {
                    let add = call.parts.part(((part + chunk) * share + r) * size, size);
                    let add = (add[0], add[1], add[2..].as_ptr());
                    let (max, sum) = combine::<V>(of[0], of[1], values.as_mut_ptr(), add, padded);
                    of = [max, sum];
                }
            }
            let row = span.start + task.rows.start;
            finish::<V>(call, row, task.key_head * share + r, of[0], of[1], values);
        }
    }
}

by_level! {
    /// Combines the parts of sequences that were shared out by chunks.
    fn join(call: &Call<'_>, tasks: &[Task]) = join_body
}
