//! A GGUF file: weights, tokenizer, chat template and the model's shape in one.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::{Model, TextModel, check_vocabulary, digest};
use crate::chat::ChatTemplate;
use crate::config::{Architecture, ModelConfig, RopeScaling};
use crate::error::{ModelError, Result};
use crate::tokenizer::{GgufVocabulary, Tokenizer};
use crate::weights::check_tensors;
use crate::weights::gguf::{GgufFile, GgufWeights, ROPE_FACTORS};
use crate::weights::gguf_header::Value;

/// Opens a file with its weights.
pub(super) fn open(path: &Path) -> Result<Model> {
    let gguf = GgufFile::open(path)?;
    // Hashing, and reading a hundred thousand tokens and merges, take about as long.
    let files = [gguf.file.clone()];
    let (text, digest) = rayon::join(|| text(&gguf), || digest("", &files));
    let text = text?;
    let weights = GgufWeights::new(gguf, text.config.architecture, text.config.head_dim)?;
    check_tensors(&text.config, &weights.shapes(), &path.display().to_string())?;
    Ok(Model {
        text,
        weights: Box::new(weights),
        digest,
    })
}

/// Opens a file without its weights.
pub(super) fn open_text(path: &Path) -> Result<TextModel> {
    text(&GgufFile::open(path)?)
}

fn text(gguf: &GgufFile) -> Result<TextModel> {
    let special_tokens = special_tokens(gguf)?;
    let template = gguf.string("tokenizer.chat_template")?;
    let compile = |template| ChatTemplate::new(template, &special_tokens);
    let text = TextModel {
        config: config(gguf)?,
        tokenizer: tokenizer(gguf)?,
        chat: template.map(compile).transpose()?,
        special_tokens,
        stop_token_ids: stop_token_ids(gguf)?,
    };
    check_vocabulary(&text)?;
    Ok(text)
}

/// The model's shape; metadata keys are those of llama.cpp's converter.
fn config(gguf: &GgufFile) -> Result<ModelConfig> {
    let name = gguf
        .string("general.architecture")?
        .ok_or_else(|| gguf.lacks("general.architecture"))?;
    let architecture = Architecture::from_model_type(name)?;
    let key = |key: &str| format!("{name}.{key}");
    let size = |key: &str| -> Result<Option<usize>> {
        let Some(value) = gguf.integer(key)? else {
            return Ok(None);
        };
        usize::try_from(value)
            .map(Some)
            .map_err(|_| gguf.bad(format!("{key} is {value}")))
    };
    let need = |key: String| size(&key)?.ok_or_else(|| gguf.lacks(&key));

    if size(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(ModelError::Unsupported(format!(
            "{}: mixtures of experts",
            key("expert_count")
        )));
    }
    if let Some(window) = size(&key("attention.sliding_window"))? {
        return Err(ModelError::Unsupported(format!(
            "sliding-window attention ({window} tokens)"
        )));
    }
    let embedding = gguf.tensors.get("token_embd.weight");
    let vocab_size = match embedding.and_then(|info| info.shape.first()) {
        Some(rows) => *rows,
        None => return Err(gguf.bad("tensor `token_embd.weight` is missing")),
    };
    let heads = need(key("attention.head_count"))?;
    let hidden_size = need(key("embedding_length"))?;
    let head_dim = match size(&key("attention.key_length"))? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(gguf.bad(format!(
                "{hidden_size} values do not divide into {heads} heads"
            )));
        }
    };
    for other in [key("attention.value_length"), key("rope.dimension_count")] {
        if let Some(dim) = size(&other)?.filter(|dim| *dim != head_dim) {
            return Err(ModelError::Unsupported(format!(
                "{other} is {dim}, a head is {head_dim} wide"
            )));
        }
    }
    let max_positions = need(key("context_length"))?;
    ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size: need(key("feed_forward_length"))?,
        layers: need(key("block_count"))?,
        heads,
        kv_heads: size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        max_positions,
        rms_eps: gguf
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| gguf.lacks(&key("attention.layer_norm_rms_epsilon")))?,
        rope_theta: gguf.float(&key("rope.freq_base"))?.unwrap_or(1e4),
        rope_scaling: rope_scaling(gguf, name, head_dim, max_positions)?,
        tied_embeddings: !gguf.tensors.contains_key("output.weight"),
        qkv_bias: gguf.tensors.contains_key("blk.0.attn_q.bias"),
        qk_norm: architecture == Architecture::Qwen3,
    }
    .check()
}

fn rope_scaling(
    gguf: &GgufFile,
    name: &str,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeScaling> {
    if let Some(info) = gguf.tensors.get(ROPE_FACTORS) {
        if info.dtype != GgmlDType::F32 || info.shape != [head_dim / 2] {
            let message = format!(
                "tensor `{ROPE_FACTORS}` is {:?} of shape {:?}, expected F32 of shape [{}]",
                info.dtype,
                info.shape,
                head_dim / 2
            );
            return Err(gguf.bad(message));
        }
        let (floats, _) = gguf.bytes(info).as_chunks::<4>();
        let factors: Vec<_> = floats
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        if factors
            .iter()
            .any(|factor| !factor.is_finite() || *factor <= 0.0)
        {
            return Err(gguf.bad(format!("tensor `{ROPE_FACTORS}` holds what is not above 0")));
        }
        return Ok(RopeScaling::Factors { factors });
    }
    let key = |key: &str| format!("{name}.rope.scaling.{key}");
    let factor = || match gguf.float(&key("factor"))? {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        other => Err(gguf.bad(format!("{} is {other:?}", key("factor")))),
    };
    match gguf.string(&key("type"))?.unwrap_or("none") {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        other => Err(ModelError::Unsupported(format!(
            "{} `{other}` in a GGUF file of {max_positions} positions; served are none and linear, \
             and Llama 3's factors",
            key("type")
        ))),
    }
}

fn tokenizer(gguf: &GgufFile) -> Result<Tokenizer> {
    let model = gguf
        .string("tokenizer.ggml.model")?
        .ok_or_else(|| gguf.lacks("tokenizer.ggml.model"))?;
    if model != "gpt2" {
        return Err(ModelError::Unsupported(format!(
            "tokenizer.ggml.model `{model}`; byte-level BPE (`gpt2`) is read. Use the model's \
             folder in Hugging Face layout, which has a tokenizer.json"
        )));
    }
    let pre = gguf
        .string("tokenizer.ggml.pre")?
        .ok_or_else(|| gguf.lacks("tokenizer.ggml.pre"))?;
    let kinds = match gguf.metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Integers(kinds)) => &kinds[..],
        _ => &[],
    };
    let id = |name: &str| gguf.token(&format!("tokenizer.ggml.{name}_token_id"));
    let add = |name: &str, default: bool| match gguf
        .metadata
        .get(&format!("tokenizer.ggml.add_{name}_token"))
    {
        Some(Value::Bool(add)) => *add,
        _ => default,
    };
    // llama.cpp's default for Llama 3, whose older files do not say.
    let llama3 = ["llama-bpe", "llama3", "llama-v3"].contains(&pre);
    Tokenizer::from_gguf(&GgufVocabulary {
        pre,
        tokens: gguf.strings("tokenizer.ggml.tokens")?,
        kinds,
        merges: gguf.strings("tokenizer.ggml.merges")?,
        bos: if add("bos", llama3) { id("bos")? } else { None },
        eos: if add("eos", false) { id("eos")? } else { None },
    })
}

/// The special tokens as chat templates call them, with their texts.
fn special_tokens(gguf: &GgufFile) -> Result<Vec<(String, String)>> {
    let tokens = gguf.strings("tokenizer.ggml.tokens")?;
    let names = [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unknown"),
        ("pad_token", "padding"),
    ];
    let mut special = Vec::new();
    for (name, key) in names {
        let id = gguf.token(&format!("tokenizer.ggml.{key}_token_id"))?;
        if let Some(text) = id.and_then(|id| tokens.get(id as usize)) {
            special.push((name.to_owned(), text.clone()));
        }
    }
    Ok(special)
}

/// End of text, of turn and of message.
fn stop_token_ids(gguf: &GgufFile) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(gguf.token(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Metadata by key and type; `None` where there is none of that key.
impl GgufFile {
    fn lacks(&self, key: &str) -> ModelError {
        self.bad(format!("metadata `{key}` is missing"))
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        self.bad(format!("metadata `{key}` is not {expected}"))
    }

    fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<i64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(*number)),
            Some(_) => Err(self.wrong(key, "one whole number")),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number as f32)),
            Some(Value::Integer(number)) => Ok(Some(*number as f32)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    fn strings(&self, key: &str) -> Result<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Strings(list)) => Ok(list),
            Some(_) => Err(self.wrong(key, "a list of texts")),
            None => Err(self.lacks(key)),
        }
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(id) = self.integer(key)? else {
            return Ok(None);
        };
        u32::try_from(id)
            .map(Some)
            .map_err(|_| self.wrong(key, "a token id"))
    }
}
