//! From a product to its register tiles: tasks, blocks, shapes, and the kernel of each.
//!
//! A tile of some rows by some panels stays in registers while k runs from 0 to K in order; shapes
//! and blocks change what is computed beside an output, never the order of its own sum.

use std::{cell::RefCell, mem::MaybeUninit};

use super::{
    super::{Level, math::LANES, team},
    Add, Thin,
    packed::Group,
    portable,
    quantised::{self, block_lines},
};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::weights::blocks::{BLOCK, Bits};

/// Rows of a register tile. More would not help a narrow matrix: eight sums hide a multiply-add's
/// latency, and more rows of a long x than a cache set has ways drive each other out.
const TILE_ROWS: usize = 8;
/// Rows of x that a task carries through the panels at most, so that they stay in the second-level
/// cache.
const BLOCK_ROWS: usize = 96;
/// Bytes of a row of x after which a tile's sums are set aside, so that a group of panels stays in
/// the second-level cache for all rows of the block.
const BLOCK_BYTES: usize = 4096;
/// Panels of the widest tile that has more than four rows.
const TILE_PANELS: usize = 3;
/// Rows of a tile of [`WIDE_PANELS`].
const WIDE_ROWS: usize = 4;
/// Panels of a tile of few rows, so that enough sums are under way at once.
const WIDE_PANELS: usize = 6;
/// Cache lines that a tile fetches at most while it reads one group of w.
pub(super) const MOST_LINES: usize = 3;
/// Multiplications of a task at least, some microseconds; where rows are few, w takes the time that
/// [`TILE_ROWS`] of them would.
const TASK: usize = 1 << 19;

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// x and w in f32, one fused multiply-add a k.
    F32,
    /// x and w in bf16, the processor's dot product of two k's.
    Dot,
    /// x in f32 and w in bf16, one fused multiply-add a k.
    Widened,
    /// x in f32 and w in blocks, one fused multiply-add a k.
    Blocks(Bits),
}

impl Kind {
    /// Bytes of an element of x.
    fn size(self) -> usize {
        if self == Self::Dot { 2 } else { 4 }
    }

    /// Floats that the first `k` k's of a panel take.
    fn panel(self, k: usize) -> usize {
        match self {
            Self::F32 => k * LANES,
            Self::Dot | Self::Widened => k.div_ceil(2) * LANES,
            Self::Blocks(bits) => k / BLOCK * block_lines(bits) * LANES,
        }
    }
}

/// A product: rows of x, packed w, and where the outputs go.
pub(super) struct Job<'a> {
    pub(super) level: Level,
    pub(super) kind: Kind,
    /// `[rows, inner]` of f32 or bf16, by kind.
    pub(super) x: *const u8,
    /// Groups of 64 bytes, a panel after the other.
    pub(super) w: *const f32,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    /// `[rows, columns]`.
    pub(super) out: *mut f32,
    pub(super) finish: Finish<'a>,
}

/// What happens to a finished sum, in this order: `s · sum + bias + low · B + add`.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) scale: f32,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) thin: Option<Thin<'a>>,
    pub(super) add: Add<'a>,
}

// SAFETY: tasks read x and w and write disjoint parts of out (see `run`).
unsafe impl Sync for Job<'_> {}

/// A register tile's place: its first row and panel, and a run of k.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// The first row, from the run's first k on, and bytes to the next row.
    pub(super) x: *const u8,
    pub(super) x_stride: usize,
    /// The first panel, from the run's first k on, and floats to the next panel.
    pub(super) w: *const f32,
    pub(super) w_stride: usize,
    /// What to fetch meanwhile, and how many cache lines for each group of w.
    pub(super) fetch: *const f32,
    pub(super) fetch_lines: usize,
    /// k's of the run.
    pub(super) k: usize,
    /// The tile's place in out, and floats to the next row.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Sums between two runs of k: rows of this many floats.
    pub(super) partial: *mut f32,
    pub(super) partial_stride: usize,
    /// The run begins at k = 0.
    pub(super) first: bool,
    /// The run ends at K.
    pub(super) last: bool,
    /// The first row and column, and the columns from there to N.
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) columns: usize,
    pub(super) finish: Finish<'a>,
}

impl Tile<'_> {
    /// The tile from `rows` rows and `panels` panels on.
    ///
    /// # Safety
    /// That is inside the tile.
    pub(super) unsafe fn part(&self, rows: usize, panels: usize) -> Self {
        let skip = panels * LANES;
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                x: self.x.add(rows * self.x_stride),
                w: self.w.add(panels * self.w_stride),
                out: self.out.add(rows * self.out_stride + skip),
                partial: self.partial.add(rows * self.partial_stride + skip),
                row: self.row + rows,
                column: self.column + skip,
                columns: self.columns - skip,
                ..*self
            }
        }
    }
}

/// A tile's kernel.
type Kernel = unsafe fn(&Tile<'_>);

/// Computes the product.
///
/// # Safety
/// The pointers are valid for the shapes, and nobody else touches out.
pub(super) unsafe fn run(job: &Job<'_>) {
    // Tasks are blocks of rows by runs of panels, eight a thread where there is work enough, so
    // that all threads end at about the same time; which thread takes one doesn't change a bit.
    let panels = job.columns.div_ceil(LANES);
    let unit = if job.rows <= WIDE_ROWS {
        WIDE_PANELS
    } else {
        TILE_PANELS
    };
    let threads = team::threads();
    let tasks = job.rows.max(TILE_ROWS) * job.inner * job.columns / TASK;
    let tasks = match tasks {
        0 | 1 => 1,
        _ => tasks.next_multiple_of(threads).min(8 * threads),
    };
    let row_blocks = job.rows.div_ceil(BLOCK_ROWS);
    let row_blocks = match job.kind {
        // Each task dequantises its panels: rows are worth more together than a task more.
        Kind::Blocks(_) => row_blocks,
        _ => row_blocks.max(tasks.div_ceil(panels.div_ceil(unit))),
    };
    let block = job.rows.div_ceil(row_blocks).next_multiple_of(TILE_ROWS);
    let row_blocks = job.rows.div_ceil(block);
    let run = panels
        .div_ceil(tasks.div_ceil(row_blocks))
        .next_multiple_of(unit);
    let runs = panels.div_ceil(run);
    team::for_each(row_blocks * runs, |task| {
        let (first, from) = (task / runs * block, task % runs * run);
        // SAFETY: tasks cover disjoint rectangles of `out`, inside its shape by construction.
        unsafe {
            rectangle(
                job,
                first..job.rows.min(first + block),
                from..panels.min(from + run),
            );
        }
    });
}

/// One task: the rows through the panels.
///
/// # Safety
/// Rows and panels lie inside the job, whose pointers are valid; nobody else touches the outputs.
unsafe fn rectangle(job: &Job<'_>, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>) {
    let size = job.kind.size();
    let block_k = BLOCK_BYTES / size;
    let w_stride = job.kind.panel(job.inner);
    // Blocks that several tiles read are dequantised once for all of them.
    let blocks = match job.kind {
        Kind::Blocks(bits) if job.level < Level::Avx512 || rows.len() > TILE_ROWS => Some(bits),
        _ => None,
    };
    let mut partial = MaybeUninit::<[f32; BLOCK_ROWS * TILE_PANELS * LANES]>::uninit();
    let partial = partial.as_mut_ptr().cast::<f32>();
    // Tiles of about one height: a low one waits for its own sums.
    let tiles = rows.len().div_ceil(TILE_ROWS);
    let mut panel = panels.start;
    while panel < panels.end {
        let in_registers = blocks.is_none() && matches!(job.kind, Kind::Blocks(_));
        let width = match panels.end - panel {
            // What blocks take in registers leaves room for so many sums.
            left if in_registers && rows.len() > WIDE_ROWS => left.min(2),
            left if in_registers => left.min(TILE_PANELS),
            left => tile_width(rows.len(), left),
        };
        for k0 in (0..job.inner).step_by(block_k) {
            let k1 = job.inner.min(k0 + block_k);
            // The first tile that reads a panel would wait for it, unless the tiles before fetch it,
            // each a share. With few rows there is little to compute meanwhile, and the processor's
            // own fetching does better.
            let share = (width * w_stride / LANES).div_ceil(tiles);
            let fetch_lines = if rows.len() >= WIDE_ROWS
                && k1 - k0 == job.inner
                && !matches!(job.kind, Kind::Blocks(_))
            {
                width.div_ceil(tiles).min(MOST_LINES)
            } else {
                0
            };
            // SAFETY: the panels and k's are inside w.
            let (kind, w, w_stride) = unsafe {
                let w = job.w.add(panel * w_stride + job.kind.panel(k0));
                match blocks {
                    Some(bits) => {
                        let (w, stride) = dequantised(job.level, bits, w, w_stride, width, k1 - k0);
                        (Kind::F32, w, stride)
                    }
                    None => (job.kind, w, w_stride),
                }
            };
            let mut row = rows.start;
            for tile in 0..tiles {
                let height = (rows.end - row).div_ceil(tiles - tile);
                let column = panel * LANES;
                let fetch = (panel + width) * job.kind.panel(job.inner) + tile * share * LANES;
                // SAFETY: rows, panels and k's are inside the job; `partial` holds a block of rows
                // by the widest tile, or four rows by a wide one.
                unsafe {
                    let tile = Tile {
                        x: job.x.add((row * job.inner + k0) * size),
                        x_stride: job.inner * size,
                        w,
                        w_stride,
                        fetch: job.w.wrapping_add(fetch),
                        fetch_lines,
                        k: k1 - k0,
                        out: job.out.add(row * job.columns + column),
                        out_stride: job.columns,
                        partial: partial.add((row - rows.start) * width * LANES),
                        partial_stride: width * LANES,
                        first: k0 == 0,
                        last: k1 == job.inner,
                        row,
                        column,
                        columns: job.columns - column,
                        finish: job.finish,
                    };
                    run_tile(job.level, kind, &tile, height, width);
                }
                row += height;
            }
        }
        panel += width;
    }
}

thread_local! {
    /// Panels of a task, dequantised.
    static WIDE: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// `panels` panels of `k` k's in blocks, from `w` on and `stride` floats apart, as panels of f32: where they
/// stand, and floats from one to the next. They stay until this thread asks for others.
///
/// # Safety
/// The panels can be read; the level was found.
unsafe fn dequantised(
    level: Level,
    bits: Bits,
    w: *const f32,
    stride: usize,
    panels: usize,
    k: usize,
) -> (*const f32, usize) {
    WIDE.with_borrow_mut(|wide| {
        if wide.len() < k * panels {
            wide.resize(k * panels, Group([0.0; LANES]));
        }
        let blocks = k / BLOCK;
        for (p, wide) in wide.chunks_exact_mut(k).take(panels).enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let from = w.add(p * stride);
                #[cfg(target_arch = "x86_64")]
                if level >= Level::Avx512 {
                    avx512::dequantise(bits, from, blocks, wide.as_mut_ptr().cast());
                    continue;
                }
                let _ = level;
                let lines = std::slice::from_raw_parts(from.cast(), blocks * block_lines(bits));
                let out = std::slice::from_raw_parts_mut(wide.as_mut_ptr().cast(), k);
                quantised::dequantise(bits, lines, out);
            }
        }
        (wide.as_ptr().cast(), k * LANES)
    })
}

/// Panels of the next tile.
fn tile_width(rows: usize, panels: usize) -> usize {
    match (rows, panels) {
        (..=WIDE_ROWS, WIDE_PANELS..) => WIDE_PANELS,
        // Not 3 and 1: a tile of one panel does little with what it loads.
        (_, 4) => 2,
        _ => panels.min(TILE_PANELS),
    }
}

/// The instance of a kernel for a tile's height and width.
#[cfg(target_arch = "x86_64")]
macro_rules! by_shape {
    ($kernel:path, $height:expr, $width:expr; $($h:literal x $w:literal),+) => {{
        use $kernel as kernel;
        match ($height, $width) {
            $(($h, $w) => kernel::<$h, $w> as Kernel,)+
            _ => kernel::<1, 1>,
        }
    }};
    ($kernel:path, $height:expr, $width:expr) => {
        by_shape!($kernel, $height, $width;
            1 x 6, 2 x 6, 3 x 6, 4 x 6,
            1 x 3, 2 x 3, 3 x 3, 4 x 3, 5 x 3, 6 x 3, 7 x 3, 8 x 3,
            1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2, 6 x 2, 7 x 2, 8 x 2,
            2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1)
    };
}

/// The same for tiles of blocks in registers.
#[cfg(target_arch = "x86_64")]
macro_rules! by_low_shape {
    ($kernel:path, $height:expr, $width:expr) => {
        by_shape!($kernel, $height, $width;
            1 x 3, 2 x 3, 3 x 3, 4 x 3,
            1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2, 6 x 2, 7 x 2, 8 x 2,
            2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1)
    };
}

/// # Safety
/// The tile's rows and panels lie inside the job's.
unsafe fn run_tile(level: Level, kind: Kind, tile: &Tile<'_>, height: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        let kernel: Kernel = match kind {
            Kind::F32 => by_shape!(avx512::single, height, width),
            Kind::Dot => by_shape!(avx512::dot, height, width),
            Kind::Widened => by_shape!(avx512::widened, height, width),
            Kind::Blocks(Bits::Four) => by_low_shape!(avx512::four_bits, height, width),
            Kind::Blocks(Bits::Eight) => by_low_shape!(avx512::eight_bits, height, width),
        };
        // SAFETY: the level was found; the tile is the caller's promise.
        return unsafe { kernel(tile) };
    }
    let (most, kernel): (usize, fn(usize) -> Kernel) = match (level, kind) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Kind::F32) => (6, avx2::single),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, _) => (6, avx2::widened),
        (_, Kind::F32) => (4, portable::single),
        _ => (4, portable::widened),
    };
    let mut row = 0;
    while row < height {
        let part = most.min(height - row);
        for panel in 0..width {
            // SAFETY: the part lies inside the tile, and the level was found.
            unsafe { kernel(part)(&tile.part(row, panel)) };
        }
        row += part;
    }
}
