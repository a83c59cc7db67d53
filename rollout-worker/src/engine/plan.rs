//! Which rows the next pass computes (pure).

use tina_model::PREFILL_ROWS;

/// Rows of a chunk beside decoding sequences, at least: enough for products to run at their full
/// rate, few enough that a pass takes little longer than a decoding step of many sequences.
const LEAST_ROWS: usize = 128;

/// The rows of a pass. Every sequence that decodes takes its next token; prompts and sequences whose
/// cache is behind their tokens share a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// Of open prompts, by their place in the order of opening: (which, rows).
    pub(super) prompts: Vec<(usize, usize)>,
    /// (slot, tokens).
    pub(super) slots: Vec<(usize, usize)>,
}

impl Rows {
    /// `slots`: (slot, tokens that its cache doesn't hold yet). `prompts`: rows that each open prompt
    /// has left, in the order of opening. `waiting`: slots that wait for one of them.
    pub(super) fn plan(slots: &[(usize, usize)], prompts: &[usize], waiting: usize) -> Self {
        let (decoding, behind): (Vec<_>, Vec<_>) = slots.iter().partition(|slot| slot.1 == 1);
        let mut room = chunk(decoding.len(), behind.len() + waiting);
        let mut take = |rows: usize| {
            let taken = rows.min(room);
            room -= taken;
            taken
        };
        let mut rows = Self {
            slots: decoding,
            ..Self::default()
        };
        let behind = behind.into_iter().map(|(slot, left)| (slot, take(left)));
        rows.slots.extend(behind.filter(|slot| slot.1 > 0));
        let prompts = prompts.iter().map(|left| take(*left)).enumerate();
        rows.prompts.extend(prompts.filter(|prompt| prompt.1 > 0));
        rows
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.prompts.is_empty() && self.slots.is_empty()
    }
}

/// Rows of a chunk: what decodes pays for it in time and what waits gains by it, so it grows with
/// the share of the slots that wait.
fn chunk(decoding: usize, waiting: usize) -> usize {
    let share = PREFILL_ROWS * waiting / (waiting + decoding).max(1);
    share.max(LEAST_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_decodes_chunks_are_as_large_as_they_get() {
        let rows = Rows::plan(&[], &[100, 700, 40], 5);
        assert_eq!(rows.prompts, [(0, 100), (1, PREFILL_ROWS - 100)]);
        assert!(rows.slots.is_empty());
        assert!(Rows::plan(&[], &[], 0).is_empty());
    }

    #[test]
    fn every_sequence_decodes_beside_a_chunk_however_much_waits() {
        let slots: Vec<_> = (0..60).map(|slot| (slot, 1)).collect();
        let rows = Rows::plan(&slots, &[100_000, 50], 4);
        assert_eq!(rows.slots, slots);
        assert_eq!(rows.prompts, [(0, LEAST_ROWS)]);
        // Few decode, many wait.
        let rows = Rows::plan(&slots[..4], &[100_000, 50], 60);
        assert_eq!(rows.slots, slots[..4]);
        assert_eq!(rows.prompts, [(0, PREFILL_ROWS * 60 / 64)]);
    }

    #[test]
    fn sequences_that_are_behind_come_before_prompts_and_share_their_chunk() {
        let rows = Rows::plan(&[(0, 70), (1, 1), (2, 1), (3, 500), (4, 20)], &[30], 0);
        let room = PREFILL_ROWS * 3 / 5;
        assert_eq!(rows.slots, [(1, 1), (2, 1), (0, 70), (3, room - 70)]);
        assert!(rows.prompts.is_empty());
        let rows = Rows::plan(&[(0, 70), (1, 1)], &[30], 0);
        assert_eq!(rows.slots, [(1, 1), (0, 70)]);
        assert_eq!(rows.prompts, [(0, 30)]);
    }
}
