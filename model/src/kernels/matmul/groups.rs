//! Memory of packed matrices: in huge pages where the system has them.
//!
//! A decoding step reads every weight once; with pages of 4 KiB each page costs a walk of the page
//! tables beside it.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use memmap2::MmapMut;

/// Bytes from which on memory is mapped: a huge page.
const MAPPED: usize = 2 << 20;

/// What may be made of zeroed memory.
///
/// # Safety
/// All bits zero are a value, any alignment is 64 at most, and nothing is to be dropped.
pub(super) unsafe trait Plain: Copy {}

/// A slice of its own, 64-byte aligned.
#[derive(Debug)]
pub(super) enum Groups<G> {
    Heap(Vec<G>),
    Mapped(MmapMut, usize, PhantomData<G>),
}

impl<G: Plain> Groups<G> {
    /// `len` groups of zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<G>();
        if bytes >= MAPPED
            && let Ok(memory) = MmapMut::map_anon(bytes)
        {
            // Advice: a system that doesn't take it serves small pages.
            #[cfg(target_os = "linux")]
            let _ = memory.advise(memmap2::Advice::HugePage);
            return Self::Mapped(memory, len, PhantomData);
        }
        // SAFETY: zeros are a value (`Plain`).
        Self::Heap(vec![unsafe { std::mem::zeroed() }; len])
    }
}

impl<G: Plain> Deref for Groups<G> {
    type Target = [G];

    fn deref(&self) -> &[G] {
        match self {
            Self::Heap(groups) => groups,
            // SAFETY: the map holds `len` groups, aligned to a page, and began as zeros (`Plain`).
            Self::Mapped(memory, len, _) => unsafe {
                std::slice::from_raw_parts(memory.as_ptr().cast(), *len)
            },
        }
    }
}

impl<G: Plain> DerefMut for Groups<G> {
    fn deref_mut(&mut self) -> &mut [G] {
        match self {
            Self::Heap(groups) => groups,
            // SAFETY: as `deref`; the map is ours alone.
            Self::Mapped(memory, len, _) => unsafe {
                std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), *len)
            },
        }
    }
}
