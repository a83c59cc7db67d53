//! The engine on a tiny random model.

mod memory;
mod swap;

use std::collections::BTreeMap;

use tina_model::{Adapter, Distribution};
use tina_proto::v1::{FinishReason, PolicyVersion, SamplingParams};

use candle_core::Device;

use super::*;
use crate::testing::{LONGEST, Letters, VOCAB, adapter, decoder, plan};

struct Bench {
    engine: Engine,
    version: PolicyVersion,
    events: Vec<Event>,
}

impl Bench {
    fn new(decoder: &Arc<Decoder>, slots: usize) -> Self {
        Self::of(decoder, slots, plan())
    }

    fn of(decoder: &Arc<Decoder>, slots: usize, plan: RunPlan) -> Self {
        Self::with(decoder, Capacity::fixed(slots), plan)
    }

    fn with(decoder: &Arc<Decoder>, capacity: Capacity, plan: RunPlan) -> Self {
        let engine = Engine::new(Arc::clone(decoder), Arc::new(Letters), plan, capacity).unwrap();
        let mut bench = Self {
            engine,
            version: PolicyVersion::default(),
            events: Vec::new(),
        };
        let loaded = bench.load(0.05);
        assert_eq!(loaded.error, "");
        bench
    }

    fn load(&mut self, shift: f64) -> AdapterLoaded {
        let adapter = self.ready(shift);
        self.version = adapter.version().clone();
        self.submit(Work::Load { adapter, epoch: 1 });
        self.finish();
        match self.events.pop() {
            Some(Event::Loaded(loaded)) => loaded,
            other => panic!("{other:?}"),
        }
    }

    fn ready(&self, shift: f64) -> Box<ReadyAdapter> {
        let (version, bytes) = adapter(shift);
        Box::new(self.engine.loader().load(version, &bytes).unwrap())
    }

    fn submit(&mut self, work: Work) {
        self.engine.submit(work, &mut self.events);
    }

    fn task(&self, group_id: u64, params: SamplingParams) -> Arc<GroupTask> {
        let length = 3 + group_id % 5;
        Arc::new(GroupTask {
            group_id,
            prompt: (0..length)
                .map(|i| ((group_id * 7 + i * 3) % VOCAB as u64) as u32)
                .collect(),
            prompt_key: [group_id as u8; 32],
            params,
            version: self.version.clone(),
            exact: false,
        })
    }

    /// With a prompt of so many tokens.
    fn sample_of(&mut self, group_id: u64, tokens: u32, indices: &[u32]) {
        let task = GroupTask {
            prompt: (0..tokens)
                .map(|i| (i * i + 3 * i) % VOCAB as u32)
                .collect(),
            ..(*self.task(group_id, params(20))).clone()
        };
        self.submit(Work::Sample {
            task: Arc::new(task),
            indices: indices.to_vec(),
            epoch: 1,
        });
    }

    fn sample(&mut self, group_id: u64, indices: &[u32], params: SamplingParams) {
        let task = self.task(group_id, params);
        self.submit(Work::Sample {
            task,
            indices: indices.to_vec(),
            epoch: 1,
        });
    }

    fn finish(&mut self) {
        while !self.engine.is_idle() {
            self.engine.step(&mut self.events);
        }
    }

    /// Tokens and log-prob bits of every completion, by group and index.
    fn completions(&mut self) -> Completions {
        self.finish();
        let taken = |event| match event {
            Event::Completed { completion, .. } => {
                let bits = completion.logprobs.iter().map(|l| l.to_bits()).collect();
                (
                    (completion.group_id, completion.sample_index),
                    (completion.tokens, bits),
                )
            }
            other => panic!("{other:?}"),
        };
        self.events.drain(..).map(taken).collect()
    }
}

type Completions = BTreeMap<(u64, u32), (Vec<u32>, Vec<u32>)>;

fn params(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_p: 1.0,
        max_tokens,
        stop_token_ids: vec![5],
        ..SamplingParams::default()
    }
}

#[test]
fn a_sample_is_the_same_alone_and_in_any_company_slot_and_order() {
    let decoder = decoder();
    let mut all = Bench::new(&decoder, 16);
    for group in 0..4 {
        all.sample(group, &[0, 1, 2, 3], params(20));
    }
    let expected = all.completions();
    assert_eq!(expected.len(), 16);
    let distinct: std::collections::BTreeSet<_> = expected.values().collect();
    assert_eq!(distinct.len(), 16, "samples of a group must differ");
    // Fewer slots than samples, the order turned round, groups in pieces.
    for slots in [1, 3, 5] {
        let mut bench = Bench::new(&decoder, slots);
        for index in [3, 1, 0, 2] {
            for group in (0..4).rev() {
                bench.sample(group, &[index], params(20));
                bench.engine.step(&mut bench.events);
            }
        }
        assert_eq!(bench.completions(), expected, "{slots} slots");
    }
    // Alone.
    let mut bench = Bench::new(&decoder, 2);
    bench.sample(2, &[3], params(20));
    assert_eq!(bench.completions()[&(2, 3)], expected[&(2, 3)]);
}

/// Sequences of up to 800 tokens: longer than a chunk.
fn long() -> RunPlan {
    RunPlan {
        max_sequence_tokens: 800,
        ..plan()
    }
}

#[test]
fn completions_are_the_same_whenever_prompts_come_long_or_short() {
    let decoder = decoder();
    let prompts = [5, 300, 9, 700, 40, 16, 650];
    let mut all = Bench::of(&decoder, 32, long());
    for (group, tokens) in (0..).zip(prompts) {
        all.sample_of(group, tokens, &[0, 1, 2]);
    }
    let expected = all.completions();
    for (slots, steps) in [(2, 0), (3, 2), (30, 1), (30, 5)] {
        let mut bench = Bench::of(&decoder, slots, long());
        for index in [2, 0, 1] {
            for (group, tokens) in (0..).zip(prompts) {
                bench.sample_of(group, tokens, &[index]);
                for _ in 0..steps {
                    bench.engine.step(&mut bench.events);
                }
            }
        }
        assert_eq!(
            bench.completions(),
            expected,
            "{slots} slots, {steps} steps"
        );
    }
}

#[test]
fn what_decodes_gets_a_token_a_step_however_long_the_prompts_that_come() {
    let decoder = decoder();
    let mut bench = Bench::of(&decoder, 4, long());
    let endless = SamplingParams {
        stop_token_ids: vec![],
        ..params(40)
    };
    bench.sample(9, &[0], endless);
    bench.engine.step(&mut bench.events);
    for group in 0..3 {
        bench.sample_of(group, 700, &[0]);
    }
    let gauges = bench.engine.gauges();
    let read = || {
        let tokens = gauges.tokens.load(Ordering::Relaxed);
        (tokens, gauges.prompt_tokens.load(Ordering::Relaxed))
    };
    let (mut before, mut steps) = (read(), 0);
    while bench.engine.sequences[3].is_none() {
        bench.engine.step(&mut bench.events);
        let now = read();
        assert!(now.0 > before.0, "the running sequence waits");
        let rows = now.1 - before.1;
        assert!((1..=512).contains(&rows), "{rows} rows in a step");
        (before, steps) = (now, steps + 1);
    }
    assert!(steps >= 6, "2100 rows in {steps} steps");
}

#[test]
fn a_prompt_can_be_cancelled_half_way_and_asked_for_again() {
    let decoder = decoder();
    let mut plain = Bench::of(&decoder, 4, long());
    plain.sample_of(1, 700, &[0, 1]);
    plain.sample(2, &[0], params(20));
    let expected = plain.completions();
    let mut bench = Bench::of(&decoder, 5, long());
    bench.sample(2, &[0], params(20));
    bench.engine.step(&mut bench.events);
    bench.sample_of(1, 700, &[0, 1, 2]);
    bench.sample_of(3, 500, &[0]);
    bench.engine.step(&mut bench.events);
    // One of those that wait for a prompt, and all that wait for one.
    let cancel = |bench: &mut Bench, group_id, indices: &[u32]| {
        let indices = indices.to_vec();
        bench.submit(Work::Cancel { group_id, indices });
    };
    cancel(&mut bench, 1, &[2]);
    assert_eq!(bench.engine.prompts.open.len(), 2);
    cancel(&mut bench, 3, &[]);
    assert_eq!(bench.engine.prompts.open.len(), 1);
    assert!(bench.engine.prompts.open[0].rows.rest() < 700);
    cancel(&mut bench, 1, &[]);
    assert!(bench.engine.prompts.open.is_empty());
    bench.sample_of(1, 700, &[0, 1]);
    assert_eq!(bench.completions(), expected);
    assert!(bench.engine.prompts.is_empty());
}

#[test]
fn a_prompt_that_cannot_be_computed_fails_alone() {
    let decoder = decoder();
    let mut plain = Bench::new(&decoder, 8);
    plain.sample(1, &[0, 1], params(20));
    let expected = plain.completions();
    let mut bench = Bench::new(&decoder, 8);
    let bad = Arc::new(GroupTask {
        prompt: vec![1, VOCAB as u32],
        ..(*bench.task(2, params(20))).clone()
    });
    bench.submit(Work::Sample {
        task: bad,
        indices: vec![0, 1],
        epoch: 1,
    });
    bench.sample(1, &[0, 1], params(20));
    bench.engine.step(&mut bench.events);
    for event in bench.events.drain(..2) {
        let Event::Failed(failed) = event else {
            panic!("{event:?}")
        };
        assert_eq!(failed.group_id, 2);
        assert!(failed.error.contains("prompt of group 2"), "{failed:?}");
        assert!(failed.error.contains("token id 40"), "{failed:?}");
    }
    assert_eq!(bench.completions(), expected);
}

#[test]
fn recorded_log_probs_are_those_of_the_whole_sequence_to_the_last_bit() {
    let decoder = decoder();
    let mut bench = Bench::new(&decoder, 3);
    bench.sample(1, &[0, 1, 2, 3], params(20));
    let prompt = bench.task(1, params(20)).prompt.clone();
    let (_, bytes) = adapter(0.05);
    let adapter =
        Adapter::from_safetensors(&bytes, &plan().lora, decoder.config(), &Device::Cpu).unwrap();
    for (tokens, bits) in bench.completions().values() {
        let whole = [&prompt[..], tokens].concat();
        let again = decoder
            .sequence_log_probs(&whole, Some(&adapter), &Distribution::FULL)
            .unwrap();
        let again: Vec<u32> = again[prompt.len() - 1..]
            .iter()
            .map(|logprob| logprob.to_bits())
            .collect();
        assert_eq!(*bits, again);
    }
}

#[test]
fn the_adapter_that_is_loaded_decides_what_is_sampled() {
    let decoder = decoder();
    let mut bench = Bench::new(&decoder, 4);
    bench.sample(
        1,
        &[0],
        SamplingParams {
            temperature: 0.0,
            ..params(20)
        },
    );
    let before = bench.completions();
    let probe = bench.load(0.05).probe_logprobs;
    let other = bench.load(-0.2).probe_logprobs;
    assert_eq!((probe.len(), other.len()), (3, 3));
    assert_ne!(probe, other);
    bench.sample(
        1,
        &[0],
        SamplingParams {
            temperature: 0.0,
            ..params(20)
        },
    );
    assert_ne!(bench.completions(), before);
}

#[test]
fn a_version_that_is_not_held_is_refused_and_named() {
    let decoder = decoder();
    let mut bench = Bench::new(&decoder, 2);
    let old = bench.task(1, params(5));
    bench.load(0.1);
    bench.submit(Work::Sample {
        task: Arc::clone(&old),
        indices: vec![4],
        epoch: 1,
    });
    let [Event::Failed(failed)] = &bench.events[..] else {
        panic!("{:?}", bench.events)
    };
    assert_eq!((failed.group_id, &failed.sample_indices[..]), (1, &[4][..]));
    assert!(
        failed.error.contains(&old.version.short().to_string()),
        "{}",
        failed.error
    );
    let held = &bench.version.digest_hex()[..8];
    assert!(failed.error.contains(held), "{}", failed.error);
}

#[test]
fn samples_under_way_end_under_the_old_adapter() {
    let decoder = decoder();
    let mut plain = Bench::new(&decoder, 2);
    plain.sample(1, &[0, 1, 2], params(20));
    let expected = plain.completions();
    let mut bench = Bench::new(&decoder, 2);
    bench.sample(1, &[0, 1, 2], params(20));
    bench.engine.step(&mut bench.events);
    let adapter = bench.ready(-0.2);
    bench.submit(Work::Load { adapter, epoch: 1 });
    bench.finish();
    assert!(
        matches!(bench.events.pop(), Some(Event::Loaded(_))),
        "the load comes last"
    );
    assert_eq!(bench.completions(), expected);
}

#[test]
fn never_more_than_the_slots_are_decoded_and_the_rest_waits() {
    let decoder = decoder();
    let mut bench = Bench::new(&decoder, 3);
    bench.sample(1, &[0, 1, 2, 3, 4, 5, 6], params(6));
    let gauges = bench.engine.gauges();
    let mut most = 0;
    while !bench.engine.is_idle() {
        bench.engine.step(&mut bench.events);
        let used = gauges.slots_used.load(Ordering::Relaxed);
        most = most.max(used);
        assert!(used <= 3);
    }
    assert_eq!(most, 3);
    let tokens: usize = bench
        .completions()
        .values()
        .map(|(tokens, _)| tokens.len())
        .sum();
    assert_eq!(gauges.tokens.load(Ordering::Relaxed), tokens as u64);
}

#[test]
fn cancelled_samples_leave_their_slots_and_disturb_nobody() {
    let decoder = decoder();
    let mut plain = Bench::new(&decoder, 8);
    plain.sample(1, &[0, 1], params(20));
    plain.sample(2, &[0, 1], params(20));
    let mut expected = plain.completions();
    expected.retain(|(group, index), _| *group == 2 || *index == 1);
    let mut bench = Bench::new(&decoder, 2);
    bench.sample(1, &[0, 1], params(20));
    bench.sample(2, &[0, 1], params(20));
    bench.sample(3, &[0, 1], params(20));
    bench.engine.step(&mut bench.events);
    bench.submit(Work::Cancel {
        group_id: 1,
        indices: vec![0],
    });
    bench.submit(Work::Cancel {
        group_id: 3,
        indices: vec![],
    });
    assert_eq!(bench.completions(), expected);
    assert!(bench.engine.prompts.is_empty());
}

#[test]
fn stop_tokens_stop_strings_and_limits_end_completions() {
    let decoder = decoder();
    let mut bench = Bench::new(&decoder, 4);
    let free = SamplingParams {
        stop_token_ids: vec![],
        ..params(LONGEST as u32)
    };
    bench.sample(1, &[0], free.clone());
    let (tokens, _) = bench.completions()[&(1, 0)].clone();
    let prompt = bench.task(1, free.clone()).prompt.len();
    assert_eq!(tokens.len(), LONGEST - prompt, "the sequence limit");
    // Each way to stop, at a token that is known to come.
    let third = SamplingParams {
        stop_token_ids: vec![tokens[2]],
        ..free.clone()
    };
    let text = Letters.text(&tokens).unwrap();
    let string = SamplingParams {
        stop: vec![text[3..6].to_owned()],
        ..free.clone()
    };
    let limit = SamplingParams {
        max_tokens: 4,
        ..free
    };
    let first_end = text.find(&text[3..6]).unwrap() + 3;
    let first_stop = tokens.iter().position(|token| *token == tokens[2]).unwrap() + 1;
    for (params, length, reason) in [
        (third, first_stop, FinishReason::Stop),
        (string, first_end, FinishReason::Stop),
        (limit, 4, FinishReason::Length),
    ] {
        bench.sample(1, &[0], params);
        bench.finish();
        let Some(Event::Completed { completion, .. }) = bench.events.pop() else {
            panic!("no completion")
        };
        assert_eq!(completion.tokens, tokens[..length]);
        assert_eq!(completion.finish_reason(), reason);
    }
}
