//! Pages for the cache of a CPU: a pool that grows by slabs, and who holds which of them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::attention::{Heads, PAGE, Pages};

/// Bytes of one slab, about.
const SLAB_BYTES: usize = 16 << 20;

/// Ids of pages that nobody holds; the last is taken first.
type Free = Arc<Mutex<Vec<u32>>>;

/// Pages of all layers, those in use and those to be used again.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) pages: Pages,
    free: Free,
}

/// Pages that somebody holds; dropped, they are free again.
#[derive(Debug)]
pub(super) struct Lease {
    pages: Vec<u32>,
    free: Free,
}

impl Pool {
    /// For `slots` sequences of `max_tokens` tokens, as a measure of how far to grow at a time.
    pub(super) fn new(heads: Heads, layers: usize, slots: usize, max_tokens: usize) -> Self {
        let most = slots.saturating_mul(max_tokens.div_ceil(PAGE));
        let slab = SLAB_BYTES / Pages::page_bytes(heads, layers).max(1);
        Self {
            pages: Pages::new(heads, layers, slab.clamp(1, most)),
            free: Free::default(),
        }
    }

    /// No pages yet.
    pub(super) fn lease(&self) -> Lease {
        Lease {
            pages: Vec::new(),
            free: self.free.clone(),
        }
    }

    /// Whether `lease` holds pages of this pool.
    pub(super) fn knows(&self, lease: &Lease) -> bool {
        Arc::ptr_eq(&self.free, &lease.free)
    }

    /// One page more for `lease`.
    pub(super) fn take(&mut self, lease: &mut Lease) -> u32 {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let page = match free.pop() {
            Some(page) => page,
            None => {
                let mut new = self.pages.grow();
                let first = new.start;
                new.start += 1;
                free.extend(new.rev());
                first
            }
        };
        lease.pages.push(page);
        page
    }

    /// Pages that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl Lease {
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.pages.drain(..).rev());
    }
}
