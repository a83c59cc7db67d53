//! An adapter's weights: A and B of every layer, their packed forms, and PEFT's file.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use candle_core::{DType, Device, Tensor};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, View},
};
use sha2::{Digest as _, Sha256};

use crate::{
    config::ModelConfig,
    dropout::mix,
    error::{ModelError, Result},
    kernels::{matmul::Packed, team},
    lora::{LoraConfig, LoraModule},
    tensors::with_slices,
};

/// A and B of one layer, and their packed forms, made when first used.
#[derive(Clone, Debug)]
pub(crate) struct LoraPair {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    packed: Arc<OnceLock<PackedPair>>,
    packed_backward: Arc<OnceLock<PackedPair>>,
}

/// A pair packed for `x Aᵀ` and `t Bᵀ`, or for `u A` and `dY B`.
#[derive(Debug)]
pub(crate) struct PackedPair {
    pub(crate) a: Packed,
    pub(crate) b: Packed,
}

impl LoraPair {
    fn new(a: Tensor, b: Tensor) -> Self {
        Self {
            a,
            b,
            packed: Arc::default(),
            packed_backward: Arc::default(),
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    fn pack(
        &self,
        cell: &OnceLock<PackedPair>,
        pack: fn(&[f32], usize, usize) -> Packed,
    ) -> candle_core::Result<()> {
        if cell.get().is_none() {
            let ((rank, inner), (outer, _)) = (self.a.dims2()?, self.b.dims2()?);
            let pair = with_slices(&[&self.a, &self.b], |s| PackedPair {
                a: pack(s[0], rank, inner),
                b: pack(s[1], outer, rank),
            })?;
            // Another thread may have been first; its values are the same.
            let _ = cell.set(pair);
        }
        Ok(())
    }

    pub(crate) fn packed(&self) -> candle_core::Result<&PackedPair> {
        self.pack(&self.packed, Packed::transposed)?;
        self.packed
            .get()
            .ok_or_else(|| candle_core::Error::Msg("LoRA pair is not packed".into()))
    }

    pub(crate) fn packed_backward(&self) -> candle_core::Result<&PackedPair> {
        self.pack(&self.packed_backward, Packed::direct)?;
        let packed = self.packed_backward.get();
        packed.ok_or_else(|| candle_core::Error::Msg("LoRA pair is not packed".into()))
    }
}

/// The pairs of one layer, in the order of [`LoraModule::ALL`].
pub(crate) type LayerPairs = [Option<LoraPair>; 7];

/// An adapter: f32 matrices A `[rank, inner]` and B `[outer, rank]` behind the target modules of
/// every layer. Immutable; a clone shares the weights.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) config: Arc<LoraConfig>,
    pub(crate) layers: Arc<Vec<LayerPairs>>,
}

impl Adapter {
    /// A fresh adapter, as PEFT makes it: A uniform in ±1/√inner (Kaiming with a = √5), B zero.
    ///
    /// # Errors
    /// When `lora` is out of range.
    pub fn init(
        lora: &LoraConfig,
        model: &ModelConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        Self::build(lora, model, |layer, module| {
            let (inner, outer) = module.widths(model);
            let place = mix((layer as u64) << 8 | module as u64);
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ place);
            let bound = 1.0 / (inner as f32).sqrt();
            let a: Vec<f32> = (0..lora.rank * inner)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            let a = Tensor::from_vec(a, (lora.rank, inner), device)?;
            Ok((a, Tensor::zeros((outer, lora.rank), DType::F32, device)?))
        })
    }

    /// Reads PEFT's `adapter_model.safetensors`. On a CPU it is then ready to sample with: its pairs
    /// are packed, all threads taking part.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or type than F32, F16 or BF16, holds a number
    /// that is not finite, or is one too many; the error names it.
    pub fn from_safetensors(
        bytes: &[u8],
        lora: &LoraConfig,
        model: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| ModelError::Adapter(format!("not a safetensors file: {error}")))?;
        let load = |layer: usize, module: LoraModule| {
            let (inner, outer) = module.widths(model);
            let load = |side: &str, shape: [usize; 2]| {
                let name = peft_name(layer, module, side);
                let view = file.tensor(&name).map_err(|_| ModelError::MissingTensor {
                    name: name.clone(),
                    expected: shape.to_vec(),
                    place: "the adapter".into(),
                })?;
                read_view(&name, &view, &shape, device)
            };
            let pair = LoraPair::new(
                load("A", [lora.rank, inner])?,
                load("B", [outer, lora.rank])?,
            );
            if device.is_cpu() {
                pair.packed()?;
            }
            Ok(pair)
        };
        lora.check()?;
        let modules = LoraModule::ALL;
        let mut pairs: Vec<Option<Result<LoraPair>>> = Vec::new();
        pairs.resize_with(model.layers * modules.len(), || None);
        let fill = |i: usize, pair: &mut [Option<Result<LoraPair>>]| {
            let (layer, module) = (i / modules.len(), modules[i % modules.len()]);
            if lora.target_modules.contains(&module) {
                pair[0] = Some(load(layer, module));
            }
        };
        if device.is_cpu() {
            team::for_each_chunk(&mut pairs, 1, fill);
        } else {
            pairs
                .chunks_mut(1)
                .enumerate()
                .for_each(|(i, p)| fill(i, p));
        }
        let mut layers = Vec::with_capacity(model.layers);
        for found in pairs.chunks_exact_mut(modules.len()) {
            let mut pairs = LayerPairs::default();
            for (slot, found) in pairs.iter_mut().zip(found) {
                *slot = found.take().transpose()?;
            }
            layers.push(pairs);
        }
        let adapter = Self {
            config: Arc::new(lora.clone()),
            layers: Arc::new(layers),
        };
        let known: HashSet<String> = adapter.parameter_names().into_iter().collect();
        if let Some(extra) = file.names().into_iter().find(|name| !known.contains(*name)) {
            return Err(ModelError::Adapter(format!(
                "tensor `{extra}` does not belong to an adapter of rank {} on {} modules",
                lora.rank,
                lora.target_modules.len()
            )));
        }
        Ok(adapter)
    }

    fn build(
        lora: &LoraConfig,
        model: &ModelConfig,
        mut pair: impl FnMut(usize, LoraModule) -> Result<(Tensor, Tensor)>,
    ) -> Result<Self> {
        lora.check()?;
        let mut layers = Vec::with_capacity(model.layers);
        for layer in 0..model.layers {
            let mut pairs = LayerPairs::default();
            for (slot, module) in pairs.iter_mut().zip(LoraModule::ALL) {
                if lora.target_modules.contains(&module) {
                    let (a, b) = pair(layer, module)?;
                    *slot = Some(LoraPair::new(a, b));
                }
            }
            layers.push(pairs);
        }
        Ok(Self {
            config: Arc::new(lora.clone()),
            layers: Arc::new(layers),
        })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, LoraModule, &LoraPair)> {
        self.layers.iter().enumerate().flat_map(|(layer, pairs)| {
            let named = LoraModule::ALL.into_iter().zip(pairs);
            named.filter_map(move |(m, p)| p.as_ref().map(|p| (layer, m, p)))
        })
    }

    /// All matrices, in a fixed order: by layer, then module, A before B.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.pairs()
            .flat_map(|(_, _, p)| [p.a.clone(), p.b.clone()])
            .collect()
    }

    /// PEFT's names of [`Adapter::parameters`].
    pub fn parameter_names(&self) -> Vec<String> {
        self.pairs()
            .flat_map(|(layer, m, _)| ["A", "B"].map(|side| peft_name(layer, m, side)))
            .collect()
    }

    /// Numbers that training changes.
    pub fn parameter_count(&self) -> u64 {
        self.pairs()
            .map(|(_, _, p)| (p.a.elem_count() + p.b.elem_count()) as u64)
            .sum()
    }

    /// The same adapter with other matrices, given in the order of [`Adapter::parameters`].
    ///
    /// # Errors
    /// When their number or a shape differs.
    pub fn with_parameters(&self, tensors: Vec<Tensor>) -> Result<Self> {
        let count = 2 * self.pairs().count();
        if tensors.len() != count {
            return Err(ModelError::Adapter(format!(
                "{} matrices were given, expected {count}",
                tensors.len()
            )));
        }
        let mut given = tensors.into_iter();
        let mut layers = Vec::with_capacity(self.layers.len());
        for (layer, pairs) in self.layers.iter().enumerate() {
            let mut renewed = LayerPairs::default();
            for ((slot, pair), module) in renewed.iter_mut().zip(pairs).zip(LoraModule::ALL) {
                let Some(pair) = pair else { continue };
                let mut next = |side: &str, old: &Tensor| {
                    let new = given.next().unwrap_or_else(|| old.clone());
                    if new.dims() != old.dims() {
                        return Err(ModelError::Shape {
                            name: peft_name(layer, module, side),
                            expected: old.dims().to_vec(),
                            found: new.dims().to_vec(),
                        });
                    }
                    Ok(new.detach())
                };
                *slot = Some(LoraPair::new(next("A", &pair.a)?, next("B", &pair.b)?));
            }
            layers.push(renewed);
        }
        Ok(Self {
            config: self.config.clone(),
            layers: Arc::new(layers),
        })
    }

    /// PEFT's `adapter_model.safetensors`; the same weights give the same bytes.
    ///
    /// # Errors
    /// When the weights cannot be brought from their device.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let names = self.parameter_names().into_iter();
        let tensors = names
            .zip(self.parameters())
            .map(|(name, tensor)| {
                let shape = tensor.dims().to_vec();
                let values = tensor.flatten_all()?.to_vec1()?;
                Ok((name, Floats { shape, values }))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| ModelError::Adapter(format!("cannot be written: {error}")))
    }
}

/// A tensor as its file is to hold it.
struct Floats {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl View for Floats {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        for (place, value) in bytes.chunks_exact_mut(size_of::<f32>()).zip(&self.values) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        size_of_val(&self.values[..])
    }
}

fn peft_name(layer: usize, module: LoraModule, side: &str) -> String {
    format!(
        "base_model.model.model.layers.{layer}.{}.lora_{side}.weight",
        module.path()
    )
}

fn read_view(
    name: &str,
    view: &TensorView<'_>,
    shape: &[usize; 2],
    device: &Device,
) -> Result<Tensor> {
    crate::weights::check_shape(name, view.shape(), shape)?;
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(ModelError::Adapter(format!(
                "tensor `{name}` is {other:?}, not a float"
            )));
        }
    };
    let tensor =
        Tensor::from_raw_buffer(view.data(), dtype, shape, &Device::Cpu)?.to_dtype(DType::F32)?;
    // Without a branch a value, so that many are looked at together.
    let finite = |values: &[f32]| values.iter().fold(true, |all, v| all & v.is_finite());
    if !with_slices(&[&tensor], |s| finite(s[0]))? {
        return Err(ModelError::Adapter(format!(
            "tensor `{name}` holds a number that is not finite"
        )));
    }
    Ok(tensor.to_device(device)?)
}

/// SHA-256 of an adapter's file: half of its policy version.
pub fn adapter_digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
