//! Weights in a GGUF file, mapped, given under their Hugging Face names and in its layout.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType, Device, Tensor};
use rayon::prelude::*;

use super::blocks::Blocks;
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

    fn is_quantised(&self, name: &str) -> bool {
        let stored = self.tensors.get(name);
        stored.is_some_and(|info| info.dtype.block_size() > 1)
    }

    fn is_wide(&self, name: &str) -> bool {
        let stored = self.tensors.get(name);
        stored.is_some_and(|info| matches!(info.dtype, GgmlDType::F32 | GgmlDType::F16))
    }

    fn blocks(&self, name: &str, expected: &[usize]) -> Result<Option<Blocks>> {
        let info = self.find(name, expected)?;
        let (rows, head) = (info.shape[0], self.interleaved_head(name, info));
        let blocks = Blocks::of_gguf(self.gguf.bytes(info), info.dtype, rows);
        Ok(blocks.map(|blocks| match head {
            None => blocks,
            Some(head) => {
                blocks.reordered(|to| to / head * head + interleaved_row(to % head, head))
            }
        }))
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let info = self.find(name, expected)?;
        let (rows, head) = (info.shape[0], self.interleaved_head(name, info));
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

impl GgufWeights {
    fn find(&self, name: &str, expected: &[usize]) -> Result<&TensorInfo> {
        let place = || self.gguf.file.path().display().to_string();
        let info = self.tensors.get(name);
        let info = info.ok_or_else(|| missing(name, expected, &place()))?;
        check_shape(name, &info.shape, expected)?;
        Ok(info)
    }

    /// Rows of a head, where a tensor's rows are interleaved.
    fn interleaved_head(&self, name: &str, info: &TensorInfo) -> Option<usize> {
        self.interleaved.filter(|head| {
            (name.contains("q_proj") || name.contains("k_proj"))
                && info.shape[0].is_multiple_of(*head)
        })
    }
}

/// Where row `to` stands inside of a head of `head` rows that are interleaved.
fn interleaved_row(to: usize, head: usize) -> usize {
    2 * (to % (head / 2)) + to / (head / 2)
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
                        let from = interleaved_row(to, head);
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

#[cfg(test)]
mod tests {
    use candle_core::quantized::{QTensor, gguf_file};

    use super::*;

    fn file(tensors: &[(&str, QTensor)]) -> (tempfile::TempDir, GgufFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (*name, tensor))
            .collect();
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &[], &tensors).unwrap();
        let file = GgufFile::open(&path).unwrap();
        (folder, file)
    }

    /// As llama.cpp's converter writes q and k of Llamas: the halves of each head interleaved.
    fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
        let rows = tensor.dims()[0];
        let halves = tensor.reshape((heads, 2, rows / heads / 2, ())).unwrap();
        halves
            .transpose(1, 2)
            .unwrap()
            .contiguous()
            .unwrap()
            .reshape(tensor.shape())
            .unwrap()
    }

    #[test]
    fn every_type_is_dequantised_in_hugging_face_layout() {
        let types = [
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ];
        // Three heads of eight rows, 256 wide, and enough rows of v for more than one task.
        let q = Tensor::randn(0f32, 1f32, (24, 256), &Device::Cpu).unwrap();
        let v = Tensor::randn(0f32, 1f32, (600, 256), &Device::Cpu).unwrap();
        let f32s = |tensor: &Tensor| {
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for dtype in types {
            let quantise = |tensor: &Tensor| QTensor::quantize(tensor, dtype).unwrap();
            let plain = |tensor: &Tensor| f32s(&quantise(tensor).dequantize(&Device::Cpu).unwrap());
            let (expected_q, expected_v) = (plain(&q), plain(&v));
            let (_folder, gguf) = file(&[
                ("blk.7.attn_q.weight", quantise(&interleave(&q, 3))),
                ("blk.7.attn_v.weight", quantise(&v)),
            ]);
            let weights = GgufWeights::new(gguf, Architecture::Llama, 8).unwrap();
            let found = weights
                .load("model.layers.7.self_attn.q_proj.weight", &[24, 256])
                .unwrap();
            assert!(found.is_contiguous());
            assert_eq!(f32s(&found), expected_q, "{dtype:?}");
            let found = weights
                .load("model.layers.7.self_attn.v_proj.weight", &[600, 256])
                .unwrap();
            assert_eq!(f32s(&found), expected_v, "{dtype:?}");
            // What can be read as it is stored has the same weights.
            let kept = matches!(dtype, GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q8_0);
            for (name, shape, expected) in [
                (
                    "model.layers.7.self_attn.q_proj.weight",
                    [24, 256],
                    &expected_q,
                ),
                (
                    "model.layers.7.self_attn.v_proj.weight",
                    [600, 256],
                    &expected_v,
                ),
            ] {
                let blocks = weights.blocks(name, &shape).unwrap();
                assert_eq!(blocks.is_some(), kept, "{dtype:?}");
                if let Some(blocks) = blocks {
                    let found: Vec<f32> = (0..expected.len()).map(|i| blocks.weight(i)).collect();
                    assert_eq!(&found, expected, "{dtype:?} {name}");
                }
            }
            let plain = matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
            assert_eq!(
                weights.is_quantised("model.layers.7.self_attn.v_proj.weight"),
                !plain
            );
        }
    }

    #[test]
    fn qwen_is_not_interleaved_and_biases_of_llamas_are() {
        let bias = Tensor::arange(0f32, 8f32, &Device::Cpu).unwrap();
        let load = |architecture| {
            let stored = QTensor::quantize(&bias, GgmlDType::F32).unwrap();
            let (_folder, gguf) = file(&[("blk.0.attn_k.bias", stored)]);
            let weights = GgufWeights::new(gguf, architecture, 4).unwrap();
            let tensor = weights
                .load("model.layers.0.self_attn.k_proj.bias", &[8])
                .unwrap();
            tensor.to_vec1::<f32>().unwrap()
        };
        assert_eq!(load(Architecture::Qwen2), [0., 1., 2., 3., 4., 5., 6., 7.]);
        assert_eq!(load(Architecture::Llama), [0., 2., 1., 3., 4., 6., 5., 7.]);
    }

    #[test]
    fn what_no_decoder_has_is_refused_by_name() {
        let stored = QTensor::quantize(
            &Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
            GgmlDType::F32,
        );
        let (_folder, gguf) = file(&[("blk.0.ffn_gate_inp.weight", stored.unwrap())]);
        let error = GgufWeights::new(gguf, Architecture::Llama, 4)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`blk.0.ffn_gate_inp.weight`"), "{error}");
        let (_folder, gguf) = file(&[]);
        let weights = GgufWeights::new(gguf, Architecture::Llama, 4).unwrap();
        let error = weights
            .load("lm_head.weight", &[2, 3])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`lm_head.weight` is missing: expected shape [2, 3]"),
            "{error}"
        );
    }
}
