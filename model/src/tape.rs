//! Learning passes: a forward over packed rows that keeps what the backward needs.
//!
//! Layers are taped one by one: each is its own small graph from its input to its output, run
//! backward in turn. With [`Keep::LayerInputs`] a layer's graph is not kept but built again in the
//! backward pass (activation recomputation).

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Tensor, Var,
    backend::{BackendDevice as _, BackendStorage as _},
};

use crate::{
    adapter::Adapter,
    decoder::{Decoder, LayerLora, Pass, constants},
    dropout::Dropout,
    error::{ModelError, Result},
    packed_rows::PackedRows,
};

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward pass.
    #[default]
    Nothing,
    /// Every layer's activations.
    Activations,
    /// Every layer's input; the rest is computed again.
    LayerInputs,
}

/// How a learning pass runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// What is kept.
    pub keep: Keep,
    /// LoRA dropout; `None` when sampling's log-probs are to be met exactly.
    pub dropout: Option<Dropout>,
}

/// A forward pass, and what its backward pass needs.
#[derive(Debug)]
pub struct Tape {
    hidden: Tensor,
    pass: Arc<PassState>,
    layers: Vec<LayerTape>,
    last: Option<Var>,
}

#[derive(Debug)]
struct PassState {
    pass: Pass,
    keys: Arc<Vec<u64>>,
    dropout: Option<Dropout>,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("segments", &self.segments.len())
            .finish_non_exhaustive()
    }
}

type Vars = [Option<(Var, Var)>; 7];

#[derive(Debug)]
struct LayerTape {
    input: Var,
    vars: Vars,
    /// Not there when it is to be computed again.
    output: Option<Tensor>,
}

impl Tape {
    /// The final-normed rows, `[rows, hidden]`, without a graph.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }
}

impl Decoder {
    /// Runs the layers over packed rows.
    ///
    /// # Errors
    /// When there are no rows, an id is unknown, or a sequence is longer than the model's context.
    pub fn forward(
        &self,
        rows: &PackedRows,
        adapter: Option<&Adapter>,
        options: &ForwardOptions,
    ) -> Result<Tape> {
        if rows.is_empty() {
            return Err(ModelError::OutOfRange("a pass of no rows".into()));
        }
        self.check_tokens(&rows.tokens, &rows.positions)?;
        let state = Arc::new(PassState {
            pass: Pass {
                angles: self.angles(&rows.positions)?,
                segments: Arc::new(rows.segments.clone()),
            },
            keys: rows.shared_keys(),
            dropout: options.dropout.filter(|d| d.p > 0.0),
        });
        let mut x = self.embed(&rows.tokens)?;
        let mut layers = Vec::new();
        for i in 0..self.layers.len() {
            if options.keep == Keep::Nothing {
                let tensors = adapter.map(|a| constants(a, i));
                x = self.taped_layer(i, &x, &state, adapter, tensors.as_ref())?;
                continue;
            }
            let input = Var::from_tensor(&x)?;
            let vars = adapter
                .map(|a| variables(a, i))
                .transpose()?
                .unwrap_or_default();
            let tensors = as_tensors(&vars);
            let output = if options.keep == Keep::Activations {
                let y = self.taped_layer(i, input.as_tensor(), &state, adapter, Some(&tensors))?;
                x = y.detach();
                Some(y)
            } else {
                let constants = adapter.map(|a| constants(a, i));
                x = self.taped_layer(i, &x, &state, adapter, constants.as_ref())?;
                None
            };
            layers.push(LayerTape {
                input,
                vars,
                output,
            });
        }
        let last = (options.keep != Keep::Nothing)
            .then(|| Var::from_tensor(&x))
            .transpose()?;
        let hidden = self.norm.forward(&x)?.detach();
        Ok(Tape {
            hidden,
            pass: state,
            layers,
            last,
        })
    }

    fn taped_layer(
        &self,
        index: usize,
        x: &Tensor,
        state: &PassState,
        adapter: Option<&Adapter>,
        tensors: Option<&[Option<(Tensor, Tensor)>; 7]>,
    ) -> Result<Tensor> {
        let lora = adapter.zip(tensors).map(|(adapter, tensors)| LayerLora {
            pairs: &adapter.layers[index],
            tensors,
            scale: adapter.config().scale(),
            dropout: state.dropout.map(|d| (d, state.keys.clone())),
            layer: index,
        });
        Ok(self.layer(index, x, &state.pass, lora.as_ref())?.0)
    }

    /// Gradients of a scalar with respect to the adapter's parameters, in the order of
    /// [`Adapter::parameters`], f32, given its gradient with respect to [`Tape::hidden`]
    /// (`[rows, hidden]`). Frozen weights get none.
    ///
    /// # Errors
    /// When the tape was made with [`Keep::Nothing`].
    pub fn backward(
        &self,
        tape: Tape,
        d_hidden: &Tensor,
        adapter: &Adapter,
    ) -> Result<Vec<Tensor>> {
        let Tape {
            pass: state,
            mut layers,
            last,
            ..
        } = tape;
        let last = last.ok_or_else(|| {
            ModelError::OutOfRange("a backward pass of a tape that kept nothing".into())
        })?;
        let mut d = {
            let normed = self.norm.forward(last.as_tensor())?;
            let grads = pull(&normed, &d_hidden.to_dtype(normed.dtype())?)?;
            gradient(&grads, last.as_tensor())?
        };
        let mut by_layer = Vec::with_capacity(layers.len());
        while let Some(LayerTape {
            input,
            vars,
            output,
        }) = layers.pop()
        {
            let output = match output {
                Some(output) => output,
                None => {
                    let tensors = as_tensors(&vars);
                    let index = layers.len();
                    let x = input.as_tensor();
                    self.taped_layer(index, x, &state, Some(adapter), Some(&tensors))?
                }
            };
            let grads = pull(&output, &d)?;
            drop(output);
            d = gradient(&grads, input.as_tensor())?;
            let mut found = Vec::new();
            for (a, b) in vars.iter().flatten() {
                found.push(gradient(&grads, a.as_tensor())?);
                found.push(gradient(&grads, b.as_tensor())?);
            }
            by_layer.push(found);
        }
        by_layer.reverse();
        Ok(by_layer.into_iter().flatten().collect())
    }
}

/// Gradients of Σ output · d.
fn pull(output: &Tensor, d: &Tensor) -> Result<candle_core::backprop::GradStore> {
    Ok(output.apply_op1(Pull { d: d.clone() })?.backward()?)
}

/// A scalar whose gradient with respect to its argument is `d`; its own value is of no use and is
/// not computed.
struct Pull {
    d: Tensor,
}

impl CustomOp1 for Pull {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn cpu_fwd(&self, x: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((x.device().zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((x.device().zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.d.clone()))
    }
}

fn gradient(grads: &candle_core::backprop::GradStore, of: &Tensor) -> Result<Tensor> {
    match grads.get(of) {
        Some(gradient) => Ok(gradient.detach()),
        None => Ok(of.zeros_like()?),
    }
}

fn variables(adapter: &Adapter, layer: usize) -> Result<Vars> {
    let mut vars = Vars::default();
    for (var, pair) in vars.iter_mut().zip(&adapter.layers[layer]) {
        if let Some(pair) = pair {
            *var = Some((Var::from_tensor(&pair.a)?, Var::from_tensor(&pair.b)?));
        }
    }
    Ok(vars)
}

fn as_tensors(vars: &Vars) -> [Option<(Tensor, Tensor)>; 7] {
    std::array::from_fn(|i| {
        vars[i]
            .as_ref()
            .map(|(a, b)| (a.as_tensor().clone(), b.as_tensor().clone()))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};

    use super::*;
    use crate::{
        Distribution, Dtype, LoadOptions, LoraConfig, LoraModule, MapWeights, ModelConfig, Target,
    };

    fn config(model_type: &str) -> ModelConfig {
        let json = serde_json::json!({
            "model_type": model_type, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "tie_word_embeddings": model_type == "llama",
        });
        ModelConfig::from_hf_json(&json.to_string()).unwrap()
    }

    fn adapter(config: &ModelConfig) -> Adapter {
        let lora = LoraConfig {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            rslora: false,
            target_modules: LoraModule::ALL.to_vec(),
        };
        let fresh = Adapter::init(&lora, config, 2, &Device::Cpu).unwrap();
        let wave = |i: usize, t: &Tensor| {
            let n = t.elem_count();
            let values: Vec<f32> = (0..n).map(|j| ((i * 13 + j) as f32).sin() * 0.2).collect();
            Tensor::from_vec(values, t.dims(), &Device::Cpu).unwrap()
        };
        let tensors = fresh
            .parameters()
            .iter()
            .enumerate()
            .map(|(i, t)| wave(i, t))
            .collect();
        fresh.with_parameters(tensors).unwrap()
    }

    fn rows() -> (PackedRows, Vec<Target>, Vec<f32>) {
        let mut rows = PackedRows::new();
        let mut targets = Vec::new();
        let groups: [(&[u32], &[&[u32]]); 2] = [
            (&[1, 2, 3], &[&[4, 5, 6], &[7], &[8, 9]]),
            (&[11, 12], &[&[13, 14, 15, 16]]),
        ];
        for (key, (prompt, completions)) in groups.into_iter().enumerate() {
            targets.extend(
                rows.push_group(key as u64 * 100, prompt, completions)
                    .concat(),
            );
        }
        let d = (0..targets.len()).map(|i| ((i * 5) as f32).cos()).collect();
        (rows, targets, d)
    }

    /// Σ d_i · log_prob_i in double precision.
    fn loss(decoder: &Decoder, adapter: &Adapter, dropout: Option<Dropout>) -> f64 {
        let (rows, targets, d) = rows();
        let options = ForwardOptions {
            keep: Keep::Nothing,
            dropout,
        };
        let tape = decoder.forward(&rows, Some(adapter), &options).unwrap();
        let logits = decoder.output().product(tape.hidden()).unwrap();
        assert_eq!(logits.dtype(), DType::F64);
        let log_sum = logits
            .log_sum_exp(D::Minus1)
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        let logits = logits.to_vec2::<f64>().unwrap();
        let term = |(t, d): (&Target, &f32)| {
            let row = t.row as usize;
            f64::from(*d) * (logits[row][t.token as usize] - log_sum[row])
        };
        targets.iter().zip(&d).map(term).sum()
    }

    fn gradients(decoder: &Decoder, adapter: &Adapter, options: ForwardOptions) -> Vec<Vec<f32>> {
        let (rows, targets, d) = rows();
        let tape = decoder.forward(&rows, Some(adapter), &options).unwrap();
        let d_hidden = decoder
            .log_probs_backward(tape.hidden(), &targets, &Distribution::FULL, &d)
            .unwrap();
        let found = decoder.backward(tape, &d_hidden, adapter).unwrap();
        found
            .iter()
            .map(|g| g.flatten_all().unwrap().to_vec1().unwrap())
            .collect()
    }

    #[test]
    fn lora_gradients_equal_finite_differences_in_f64() {
        for (model_type, dropout) in [
            ("llama", None),
            ("qwen2", Some(Dropout { p: 0.3, seed: 4 })),
            ("qwen3", None),
        ] {
            let config = config(model_type);
            let weights = MapWeights::random(&config, 9).unwrap();
            let load = |dtype, fused| {
                let options = LoadOptions {
                    dtype,
                    fused,
                    ..LoadOptions::new(Device::Cpu, true)
                };
                Decoder::load(&config, &weights, &options).unwrap()
            };
            let double = load(Dtype::F64, false);
            let single = adapter(&config);
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let parameters: Vec<Tensor> = single.parameters().iter().map(wide).collect();
            let options = ForwardOptions {
                keep: Keep::Activations,
                dropout,
            };
            let fused = gradients(&load(Dtype::F32, true), &single, options);
            let composed = gradients(&load(Dtype::F32, false), &single, options);
            for (i, parameter) in parameters.iter().enumerate() {
                let n = parameter.elem_count();
                for at in [0, n / 3, n - 1] {
                    let moved = |by: f64| {
                        let mut all = parameters.clone();
                        let mut values = parameter.flatten_all().unwrap().to_vec1().unwrap();
                        let value: &mut f64 = &mut values[at];
                        *value += by;
                        all[i] = Tensor::from_vec(values, parameter.dims(), &Device::Cpu).unwrap();
                        loss(&double, &single.with_parameters(all).unwrap(), dropout)
                    };
                    let h = 1e-5;
                    let want = (moved(h) - moved(-h)) / (2.0 * h);
                    for got in [fused[i][at], composed[i][at]] {
                        let error = (f64::from(got) - want).abs();
                        assert!(
                            error < 2e-4 * (1.0 + want.abs()),
                            "{model_type} {}[{at}]: {got} against {want}",
                            single.parameter_names()[i]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn recomputed_layers_give_the_same_gradient_bits() {
        let config = config("qwen3");
        let weights = MapWeights::random(&config, 9).unwrap();
        let decoder =
            Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, true)).unwrap();
        let adapter = adapter(&config);
        let dropout = Some(Dropout { p: 0.2, seed: 8 });
        let run = |keep| gradients(&decoder, &adapter, ForwardOptions { keep, dropout });
        assert_eq!(run(Keep::Activations), run(Keep::LayerInputs));
    }

    #[test]
    fn a_tape_that_kept_nothing_has_no_backward() {
        let config = config("llama");
        let weights = MapWeights::random(&config, 9).unwrap();
        let decoder =
            Decoder::load(&config, &weights, &LoadOptions::new(Device::Cpu, true)).unwrap();
        let (rows, _, _) = rows();
        let adapter = adapter(&config);
        let tape = decoder
            .forward(&rows, Some(&adapter), &ForwardOptions::default())
            .unwrap();
        let d = tape.hidden().zeros_like().unwrap();
        assert!(matches!(
            decoder.backward(tape, &d, &adapter),
            Err(ModelError::OutOfRange(_))
        ));
    }
}
