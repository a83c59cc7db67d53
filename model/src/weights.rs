//! Named weights: what a decoder loads itself from, wherever they are stored.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

use self::blocks::Blocks;

pub(crate) mod blocks;
pub(crate) mod gguf;
pub(crate) mod gguf_header;
pub(crate) mod mapped;
pub(crate) mod safetensors;

/// A model's weights under their Hugging Face names, such as
/// `model.layers.0.self_attn.q_proj.weight`.
pub trait Weights: Send + Sync {
    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<String>;

    /// Whether a tensor of this name is there.
    fn contains(&self, name: &str) -> bool;

    /// Loads one tensor: on the CPU, contiguous, in the type it is stored in (F32, BF16 or F16;
    /// quantised types are dequantised to F32).
    ///
    /// # Errors
    /// When there is no such tensor, its shape is not `expected`, or its file is damaged; the error
    /// names the tensor, what was expected and what was found.
    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor>;

    /// A matrix that is stored in blocks which the kernels read as they are; `None` for all others.
    ///
    /// # Errors
    /// As [`Weights::load`].
    fn blocks(&self, name: &str, expected: &[usize]) -> Result<Option<Blocks>> {
        let _ = (name, expected);
        Ok(None)
    }

    /// Whether a tensor is stored in quantised blocks.
    fn is_quantised(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Whether a tensor is stored with more digits than bf16 has: in F32 or F16.
    fn is_wide(&self, name: &str) -> bool;
}

/// Weights held in memory.
#[derive(Clone, Debug, Default)]
pub struct MapWeights(pub BTreeMap<String, Tensor>);

impl Weights for MapWeights {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let tensor = self
            .0
            .get(name)
            .ok_or_else(|| missing(name, expected, "memory"))?;
        check_shape(name, tensor.dims(), expected)?;
        Ok(tensor.to_device(&Device::Cpu)?.contiguous()?)
    }

    fn is_wide(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|t| t.dtype() != DType::BF16)
    }
}

/// The error for a tensor that is not there.
pub(crate) fn missing(name: &str, expected: &[usize], place: &str) -> ModelError {
    ModelError::MissingTensor {
        name: name.to_owned(),
        expected: expected.to_vec(),
        place: place.to_owned(),
    }
}

/// Refuses a tensor whose shape is not the one expected.
pub(crate) fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Shape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

/// Compares what a model's files hold with what its configuration calls for, before any is loaded.
pub(crate) fn check_tensors(
    config: &ModelConfig,
    found: &BTreeMap<&str, &[usize]>,
    place: &str,
) -> Result<()> {
    let expected: BTreeMap<_, _> = config.tensors().into_iter().collect();
    for (name, shape) in &expected {
        match found.get(name.as_str()) {
            Some(found) => check_shape(name, found, shape)?,
            None => return Err(missing(name, shape, place)),
        }
    }
    // A tied model may store its embedding twice; old Llamas store their rotary frequencies.
    let ignored = |name: &str| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq");
    match found
        .keys()
        .find(|name| !expected.contains_key(**name) && !ignored(name))
    {
        None => Ok(()),
        Some(name) => Err(ModelError::Unsupported(format!(
            "tensor `{name}` in {place}: the architecture {} as configured has none of that name",
            config.architecture.model_type()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_in_memory_is_given_only_under_its_name_and_shape() {
        let tensor = Tensor::arange(0f32, 6f32, &Device::Cpu)
            .unwrap()
            .reshape((2, 3))
            .unwrap();
        let transposed = tensor.t().unwrap();
        let weights = MapWeights(BTreeMap::from([
            ("norm.weight".to_owned(), tensor),
            ("head.weight".to_owned(), transposed),
        ]));
        assert_eq!(weights.names(), ["head.weight", "norm.weight"]);
        assert!(weights.contains("norm.weight") && !weights.contains("norm"));

        let loaded = weights.load("head.weight", &[3, 2]).unwrap();
        assert!(loaded.is_contiguous());
        assert_eq!(loaded.dtype(), DType::F32);
        assert_eq!(
            loaded.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [0., 3., 1., 4., 2., 5.]
        );

        let wrong = weights
            .load("norm.weight", &[3, 2])
            .unwrap_err()
            .to_string();
        assert_eq!(
            wrong,
            "tensor `norm.weight` has shape [2, 3], expected [3, 2]"
        );
        let none = weights
            .load("lm_head.weight", &[7])
            .unwrap_err()
            .to_string();
        assert_eq!(
            none,
            "tensor `lm_head.weight` is missing: expected shape [7] in memory"
        );
    }
}
