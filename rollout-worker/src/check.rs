//! What arrives is checked before memory is taken for it (pure).

use std::sync::Arc;

use tina_model::{Distribution, LoraConfig, LoraModule, ModelConfig};
use tina_proto::v1::{RunSpec, Sample, SampleFailed, SamplingParams};

use crate::queue::GroupTask;

/// Samples in one message at most.
const MAX_INDICES: usize = 4096;
/// Stop tokens and stop strings of one message at most.
const MAX_STOPS: usize = 64;
/// Bytes of a stop string at most.
const MAX_STOP_BYTES: usize = 1024;
/// A rank above this is a mistake, not an adapter.
const MAX_RANK: u32 = 4096;

/// When a worker takes a new adapter, and what becomes of samples under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterSwap {
    /// It is taken when they have ended.
    #[default]
    Drain,
    /// It is taken between two decoding steps; they go on with the keys and values that they have.
    Keep,
    /// As [`AdapterSwap::Keep`], but keys and values are computed anew under the new adapter first.
    Recompute,
}

/// The run's specification, as this crate uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunPlan {
    /// Seeds every sample.
    pub seed: u64,
    /// What adapters look like.
    pub lora: LoraConfig,
    /// Token ids of the probe sequence.
    pub probe: Vec<u32>,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Prompt and completion together.
    pub max_sequence_tokens: usize,
    /// How new adapters are taken.
    pub swap: AdapterSwap,
}

/// Checks the coordinator's specification against the model; the error says which part is wrong.
pub fn run_plan(spec: &RunSpec, model: &ModelConfig) -> Result<RunPlan, String> {
    let lora = spec.lora.as_ref().ok_or("it has no LoRA part")?;
    if lora.rank == 0 || lora.rank > MAX_RANK {
        return Err(format!(
            "lora rank {}: 1 to {MAX_RANK} is possible",
            lora.rank
        ));
    }
    if !lora.alpha.is_finite() || !(0.0..1.0).contains(&lora.dropout) {
        return Err(format!(
            "lora alpha {} or dropout {} is no use",
            lora.alpha, lora.dropout
        ));
    }
    let target_modules = lora
        .target_modules
        .iter()
        .map(|name| {
            name.parse::<LoraModule>()
                .map_err(|error| error.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    if target_modules.is_empty() {
        return Err("lora has no target modules".to_owned());
    }
    let longest = spec.max_sequence_tokens as usize;
    if longest < 2 || longest > model.max_positions {
        return Err(format!(
            "sequences of {longest} tokens: the model has positions for 2 to {}",
            model.max_positions
        ));
    }
    let probe = &spec.probe_tokens;
    if probe.len() < 2 || probe.len() > longest {
        return Err(format!(
            "a probe of {} tokens: 2 to {longest} are possible",
            probe.len()
        ));
    }
    in_vocabulary(probe, model.vocab_size).map_err(|error| format!("probe: {error}"))?;
    let swap = match spec.adapter_swap.as_str() {
        "" | "drain" => AdapterSwap::Drain,
        "keep" => AdapterSwap::Keep,
        "recompute" => AdapterSwap::Recompute,
        other => {
            return Err(format!(
                "adapter_swap {other:?}: this worker knows drain, keep and recompute"
            ));
        }
    };
    Ok(RunPlan {
        seed: spec.seed,
        lora: LoraConfig {
            rank: lora.rank as usize,
            alpha: lora.alpha,
            dropout: lora.dropout,
            rslora: lora.rslora,
            target_modules,
        },
        probe: probe.clone(),
        vocab_size: model.vocab_size,
        max_sequence_tokens: longest,
        swap,
    })
}

/// The group's task and the samples asked for, or the answer that says what is wrong.
pub fn sample(sample: Sample, plan: &RunPlan) -> Result<(Arc<GroupTask>, Vec<u32>), SampleFailed> {
    match check_sample(&sample, plan) {
        Ok((params, prompt_key, version)) => Ok((
            Arc::new(GroupTask {
                group_id: sample.group_id,
                prompt: sample.prompt_tokens,
                prompt_key,
                params,
                version,
                exact: sample.exact,
            }),
            sample.sample_indices,
        )),
        Err(problem) => {
            let mut sample_indices = sample.sample_indices;
            sample_indices.truncate(MAX_INDICES);
            let error = format!("group {}: {problem}", sample.group_id);
            Err(SampleFailed {
                group_id: sample.group_id,
                sample_indices,
                error,
            })
        }
    }
}

type Parts = (SamplingParams, [u8; 32], tina_proto::v1::PolicyVersion);

fn check_sample(sample: &Sample, plan: &RunPlan) -> Result<Parts, String> {
    let indices = &sample.sample_indices;
    if indices.is_empty() || indices.len() > MAX_INDICES {
        return Err(format!(
            "{} samples asked for; 1 to {MAX_INDICES} go",
            indices.len()
        ));
    }
    let mut sorted = indices.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("a sample is asked for twice".to_owned());
    }
    let prompt = &sample.prompt_tokens;
    if prompt.is_empty() || prompt.len() >= plan.max_sequence_tokens {
        return Err(format!(
            "the prompt has {} tokens; 1 to {} leave room for a completion",
            prompt.len(),
            plan.max_sequence_tokens - 1
        ));
    }
    in_vocabulary(prompt, plan.vocab_size).map_err(|error| format!("prompt: {error}"))?;
    let prompt_key = sample.prompt_key.as_slice().try_into().map_err(|_| {
        format!(
            "the prompt key has {} bytes, not 32",
            sample.prompt_key.len()
        )
    })?;
    let version = sample
        .version
        .clone()
        .ok_or("no version to sample with is named")?;
    version
        .checked_digest()
        .map_err(|error| error.to_string())?;
    let params = sample.params.clone().ok_or("no sampling parameters")?;
    check_params(&params, plan)?;
    Ok((params, prompt_key, version))
}

fn check_params(params: &SamplingParams, plan: &RunPlan) -> Result<(), String> {
    let SamplingParams {
        temperature,
        top_p,
        top_k,
        min_p,
        max_tokens,
        stop_token_ids,
        stop,
    } = params;
    let distribution = Distribution {
        temperature: *temperature,
        top_p: *top_p,
        top_k: *top_k,
        min_p: *min_p,
    };
    distribution.check().map_err(|error| error.to_string())?;
    if *max_tokens == 0 || *max_tokens as usize > plan.max_sequence_tokens {
        return Err(format!(
            "max_tokens {max_tokens}: 1 to {} is possible in this run",
            plan.max_sequence_tokens
        ));
    }
    if stop_token_ids.len() > MAX_STOPS || stop.len() > MAX_STOPS {
        return Err(format!("more than {MAX_STOPS} stop tokens or stop strings"));
    }
    in_vocabulary(stop_token_ids, plan.vocab_size).map_err(|error| format!("stop: {error}"))?;
    if stop
        .iter()
        .any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES)
    {
        return Err(format!("a stop string has 1 to {MAX_STOP_BYTES} bytes"));
    }
    Ok(())
}

fn in_vocabulary(tokens: &[u32], vocab_size: usize) -> Result<(), String> {
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(token) => Err(format!(
            "token id {token} is outside the vocabulary of {vocab_size}"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tina_proto::v1::PolicyVersion;

    use super::*;

    pub(crate) fn plan() -> RunPlan {
        RunPlan {
            seed: 1,
            lora: LoraConfig {
                rank: 2,
                alpha: 4.0,
                dropout: 0.0,
                rslora: false,
                target_modules: vec![LoraModule::Q],
            },
            probe: vec![1, 2, 3],
            vocab_size: 100,
            max_sequence_tokens: 50,
            swap: AdapterSwap::Drain,
        }
    }

    pub(crate) fn good_sample() -> Sample {
        Sample {
            group_id: 9,
            prompt_tokens: vec![1, 2, 3],
            sample_indices: vec![0, 1],
            prompt_key: vec![7; 32],
            params: Some(SamplingParams {
                temperature: 1.0,
                top_p: 1.0,
                max_tokens: 10,
                ..SamplingParams::default()
            }),
            version: Some(PolicyVersion::of_bytes(0, b"adapter")),
            exact: false,
        }
    }

    #[test]
    fn a_good_sample_passes_as_it_is() {
        let (task, indices) = sample(good_sample(), &plan()).unwrap();
        assert_eq!(
            (task.group_id, &task.prompt[..], &indices[..]),
            (9, &[1, 2, 3][..], &[0, 1][..])
        );
    }

    #[test]
    fn each_bad_part_of_a_sample_is_named() {
        type Spoil = fn(&mut Sample);
        fn params(sample: &mut Sample) -> &mut SamplingParams {
            sample.params.as_mut().unwrap()
        }
        let cases: [(Spoil, &str); 17] = [
            (|s| s.prompt_tokens.clear(), "prompt has 0"),
            (|s| s.prompt_tokens = vec![1; 50], "prompt has 50"),
            (|s| s.prompt_tokens = vec![100], "token id 100"),
            (|s| s.sample_indices.clear(), "0 samples"),
            (|s| s.sample_indices = (0..5000).collect(), "5000 samples"),
            (|s| s.sample_indices = vec![3, 1, 3], "twice"),
            (|s| s.prompt_key = vec![1; 31], "31 bytes"),
            (|s| s.version = None, "version"),
            (
                |s| {
                    s.version = Some(PolicyVersion {
                        step: 1,
                        digest: vec![1],
                    })
                },
                "digest",
            ),
            (|s| s.params = None, "parameters"),
            (|s| params(s).temperature = f32::NAN, "temperature"),
            (|s| params(s).temperature = -1.0, "temperature"),
            (|s| params(s).top_p = 0.0, "top_p"),
            (|s| params(s).min_p = 1.0, "min_p"),
            (|s| params(s).max_tokens = 51, "max_tokens 51"),
            (
                |s| params(s).stop_token_ids = vec![100],
                "stop: token id 100",
            ),
            (|s| params(s).stop = vec![String::new()], "stop string"),
        ];
        for (spoil, words) in cases {
            let mut bad = good_sample();
            spoil(&mut bad);
            let failed = sample(bad, &plan()).unwrap_err();
            assert!(failed.error.contains(words), "{words}: {}", failed.error);
            assert_eq!(failed.group_id, 9);
            assert!(failed.sample_indices.len() <= MAX_INDICES);
        }
    }
}
