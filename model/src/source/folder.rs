//! A folder in Hugging Face layout: `config.json`, safetensors, `tokenizer.json`, and beside them
//! what there is of `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja`.

use std::path::Path;

use serde_json::Value;

use super::{Model, TextModel, check_vocabulary, digest, read_text, read_text_if_there};
use crate::chat::ChatTemplate;
use crate::config::{ModelConfig, stop_token_ids};
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;
use crate::weights::check_tensors;
use crate::weights::safetensors::SafetensorsWeights;

/// Opens a folder with its weights.
pub(super) fn open(folder: &Path) -> Result<Model> {
    let (text, config) = open_text(folder)?;
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let weights = if single.exists() {
        SafetensorsWeights::open(&single)?
    } else if index.exists() {
        SafetensorsWeights::open_sharded(&index)?
    } else {
        return Err(ModelError::bad_file(
            folder,
            "neither model.safetensors nor model.safetensors.index.json is there; weights in other \
             formats (such as pytorch_model.bin) must be saved as safetensors first",
        ));
    };
    check_tensors(
        &text.config,
        &weights.shapes(),
        &folder.display().to_string(),
    )?;
    let digest = digest(&config, &weights.files());
    Ok(Model {
        text,
        weights: Box::new(weights),
        digest,
    })
}

/// Opens a folder without its weights; also gives the text of `config.json`.
pub(super) fn open_text(folder: &Path) -> Result<(TextModel, String)> {
    if !folder.is_dir() {
        return Err(ModelError::bad_file(
            folder,
            "no such folder; for a repository on the Hub write hf:ORG/NAME",
        ));
    }
    let config_path = folder.join("config.json");
    let tokenizer_path = folder.join("tokenizer.json");
    for path in [&config_path, &tokenizer_path] {
        if !path.exists() {
            return Err(ModelError::bad_file(
                path,
                "not there; a model folder has config.json, tokenizer.json and *.safetensors",
            ));
        }
    }
    let config = read_text(&config_path)?;
    let generation = read_text_if_there(&folder.join("generation_config.json"))?;
    let tokenizer = std::fs::read(&tokenizer_path).map_err(ModelError::io(&tokenizer_path))?;
    let tokenizer_config = tokenizer_config(folder)?;
    let special_tokens = special_tokens(&tokenizer_config);
    let text = TextModel {
        config: ModelConfig::from_hf_json(&config)?,
        tokenizer: Tokenizer::from_json(&tokenizer)?,
        chat: chat_template(folder, &tokenizer_config, &special_tokens)?,
        special_tokens,
        stop_token_ids: stop_token_ids(&config, generation.as_deref())?,
    };
    check_vocabulary(&text)?;
    Ok((text, config))
}

/// `tokenizer_config.json`; null where there is none.
fn tokenizer_config(folder: &Path) -> Result<Value> {
    let path = folder.join("tokenizer_config.json");
    match read_text_if_there(&path)? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| ModelError::bad_file(&path, format!("not JSON: {error}"))),
        None => Ok(Value::Null),
    }
}

/// The template of `chat_template.jinja` or else of `tokenizer_config.json`, where it is a text or a
/// list of named ones, of which `default` is taken.
fn chat_template(
    folder: &Path,
    config: &Value,
    special_tokens: &[(String, String)],
) -> Result<Option<ChatTemplate>> {
    let template = match (
        read_text_if_there(&folder.join("chat_template.jinja"))?,
        &config["chat_template"],
    ) {
        (Some(template), _) => Some(template),
        (None, Value::String(template)) => Some(template.clone()),
        (None, Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default
                .and_then(|entry| entry["template"].as_str())
                .map(str::to_owned)
        }
        _ => None,
    };
    let compile = |template: String| ChatTemplate::new(&template, special_tokens);
    template.map(compile).transpose()
}

/// The special tokens that `tokenizer_config.json` names, with their texts.
fn special_tokens(config: &Value) -> Vec<(String, String)> {
    let names = [
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "sep_token",
        "cls_token",
    ];
    names
        .iter()
        .filter_map(|name| {
            // A text, or an object that says how the token is matched.
            let token = config[name]
                .as_str()
                .or_else(|| config[name]["content"].as_str())?;
            Some(((*name).to_owned(), token.to_owned()))
        })
        .collect()
}
