//! Sixteen floats at a time: one register of AVX-512, two of AVX2, or an array.
//!
//! The attention kernels are written once over [`Lanes`] and compiled for each
//! [`Level`](crate::kernels::Level). Every operation is one that IEEE 754 rounds exactly, so the
//! levels agree to the last bit.

/// Floats in one register.
pub(super) const LANES: usize = 16;

/// Sixteen floats.
///
/// An implementation's operations may be called where the processor has its instructions only:
/// inside the functions that [`by_level`] makes, which is where all of them are inlined.
pub(super) trait Lanes: Copy {
    /// `x` in every lane.
    fn splat(x: f32) -> Self;
    /// # Safety
    /// Sixteen floats can be read at `at`.
    unsafe fn load(at: *const f32) -> Self;
    /// # Safety
    /// Sixteen floats can be written at `at`.
    unsafe fn store(self, at: *mut f32);
    /// self * b + c, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn max(self, b: Self) -> Self;
    fn min(self, b: Self) -> Self;
    /// 2^n of lanes that hold whole numbers from -126 to 127.
    fn power_of_two(self) -> Self;
    /// `self` where it is at least `floor`, 0 elsewhere; `floor` is compared with `of`.
    fn zero_below(self, of: Self, floor: f32) -> Self;
    /// The first `n` lanes; `other` in the rest.
    fn first(self, n: usize, other: f32) -> Self;
    /// Transposes 16 rows of 16 floats: `to[16 * d + j] = rows[j][d]`.
    ///
    /// # Safety
    /// Sixteen floats can be read at each of `rows`, and 256 written at `to`.
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32; LANES], to: *mut f32) {
        for (j, row) in rows.iter().enumerate() {
            for d in 0..LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(LANES * d + j) = *row.add(d) };
            }
        }
    }

    /// Asks for the cache line of `at`, which need not be good memory, into the second-level cache.
    #[inline(always)]
    fn prefetch(at: *const f32) {
        let _ = at;
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array holds sixteen floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// Sum of the lanes, as a tree of fixed shape.
    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self.array(), |a, b| a + b)
    }

    /// Largest of the lanes.
    #[inline(always)]
    fn largest(self) -> f32 {
        fold(self.array(), |a, b| if a > b { a } else { b })
    }

    /// exp, relative error below 2e-7; 0 below -87.3 (Cephes' `expf`).
    #[inline(always)]
    fn exp(self) -> Self {
        let splat = Self::splat;
        // 1.5 * 2^23: adding and subtracting it rounds to a whole number.
        let round = splat(12_582_912.0);
        let clamped = self.max(splat(-87.3)).min(splat(88.3));
        let n = clamped
            .fma(splat(std::f32::consts::LOG2_E), round)
            .sub(round);
        // ln 2 in two parts.
        let r = n.fma(splat(-0.693_359_4), clamped);
        let r = n.fma(splat(2.121_944_4e-4), r);
        let mut p = splat(1.987_569_1e-4);
        for c in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5e-1,
        ] {
            p = p.fma(r, splat(c));
        }
        let y = p.fma(r.mul(r), r).add(splat(1.0));
        y.mul(n.power_of_two()).zero_below(self, -87.3)
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The form for every processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn with(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise; an array of floats needs no more than a float's alignment.
        Self(unsafe { *at.cast::<[f32; LANES]>() })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { *at.cast::<[f32; LANES]>() = self.0 };
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.with(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.with(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.with(b, |a, b| a * b)
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.with(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.with(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)),
        )
    }
    #[inline(always)]
    fn zero_below(self, of: Self, floor: f32) -> Self {
        self.with(of, |y, x| if x < floor { 0.0 } else { y })
    }
    #[inline(always)]
    fn first(self, n: usize, other: f32) -> Self {
        Self(std::array::from_fn(
            |i| if i < n { self.0[i] } else { other },
        ))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(
        clippy::undocumented_unsafe_blocks,
        reason = "every block here is one instruction on registers, allowed where `Lanes` says; \
                  loads and stores pass their caller's promise on"
    )]

    use std::arch::x86_64::*;

    use super::{LANES, Lanes};

    /// AVX-512 F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    impl Lanes for Avx512 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(at) })
        }
        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe { _mm512_storeu_ps(at, self.0) }
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            Self(unsafe { _mm512_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            Self(unsafe { _mm512_min_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let n = _mm512_add_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
            }
        }
        #[inline(always)]
        fn zero_below(self, of: Self, floor: f32) -> Self {
            unsafe {
                let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(of.0, _mm512_set1_ps(floor));
                Self(_mm512_maskz_mov_ps(!below, self.0))
            }
        }
        #[inline(always)]
        fn first(self, n: usize, other: f32) -> Self {
            let mask = ((1u32 << n.min(LANES)) - 1) as u16;
            Self(unsafe { _mm512_mask_blend_ps(mask, _mm512_set1_ps(other), self.0) })
        }
        #[inline(always)]
        fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                sum(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
            }
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                largest(_mm256_max_ps(_mm512_castps512_ps256(self.0), high))
            }
        }
        #[inline(always)]
        unsafe fn transpose(rows: &[*const f32; LANES], to: *mut f32) {
            unsafe {
                let mut r: [__m512; LANES] = std::array::from_fn(|j| _mm512_loadu_ps(rows[j]));
                // Four by four inside each quarter of a register ...
                for g in (0..LANES).step_by(4) {
                    let a = _mm512_unpacklo_ps(r[g], r[g + 1]);
                    let b = _mm512_unpackhi_ps(r[g], r[g + 1]);
                    let c = _mm512_unpacklo_ps(r[g + 2], r[g + 3]);
                    let d = _mm512_unpackhi_ps(r[g + 2], r[g + 3]);
                    r[g] = _mm512_shuffle_ps::<0x44>(a, c);
                    r[g + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                    r[g + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                    r[g + 3] = _mm512_shuffle_ps::<0xee>(b, d);
                }
                // ... then the quarters.
                for c in 0..4 {
                    let even = _mm512_shuffle_f32x4::<0x88>(r[c], r[4 + c]);
                    let odd = _mm512_shuffle_f32x4::<0xdd>(r[c], r[4 + c]);
                    let even_high = _mm512_shuffle_f32x4::<0x88>(r[8 + c], r[12 + c]);
                    let odd_high = _mm512_shuffle_f32x4::<0xdd>(r[8 + c], r[12 + c]);
                    let column = |d: usize| to.add(LANES * d);
                    let first = _mm512_shuffle_f32x4::<0x88>(even, even_high);
                    let second = _mm512_shuffle_f32x4::<0x88>(odd, odd_high);
                    let third = _mm512_shuffle_f32x4::<0xdd>(even, even_high);
                    let fourth = _mm512_shuffle_f32x4::<0xdd>(odd, odd_high);
                    _mm512_storeu_ps(column(c), first);
                    _mm512_storeu_ps(column(4 + c), second);
                    _mm512_storeu_ps(column(8 + c), third);
                    _mm512_storeu_ps(column(12 + c), fourth);
                }
            }
        }
    }

    /// Sum of eight lanes, as the lower half of [`Lanes::sum`]'s tree.
    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn largest(x: __m256) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            let x = unsafe { _mm256_set1_ps(x) };
            Self(x, x)
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            let f = |a, b, c| unsafe { _mm256_fmadd_ps(a, b, c) };
            Self(f(self.0, b.0, c.0), f(self.1, b.1, c.1))
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            let f = |a, b| unsafe { _mm256_add_ps(a, b) };
            Self(f(self.0, b.0), f(self.1, b.1))
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            let f = |a, b| unsafe { _mm256_sub_ps(a, b) };
            Self(f(self.0, b.0), f(self.1, b.1))
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            let f = |a, b| unsafe { _mm256_mul_ps(a, b) };
            Self(f(self.0, b.0), f(self.1, b.1))
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            let f = |a, b| unsafe { _mm256_max_ps(a, b) };
            Self(f(self.0, b.0), f(self.1, b.1))
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            let f = |a, b| unsafe { _mm256_min_ps(a, b) };
            Self(f(self.0, b.0), f(self.1, b.1))
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            let f = |n| unsafe {
                let n = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            };
            Self(f(self.0), f(self.1))
        }
        #[inline(always)]
        fn zero_below(self, of: Self, floor: f32) -> Self {
            let f = |y, x| unsafe {
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(floor));
                _mm256_andnot_ps(below, y)
            };
            Self(f(self.0, of.0), f(self.1, of.1))
        }
        #[inline(always)]
        fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { sum(_mm256_add_ps(self.0, self.1)) }
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            unsafe { largest(_mm256_max_ps(self.0, self.1)) }
        }
        #[inline(always)]
        fn first(self, n: usize, other: f32) -> Self {
            let lanes = self.array();
            let kept: [f32; LANES] = std::array::from_fn(|i| if i < n { lanes[i] } else { other });
            unsafe { Self::load(kept.as_ptr()) }
        }
    }
}

/// Defines `$name(level, ...)` as `$body::<V, M, P, C>` compiled for each level and chosen at run
/// time, no higher than the processor's: V the [`Lanes`], M rows of a register tile at most, P pages
/// of keys of one, C columns (of 16 floats) of one. `$body` must be `#[inline(always)]`.
macro_rules! by_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::kernels::Level, $($arg: $ty),*) {
            let _ = level;
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::{Level, attention::lanes};
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    $body::<lanes::Avx512, 6, 4, 4>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    $body::<lanes::Avx2, 3, 1, 2>($($arg),*)
                }
                match level.min($crate::kernels::level()) {
                    // SAFETY: `kernels::level` found these features on this processor.
                    Level::Avx512 | Level::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            $body::<$crate::kernels::attention::lanes::Portable, 3, 1, 2>($($arg),*)
        }
    };
}
pub(super) use by_level;
