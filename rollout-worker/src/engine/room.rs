//! How many sequences an engine has room for (pure): slots follow the memory of keys and values.
//!
//! A sequence takes little memory at first and more with every token, so slots that are all in use while
//! memory stands half empty can be more, and when memory runs full they are to be fewer. What is begun
//! already is never lost for it: a sequence that has to make room keeps its tokens, and its keys and values
//! are computed again later, to the same bits.

/// Slots grow while less than this share of the memory is held.
const ROOMY: f64 = 0.6;
/// Nothing begins that would take the memory beyond this share, and slots shrink above it.
const TIGHT: f64 = 0.9;

/// What an engine may hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences at first.
    pub slots: usize,
    /// Sequences at most.
    pub most: usize,
    /// Bytes of keys and values; unset: no limit, and slots stay as they are.
    pub kv_bytes: Option<usize>,
}

impl Capacity {
    /// This many sequences, whatever memory they take.
    pub fn fixed(slots: usize) -> Self {
        Self {
            slots,
            most: slots,
            kv_bytes: None,
        }
    }
}

/// The slots of an engine, as its memory has them.
#[derive(Debug)]
pub(super) struct Room {
    capacity: Capacity,
    slots: usize,
}

impl Room {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            slots: capacity.slots,
        }
    }

    /// Sequences at a time, for now.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of keys and values at most.
    pub(super) fn limit(&self) -> Option<usize> {
        self.capacity.kv_bytes
    }

    /// Looks at the memory: `held` bytes of keys and values by `running` sequences, while `waiting` have
    /// no slot.
    pub(super) fn look(&mut self, held: usize, running: usize, waiting: usize) {
        let Some(share) = self.share(held) else {
            return;
        };
        if share > TIGHT {
            self.slots = self.slots.min(running).max(1);
        } else if share < ROOMY && running + waiting >= self.slots {
            let more = self.slots + (self.slots / 4).max(1);
            self.slots = more.min(self.capacity.most).max(self.slots);
        }
    }

    /// Whether `more` bytes beside the `held` ones leave the room that running sequences grow into.
    pub(super) fn admits(&self, held: usize, more: usize) -> bool {
        self.share(held + more).is_none_or(|share| share <= TIGHT)
    }

    /// Whether `held` bytes are more than there may be.
    pub(super) fn overflows(&self, held: usize) -> bool {
        self.share(held).is_some_and(|share| share > 1.0)
    }

    fn share(&self, held: usize) -> Option<f64> {
        let limit = self.capacity.kv_bytes?;
        Some(held as f64 / limit.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(slots: usize, most: usize) -> Room {
        Room::new(Capacity {
            slots,
            most,
            kv_bytes: Some(1000),
        })
    }

    #[test]
    fn slots_that_are_all_in_use_become_more_while_memory_is_there() {
        let mut room = room(8, 12);
        room.look(100, 7, 0);
        assert_eq!(room.slots(), 8, "one is free");
        room.look(100, 8, 0);
        assert_eq!(room.slots(), 10);
        room.look(599, 8, 2);
        assert_eq!(room.slots(), 12);
        room.look(0, 12, 9);
        assert_eq!(room.slots(), 12, "no more than the most");
        room.look(601, 12, 9);
        assert_eq!(room.slots(), 12);
    }

    #[test]
    fn slots_shrink_to_what_runs_when_memory_is_tight_and_come_back() {
        let mut room = room(8, 16);
        room.look(900, 6, 4);
        assert_eq!(room.slots(), 8, "tight begins above nine tenths");
        room.look(901, 6, 4);
        assert_eq!(room.slots(), 6);
        room.look(950, 0, 4);
        assert_eq!(room.slots(), 1, "never none");
        room.look(300, 1, 4);
        assert_eq!(room.slots(), 2);
    }

    #[test]
    fn what_begins_leaves_a_tenth_for_what_runs() {
        let room = room(8, 8);
        assert!(room.admits(800, 100));
        assert!(!room.admits(800, 101));
        assert!(!room.overflows(1000));
        assert!(room.overflows(1001));
        let free = Room::new(Capacity::fixed(3));
        assert!(free.admits(usize::MAX / 2, 1) && !free.overflows(usize::MAX));
    }

    #[test]
    fn without_a_limit_slots_stay() {
        let mut room = Room::new(Capacity::fixed(3));
        room.look(usize::MAX, 3, 9);
        room.look(0, 3, 9);
        assert_eq!(room.slots(), 3);
    }
}
