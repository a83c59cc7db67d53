//! The sampling engine: continuous batching over one decoder. Synchronous; [`Engine::step`] does
//! one round of work, and one thread of its own drives it (see [`crate::thread`]).
//!
//! - `plan`: which rows a pass computes
//! - `prompts`: the prompts of groups, open and known
//! - `room`: how many sequences the memory has room for
//! - `yielding`: who begins, and who makes room

mod plan;
mod prompts;
mod room;
mod yielding;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use tina_model::{Decoder, KvCache, ModelError, Scratch, each_row};
use tina_proto::v1::{AdapterLoaded, Completion, PolicyVersion, SampleFailed};

pub use self::room::Capacity;
use self::{
    plan::Rows,
    prompts::{Prompts, same_prompt},
    room::Room,
};
use crate::{
    adapter::{AdapterLoader, ReadyAdapter},
    check::{AdapterSwap, RunPlan},
    queue::{GroupTask, Queue},
    seed::{PROMPT_KEY_BYTES, Uniforms},
    sequence::Sequence,
    stop::TokenText,
};

/// What the engine is told.
#[derive(Debug)]
pub enum Work {
    /// Sample these completions of a group.
    Sample {
        /// The group.
        task: Arc<GroupTask>,
        /// Which of its completions.
        indices: Vec<u32>,
        /// The connection that asked for them.
        epoch: u64,
    },
    /// Drop these samples; no indices: the whole group's.
    Cancel {
        /// The group.
        group_id: u64,
        /// Which of its completions.
        indices: Vec<u32>,
    },
    /// Sample with this adapter from now on, as the run's [`AdapterSwap`] has it; samples that nobody
    /// has asked for over the present connection are dropped.
    Load {
        /// The adapter.
        adapter: Box<ReadyAdapter>,
        /// The connection that asked for it.
        epoch: u64,
    },
    /// The adapter that is held has a new name: a step that changed nothing.
    Rename(PolicyVersion),
}

/// What the engine has done.
#[derive(Debug)]
pub enum Event {
    /// A completion is done.
    Completed {
        /// The completion.
        completion: Completion,
        /// Its prompt's key.
        prompt_key: [u8; PROMPT_KEY_BYTES],
        /// The version that was asked for.
        asked: PolicyVersion,
    },
    /// Samples that can't be made, and why.
    Failed(SampleFailed),
    /// An adapter is sampled with from now on.
    Loaded(AdapterLoaded),
}

/// The engine's load, for whoever reports it.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Slots that hold a sample.
    pub slots_used: AtomicU32,
    /// Samples without a slot.
    pub queued: AtomicU32,
    /// Samples that there is room for.
    pub slots: AtomicU32,
    /// Bytes of keys and values that are held.
    pub kv_bytes: AtomicU64,
    /// Bytes of keys and values at most; 0: no limit.
    pub kv_limit: AtomicU64,
    /// Tokens sampled since the start.
    pub tokens: AtomicU64,
    /// Tokens of prompts computed since the start.
    pub prompt_tokens: AtomicU64,
}

/// Gives an adapter's memory back beside the engine: that of a large one takes the system milliseconds.
fn give_back(adapter: Option<Box<ReadyAdapter>>) {
    let Some(adapter) = adapter else { return };
    let aside = std::thread::Builder::new().name("old adapter".to_owned());
    // Without a thread it is dropped here, with the closure.
    let _ = aside.spawn(move || drop(adapter));
}

/// Samples completions, as many at a time as it has slots.
pub struct Engine {
    decoder: Arc<Decoder>,
    text: Arc<dyn TokenText>,
    plan: RunPlan,
    cache: KvCache,
    room: Room,
    queue: Queue,
    /// What is under way, by slot, from its first token on.
    sequences: Vec<Option<Sequence>>,
    prompts: Prompts,
    /// The adapter that is sampled with.
    held: Option<Box<ReadyAdapter>>,
    next: Option<Box<ReadyAdapter>>,
    /// Of a pass, `[n, vocab]`.
    logits: Vec<f32>,
    scratch: Scratch,
    gauges: Arc<Gauges>,
}

impl Engine {
    /// An engine of this capacity without an adapter; fails when the device has no room for it. A cache
    /// that allocates its slots whole (a GPU's) keeps to the slots that it begins with.
    pub fn new(
        decoder: Arc<Decoder>,
        text: Arc<dyn TokenText>,
        plan: RunPlan,
        capacity: Capacity,
    ) -> Result<Self, ModelError> {
        let mut cache = decoder.new_cache(capacity.slots, plan.max_sequence_tokens)?;
        let (room, most) = if cache.pages_held().is_some() {
            // Pages come with tokens: slots cost nothing before.
            let most = capacity.most.max(capacity.slots);
            cache = decoder.new_cache(most, plan.max_sequence_tokens)?;
            (Room::new(capacity), most)
        } else {
            (Room::new(Capacity::fixed(capacity.slots)), capacity.slots)
        };
        let gauges = Gauges::default();
        let limit = room.limit().unwrap_or_default();
        gauges.slots.store(room.slots() as u32, Ordering::Relaxed);
        gauges.kv_limit.store(limit as u64, Ordering::Relaxed);
        Ok(Self {
            decoder,
            text,
            plan,
            cache,
            room,
            queue: Queue::new(most),
            sequences: std::iter::repeat_with(|| None).take(most).collect(),
            prompts: Prompts::default(),
            held: None,
            next: None,
            logits: Vec::new(),
            scratch: Scratch::default(),
            gauges: Arc::new(gauges),
        })
    }

    /// Makes adapters ready for it.
    pub fn loader(&self) -> AdapterLoader {
        AdapterLoader::new(Arc::clone(&self.decoder), &self.plan)
    }

    /// Its load, kept up to date by [`Engine::step`].
    pub fn gauges(&self) -> Arc<Gauges> {
        Arc::clone(&self.gauges)
    }

    /// Whether a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.queue.is_idle() && self.next.is_none()
    }

    /// Takes an order; what can be answered at once goes into `events`.
    pub fn submit(&mut self, work: Work, events: &mut Vec<Event>) {
        match work {
            Work::Sample {
                task,
                indices,
                epoch,
            } => {
                if let Err(error) = self.add(&task, &indices, epoch) {
                    events.push(Event::Failed(SampleFailed {
                        group_id: task.group_id,
                        sample_indices: indices,
                        error,
                    }));
                }
            }
            Work::Cancel { group_id, indices } => {
                let freed = self.queue.cancel(group_id, &indices);
                self.clear(&freed);
            }
            Work::Load { adapter, epoch } => {
                let freed = self.queue.drop_before(epoch);
                self.clear(&freed);
                self.next = Some(adapter);
            }
            Work::Rename(version) => {
                if let Some(held) = &mut self.held
                    && held.version.digest == version.digest
                {
                    held.version = version;
                }
            }
        }
        self.prompts.retain(|group| self.queue.holds_group(group));
        self.report_load(0);
    }

    fn add(&mut self, task: &Arc<GroupTask>, indices: &[u32], epoch: u64) -> Result<(), String> {
        let fits = |held: &ReadyAdapter| match self.plan.swap {
            AdapterSwap::Drain => held.version.digest == task.version.digest,
            AdapterSwap::Keep | AdapterSwap::Recompute => task.may_use(&held.version),
        };
        match &self.held {
            Some(held) if fits(held) => {}
            Some(held) => {
                return Err(format!(
                    "policy version {} is asked for; the worker holds {}",
                    task.version.short(),
                    held.version.short()
                ));
            }
            None => {
                return Err(format!(
                    "policy version {} is asked for; the worker holds no adapter yet",
                    task.version.short()
                ));
            }
        }
        let freed = self
            .queue
            .add(task, indices, epoch)
            .map_err(|error| error.to_string())?;
        self.clear(&freed);
        Ok(())
    }

    fn clear(&mut self, slots: &[usize]) {
        for &slot in slots {
            self.sequences[slot] = None;
            self.cache.release(slot);
        }
    }

    /// Takes an adapter if one waits and its time has come, fills free slots, and does one pass: one
    /// token for every sequence that decodes, beside a chunk of prompts' rows.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        events.extend(self.swap().map(Event::Loaded));
        while self.queue.running() < self.room.slots() && self.queue.place().is_some() {}
        self.make_room();
        let mut tokens = self.begin(events);
        tokens += self.pass(events);
        // With the prompts that have ended in it.
        tokens += self.begin(events);
        let waiting = self.queue.waiting();
        self.room.look(self.held(), self.decoding(), waiting);
        self.report_load(tokens);
    }

    fn report_load(&self, tokens: u64) {
        self.gauges
            .slots_used
            .store(self.queue.running() as u32, Ordering::Relaxed);
        self.gauges
            .queued
            .store(self.queue.waiting() as u32, Ordering::Relaxed);
        self.gauges.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.gauges
            .slots
            .store(self.room.slots() as u32, Ordering::Relaxed);
        self.gauges
            .kv_bytes
            .store(self.held() as u64, Ordering::Relaxed);
    }

    /// Takes the adapter that waits, if what is under way allows it.
    fn swap(&mut self) -> Option<AdapterLoaded> {
        let (queue, swap) = (&self.queue, self.plan.swap);
        let adapter = self.next.take_if(|next| match swap {
            AdapterSwap::Drain => queue.is_idle(),
            AdapterSwap::Keep | AdapterSwap::Recompute => queue
                .samples()
                .all(|sample| sample.task.may_use(&next.version)),
        })?;
        let start = Instant::now();
        let mut loaded = AdapterLoaded {
            version: Some(adapter.version.clone()),
            probe_logprobs: adapter.probe_logprobs.clone(),
            seconds: adapter.seconds,
            ..AdapterLoaded::default()
        };
        let before = self.held.as_ref().map(|held| held.digest);
        if before != Some(adapter.digest) {
            // What begins from now on begins with a prompt of the new adapter; sequences under way
            // hold the pages of theirs.
            self.prompts = Prompts::default();
            if swap == AdapterSwap::Recompute {
                (0..self.sequences.len()).for_each(|slot| self.cache.release(slot));
            }
        }
        give_back(self.held.replace(adapter));
        loaded.pause_seconds = start.elapsed().as_secs_f64();
        Some(loaded)
    }

    /// Puts prompts that are known into the slots that wait for them, opens those that nobody has
    /// asked for yet, and samples the first tokens of what begins; returns how many.
    fn begin(&mut self, events: &mut Vec<Event>) -> u64 {
        // Where nothing decodes yet, prompts come first: what begins together decodes as one batch.
        let idle = self.sequences.iter().all(Option::is_none);
        let early = idle && !self.prompts.open.is_empty();
        let mut tokens = 0;
        let mut promised = self.promised();
        for slot in 0..self.sequences.len() {
            if !self.waits_for_prompt(slot) || !self.may_begin(slot, promised) {
                continue;
            }
            match self.begin_in(slot, early) {
                Ok(sampled) => {
                    tokens += u64::from(sampled);
                    self.settle(slot, events);
                    promised = self.promised();
                }
                Err(error) => self.refuse(slot, error, events),
            }
        }
        tokens
    }

    fn waits_for_prompt(&self, slot: usize) -> bool {
        self.queue.slots()[slot].is_some() && self.cache.is_empty(slot)
    }

    /// Whether a first token was sampled; when it is too `early` for that, the prompt is opened only.
    fn begin_in(&mut self, slot: usize, early: bool) -> Result<bool, String> {
        let (Some(sample), Some(held)) = (&self.queue.slots()[slot], &self.held) else {
            return Err("the worker holds no adapter".to_owned());
        };
        let (task, index) = (&sample.task, sample.index);
        let known = self
            .prompts
            .find(task, &self.decoder, &mut self.cache)
            .map_err(|error| format!("prompt of group {}: {error}", task.group_id))?;
        let Some(prompt) = known.filter(|_| !early) else {
            return Ok(false);
        };
        self.cache
            .attach(slot, &prompt.kv)
            .map_err(|error| error.to_string())?;
        if self.sequences[slot].is_some() {
            // Its cache is computed anew: the tokens that it has follow.
            return Ok(false);
        }
        let uniforms = Uniforms::new(self.plan.seed, &task.prompt_key, index, &held.digest);
        let longest = self.plan.max_sequence_tokens;
        let mut sequence = Sequence::new(Arc::clone(task), index, uniforms, longest);
        let (version, text) = (&held.version, &*self.text);
        sequence.extend(&prompt.logits, version, text, &mut self.scratch);
        self.sequences[slot] = Some(sequence);
        Ok(true)
    }

    /// One pass over what is under way; returns how many tokens were sampled.
    fn pass(&mut self, events: &mut Vec<Event>) -> u64 {
        let rows = self.rows();
        if rows.is_empty() {
            return 0;
        }
        let tokens = match self.run(&rows) {
            Ok(tokens) => tokens,
            Err(error) if rows.prompts.is_empty() => {
                for (slot, _) in &rows.slots {
                    if let Some(sequence) = &mut self.sequences[*slot] {
                        sequence.fail(format!("decoding: {error}"));
                    }
                }
                0
            }
            Err(_) => {
                self.run_prompts_alone(&rows, events);
                0
            }
        };
        for &(slot, _) in &rows.slots {
            self.settle(slot, events);
        }
        tokens
    }

    fn rows(&self) -> Rows {
        let behind = |(slot, sequence): (usize, &Option<Sequence>)| {
            let sequence = sequence.as_ref().filter(|_| !self.cache.is_empty(slot))?;
            Some((slot, sequence.tokens_behind(self.cache.len(slot)).len()))
        };
        let slots: Vec<_> = (self.sequences.iter().enumerate())
            .filter_map(behind)
            .collect();
        let open = self.prompts.open.iter().map(|prompt| prompt.rows.rest());
        let waiting = (0..self.sequences.len()).filter(|slot| self.waits_for_prompt(*slot));
        Rows::plan(&slots, &open.collect::<Vec<_>>(), waiting.count())
    }

    /// Computes `rows`: prompts that end in them are known, and sequences whose cache has all of
    /// their tokens get the next; returns how many. After an error all is as it was.
    fn run(&mut self, rows: &Rows) -> Result<u64, ModelError> {
        let Some(held) = &self.held else {
            return Err(ModelError::OutOfRange("no adapter to sample with".into()));
        };
        let next = |&(slot, n): &(usize, usize)| {
            let tokens = self.sequences[slot]
                .as_ref()
                .map_or(&[][..], |s| s.tokens_behind(self.cache.len(slot)));
            (slot, &tokens[..n.min(tokens.len())])
        };
        let slots: Vec<(usize, &[u32])> = rows.slots.iter().map(next).collect();
        let mut wanted = rows.prompts.iter().peekable();
        let mut prompts = Vec::with_capacity(rows.prompts.len());
        for (which, prompt) in self.prompts.open.iter_mut().enumerate() {
            if let Some((_, n)) = wanted.next_if(|(wanted, _)| *wanted == which) {
                prompts.push((&mut prompt.rows, *n));
            }
        }
        let (cache, logits) = (&mut self.cache, &mut self.logits);
        self.decoder
            .advance(cache, &mut prompts, &slots, Some(&held.adapter), logits)?;
        let computed: usize = rows.prompts.iter().map(|prompt| prompt.1).sum();
        self.gauges
            .prompt_tokens
            .fetch_add(computed as u64, Ordering::Relaxed);

        let vocab = self.decoder.config().vocab_size;
        let (of_prompts, of_slots) = self.logits.split_at(rows.prompts.len() * vocab);
        // From the last on, so that the others keep their places.
        let ends = rows.prompts.iter().zip(of_prompts.chunks_exact(vocab));
        for ((which, _), logits) in ends.rev() {
            if self.prompts.open[*which].rows.rest() == 0 {
                self.prompts.finish(*which, logits)?;
            }
        }
        let mut by_slot = vec![None; self.sequences.len()];
        for ((slot, _), logits) in rows.slots.iter().zip(of_slots.chunks_exact(vocab)) {
            by_slot[*slot] = Some(logits);
        }
        let sequences = self.sequences.iter_mut().enumerate();
        let mut complete: Vec<_> = sequences
            .filter_map(|(slot, sequence)| {
                let (sequence, logits) = (sequence.as_mut()?, by_slot[slot]?);
                let behind = sequence.tokens_behind(self.cache.len(slot));
                behind.is_empty().then_some((sequence, logits))
            })
            .collect();
        let (version, text) = (&held.version, &*self.text);
        each_row(&mut complete, |(sequence, logits), scratch| {
            sequence.extend(logits, version, text, scratch);
        });
        Ok(complete.len() as u64)
    }

    /// One bad prompt is no reason to refuse the others, or what decodes beside them, which goes on
    /// in the next step.
    fn run_prompts_alone(&mut self, rows: &Rows, events: &mut Vec<Event>) {
        for &(which, n) in rows.prompts.iter().rev() {
            let alone = Rows {
                prompts: vec![(which, n)],
                slots: Vec::new(),
            };
            let Err(error) = self.run(&alone) else {
                continue;
            };
            let task = self.prompts.open.remove(which).task;
            for slot in 0..self.sequences.len() {
                let sample = self.queue.slots()[slot].as_ref();
                let meant = sample.is_some_and(|sample| same_prompt(&sample.task, &task));
                if meant && self.waits_for_prompt(slot) {
                    let error = format!("prompt of group {}: {error}", task.group_id);
                    self.refuse(slot, error, events);
                }
            }
        }
    }

    /// Takes an ended sequence out of its slot.
    fn settle(&mut self, slot: usize, events: &mut Vec<Event>) {
        let Some(sequence) = self.sequences[slot].take_if(|sequence| sequence.has_ended()) else {
            return;
        };
        let (task, index) = (Arc::clone(sequence.task()), sequence.index());
        self.leave(slot, task.group_id);
        events.push(match sequence.into_completion() {
            Ok(completion) => Event::Completed {
                completion,
                prompt_key: task.prompt_key,
                asked: task.version.clone(),
            },
            Err(error) => failed(&task, index, error),
        });
    }

    /// Fails a sample that waits for its prompt.
    fn refuse(&mut self, slot: usize, error: String, events: &mut Vec<Event>) {
        let Some(sample) = self.queue.slots()[slot].clone() else {
            return;
        };
        self.sequences[slot] = None;
        self.leave(slot, sample.task.group_id);
        events.push(failed(&sample.task, sample.index, error));
    }

    /// The slot's sample is done.
    fn leave(&mut self, slot: usize, group: u64) {
        self.cache.release(slot);
        self.queue.finish(slot);
        if !self.queue.holds_group(group) {
            self.prompts.retain(|other| other != group);
        }
    }
}

fn failed(task: &GroupTask, index: u32, error: String) -> Event {
    Event::Failed(SampleFailed {
        group_id: task.group_id,
        sample_indices: vec![index],
        error,
    })
}

#[cfg(test)]
mod tests;
