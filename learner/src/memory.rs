//! The memory of a learning step: what it takes in all, and what of it activations may have.
//! Closed forms; `docs/performance.md` has the same as text.

use tina_model::{Adapter, Decoder, PassMemory, PassShape};

use crate::{settings::TrainSettings, tree};

/// The program itself, its threads, and what the allocator holds back.
const PROCESS: usize = 24 << 20;

/// Copies of the adapter's parameters, in f32, at the end of a step: the old adapter, packed for
/// both passes; the new one, packed for the probe; two moments, old and new; two files; and, at
/// different times, the gradients and what is written into a file.
const ADAPTER_COPIES: usize = 13;

/// Those that stand while passes are computed: the old adapter, packed for both passes; two moments
/// and the file; and the gradient of a pass. Sums of passes that wait for others come on top
/// ([`tree::depth`]).
const PASS_COPIES: usize = 7;

/// Bytes that a learning step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMemory {
    /// Of its largest pass.
    pub pass: PassMemory,
    /// Adapter, optimiser, gradients.
    pub adapter: usize,
    /// Whether the base model is computed as well, for the KL term.
    pub base: bool,
}

impl StepMemory {
    /// A step of `settings` whose largest pass has this shape.
    pub fn new(
        decoder: &Decoder,
        adapter: &Adapter,
        settings: &TrainSettings,
        shape: &PassShape,
    ) -> Self {
        let floats = ADAPTER_COPIES * adapter.parameter_count() as usize;
        Self {
            pass: decoder.pass_memory(shape, Some(&settings.lora)),
            adapter: floats * size_of::<f32>(),
            base: settings.loss.kl.in_loss(),
        }
    }

    /// The same of a step of so many passes, whose sums of gradients wait for each other.
    #[must_use]
    pub(crate) fn with_passes(self, adapter: &Adapter, passes: usize) -> Self {
        let copies = PASS_COPIES + tree::depth(passes);
        let floats = copies * adapter.parameter_count() as usize;
        Self {
            adapter: self.adapter.max(floats * size_of::<f32>()),
            ..self
        }
    }

    fn rest(&self) -> usize {
        PROCESS + self.adapter + self.pass.rest()
    }

    /// The most that the process takes when the last `kept` layers keep their activations.
    pub fn peak(&self, kept: usize) -> usize {
        // The base model is computed in the memory of one layer, as are layers that weren't kept.
        let base = self.base && kept >= self.pass.layers;
        self.rest() + self.pass.activations(kept) + if base { self.pass.layer } else { 0 }
    }

    /// Room for activations if the process is to take no more than `limit`; `None`: no limit.
    pub fn for_activations(&self, limit: Option<usize>) -> usize {
        let Some(limit) = limit else {
            return usize::MAX;
        };
        let bytes = limit.saturating_sub(self.rest());
        let all = self.pass.activations(self.pass.layers);
        if self.base && bytes < all + self.pass.layer {
            return bytes.min(all.saturating_sub(1));
        }
        bytes
    }

    /// Layers that keep their activations under `limit`.
    pub fn layers_kept(&self, limit: Option<usize>) -> usize {
        self.pass.layers_kept(self.for_activations(limit))
    }
}

/// What a learner may take where nobody said: what it holds, and half of what is available, since
/// it may not be alone. `None` where the device does not tell.
pub(crate) fn default_limit(decoder: &Decoder) -> Option<usize> {
    let weights = decoder.pass_memory(&PassShape::default(), None).weights;
    Some(weights + decoder.available_bytes()? / 2)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, sync::Arc};

    use candle_core::Device;
    use tina_model::{Dtype, LoadOptions, LoraModule, MapWeights, ModelConfig};

    use super::*;
    use crate::{
        batch::{Batch, Group, Sample},
        host::peak_rss_bytes,
        step::Progress,
        testing,
        trainer::Trainer,
    };

    fn memory(base: bool) -> StepMemory {
        StepMemory {
            pass: PassMemory {
                weights: 1000,
                layers: 4,
                layer: 100,
                input: 10,
                working: 20,
                vocabulary: 30,
            },
            adapter: 50,
            base,
        }
    }

    #[test]
    fn a_limit_is_kept_to_where_it_can_be() {
        for base in [false, true] {
            let memory = memory(base);
            assert_eq!(memory.layers_kept(None), 4);
            assert_eq!(memory.layers_kept(Some(0)), 0);
            let mut before = 0;
            for limit in (memory.peak(0)..memory.peak(0) + 600).step_by(7) {
                let kept = memory.layers_kept(Some(limit));
                assert!(memory.peak(kept) <= limit, "{kept} layers in {limit}");
                assert!(kept >= before, "less in {limit} than in a smaller limit");
                before = kept;
            }
            assert_eq!(before, 4);
        }
    }

    const CASE: &str = "TINA_MEMORY_TEST_CASE";

    /// SmolLM2-135M, or a small model whose activations outweigh everything else.
    fn shape(smol: bool) -> ModelConfig {
        let mut json = serde_json::json!({
            "model_type": "llama", "vocab_size": 8192, "hidden_size": 256,
            "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        if smol {
            for (key, value) in [
                ("vocab_size", 49_152),
                ("hidden_size", 576),
                ("intermediate_size", 1536),
                ("num_hidden_layers", 30),
                ("num_attention_heads", 9),
                ("num_key_value_heads", 3),
            ] {
                json[key] = value.into();
            }
        }
        ModelConfig::from_hf_json(&json.to_string()).unwrap()
    }

    /// Peak that the formula gives, and peak resident memory of this process, in MiB.
    fn measure(smol: bool, dtype: Dtype, kept: usize, kl_beta: f64) -> (usize, usize) {
        let config = shape(smol);
        let weights = MapWeights::random(&config, 5).unwrap();
        let options = LoadOptions {
            dtype,
            ..LoadOptions::new(Device::Cpu, true)
        };
        let decoder = Arc::new(tina_model::Decoder::load(&config, &weights, &options).unwrap());
        drop(weights);
        let mut settings = testing::settings();
        settings.lora.rank = 16;
        settings.lora.target_modules = LoraModule::ALL.to_vec();
        settings.loss.kl.beta = kl_beta;
        settings.micro_batch_tokens = 1024;
        let mut trainer = Trainer::init(decoder.clone(), settings.clone()).unwrap();
        // 4 passes of 1 prompt of 40 tokens with 15 completions of 64.
        let groups = (0..4)
            .map(|g| Group {
                prompt: (0..40).map(|i| (g * 97 + i * 31) % 8192).collect(),
                samples: (0..15)
                    .map(|s| Sample {
                        index: s,
                        tokens: (0..64).map(|i| (g * 7 + s * 131 + i * 17) % 8192).collect(),
                        logprobs: vec![-9.0; 64],
                        reward: Some(f64::from(s % 2)),
                        truncated: false,
                        staleness: (0, 0),
                    })
                    .collect(),
                id: u64::from(g),
                distribution: tina_model::Distribution::FULL,
            })
            .collect();
        let shape = PassShape::at_most(985, 104);
        let memory = StepMemory::new(&decoder, trainer.adapter(), &settings, &shape);
        trainer.limit_memory(Some(memory.peak(kept)));
        let mut batch = Batch {
            version: trainer.version().clone(),
            groups,
        };
        for _ in 0..2 {
            batch.version = trainer.version().clone();
            trainer.step(&batch, &Progress::default()).unwrap();
        }
        (memory.peak(kept) >> 20, peak_rss_bytes() as usize >> 20)
    }

    /// Runs one case where it is asked for by name; see the next test.
    #[test]
    fn case_of_its_own_process() {
        let Ok(case) = std::env::var(CASE) else {
            return;
        };
        let words: Vec<&str> = case.split(' ').collect();
        let dtype = words[1].parse().unwrap();
        let (kept, kl_beta) = (words[2].parse().unwrap(), words[3].parse().unwrap());
        let (formula, peak) = measure(words[0] == "smol", dtype, kept, kl_beta);
        println!("\nfound {formula} {peak}");
    }

    fn check(cases: &[&str]) {
        for case in cases {
            let child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "memory::tests::case_of_its_own_process",
                    "--nocapture",
                ])
                .env(CASE, case)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stdout);
            let found = text.lines().find_map(|line| line.strip_prefix("found "));
            let found = found.unwrap_or_else(|| panic!("{case}: {text}"));
            println!("{case}: formula and peak {found} MiB");
            let (formula, peak) = found.split_once(' ').unwrap();
            let (formula, peak): (f64, f64) = (formula.parse().unwrap(), peak.parse().unwrap());
            let ratio = peak / formula;
            assert!(
                (0.85..1.05).contains(&ratio),
                "{case}: {peak} MiB, formula {formula}"
            );
        }
    }

    #[test]
    fn the_formula_gives_the_peak_resident_memory_of_a_step() {
        check(&[
            "small bf16 12 0",
            "small bf16 4 0",
            "small f32 12 0.1",
            "small f32 0 0.1",
        ]);
    }

    /// The figures of `docs/performance.md`.
    #[test]
    #[ignore = "minutes of two cores"]
    fn the_formula_gives_the_peak_resident_memory_of_a_step_of_smollm2() {
        check(&["smol bf16 30 0", "smol bf16 10 0", "smol bf16 0 0"]);
    }
}
