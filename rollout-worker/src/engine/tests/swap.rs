//! Adapters taken between two decoding steps.

use tina_proto::v1::VersionSpan;

use super::*;

fn swapping(swap: AdapterSwap) -> RunPlan {
    RunPlan { swap, ..long() }
}

/// All tokens that the limit allows.
fn endless(tokens: u32) -> SamplingParams {
    SamplingParams {
        stop_token_ids: vec![],
        ..params(tokens)
    }
}

impl Bench {
    fn step(&mut self) {
        self.engine.step(&mut self.events);
    }

    /// An adapter of this step, on its way to the engine.
    fn offer(&mut self, step: u64, shift: f64) -> PolicyVersion {
        let mut adapter = self.ready(shift);
        adapter.version.step = step;
        let version = adapter.version.clone();
        self.submit(Work::Load { adapter, epoch: 1 });
        version
    }

    fn ask(&mut self, group_id: u64, version: &PolicyVersion, exact: bool, tokens: u32) {
        let task = GroupTask {
            version: version.clone(),
            exact,
            ..(*self.task(group_id, endless(tokens))).clone()
        };
        self.submit(Work::Sample {
            task: Arc::new(task),
            indices: vec![0],
            epoch: 1,
        });
    }

    fn holds(&self, version: &PolicyVersion) -> bool {
        self.engine.held.as_ref().unwrap().version == *version
    }

    /// What has completed or failed, by group and index; all loads are taken out.
    fn outcomes(&mut self) -> BTreeMap<(u64, u32), Result<Completion, String>> {
        let outcome = |event| match event {
            Event::Completed { completion: c, .. } => Some(((c.group_id, c.sample_index), Ok(c))),
            Event::Failed(f) => Some(((f.group_id, f.sample_indices[0]), Err(f.error))),
            Event::Loaded(loaded) => {
                assert!(loaded.pause_seconds < 0.02, "{loaded:?}");
                None
            }
        };
        self.events.drain(..).filter_map(outcome).collect()
    }
}

fn spans(completion: &Completion) -> Vec<(u32, PolicyVersion)> {
    let span = |span: &VersionSpan| (span.start, span.version.clone().unwrap());
    completion.versions.iter().map(span).collect()
}

/// Tokens `from..` of a completion by a fresh sequence that is forced to what comes before each,
/// under the adapter of `shift`; the uniforms are those of the version that it began under.
fn forced(
    decoder: &Decoder,
    prompt: &[u32],
    completion: &Completion,
    from: usize,
    shift: f64,
) -> (Vec<u32>, Vec<u32>) {
    let (_, bytes) = adapter(shift);
    let adapter =
        Adapter::from_safetensors(&bytes, &plan().lora, decoder.config(), &Device::Cpu).unwrap();
    let first = completion.versions[0].version.as_ref().unwrap();
    let (key, digest) = (
        [completion.group_id as u8; 32],
        first.checked_digest().unwrap(),
    );
    let mut uniforms = Uniforms::new(plan().seed, &key, completion.sample_index, &digest);
    let mut cache = decoder.new_cache(1, 800).unwrap();
    let mut drawn = Vec::new();
    for at in 0..completion.tokens.len() {
        let uniform = uniforms.next_uniform();
        if at < from {
            continue;
        }
        let whole = [prompt, &completion.tokens[..at]].concat();
        let known = decoder.prefill(&mut cache, &[&whole], Some(&adapter));
        let logits = known.unwrap().remove(0).1;
        let sampled = Distribution::FULL.sample(&logits, uniform, &mut Scratch::default());
        drawn.push((sampled.token, sampled.logprob.to_bits()));
    }
    drawn.into_iter().unzip()
}

fn recorded(completion: &Completion, range: std::ops::Range<usize>) -> (Vec<u32>, Vec<u32>) {
    let bits = completion.logprobs[range.clone()].iter();
    let bits = bits.map(|logprob| logprob.to_bits()).collect();
    (completion.tokens[range].to_vec(), bits)
}

#[test]
fn an_adapter_is_taken_between_two_steps_and_each_token_says_which_sampled_it() {
    let decoder = decoder();
    for swap in [AdapterSwap::Keep, AdapterSwap::Recompute] {
        let mut bench = Bench::of(&decoder, 4, swapping(swap));
        let old = bench.version.clone();
        // Two of a group, one of another: all of them three steps apart.
        bench.sample(1, &[0], endless(40));
        (0..3).for_each(|_| bench.step());
        bench.sample(2, &[0], endless(40));
        (0..3).for_each(|_| bench.step());
        bench.sample(1, &[1], endless(40));
        (0..3).for_each(|_| bench.step());
        let at: Vec<usize> = (bench.engine.sequences.iter().flatten())
            .map(|sequence| sequence.tokens_behind(0).len())
            .collect();
        assert_eq!(at.len(), 3);
        let new = bench.offer(2, -0.2);
        bench.step();
        assert!(bench.holds(&new), "{swap:?}");
        bench.finish();
        let prompts = [1, 2].map(|group| bench.task(group, params(1)).prompt.clone());
        let outcomes = bench.outcomes();
        for (name, at) in [(1, 0), (2, 0), (1, 1)].into_iter().zip(at) {
            let completion = outcomes[&name].as_ref().unwrap();
            let expected = [(0, old.clone()), (at as u32, new.clone())];
            assert_eq!(spans(completion), expected, "{swap:?} {name:?}");
            let prompt = &prompts[name.0 as usize - 1];
            let end = completion.tokens.len();
            let before = forced(&decoder, prompt, completion, 0, 0.05);
            let before = (before.0[..at].to_vec(), before.1[..at].to_vec());
            assert_eq!(recorded(completion, 0..at), before);
            let after = forced(&decoder, prompt, completion, at, -0.2);
            let equal = recorded(completion, at..end) == after;
            assert_eq!(equal, swap == AdapterSwap::Recompute, "{swap:?} {name:?}");
        }
    }
}

#[test]
fn caches_are_computed_anew_in_chunks_beside_what_begins_meanwhile() {
    let decoder = decoder();
    let mut bench = Bench::of(&decoder, 8, swapping(AdapterSwap::Recompute));
    for (group, tokens) in [(1, 700), (2, 300), (3, 5)] {
        bench.sample_of(group, tokens, &[0, 1]);
    }
    (0..12).for_each(|_| bench.step());
    let begun = bench.engine.sequences.iter().flatten().count();
    let new = bench.offer(2, -0.2);
    bench.step();
    bench.ask(4, &new, false, 10);
    bench.finish();
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 7);
    let mut swapped = 0;
    for ((group, _), completion) in &outcomes {
        let completion = completion.as_ref().unwrap();
        let spans = spans(completion);
        if spans.last().unwrap().1 != new {
            continue; // it had ended before
        }
        let prompt: Vec<u32> = match group {
            4 => bench.task(4, params(1)).prompt.clone(),
            _ => {
                let tokens = [700, 300, 5][*group as usize - 1];
                (0..tokens)
                    .map(|i| (i * i + 3 * i) % VOCAB as u32)
                    .collect()
            }
        };
        let at = spans.last().unwrap().0 as usize;
        let after = forced(&decoder, &prompt, completion, at, -0.2);
        assert_eq!(recorded(completion, at..completion.tokens.len()), after);
        swapped += usize::from(spans.len() == 2);
    }
    assert!(
        begun >= 2 && swapped >= 2,
        "{begun} begun, {swapped} swapped"
    );
}

#[test]
fn what_begins_after_a_swap_begins_with_a_prompt_of_the_new_adapter() {
    let decoder = decoder();
    for swap in [AdapterSwap::Keep, AdapterSwap::Recompute] {
        let mut fresh = Bench::of(&decoder, 4, swapping(swap));
        let new = fresh.offer(2, -0.2);
        fresh.step();
        fresh.outcomes();
        fresh.version = new.clone();
        fresh.sample(1, &[1], endless(20));
        fresh.finish();
        let expected = fresh.outcomes().remove(&(1, 1)).unwrap().unwrap();

        let mut bench = Bench::of(&decoder, 2, swapping(swap));
        bench.sample(1, &[0], endless(20));
        bench.sample(2, &[0], endless(20));
        // Waits for a slot until the new adapter is there, and asks for the old one.
        bench.sample(1, &[1], endless(20));
        (0..4).for_each(|_| bench.step());
        bench.offer(2, -0.2);
        bench.finish();
        let found = bench.outcomes().remove(&(1, 1)).unwrap().unwrap();
        assert_eq!(spans(&found), [(0, new.clone())]);
        assert_eq!(found.tokens, expected.tokens, "{swap:?}");
        assert_eq!(found.logprobs, expected.logprobs, "{swap:?}");
    }
}

#[test]
fn exact_samples_end_under_their_version_and_a_new_adapter_waits_for_them() {
    let decoder = decoder();
    let mut bench = Bench::of(&decoder, 3, swapping(AdapterSwap::Keep));
    let old = bench.version.clone();
    bench.ask(1, &old, true, 12);
    bench.ask(2, &old, false, 30);
    bench.step();
    let new = bench.offer(2, -0.2);
    // While it waits, more of the old one are taken.
    bench.ask(3, &old, true, 20);
    while bench.engine.queue.holds_group(1) || bench.engine.queue.holds_group(3) {
        assert!(bench.holds(&old));
        bench.step();
    }
    bench.step();
    assert!(bench.holds(&new));
    bench.finish();
    let outcomes = bench.outcomes();
    let of = |group| spans(outcomes[&(group, 0)].as_ref().unwrap());
    assert_eq!(
        (of(1), of(3)),
        (vec![(0, old.clone())], vec![(0, old.clone())])
    );
    let mixed = of(2);
    assert_eq!((&mixed[0].1, &mixed[1].1, mixed.len()), (&old, &new, 2));
}

#[test]
fn a_cancelled_exact_sample_holds_no_adapter_up() {
    let decoder = decoder();
    let mut bench = Bench::of(&decoder, 2, swapping(AdapterSwap::Recompute));
    let old = bench.version.clone();
    bench.ask(1, &old, true, 50);
    bench.ask(2, &old, false, 20);
    bench.step();
    let new = bench.offer(2, -0.2);
    bench.step();
    assert!(bench.holds(&old));
    let indices = vec![];
    bench.submit(Work::Cancel {
        group_id: 1,
        indices,
    });
    bench.step();
    assert!(bench.holds(&new));
    // And one whose cache is being computed anew leaves nothing behind.
    let indices = vec![0];
    bench.submit(Work::Cancel {
        group_id: 2,
        indices,
    });
    assert!(bench.engine.is_idle() && bench.engine.prompts.is_empty());
}

#[test]
fn an_older_version_will_do_unless_it_must_be_exact_and_a_newer_one_is_refused() {
    let decoder = decoder();
    for swap in [AdapterSwap::Drain, AdapterSwap::Keep] {
        let mut bench = Bench::of(&decoder, 4, swapping(swap));
        let old = bench.version.clone();
        let new = bench.offer(5, -0.2);
        bench.step();
        bench.ask(1, &old, false, 5);
        bench.ask(2, &old, true, 5);
        bench.ask(3, &PolicyVersion::of_bytes(6, b"to come"), false, 5);
        bench.ask(4, &new, true, 5);
        bench.finish();
        let outcomes = bench.outcomes();
        let taken = outcomes[&(1, 0)].as_ref();
        assert_eq!(taken.is_ok(), swap == AdapterSwap::Keep);
        if let Ok(completion) = taken {
            assert_eq!(spans(completion), [(0, new.clone())]);
        }
        for group in [2, 3] {
            let error = outcomes[&(group, 0)].as_ref().unwrap_err();
            assert!(error.contains(&new.short().to_string()), "{error}");
        }
        assert_eq!(spans(outcomes[&(4, 0)].as_ref().unwrap()), [(0, new)]);
    }
}

#[test]
fn an_adapter_under_another_name_changes_nothing_but_the_name() {
    let decoder = decoder();
    let mut bench = Bench::of(&decoder, 4, swapping(AdapterSwap::Keep));
    let old = bench.version.clone();
    let renamed = PolicyVersion {
        step: 3,
        ..old.clone()
    };
    bench.ask(1, &old, false, 5);
    bench.step();
    bench.submit(Work::Rename(renamed.clone()));
    let earlier = PolicyVersion::of_bytes(2, b"gone by");
    bench.ask(2, &earlier, false, 5);
    bench.finish();
    let outcomes = bench.outcomes();
    let of = |group| spans(outcomes[&(group, 0)].as_ref().unwrap());
    assert_eq!((of(1), of(2)), (vec![(0, old)], vec![(0, renamed)]));
}
