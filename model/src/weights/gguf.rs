//! Weights in a GGUF file, mapped, given under their Hugging Face names and in its layout.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType, Device, Tensor};
use rayon::prelude::*;

use super::gguf_header::{Header, TensorInfo, Value};
use super::mapped::MappedFile;
use super::{Weights, check_shape, missing};
use crate::config::Architecture;
use crate::error::{ModelError, Result};

/// A GGUF file whose header has been read.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub(crate) file: Arc<MappedFile>,
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Maps a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(MappedFile::open(path)?);
        let Header { metadata, tensors } =
            Header::parse(&file).map_err(|message| ModelError::bad_file(path, message))?;
        Ok(Self {
            file,
            metadata,
            tensors,
        })
    }

    /// An error about this file.
    pub(crate) fn bad(&self, message: impl Into<String>) -> ModelError {
        ModelError::bad_file(self.file.path(), message)
    }

    /// The bytes of a tensor.
    pub(crate) fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.file[info.start..info.end]
    }
}

/// A GGUF file's tensors.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    gguf: GgufFile,
    /// Tensors by their Hugging Face names.
    tensors: BTreeMap<String, TensorInfo>,
    /// Rows of a head whose q and k rows llama.cpp's converter has interleaved.
    interleaved: Option<usize>,
}

impl GgufWeights {
    /// Gives the tensors of a file their names; `head_dim` is the width of one attention head.
    ///
    /// # Errors
    /// When the file has a tensor that no decoder served here has.
    pub(crate) fn new(gguf: GgufFile, architecture: Architecture, head_dim: usize) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, info) in &gguf.tensors {
            if name == ROPE_FACTORS {
                continue;
            }
            let Some(hf) = hf_name(name) else {
                let message = format!("tensor `{name}` is not part of any architecture served");
                return Err(gguf.bad(message));
            };
            tensors.insert(hf, info.clone());
        }
        let interleaved = (architecture == Architecture::Llama).then_some(head_dim);
        Ok(Self {
            gguf,
            tensors,
            interleaved,
        })
    }

    /// Every tensor's name and shape.
    pub(crate) fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        self.tensors
            .iter()
            .map(|(name, info)| (name.as_str(), &info.shape[..]))
            .collect()
    }
}

/// Divisors of the rotary frequencies; the configuration's business.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Weights for GgufWeights {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let Some(info) = self.tensors.get(name) else {
            return Err(missing(
                name,
                expected,
                &self.gguf.file.path().display().to_string(),
            ));
        };
        check_shape(name, &info.shape, expected)?;
        let rows = info.shape[0];
        let head = self.interleaved.filter(|head| {
            (name.contains("q_proj") || name.contains("k_proj")) && rows.is_multiple_of(*head)
        });
        let bytes = self.gguf.bytes(info);
        let plain = match info.dtype {
            GgmlDType::F32 => Some(DType::F32),
            GgmlDType::F16 => Some(DType::F16),
            GgmlDType::BF16 => Some(DType::BF16),
            _ => None,
        };
        match (plain, head) {
            (None, head) => Ok(Tensor::from_vec(
                dequantise(bytes, info.dtype, rows, head)?,
                &info.shape[..],
                &Device::Cpu,
            )?),
            (Some(dtype), None) => Ok(Tensor::from_raw_buffer(
                bytes,
                dtype,
                &info.shape,
                &Device::Cpu,
            )?),
            (Some(dtype), Some(head)) => {
                let tensor = Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?;
                let pairs = tensor.reshape((rows / head, head / 2, 2, ()))?;
                Ok(pairs
                    .transpose(1, 2)?
                    .contiguous()?
                    .reshape(&info.shape[..])?)
            }
        }
    }
}

/// Dequantises `rows` rows in parallel.
///
/// With `head`, the rows of each head of so many rows come interleaved, as llama.cpp rotates pairs
/// of neighbours: row `2 j + half` is what Hugging Face, which rotates halves, has as row
/// `half * head / 2 + j`. They are put back.
fn dequantise(
    bytes: &[u8],
    dtype: GgmlDType,
    rows: usize,
    head: Option<usize>,
) -> Result<Vec<f32>> {
    let blocks = bytes.len() / dtype.type_size();
    let mut values = vec![0f32; blocks * dtype.block_size()];
    if values.is_empty() {
        return Ok(values);
    }
    let row = values.len() / rows;
    let row_bytes = bytes.len() / rows;
    // Enough to be worth a task, little enough to stay in a core's cache.
    let rows_at_once = head.unwrap_or((1 << 16) / row).clamp(1, rows);
    values
        .par_chunks_mut(rows_at_once * row)
        .zip(bytes.par_chunks(rows_at_once * row_bytes))
        .try_for_each(|(values, bytes)| -> Result<()> {
            let quantised = dtype.from_data(Cow::Borrowed(bytes));
            let CpuStorage::F32(found) = quantised.dequantize(values.len())? else {
                return Err(ModelError::Unsupported(format!("dequantising {dtype:?}")));
            };
            match head {
                None => values.copy_from_slice(&found),
                Some(head) => {
                    for (to, values) in values.chunks_exact_mut(row).enumerate() {
                        let from = 2 * (to % (head / 2)) + to / (head / 2);
                        values.copy_from_slice(&found[from * row..(from + 1) * row]);
                    }
                }
            }
            Ok(())
        })?;
    Ok(values)
}

/// The Hugging Face name of a GGUF tensor.
fn hf_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let (module, kind) = part.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    ["weight", "bias"]
        .contains(&kind)
        .then(|| format!("model.layers.{layer}.{module}.{kind}"))
}
