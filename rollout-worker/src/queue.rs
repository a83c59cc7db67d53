//! Which samples wait, and which slot holds what (pure).

use std::{collections::VecDeque, sync::Arc};

use tina_proto::v1::{PolicyVersion, SamplingParams};

use crate::seed::PROMPT_KEY_BYTES;

/// Samples that a worker keeps waiting at most; a coordinator that sends more is told so.
pub const MAX_WAITING: usize = 16_384;

/// What all samples of one group share, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupTask {
    /// The coordinator's name for the group.
    pub group_id: u64,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Names the prompt and the purpose in the samples' seeds.
    pub prompt_key: [u8; PROMPT_KEY_BYTES],
    /// How to sample, and when to end.
    pub params: SamplingParams,
    /// The version to sample with, or the oldest that will do.
    pub version: PolicyVersion,
    /// No other will do.
    pub exact: bool,
}

impl GroupTask {
    /// Whether a run that swaps adapters under way may sample it with this one.
    pub fn may_use(&self, version: &PolicyVersion) -> bool {
        self.version.digest == version.digest || (!self.exact && self.version.step < version.step)
    }
}

/// One sample, waiting or in a slot.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its group.
    pub task: Arc<GroupTask>,
    /// Which of the group's completions.
    pub index: u32,
    /// The connection over which it was asked for last.
    epoch: u64,
}

impl Sample {
    fn is(&self, group_id: u64, index: u32) -> bool {
        self.task.group_id == group_id && self.index == index
    }
}

/// The waiting samples in order of arrival, and the slots.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Sample>,
    slots: Vec<Option<Sample>>,
}

/// More samples than a worker keeps waiting.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker's queue is full: {waiting} samples wait, {MAX_WAITING} at most")]
pub struct QueueFull {
    /// Samples that wait.
    pub waiting: usize,
}

impl Queue {
    /// This many samples at a time.
    pub fn new(slots: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            slots: vec![None; slots],
        }
    }

    /// Samples in slots.
    pub fn running(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Samples without a slot yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// All samples, those that wait and those in slots.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.waiting.iter().chain(self.slots.iter().flatten())
    }

    /// Whether a sample of this group waits or runs.
    pub fn holds_group(&self, group_id: u64) -> bool {
        self.samples().any(|s| s.task.group_id == group_id)
    }

    /// The sample in each slot.
    pub fn slots(&self) -> &[Option<Sample>] {
        &self.slots
    }

    /// Queues samples of one group. One that is here already and is the same stays where it is
    /// (a coordinator asks again after a reconnect); one of the same name but other content gives
    /// way. Returns the slots that became free.
    pub fn add(
        &mut self,
        task: &Arc<GroupTask>,
        indices: &[u32],
        epoch: u64,
    ) -> Result<Vec<usize>, QueueFull> {
        if self.waiting.len() + indices.len() > MAX_WAITING {
            return Err(QueueFull {
                waiting: self.waiting.len(),
            });
        }
        let mut freed = Vec::new();
        for &index in indices {
            let here = self
                .waiting
                .iter_mut()
                .chain(self.slots.iter_mut().flatten());
            let mut same = here.filter(|sample| sample.is(task.group_id, index));
            match same.next() {
                Some(sample) if sample.task == *task => sample.epoch = epoch,
                Some(_) => {
                    freed.extend(self.cancel(task.group_id, &[index]));
                    self.waiting.push_back(Sample {
                        task: Arc::clone(task),
                        index,
                        epoch,
                    });
                }
                None => self.waiting.push_back(Sample {
                    task: Arc::clone(task),
                    index,
                    epoch,
                }),
            }
        }
        Ok(freed)
    }

    /// Drops these samples; no indices: all of the group. Returns the slots that became free.
    pub fn cancel(&mut self, group_id: u64, indices: &[u32]) -> Vec<usize> {
        self.drop_where(|sample| {
            sample.task.group_id == group_id
                && (indices.is_empty() || indices.contains(&sample.index))
        })
    }

    /// Drops what nobody has asked for since connection `epoch` began. Returns the slots that
    /// became free.
    pub fn drop_before(&mut self, epoch: u64) -> Vec<usize> {
        self.drop_where(|sample| sample.epoch < epoch)
    }

    fn drop_where(&mut self, dropped: impl Fn(&Sample) -> bool) -> Vec<usize> {
        self.waiting.retain(|sample| !dropped(sample));
        let mut freed = Vec::new();
        for (slot, held) in self.slots.iter_mut().enumerate() {
            if held.as_ref().is_some_and(&dropped) {
                *held = None;
                freed.push(slot);
            }
        }
        freed
    }

    /// Gives the sample that has waited longest the lowest free slot, if there are both.
    pub fn place(&mut self) -> Option<(usize, Sample)> {
        let slot = self.slots.iter().position(Option::is_none)?;
        let sample = self.waiting.pop_front()?;
        self.slots[slot] = Some(sample.clone());
        Some((slot, sample))
    }

    /// The slot's sample is done.
    pub fn finish(&mut self, slot: usize) {
        self.slots[slot] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(group_id: u64) -> Arc<GroupTask> {
        Arc::new(GroupTask {
            group_id,
            prompt: vec![1, 2, 3],
            prompt_key: [group_id as u8; 32],
            params: SamplingParams::default(),
            version: PolicyVersion::of_bytes(0, b""),
            exact: false,
        })
    }

    fn placed(queue: &mut Queue) -> Vec<(usize, u64, u32)> {
        std::iter::from_fn(|| queue.place())
            .map(|(slot, sample)| (slot, sample.task.group_id, sample.index))
            .collect()
    }

    #[test]
    fn samples_take_slots_in_order_and_never_more_than_there_are() {
        let mut queue = Queue::new(3);
        queue.add(&task(1), &[0, 1], 1).unwrap();
        queue.add(&task(2), &[4, 2], 1).unwrap();
        assert_eq!(placed(&mut queue), [(0, 1, 0), (1, 1, 1), (2, 2, 4)]);
        assert_eq!((queue.running(), queue.waiting()), (3, 1));
        queue.finish(1);
        assert_eq!(placed(&mut queue), [(1, 2, 2)]);
        assert!(!queue.is_idle());
        for slot in 0..3 {
            queue.finish(slot);
        }
        assert!(queue.is_idle());
    }

    #[test]
    fn a_cancel_takes_waiting_and_running_samples() {
        let mut queue = Queue::new(2);
        queue.add(&task(1), &[0, 1, 2], 1).unwrap();
        queue.add(&task(2), &[0], 1).unwrap();
        placed(&mut queue);
        assert_eq!(queue.cancel(1, &[1, 2]), [1]);
        assert_eq!(placed(&mut queue), [(1, 2, 0)]);
        assert_eq!(queue.cancel(1, &[]), [0]);
        assert!(!queue.holds_group(1) && queue.holds_group(2));
        assert!(queue.cancel(7, &[]).is_empty());
    }

    #[test]
    fn a_sample_asked_for_twice_is_sampled_once() {
        let mut queue = Queue::new(1);
        queue.add(&task(1), &[0, 1], 1).unwrap();
        placed(&mut queue);
        assert!(queue.add(&task(1), &[0, 1, 2], 2).unwrap().is_empty());
        assert_eq!((queue.running(), queue.waiting()), (1, 2));
    }

    #[test]
    fn another_content_under_the_same_name_replaces_the_sample() {
        let mut queue = Queue::new(1);
        queue.add(&task(1), &[0], 1).unwrap();
        placed(&mut queue);
        let other = Arc::new(GroupTask {
            prompt: vec![9],
            ..(*task(1)).clone()
        });
        assert_eq!(queue.add(&other, &[0], 1).unwrap(), [0]);
        assert_eq!(queue.place().unwrap().1.task.prompt, [9]);
    }

    #[test]
    fn what_nobody_asked_for_again_is_dropped() {
        let mut queue = Queue::new(2);
        queue.add(&task(1), &[0, 1, 2, 3], 1).unwrap();
        placed(&mut queue);
        queue.add(&task(1), &[1, 3], 2).unwrap();
        assert_eq!(queue.drop_before(2), [0]);
        assert_eq!(placed(&mut queue), [(0, 1, 3)]);
        assert_eq!(queue.running(), 2);
    }

    #[test]
    fn a_newer_version_will_do_unless_the_sample_is_exact() {
        let asked = |step, exact| GroupTask {
            version: PolicyVersion::of_bytes(step, b"asked"),
            exact,
            ..(*task(1)).clone()
        };
        let other = PolicyVersion::of_bytes(5, b"other");
        assert!(asked(4, false).may_use(&other) && !asked(4, true).may_use(&other));
        assert!(!asked(5, false).may_use(&other) && !asked(6, false).may_use(&other));
        // The same content under another name.
        let same = PolicyVersion::of_bytes(2, b"asked");
        assert!(asked(4, true).may_use(&same));
    }

    #[test]
    fn a_full_queue_says_so_and_takes_nothing() {
        let mut queue = Queue::new(1);
        let many: Vec<u32> = (0..MAX_WAITING as u32).collect();
        for first in many.chunks(4096) {
            queue.add(&task(1), first, 1).unwrap();
        }
        let full = QueueFull {
            waiting: MAX_WAITING,
        };
        assert_eq!(queue.add(&task(2), &[0], 1), Err(full));
        assert!(!queue.holds_group(2));
    }
}
