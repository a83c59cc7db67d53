//! Who begins, and who makes room, where the memory of keys and values has a limit.

use tina_model::kernels::attention::PAGE;

use super::Engine;

impl Engine {
    /// Bytes of keys and values that prompts and sequences hold.
    pub(super) fn held(&self) -> usize {
        self.cache.pages_held().map_or(0, |(held, _)| held)
    }

    /// Sequences whose keys and values are there, or on their way.
    pub(super) fn decoding(&self) -> usize {
        let slots = 0..self.sequences.len();
        slots.filter(|slot| !self.cache.is_empty(*slot)).count()
    }

    /// Pages that the tokens take whose keys and values come next.
    pub(super) fn promised(&self) -> usize {
        let sequences = self.sequences.iter().enumerate();
        let pages = sequences.filter_map(|(slot, sequence)| {
            let sequence = sequence.as_ref().filter(|_| !self.cache.is_empty(slot))?;
            let behind = sequence.tokens_behind(self.cache.len(slot)).len();
            Some(self.cache.pages_for(slot, behind))
        });
        pages.sum()
    }

    /// Whether a sequence that waits for its prompt may begin, or come back: what it takes fits beside what
    /// is held and `promised`, or nothing else is there.
    pub(super) fn may_begin(&self, slot: usize, promised: usize) -> bool {
        let (Some((held, page)), Some(sample)) =
            (self.cache.pages_held(), &self.queue.slots()[slot])
        else {
            return true;
        };
        let so_far = self.sequences[slot].as_ref().map_or(0, |s| s.tokens());
        let prompt = if self.prompts.has(&sample.task) {
            0
        } else {
            sample.task.prompt.len().div_ceil(PAGE)
        };
        // Its own page of the prompt's end, what there is of it already, and what comes next.
        let pages = promised + prompt + so_far.div_ceil(PAGE) + 1;
        let alone = self.decoding() == 0 && self.prompts.open.is_empty();
        alone || self.room.admits(held, pages * page)
    }

    /// Lets sequences go back to waiting, those with the fewest tokens first, until the pages that the next
    /// pass takes are there. They keep their tokens; the last one stays whatever it takes.
    pub(super) fn make_room(&mut self) {
        let Some((_, page)) = self.cache.pages_held() else {
            return;
        };
        while self.room.overflows(self.held() + self.promised() * page) {
            let sequences = self.sequences.iter().enumerate();
            let running: Vec<(usize, usize)> = sequences
                .filter(|(slot, _)| !self.cache.is_empty(*slot))
                .filter_map(|(slot, sequence)| Some((sequence.as_ref()?.tokens(), slot)))
                .collect();
            match running.iter().min() {
                Some((_, slot)) if running.len() > 1 => self.cache.release(*slot),
                _ => return,
            }
        }
    }
}
