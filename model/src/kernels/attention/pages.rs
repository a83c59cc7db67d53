//! Pages: the keys and values of 16 consecutive positions of one sequence, for one layer.
//!
//! A sequence names its pages by position / 16 in a table of ids, as in PagedAttention
//! (arXiv 2309.06180), so sequences with a common beginning share its pages. Inside a page, each key
//! head has its keys transposed, `[width][16]`, so that a register holds one float of sixteen keys
//! and a score is summed without crossing lanes; then its values, `[16][width]`, rows filled up to
//! whole registers. What stands in places that hold no token is never looked at.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

use super::{
    Heads,
    lanes::{LANES, Lanes, by_level},
};
use crate::kernels::{
    level,
    team::{self, Shared},
};

/// Positions that one page holds.
pub const PAGE: usize = LANES;

/// Floats at the start of a cache line, zero at first.
#[derive(Debug)]
pub(super) struct Aligned {
    at: NonNull<f32>,
    len: usize,
}

// SAFETY: it owns its memory as a `Box<[f32]>` does.
unsafe impl Send for Aligned {}
// SAFETY: as above; `&Aligned` only reads.
unsafe impl Sync for Aligned {}

impl Aligned {
    pub(super) fn zeroed(len: usize) -> Self {
        let mut new = Self {
            at: NonNull::dangling(),
            len,
        };
        if let Some(layout) = new.layout() {
            // SAFETY: `layout` is not empty.
            let at = unsafe { alloc_zeroed(layout) };
            match NonNull::new(at.cast()) {
                Some(at) => new.at = at,
                None => handle_alloc_error(layout),
            }
        }
        new
    }

    /// None when there is nothing to allocate.
    fn layout(&self) -> Option<Layout> {
        let layout = Layout::array::<f32>(self.len)
            .and_then(|l| l.align_to(64))
            .ok()?;
        (layout.size() > 0).then_some(layout)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: `at` is good for `len` floats, all of them written at least by `alloc_zeroed`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if let Some(layout) = self.layout() {
            // SAFETY: `zeroed` allocated it with this layout.
            unsafe { dealloc(self.at.as_ptr().cast(), layout) };
        }
    }
}

/// Where things stand in a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) width: usize,
    /// `width` filled up to whole registers.
    pub(super) padded: usize,
    heads: usize,
}

impl Shape {
    pub(super) fn new(heads: Heads) -> Self {
        Self {
            width: heads.width,
            padded: heads.width.next_multiple_of(LANES),
            heads: heads.keys,
        }
    }

    /// Floats before the values of a head.
    pub(super) fn keys(&self) -> usize {
        self.width * PAGE
    }

    /// Floats of one head of a page.
    pub(super) fn head(&self) -> usize {
        self.keys() + PAGE * self.padded
    }

    /// Floats of a page.
    pub(super) fn page(&self) -> usize {
        self.heads * self.head()
    }
}

/// Room for pages, of all layers of a model.
#[derive(Debug)]
pub struct Pages {
    heads: Heads,
    shape: Shape,
    layers: usize,
    /// Pages of one slab, a power of two: page `i` stands in slab `i >> slab_bits`.
    slab_bits: u32,
    /// `[layer][page]` each.
    slabs: Vec<Aligned>,
}

/// Pages and places in them, no page twice.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<(u32, usize)>);

impl Places {
    /// From (page, position inside it); `None` when a page stands twice.
    pub fn new(places: Vec<(u32, usize)>) -> Option<Self> {
        let mut pages: Vec<u32> = places.iter().map(|p| p.0).collect();
        pages.sort_unstable();
        let twice = pages.windows(2).any(|w| w[0] == w[1]);
        (!twice).then_some(Self(places))
    }
}

impl Pages {
    /// No pages yet; [`Pages::grow`] adds `slab_pages` (rounded up to a power of two) at a time.
    pub fn new(heads: Heads, layers: usize, slab_pages: usize) -> Self {
        Self {
            heads,
            shape: Shape::new(heads),
            layers,
            slab_bits: slab_pages.next_power_of_two().trailing_zeros(),
            slabs: Vec::new(),
        }
    }

    /// The shape of the heads.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Makes room for more pages and returns their ids.
    pub fn grow(&mut self) -> std::ops::Range<u32> {
        let first = (self.slabs.len() as u32) << self.slab_bits;
        let floats = (self.layers * self.shape.page()) << self.slab_bits;
        self.slabs.push(Aligned::zeroed(floats));
        first..first + (1 << self.slab_bits)
    }

    /// Pages that there are.
    pub fn count(&self) -> usize {
        self.slabs.len() << self.slab_bits
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> usize {
        self.slabs.iter().map(|s| s.len() * size_of::<f32>()).sum()
    }

    /// Bytes of one page, of all layers.
    pub fn page_bytes(heads: Heads, layers: usize) -> usize {
        layers * Shape::new(heads).page() * size_of::<f32>()
    }

    fn offset(&self, layer: usize, page: u32) -> usize {
        let inside = page as usize & ((1 << self.slab_bits) - 1);
        ((layer << self.slab_bits) + inside) * self.shape.page()
    }

    /// A page of a layer.
    #[inline(always)]
    pub(super) fn page(&self, layer: usize, page: u32) -> &[f32] {
        let at = self.offset(layer, page);
        &self.slabs[(page >> self.slab_bits) as usize].as_slice()[at..at + self.shape.page()]
    }

    fn page_mut(&mut self, layer: usize, page: u32) -> &mut [f32] {
        let (at, len) = (self.offset(layer, page), self.shape.page());
        &mut self.slabs[(page >> self.slab_bits) as usize].as_mut_slice()[at..at + len]
    }

    /// Copies a page of every layer.
    pub fn copy(&mut self, from: u32, to: u32) {
        for layer in 0..self.layers {
            let (at, len) = (self.offset(layer, from), self.shape.page());
            let (slab, other) = (from >> self.slab_bits, to >> self.slab_bits);
            let to_at = self.offset(layer, to);
            match self.slabs.get_disjoint_mut([slab as usize, other as usize]) {
                Ok([from, to]) => to.as_mut_slice()[to_at..to_at + len]
                    .copy_from_slice(&from.as_slice()[at..at + len]),
                Err(_) => self.slabs[slab as usize]
                    .as_mut_slice()
                    .copy_within(at..at + len, to_at),
            }
        }
    }

    /// Writes the keys and values `[n, keys * width]` of positions `first..first + n` of the sequence
    /// whose pages are `table`.
    pub fn write(&mut self, layer: usize, table: &[u32], first: usize, k: &[f32], v: &[f32]) {
        let row = self.shape.heads * self.shape.width;
        let (shape, n) = (self.shape, k.len() / row);
        let mut done = 0;
        while done < n {
            let lane = (first + done) % PAGE;
            let count = (PAGE - lane).min(n - done);
            let range = done * row..(done + count) * row;
            let run = Run {
                k: &k[range.clone()],
                v: &v[range],
                lane,
            };
            let page = self.page_mut(layer, table[(first + done) / PAGE]);
            fill(page, shape, &[run]);
            done += count;
        }
    }

    /// Writes one row of k and v `[n, keys * width]` into each of `places`.
    pub fn append(&mut self, layer: usize, places: &Places, k: &[f32], v: &[f32]) {
        let (shape, bits) = (self.shape, self.slab_bits);
        let row = shape.heads * shape.width;
        let offsets: Vec<_> = (places.0.iter())
            .map(|p| (p.0 >> bits, self.offset(layer, p.0), p.1))
            .collect();
        let slabs: Vec<_> = (self.slabs.iter_mut())
            .map(|s| Shared::new(s.as_mut_slice()))
            .collect();
        let (offsets, slabs) = (&offsets, &slabs);
        team::for_each(places.0.len(), |i| {
            let (slab, at, lane) = offsets[i];
            // SAFETY: `Places` holds no page twice, so nobody else has this one.
            let page = unsafe { slabs[slab as usize].part(at, shape.page()) };
            let range = i * row..(i + 1) * row;
            let run = Run {
                k: &k[range.clone()],
                v: &v[range],
                lane,
            };
            fill(page, shape, &[run]);
        });
    }

    /// Fills pages `0..n` of the first slab, one layer's, from runs of rows.
    pub(super) fn fill_all<'a>(&mut self, n: usize, runs: impl Fn(usize) -> [Run<'a>; 2] + Sync) {
        let shape = self.shape;
        let Some(slab) = self.slabs.first_mut() else {
            return;
        };
        let slab = Shared::new(slab.as_mut_slice());
        team::for_each(n, |i| {
            // SAFETY: each page is one task's.
            let page = unsafe { slab.part(i * shape.page(), shape.page()) };
            fill(page, shape, &runs(i));
        });
    }
}

/// Rows `[n, keys * width]` for the places of a page from `lane` on.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) lane: usize,
}

fn fill(page: &mut [f32], shape: Shape, runs: &[Run<'_>]) {
    let Shape {
        width,
        padded,
        heads,
    } = shape;
    let row = heads * width;
    for h in 0..heads {
        let (k_page, v_page) =
            page[h * shape.head()..(h + 1) * shape.head()].split_at_mut(shape.keys());
        let mut rows = [None; PAGE];
        for run in runs {
            let pairs = run.k.chunks_exact(row).zip(run.v.chunks_exact(row));
            for (lane, (k, v)) in (run.lane..PAGE).zip(pairs) {
                rows[lane] = Some(&k[h * width..(h + 1) * width]);
                v_page[lane * padded..lane * padded + width]
                    .copy_from_slice(&v[h * width..(h + 1) * width]);
            }
        }
        transpose(level(), &rows, width, k_page);
    }
}

#[inline(always)]
fn transpose_body<V: Lanes, const M: usize, const P: usize, const C: usize>(
    rows: &[Option<&[f32]>; LANES],
    width: usize,
    to: &mut [f32],
) {
    let whole = if rows.iter().all(Option::is_some) {
        width / LANES * LANES
    } else {
        0
    };
    debug_assert!(to.len() >= width * LANES);
    for d in (0..whole).step_by(LANES) {
        let at = rows.map(|r| r.map_or(std::ptr::null(), |r| r[d..d + LANES].as_ptr()));
        // SAFETY: every row is there, and has 16 floats from d on; `to` has room for `width` groups.
        unsafe { V::transpose(&at, to[d * LANES..(d + LANES) * LANES].as_mut_ptr()) };
    }
    for (j, row) in rows.iter().enumerate() {
        if let Some(row) = row {
            for d in whole..width {
                to[d * LANES + j] = row[d];
            }
        }
    }
}

by_level! {
    /// `to[16 * d + j] = rows[j][d]`, in places j that have a row.
    pub(super) fn transpose(rows: &[Option<&[f32]>; LANES], width: usize, to: &mut [f32]) = transpose_body
}
