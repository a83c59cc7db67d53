//! The segments of a pass: their pages for the forward, their strips of keys for the backward.

use std::{cell::RefCell, ops::Range};

use super::{CHUNK, Heads, PAGE, Pages, Segment, Span, forward::attend_at, pages::Run};
use crate::kernels::{Level, level};

thread_local! {
    /// The pages of a pass, kept from one call to the next.
    static PASS_PAGES: RefCell<Option<(Heads, usize, Pages)>> = const { RefCell::new(None) };
}

/// A page of a pass: up to two runs of its rows, (first row, rows, place in the page).
type Source = [(usize, usize, usize); 2];

/// The pages of a pass's segments: where each page's rows come from, and each segment's table.
///
/// A prompt's full pages serve its completions; the page in which a prompt ends and a completion
/// begins is the completion's own.
fn lay_out(segments: &[Segment]) -> (Vec<Source>, Vec<Vec<u32>>) {
    let mut sources: Vec<Source> = Vec::new();
    let mut tables: Vec<Vec<u32>> = Vec::with_capacity(segments.len());
    let mut root = None;
    for (i, segment) in segments.iter().enumerate() {
        let (start, before) = segment.prefix.unwrap_or((segment.start, 0));
        let of_prompt = root.filter(|r: &usize| {
            segments[*r].start == start && segments[*r].len >= before && *r < i
        });
        let shared = before / PAGE;
        let mut table: Vec<u32> = match of_prompt {
            Some(r) if segment.prefix.is_some() => tables[r][..shared].to_vec(),
            _ => Vec::new(),
        };
        let end = before + segment.len;
        for page in table.len()..end.div_ceil(PAGE) {
            let (from, to) = (page * PAGE, end.min((page + 1) * PAGE));
            let split = before.clamp(from, to);
            table.push(sources.len() as u32);
            sources.push([
                (start + from, split - from, 0),
                (
                    segment.start + split - before.min(split),
                    to - split,
                    split - from,
                ),
            ]);
        }
        if segment.prefix.is_none() {
            root = Some(i);
        }
        tables.push(table);
    }
    (sources, tables)
}

/// Attention of all rows of a pass: q and out `[rows, queries * width]`, k and v
/// `[rows, keys * width]`; stats as for [`attend`](super::attend).
///
/// # Panics
/// When a segment lies outside of the rows: a fault of the caller's code.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    heads: Heads,
    out: &mut [f32],
    stats: Option<&mut [f32]>,
) {
    forward_at(level(), q, k, v, segments, heads, out, stats);
}

pub(super) fn forward_at(
    level: Level,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    heads: Heads,
    out: &mut [f32],
    stats: Option<&mut [f32]>,
) {
    let row = heads.key_row();
    let (sources, tables) = lay_out(segments);
    let kept = PASS_PAGES.take();
    let (_, room, mut pages) = kept
        .filter(|(h, room, _)| *h == heads && *room >= sources.len())
        .unwrap_or_else(|| {
            let room = sources.len().next_power_of_two();
            let mut pages = Pages::new(heads, 1, room);
            pages.grow();
            (heads, room, pages)
        });
    pages.fill_all(sources.len(), |i| {
        sources[i].map(|(start, n, lane)| Run {
            k: &k[start * row..(start + n) * row],
            v: &v[start * row..(start + n) * row],
            lane,
        })
    });
    let spans: Vec<Span<'_>> = (segments.iter().zip(&tables))
        .map(|(s, table)| Span {
            start: s.start,
            len: s.len,
            first: s.first(),
            table,
        })
        .collect();
    attend_at(level, &pages, 0, &spans, q, out, stats);
    PASS_PAGES.set(Some((heads, room, pages)));
}

/// Keys of one segment.
pub(super) struct Strip {
    /// Their rows.
    pub(super) keys: Range<usize>,
    /// Position of the first.
    pub(super) first: usize,
    /// Rows that see it.
    pub(super) seen_by: Vec<SeenBy>,
}

/// Rows at consecutive positions.
pub(super) struct SeenBy {
    pub(super) rows: Range<usize>,
    /// Keys of the strip that the first row sees; the next sees one more ...
    pub(super) first: usize,
    /// ... but no more than these.
    pub(super) most: usize,
}

/// The strips of each tree: a segment without a prefix, and those after it that continue it.
pub(super) fn strips(segments: &[Segment]) -> Vec<Vec<Strip>> {
    let mut trees: Vec<Vec<Strip>> = Vec::new();
    let mut first = 0;
    for i in 1..=segments.len() {
        if i == segments.len() || segments[i].prefix.is_none() {
            trees.push(tree_strips(&segments[first..i]));
            first = i;
        }
    }
    trees
}

fn tree_strips(tree: &[Segment]) -> Vec<Strip> {
    let mut strips = Vec::new();
    for (i, segment) in tree.iter().enumerate() {
        for from in (0..segment.len).step_by(CHUNK) {
            let n = CHUNK.min(segment.len - from);
            let start = segment.start + from;
            let mut seen_by = vec![SeenBy {
                rows: start..segment.start + segment.len,
                first: 1,
                most: n,
            }];
            if i == 0 {
                for other in &tree[1..] {
                    let most = other.first().saturating_sub(from).min(n);
                    if most > 0 {
                        seen_by.push(SeenBy {
                            rows: other.start..other.start + other.len,
                            first: most,
                            most,
                        });
                    }
                }
            }
            strips.push(Strip {
                keys: start..start + n,
                first: segment.first() + from,
                seen_by,
            });
        }
    }
    strips
}

impl Strip {
    /// The rows that see it, and those between them.
    pub(super) fn rows(&self) -> Range<usize> {
        self.keys.start..self.seen_by.last().map_or(self.keys.start, |s| s.rows.end)
    }
}
