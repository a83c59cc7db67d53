//! Bringing weights to a device, in the form that it computes with.

use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use crate::{
    config::ModelConfig,
    decoder::Layer,
    error::{ModelError, Result},
    lora::LoraModule,
    ops::{linear::Linear, rows::RmsNorm},
    weights::Weights,
};

/// The type that frozen weights are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// As the device computes best: f32 on a CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Half of it, with f32's range; not on a CPU.
    Bf16,
    /// Double precision, composed: what gradients are checked against.
    F64,
}

impl FromStr for Dtype {
    type Err = ModelError;

    /// Reads the types that a config can name.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(ModelError::Unsupported(format!(
                "dtype {text:?}; known are auto, f32, bf16"
            ))),
        }
    }
}

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where it is computed.
    pub device: Device,
    /// In which type.
    pub dtype: Dtype,
    /// Whether gradients will be asked for; on a CPU that keeps a second packing of every weight.
    pub train: bool,
    /// By fused kernels where there are any (a CPU); `false`: composed of candle's operations, as
    /// on a GPU, for comparison.
    pub fused: bool,
}

impl LoadOptions {
    /// On `device`, in the type that suits it.
    pub fn new(device: Device, train: bool) -> Self {
        let fused = device.is_cpu();
        Self {
            device,
            dtype: Dtype::Auto,
            train,
            fused,
        }
    }
}

/// Reads "cpu" or "cuda:N".
///
/// # Errors
/// When the text is neither, this build has no CUDA, or there is no such GPU.
pub fn parse_device(text: &str) -> Result<Device> {
    if text == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = match text.split_once(':') {
        None if text == "cuda" => Some(0),
        Some(("cuda", n)) => n.parse().ok(),
        _ => None,
    };
    let Some(ordinal) = ordinal else {
        return Err(ModelError::OutOfRange(format!(
            "device `{text}`; expected cpu or cuda:N"
        )));
    };
    if cfg!(not(feature = "cuda")) {
        return Err(ModelError::Unsupported(format!(
            "device `{text}`: this build has no CUDA; build with --features cuda"
        )));
    }
    Device::new_cuda(ordinal).map_err(|error| {
        ModelError::Unsupported(format!(
            "device `{text}`: {error}; are the GPU and its driver there?"
        ))
    })
}

/// Brings weights into the form that the device computes with.
pub(crate) struct Loader<'a> {
    weights: &'a dyn Weights,
    options: &'a LoadOptions,
    pub(crate) dtype: DType,
    pub(crate) fused: bool,
}

impl<'a> Loader<'a> {
    /// Settles the type to compute in.
    pub(crate) fn new(weights: &'a dyn Weights, options: &'a LoadOptions) -> Result<Self> {
        let cpu = options.device.is_cpu();
        let dtype = match (options.dtype, cpu) {
            (Dtype::Auto | Dtype::F32, true) | (Dtype::F32, false) => DType::F32,
            (Dtype::Auto | Dtype::Bf16, false) => DType::BF16,
            (Dtype::F64, _) => DType::F64,
            (Dtype::Bf16, true) => {
                return Err(ModelError::Unsupported(
                    "bf16 on a CPU; use model.dtype = \"auto\" or \"f32\"".into(),
                ));
            }
        };
        let fused = options.fused && cpu && dtype == DType::F32;
        Ok(Self {
            weights,
            options,
            dtype,
            fused,
        })
    }

    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = self.weights.load(name, shape)?;
        Ok(tensor.to_dtype(dtype)?.to_device(&self.options.device)?)
    }

    pub(crate) fn linear(
        &self,
        path: &str,
        (outer, inner): (usize, usize),
        bias: bool,
        train: bool,
    ) -> Result<Linear> {
        let bias = bias
            .then(|| self.tensor(&format!("{path}.bias"), &[outer], self.dtype))
            .transpose()?;
        let name = format!("{path}.weight");
        if self.fused {
            return Ok(Linear::packed(
                &self.weights.load(&name, &[outer, inner])?,
                bias,
                train,
            )?);
        }
        Ok(Linear::dense(
            self.tensor(&name, &[outer, inner], self.dtype)?,
            bias,
        )?)
    }

    pub(crate) fn norm(&self, name: &str, width: usize, eps: f32) -> Result<RmsNorm> {
        Ok(RmsNorm::new(
            self.tensor(name, &[width], DType::F32)?,
            eps,
            self.fused,
        ))
    }

    pub(crate) fn layer(&self, config: &ModelConfig, path: &str) -> Result<Layer> {
        let linear = |module: LoraModule| {
            let (inner, outer) = module.widths(config);
            let bias = config.qkv_bias && module <= LoraModule::V;
            let path = format!("{path}.{}", module.path());
            self.linear(&path, (outer, inner), bias, self.options.train)
        };
        let head_norm = |side: &str| {
            let name = format!("{path}.self_attn.{side}_norm.weight");
            config
                .qk_norm
                .then(|| self.norm(&name, config.head_dim, config.rms_eps))
                .transpose()
        };
        let [q, k, v, o, gate, up, down] = LoraModule::ALL;
        Ok(Layer {
            input_norm: self.norm(
                &format!("{path}.input_layernorm.weight"),
                config.hidden_size,
                config.rms_eps,
            )?,
            post_norm: self.norm(
                &format!("{path}.post_attention_layernorm.weight"),
                config.hidden_size,
                config.rms_eps,
            )?,
            q_norm: head_norm("q")?,
            k_norm: head_norm("k")?,
            linears: [
                linear(q)?,
                linear(k)?,
                linear(v)?,
                linear(o)?,
                linear(gate)?,
                linear(up)?,
                linear(down)?,
            ],
        })
    }
}
