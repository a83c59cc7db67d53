//! The sampling engine: continuous batching over one decoder. Synchronous; [`Engine::step`] does
//! one round of work, and one thread of its own drives it (see [`crate::thread`]).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use tina_model::{Decoder, KvCache, ModelError, PromptKv, Scratch, each_row};
use tina_proto::v1::{AdapterLoaded, Completion, SampleFailed};

use crate::{
    adapter::{AdapterLoader, ReadyAdapter},
    check::RunPlan,
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
    /// Sample with this adapter from now on; samples that were asked for over the present
    /// connection end under the old one first.
    Load {
        /// The adapter.
        adapter: Box<ReadyAdapter>,
        /// The connection that asked for it.
        epoch: u64,
    },
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
    /// Tokens sampled since the start.
    pub tokens: AtomicU64,
}

/// A group's prompt, computed once for all its completions.
struct Prompt {
    task: Arc<GroupTask>,
    kv: PromptKv,
    /// Of the last token: what first tokens are sampled from.
    logits: Vec<f32>,
}

/// Samples completions, as many at a time as it has slots.
pub struct Engine {
    decoder: Arc<Decoder>,
    text: Arc<dyn TokenText>,
    plan: RunPlan,
    cache: KvCache,
    queue: Queue,
    /// What is under way, by slot.
    sequences: Vec<Option<Sequence>>,
    prompts: HashMap<u64, Prompt>,
    /// The adapter that is sampled with.
    held: Option<Box<ReadyAdapter>>,
    next: Option<Box<ReadyAdapter>>,
    /// Of a decoding step, `[n, vocab]`.
    logits: Vec<f32>,
    scratch: Scratch,
    gauges: Arc<Gauges>,
}

impl Engine {
    /// An engine of `slots` slots without an adapter; fails when the device has no room for them.
    pub fn new(
        decoder: Arc<Decoder>,
        text: Arc<dyn TokenText>,
        plan: RunPlan,
        slots: usize,
    ) -> Result<Self, ModelError> {
        let cache = decoder.new_cache(slots, plan.max_sequence_tokens)?;
        Ok(Self {
            decoder,
            text,
            plan,
            cache,
            queue: Queue::new(slots),
            sequences: std::iter::repeat_with(|| None).take(slots).collect(),
            prompts: HashMap::new(),
            held: None,
            next: None,
            logits: Vec::new(),
            scratch: Scratch::default(),
            gauges: Arc::default(),
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
        }
        self.prompts
            .retain(|group, _| self.queue.holds_group(*group));
        self.report_load(0);
    }

    fn add(&mut self, task: &Arc<GroupTask>, indices: &[u32], epoch: u64) -> Result<(), String> {
        let digest = task
            .version
            .checked_digest()
            .map_err(|error| error.to_string())?;
        match &self.held {
            Some(held) if held.digest == digest => {}
            Some(held) => {
                return Err(format!(
                    "policy version {} is asked for; the worker holds the adapter {}",
                    task.version.short(),
                    tina_proto::version::hex(&held.digest[..4])
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

    /// Takes an adapter if one waits and nothing runs, fills free slots, and decodes one token for
    /// every slot in use.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        if self.queue.is_idle()
            && let Some(adapter) = self.next.take()
        {
            events.push(Event::Loaded(self.take(adapter)));
        }
        let tokens = self.place(events) + self.decode(events);
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
    }

    fn take(&mut self, adapter: Box<ReadyAdapter>) -> AdapterLoaded {
        let start = Instant::now();
        let mut loaded = AdapterLoaded {
            version: Some(adapter.version.clone()),
            probe_logprobs: adapter.probe_logprobs.clone(),
            seconds: adapter.seconds,
            ..AdapterLoaded::default()
        };
        // The memory of the one before is given back here as well.
        self.held = Some(adapter);
        loaded.pause_seconds = start.elapsed().as_secs_f64();
        loaded
    }

    /// Gives waiting samples free slots and samples their first tokens; returns how many.
    fn place(&mut self, events: &mut Vec<Event>) -> u64 {
        let mut tokens = 0;
        loop {
            let placed: Vec<_> = std::iter::from_fn(|| self.queue.place()).collect();
            if placed.is_empty() {
                return tokens;
            }
            let tasks: Vec<_> = placed.iter().map(|(_, sample)| &sample.task).collect();
            let failed = self.prefill(&tasks);
            for (slot, sample) in placed {
                let begun = match failed.get(&sample.task.group_id) {
                    Some(error) => Err(error.clone()),
                    None => self.begin(slot, &sample.task, sample.index),
                };
                match begun {
                    Ok(sequence) => {
                        tokens += 1;
                        self.sequences[slot] = Some(sequence);
                        self.settle(slot, events);
                    }
                    Err(error) => {
                        self.cache.release(slot);
                        self.queue.finish(slot);
                        events.push(Event::Failed(SampleFailed {
                            group_id: sample.task.group_id,
                            sample_indices: vec![sample.index],
                            error,
                        }));
                    }
                }
            }
        }
    }

    /// Computes the prompts of `tasks` that are not known yet, together; what is wrong with which
    /// group.
    fn prefill(&mut self, tasks: &[&Arc<GroupTask>]) -> HashMap<u64, String> {
        let mut failed = HashMap::new();
        let mut new: Vec<&Arc<GroupTask>> = Vec::new();
        for task in tasks {
            let known = self.prompts.get(&task.group_id);
            let listed = new.iter().any(|other| other.group_id == task.group_id);
            if !listed && known.is_none_or(|prompt| prompt.task.prompt != task.prompt) {
                new.push(task);
            }
        }
        let Some(held) = &self.held else {
            let error = "the worker holds no adapter";
            return new.iter().map(|t| (t.group_id, error.to_owned())).collect();
        };
        let mut compute = |tasks: &[&Arc<GroupTask>]| {
            let prompts: Vec<&[u32]> = tasks.iter().map(|task| &task.prompt[..]).collect();
            let done = self
                .decoder
                .prefill(&mut self.cache, &prompts, Some(&held.adapter))?;
            for (task, (kv, logits)) in tasks.iter().zip(done) {
                let task = Arc::clone(task);
                let prompt = Prompt { kv, logits, task };
                self.prompts.insert(prompt.task.group_id, prompt);
            }
            Ok::<_, ModelError>(())
        };
        if new.is_empty() || compute(&new).is_ok() {
            return failed;
        }
        // One bad prompt is no reason to refuse the others.
        for task in new {
            if let Err(error) = compute(&[task]) {
                let error = format!("prompt of group {}: {error}", task.group_id);
                failed.insert(task.group_id, error);
            }
        }
        failed
    }

    fn begin(
        &mut self,
        slot: usize,
        task: &Arc<GroupTask>,
        index: u32,
    ) -> Result<Sequence, String> {
        let held = self.held.as_ref().ok_or("the worker holds no adapter")?;
        let prompt = self
            .prompts
            .get(&task.group_id)
            .filter(|prompt| prompt.task.prompt == task.prompt)
            .ok_or("another prompt under the same group's name came between")?;
        self.cache
            .attach(slot, &prompt.kv)
            .map_err(|error| error.to_string())?;
        let uniforms = Uniforms::new(self.plan.seed, &task.prompt_key, index, &held.digest);
        let mut sequence = Sequence::new(
            Arc::clone(task),
            index,
            uniforms,
            self.plan.max_sequence_tokens,
        );
        sequence.extend(&prompt.logits, &*self.text, &mut self.scratch);
        Ok(sequence)
    }

    /// One token for every slot in use; returns how many.
    fn decode(&mut self, events: &mut Vec<Event>) -> u64 {
        let step: Vec<(usize, u32)> = self
            .sequences
            .iter()
            .enumerate()
            .filter_map(|(slot, sequence)| Some((slot, sequence.as_ref()?.last_token()?)))
            .collect();
        if step.is_empty() {
            return 0;
        }
        let adapter = self.held.as_ref().map(|held| &held.adapter);
        let done = self
            .decoder
            .decode(&mut self.cache, &step, adapter, &mut self.logits);
        let sequences = self.sequences.iter_mut().flatten();
        match done {
            Ok(()) => {
                let vocab = self.decoder.config().vocab_size;
                let mut rows: Vec<_> = sequences.zip(self.logits.chunks_exact(vocab)).collect();
                each_row(&mut rows, |(sequence, logits), scratch| {
                    sequence.extend(logits, &*self.text, scratch);
                });
            }
            Err(error) => {
                for sequence in sequences {
                    sequence.fail(format!("decoding: {error}"));
                }
            }
        }
        for &(slot, _) in &step {
            self.settle(slot, events);
        }
        step.len() as u64
    }

    /// Takes an ended sequence out of its slot.
    fn settle(&mut self, slot: usize, events: &mut Vec<Event>) {
        let Some(sequence) = self.sequences[slot].take_if(|sequence| sequence.has_ended()) else {
            return;
        };
        self.cache.release(slot);
        self.queue.finish(slot);
        let (task, index) = (Arc::clone(sequence.task()), sequence.index());
        if !self.queue.holds_group(task.group_id) {
            self.prompts.remove(&task.group_id);
        }
        events.push(match sequence.into_completion() {
            Ok(completion) => Event::Completed {
                completion,
                prompt_key: task.prompt_key,
            },
            Err(error) => Event::Failed(SampleFailed {
                group_id: task.group_id,
                sample_indices: vec![index],
                error,
            }),
        });
    }
}

#[cfg(test)]
mod tests;
