//! The adapters to evaluate, by what a person calls them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tina_model::{Adapter, LoraConfig, ModelConfig, adapter_digest, parse_device};

use super::EvaluationError;
use crate::{
    run::{GivenAdapter, Weights},
    scheduler::types::Version,
};

/// The base model as it is.
pub const BASE: &str = "base";

/// What A of the base's adapter is drawn by. B is zero, so it has no effect; that it is the same in
/// every run makes the base's samples the same in every evaluation.
const BASE_SEED: u64 = 0;

/// An adapter, and what it is called in reports.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) given: GivenAdapter,
}

/// Finds all adapters, in order; what is the same adapter under two names is evaluated once, under
/// both. `run`: the run's folder, whose adapters may be called by step, `best` or `latest`.
pub(super) fn find(
    wanted: &[String],
    run: &Path,
    lora: &LoraConfig,
    model: &ModelConfig,
) -> Result<Vec<Named>, EvaluationError> {
    let mut found: Vec<Named> = Vec::new();
    for name in wanted {
        let bad = |message: String| EvaluationError::Adapter {
            name: name.clone(),
            message,
        };
        let (weights, bytes) = if name == BASE {
            let bytes = base(lora, model).map_err(|error| bad(error.to_string()))?;
            (Weights::Bytes(bytes.clone()), bytes)
        } else {
            let folder = folder(name, run).map_err(bad)?;
            check_shape(&folder, lora).map_err(bad)?;
            let weights = Weights::File(folder.join("adapter_model.safetensors"));
            let bytes = weights.read().map_err(bad)?;
            (weights, bytes)
        };
        let digest = adapter_digest(&bytes);
        match found
            .iter_mut()
            .find(|other| other.given.version.digest == digest)
        {
            Some(other) if other.name == *name => {}
            Some(other) => other.name += &format!(" = {name}"),
            None => {
                let step = found.len() as u64;
                let version = Version { step, digest };
                found.push(Named {
                    name: name.clone(),
                    given: GivenAdapter { version, weights },
                });
            }
        }
    }
    Ok(found)
}

/// An adapter of the run's shape without effect.
fn base(lora: &LoraConfig, model: &ModelConfig) -> Result<Arc<[u8]>, tina_model::ModelError> {
    let device = parse_device("cpu")?;
    let adapter = Adapter::init(lora, model, BASE_SEED, &device)?;
    Ok(adapter.to_safetensors()?.into())
}

/// The folder that is meant: a path, or an adapter of the run.
fn folder(name: &str, run: &Path) -> Result<PathBuf, String> {
    let given = PathBuf::from(name);
    let of_run = run.join("adapters").join(match name.parse::<u64>() {
        Ok(step) => format!("{step:06}"),
        Err(_) => name.to_owned(),
    });
    [given, of_run]
        .into_iter()
        .find(|folder| folder.join("adapter_model.safetensors").is_file())
        .ok_or_else(|| {
            format!(
                "it is no folder with adapter_model.safetensors, and {} has no adapter of that \
                 name; say {BASE}, a step, best, latest, or a folder",
                run.display()
            )
        })
}

/// Workers load adapters of one shape: the config's.
fn check_shape(folder: &Path, lora: &LoraConfig) -> Result<(), String> {
    let file = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|error| format!("{}: can't be read: {error}", file.display()))?;
    let own = LoraConfig::from_peft_json(&text).map_err(|error| error.to_string())?;
    let modules = |lora: &LoraConfig| {
        let mut modules = lora.target_modules.clone();
        modules.sort_unstable();
        modules
    };
    let differs = |key: &str, own: String, config: String| {
        Err(format!(
            "its {key} is {own}, the config's lora.{key} is {config}: evaluate it with a config of \
             its shape (--set lora.{key}=...)"
        ))
    };
    if own.rank != lora.rank {
        differs("rank", own.rank.to_string(), lora.rank.to_string())
    } else if own.alpha != lora.alpha {
        differs("alpha", own.alpha.to_string(), lora.alpha.to_string())
    } else if own.rslora != lora.rslora {
        differs("rslora", own.rslora.to_string(), lora.rslora.to_string())
    } else if modules(&own) != modules(lora) {
        let names = |lora: &LoraConfig| {
            let names: Vec<&str> = modules(lora).iter().map(|module| module.name()).collect();
            names.join(", ")
        };
        differs("target_modules", names(&own), names(lora))
    } else {
        Ok(())
    }
}
