//! Bringing weights to a device, in the form that it computes with.

use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use crate::{
    composed::{ComposedModel, Layer, linear::Linear, rows::RmsNorm},
    config::ModelConfig,
    decoder::Body,
    error::{ModelError, Result},
    host::{HostLayer, HostLinear, HostModel, HostNorm},
    kernels::matmul::{Format, rows_format},
    lora::LoraModule,
    tensors::with_slices,
    weights::Weights,
};

/// The type that frozen weights are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// bf16; on a CPU f32 where the model is stored in f32 or f16, or is quantised and the processor has no
    /// products of bf16 (quantised weights then stay so, and are read as f32).
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Half of it, with f32's range; sums are f32.
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
    /// By the kernels of a CPU; `false`: composed of candle's operations, as on a GPU, for
    /// comparison.
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
    config: &'a ModelConfig,
    weights: &'a dyn Weights,
    options: &'a LoadOptions,
}

/// What a linear layer of a model is called and how large it is.
struct Spec {
    path: String,
    outer: usize,
    inner: usize,
    bias: bool,
    /// Whether gradients go through it.
    train: bool,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        config: &'a ModelConfig,
        weights: &'a dyn Weights,
        options: &'a LoadOptions,
    ) -> Self {
        Self {
            config,
            weights,
            options,
        }
    }

    /// All weights.
    pub(crate) fn body(&self) -> Result<Body> {
        let Self {
            config, options, ..
        } = self;
        let cpu = options.device.is_cpu();
        if options.fused && cpu && options.dtype != Dtype::F64 {
            return Ok(Body::Host(self.host(self.format())?));
        }
        let dtype = match options.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::Auto if cpu => DType::F32,
            Dtype::Auto | Dtype::Bf16 => DType::BF16,
        };
        let linear = |spec: Spec| self.dense(&spec, dtype);
        let norm = |name: &str, width: usize| self.composed_norm(name, width);
        Ok(Body::Composed(ComposedModel {
            dtype,
            heads: config.shape_of_heads(),
            embedding: linear(self.embedding())?,
            head: self.head().map(linear).transpose()?,
            layers: (0..config.layers)
                .map(|i| {
                    let path = format!("model.layers.{i}");
                    let [input_norm, post_norm] = self.layer_norms(&path, norm)?;
                    let [q_norm, k_norm] = self.head_norms(&path, norm)?;
                    Ok(Layer {
                        input_norm,
                        post_norm,
                        q_norm,
                        k_norm,
                        linears: self.layer_linears(&path, linear)?,
                    })
                })
                .collect::<Result<_>>()?,
            norm: norm("model.norm.weight", config.hidden_size)?,
        }))
    }

    /// A model that is stored in bf16 loses nothing in it, one that is quantised less than it has lost; where
    /// the processor doesn't multiply bf16, that stays as it is stored.
    fn format(&self) -> Format {
        match self.options.dtype {
            Dtype::F32 | Dtype::F64 => Format::F32,
            Dtype::Bf16 => Format::Bf16,
            Dtype::Auto => {
                let first = "model.layers.0.self_attn.q_proj.weight";
                if self.weights.is_wide(first) {
                    Format::F32
                } else if self.weights.is_quantised(first)
                    && rows_format(Format::Bf16) == Format::F32
                {
                    Format::Blocks
                } else {
                    Format::Bf16
                }
            }
        }
    }

    fn host(&self, format: Format) -> Result<HostModel> {
        let config = self.config;
        let linear = |spec: Spec| self.packed(&spec, format);
        let norm = |name: &str, width: usize| {
            let weight = self.tensor(name, &[width], DType::F32)?.to_vec1()?;
            Ok(HostNorm {
                weight,
                eps: config.rms_eps,
            })
        };
        let embedding = linear(self.embedding())?;
        let head = self.head().map(linear).transpose()?;
        let layers = (0..config.layers)
            .map(|i| {
                let path = format!("model.layers.{i}");
                let [input_norm, post_norm] = self.layer_norms(&path, norm)?;
                let [q_norm, k_norm] = self.head_norms(&path, norm)?;
                Ok(HostLayer {
                    input_norm,
                    post_norm,
                    q_norm,
                    k_norm,
                    linears: self.layer_linears(&path, linear)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = norm("model.norm.weight", config.hidden_size)?;
        let heads = config.shape_of_heads();
        Ok(HostModel::new(heads, format, embedding, head, layers, norm))
    }

    /// A tied embedding is also the output projection, and gradients go through it.
    fn embedding(&self) -> Spec {
        Spec {
            path: "model.embed_tokens".into(),
            outer: self.config.vocab_size,
            inner: self.config.hidden_size,
            bias: false,
            train: self.options.train && self.config.tied_embeddings,
        }
    }

    fn head(&self) -> Option<Spec> {
        (!self.config.tied_embeddings).then(|| Spec {
            path: "lm_head".into(),
            train: self.options.train,
            ..self.embedding()
        })
    }

    fn layer_linears<L>(&self, path: &str, load: impl Fn(Spec) -> Result<L>) -> Result<[L; 7]> {
        let linear = |module: LoraModule| {
            let (inner, outer) = module.widths(self.config);
            load(Spec {
                path: format!("{path}.{}", module.path()),
                outer,
                inner,
                bias: self.config.qkv_bias && module <= LoraModule::V,
                train: self.options.train,
            })
        };
        let [q, k, v, o, gate, up, down] = LoraModule::ALL;
        Ok([
            linear(q)?,
            linear(k)?,
            linear(v)?,
            linear(o)?,
            linear(gate)?,
            linear(up)?,
            linear(down)?,
        ])
    }

    fn layer_norms<N>(
        &self,
        path: &str,
        load: impl Fn(&str, usize) -> Result<N>,
    ) -> Result<[N; 2]> {
        let norm = |side: &str| {
            let name = format!("{path}.{side}_layernorm.weight");
            load(&name, self.config.hidden_size)
        };
        Ok([norm("input")?, norm("post_attention")?])
    }

    fn head_norms<N>(
        &self,
        path: &str,
        load: impl Fn(&str, usize) -> Result<N>,
    ) -> Result<[Option<N>; 2]> {
        let norm = |side: &str| {
            let name = format!("{path}.self_attn.{side}_norm.weight");
            self.config
                .qk_norm
                .then(|| load(&name, self.config.head_dim))
                .transpose()
        };
        Ok([norm("q")?, norm("k")?])
    }

    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = self.weights.load(name, shape)?;
        Ok(tensor.to_dtype(dtype)?.to_device(&self.options.device)?)
    }

    fn dense(&self, spec: &Spec, dtype: DType) -> Result<Linear> {
        let bias = spec.bias.then(|| {
            let name = format!("{}.bias", spec.path);
            self.tensor(&name, &[spec.outer], dtype)
        });
        let name = format!("{}.weight", spec.path);
        Ok(Linear {
            weight: self.tensor(&name, &[spec.outer, spec.inner], dtype)?,
            bias: bias.transpose()?,
        })
    }

    fn packed(&self, spec: &Spec, format: Format) -> Result<HostLinear> {
        let bias = spec.bias.then(|| {
            let name = format!("{}.bias", spec.path);
            Ok::<_, ModelError>(self.tensor(&name, &[spec.outer], DType::F32)?.to_vec1()?)
        });
        let name = format!("{}.weight", spec.path);
        let weight = self.tensor(&name, &[spec.outer, spec.inner], DType::F32)?;
        let bias = bias.transpose()?;
        let blocks = match format {
            Format::Blocks => self.weights.blocks(&name, &[spec.outer, spec.inner])?,
            Format::F32 | Format::Bf16 => None,
        };
        Ok(with_slices(&[&weight], |s| {
            HostLinear::new(
                s[0],
                blocks.as_ref(),
                spec.outer,
                spec.inner,
                bias,
                format,
                spec.train,
            )
        })?)
    }

    fn composed_norm(&self, name: &str, width: usize) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.tensor(name, &[width], DType::F32)?,
            eps: self.config.rms_eps,
        })
    }
}
