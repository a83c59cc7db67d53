//! Tiles of up to four rows by one panel in plain arrays: loops that the compiler makes vector code
//! of (NEON on aarch64), and what the other kernels' bits are compared to.

use super::{super::math::LANES, Add, tile::Tile};

type Sums<const H: usize> = [[f32; LANES]; H];

/// The kernel of f32 by f32 for tiles of `height` rows.
pub(super) fn single(height: usize) -> unsafe fn(&Tile<'_>) {
    match height {
        1 => single_rows::<1>,
        2 => single_rows::<2>,
        3 => single_rows::<3>,
        _ => single_rows::<4>,
    }
}

/// The kernel of f32 by bf16 for tiles of `height` rows.
pub(super) fn widened(height: usize) -> unsafe fn(&Tile<'_>) {
    match height {
        1 => widened_rows::<1>,
        2 => widened_rows::<2>,
        3 => widened_rows::<3>,
        _ => widened_rows::<4>,
    }
}

/// # Safety
/// The tile lies inside x, w and out.
unsafe fn single_rows<const H: usize>(tile: &Tile<'_>) {
    // SAFETY: rows and panel are inside x and w by the caller's promise.
    unsafe {
        let mut sums = begin::<H>(tile);
        for k in 0..tile.k {
            let w = &*tile.w.add(k * LANES).cast::<[f32; LANES]>();
            add_product(tile, k, w, &mut sums);
        }
        end(tile, sums);
    }
}

/// # Safety
/// The tile lies inside x, w and out.
unsafe fn widened_rows<const H: usize>(tile: &Tile<'_>) {
    // SAFETY: rows and panel are inside x and w by the caller's promise.
    unsafe {
        let mut sums = begin::<H>(tile);
        for k in 0..tile.k {
            // Whole words: of the halves the compiler would make scalar loads.
            let pairs = &*tile.w.add(k / 2 * LANES).cast::<[u32; LANES]>();
            let w = if k.is_multiple_of(2) == cfg!(target_endian = "little") {
                pairs.map(|pair| f32::from_bits(pair << 16))
            } else {
                pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))
            };
            add_product(tile, k, &w, &mut sums);
        }
        end(tile, sums);
    }
}

/// sums += x\[k\] w.
///
/// # Safety
/// As the kernels'.
#[inline(always)]
unsafe fn add_product<const H: usize>(
    tile: &Tile<'_>,
    k: usize,
    w: &[f32; LANES],
    sums: &mut Sums<H>,
) {
    for r in 0..H {
        // SAFETY: row r of the tile is inside x.
        let x = unsafe { *tile.x.add(r * tile.x_stride).cast::<f32>().add(k) };
        for i in 0..LANES {
            sums[r][i] = x.mul_add(w[i], sums[r][i]);
        }
    }
}

/// The sums that the run of k begins with.
///
/// # Safety
/// As the kernels'.
#[inline(always)]
unsafe fn begin<const H: usize>(tile: &Tile<'_>) -> Sums<H> {
    let mut sums = [[0f32; LANES]; H];
    if !tile.first {
        for r in 0..H {
            // SAFETY: the run before stored it.
            sums[r] = unsafe { *tile.partial.add(r * tile.partial_stride).cast() };
        }
    }
    sums
}

/// Sets the sums aside, or finishes and stores them.
///
/// # Safety
/// As the kernels'.
#[inline(always)]
unsafe fn end<const H: usize>(tile: &Tile<'_>, mut sums: Sums<H>) {
    let finish = &tile.finish;
    let width = LANES.min(tile.columns);
    // SAFETY: all addresses are inside out and what is added to it.
    unsafe {
        if !tile.last {
            for r in 0..H {
                *tile.partial.add(r * tile.partial_stride).cast() = sums[r];
            }
            return;
        }
        for r in 0..H {
            for i in 0..LANES {
                sums[r][i] *= finish.scale;
            }
            if let Some(bias) = finish.bias {
                for (sum, bias) in sums[r].iter_mut().zip(&bias[tile.column..]) {
                    *sum += bias;
                }
            }
            if let Some(thin) = finish.thin {
                let rank = thin.b.inner();
                let low = &thin.low[(tile.row + r) * thin.stride..][..rank];
                let b = thin.b.groups().add(tile.column * rank);
                for (k, x) in low.iter().enumerate() {
                    let w = &*b.add(k * LANES).cast::<[f32; LANES]>();
                    for i in 0..LANES {
                        sums[r][i] = x.mul_add(w[i], sums[r][i]);
                    }
                }
            }
            let out = std::slice::from_raw_parts_mut(tile.out.add(r * tile.out_stride), width);
            match finish.add {
                Add::Nothing => {}
                Add::Out => {
                    for (sum, add) in sums[r].iter_mut().zip(&*out) {
                        *sum += add;
                    }
                }
                Add::Rows(rows) => {
                    let at = (tile.row + r) * tile.out_stride + tile.column;
                    for (sum, add) in sums[r].iter_mut().zip(&rows[at..at + width]) {
                        *sum += add;
                    }
                }
            }
            out.copy_from_slice(&sums[r][..width]);
        }
    }
}
