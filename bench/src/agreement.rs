//! A device against the CPU: a small model in f32, computed on both.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use tina_model::{
    Adapter, Decoder, Distribution, Dtype, ForwardOptions, Keep, LoadOptions, LoraConfig,
    LoraModule, ModelConfig, PackedRows, Scratch, Target,
};

use crate::{
    error::{BenchError, Result},
    shapes::{RandomWeights, mix},
};

/// Largest difference of a log-prob that rounding in f32 explains.
const LOGPROB_TOLERANCE: f64 = 1e-4;
/// The same of a gradient, relative to the largest.
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// Tokens of a prompt, of each completion, and completions of a group.
const PROMPT: u64 = 24;
const COMPLETION: u64 = 12;
const COMPLETIONS: u64 = 3;

/// Largest differences between the CPU's fused kernels and the device's operations.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Agreement {
    /// Log-probs of whole sequences.
    pub(crate) forward: f64,
    /// Log-probs token by token, over the KV cache.
    pub(crate) decode: f64,
    /// Gradients of the adapter, relative to the largest.
    pub(crate) gradient: f64,
}

impl Agreement {
    /// Refuses differences beyond the tolerances.
    pub(crate) fn require(&self) -> Result<()> {
        // By `<=`, so that NaN fails.
        if self.forward <= LOGPROB_TOLERANCE
            && self.decode <= LOGPROB_TOLERANCE
            && self.gradient <= GRADIENT_TOLERANCE
        {
            return Ok(());
        }
        Err(BenchError::Other(format!(
            "the device does not agree with the CPU: log-probs differ by {:.1e} (forward) and {:.1e} \
             (decode), at most {LOGPROB_TOLERANCE:.0e} is right; gradients by {:.1e}, at most \
             {GRADIENT_TOLERANCE:.0e} is right",
            self.forward, self.decode, self.gradient
        )))
    }
}

/// What one side computes.
struct Side {
    forward: Vec<f32>,
    decode: Vec<f32>,
    gradient: Vec<f32>,
}

/// Computes a small model of `like`'s architecture on the CPU and, by a device's operations, on
/// `device`.
pub(crate) fn compare(like: &ModelConfig, device: &Device) -> Result<Agreement> {
    let model = ModelConfig {
        vocab_size: 512,
        hidden_size: 64,
        intermediate_size: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ..like.clone()
    };
    let options = |device: Device, fused| LoadOptions {
        device,
        dtype: Dtype::F32,
        train: true,
        fused,
    };
    let adapter = adapter_bytes(&model)?;
    let cpu = side(&model, &options(Device::Cpu, true), &adapter)?;
    let other = side(&model, &options(device.clone(), false), &adapter)?;
    let largest = cpu
        .gradient
        .iter()
        .fold(0.0, |a: f64, x| a.max(f64::from(x.abs())));
    Ok(Agreement {
        forward: difference(&cpu.forward, &other.forward),
        decode: difference(&cpu.decode, &other.decode),
        gradient: difference(&cpu.gradient, &other.gradient) / largest,
    })
}

/// The largest difference; NaN when there is any.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let each = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    // `max` would pass over NaN.
    let worst = each.fold(0.0, |worst: f64, d| {
        if d <= worst || worst.is_nan() {
            worst
        } else {
            d
        }
    });
    if a.len() == b.len() { worst } else { f64::NAN }
}

fn lora() -> LoraConfig {
    let target_modules = LoraModule::ALL.to_vec();
    LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        rslora: false,
        target_modules,
    }
}

/// An adapter that does something: B is not zero.
fn adapter_bytes(model: &ModelConfig) -> Result<Vec<u8>> {
    let fresh = Adapter::init(&lora(), model, 3, &Device::Cpu)?;
    let wave = |(i, t): (usize, &Tensor)| -> Result<Tensor> {
        let n = t.elem_count();
        let values: Vec<f32> = (0..n).map(|j| ((i * 31 + j) as f32).sin() * 0.1).collect();
        Ok((t + Tensor::from_vec(values, t.dims(), &Device::Cpu)?)?)
    };
    let tensors = fresh
        .parameters()
        .iter()
        .enumerate()
        .map(wave)
        .collect::<Result<_>>()?;
    Ok(fresh.with_parameters(tensors)?.to_safetensors()?)
}

fn tokens(stream: u64, n: u64, model: &ModelConfig) -> Vec<u32> {
    (0..n)
        .map(|i| (mix(stream << 32 | i) % model.vocab_size as u64) as u32)
        .collect()
}

fn side(model: &ModelConfig, options: &LoadOptions, adapter: &[u8]) -> Result<Side> {
    let decoder = Decoder::load(model, &RandomWeights(model), options)?;
    let adapter = Adapter::from_safetensors(adapter, &lora(), model, decoder.device())?;
    let prompt = tokens(0, PROMPT, model);
    let completions: Vec<_> = (1..=COMPLETIONS)
        .map(|i| tokens(i, COMPLETION, model))
        .collect();
    let mut forward = Vec::new();
    for completion in &completions {
        let whole = [prompt.as_slice(), completion].concat();
        forward.extend(decoder.sequence_log_probs(&whole, Some(&adapter), &Distribution::FULL)?);
    }
    let decode = decoded(&decoder, &adapter, &prompt, &completions)?;
    let gradient = gradient(&decoder, &adapter, &prompt, &completions)?;
    Ok(Side {
        forward,
        decode,
        gradient,
    })
}

/// Log-probs of the completions' tokens, decoded side by side.
fn decoded(
    decoder: &Decoder,
    adapter: &Adapter,
    prompt: &[u32],
    completions: &[Vec<u32>],
) -> Result<Vec<f32>> {
    let mut cache = decoder.new_cache(completions.len(), (PROMPT + COMPLETION) as usize)?;
    let (kv, first) = decoder
        .prefill(&mut cache, &[prompt], Some(adapter))?
        .remove(0);
    let mut scratch = Scratch::default();
    let mut score = |logits: &[f32], token| {
        Distribution::FULL
            .log_prob(logits, token, &mut scratch)
            .logprob
    };
    let (mut found, mut logits) = (Vec::new(), Vec::new());
    for (slot, completion) in completions.iter().enumerate() {
        cache.attach(slot, &kv)?;
        found.extend(completion.first().map(|token| score(&first, *token)));
    }
    for t in 1..COMPLETION as usize {
        let step: Vec<_> = completions
            .iter()
            .enumerate()
            .map(|(slot, c)| (slot, c[t - 1]))
            .collect();
        decoder.decode(&mut cache, &step, Some(adapter), &mut logits)?;
        found.extend(
            logits
                .chunks_exact(decoder.config().vocab_size)
                .zip(completions)
                .map(|(row, c)| score(row, c[t])),
        );
    }
    Ok(found)
}

/// Gradients of a sum of log-probs, weighted by different numbers.
fn gradient(
    decoder: &Decoder,
    adapter: &Adapter,
    prompt: &[u32],
    completions: &[Vec<u32>],
) -> Result<Vec<f32>> {
    let mut rows = PackedRows::new();
    let completions: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
    let targets: Vec<Target> = rows.push_group(0, prompt, &completions).concat();
    let slopes: Vec<f32> = (0..targets.len()).map(|i| (i as f32 * 0.7).cos()).collect();
    let options = ForwardOptions {
        keep: Keep::ALL,
        dropout: None,
    };
    let mut tape = decoder.forward(&rows, Some(adapter), &options)?;
    decoder.log_probs(&mut tape, &targets, &Distribution::FULL)?;
    let mut sums = decoder.gradients();
    decoder.backward(tape, &slopes, adapter, &mut sums)?;
    let mut all = Vec::new();
    for gradient in sums.into_tensors(adapter)?.unwrap_or_default() {
        let gradient = gradient.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        all.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Shape;

    #[test]
    fn fused_and_composed_operations_agree_and_a_difference_is_refused() {
        for shape in [Shape::Smollm2, Shape::Qwen2] {
            let found = compare(&shape.config().unwrap(), &Device::Cpu).unwrap();
            found.require().unwrap();
            assert!(
                found.gradient > 0.0,
                "two different computations: {found:?}"
            );
        }
        let far = Agreement {
            decode: 1e-3,
            ..Agreement::default()
        };
        assert!(
            far.require()
                .unwrap_err()
                .to_string()
                .contains("1.0e-3 (decode)")
        );
        assert!(
            Agreement {
                gradient: f64::NAN,
                ..far
            }
            .require()
            .is_err()
        );
        assert!(difference(&[1.0, f32::NAN, 2.0], &[1.0, 1.0, 2.0]).is_nan());
    }
}
