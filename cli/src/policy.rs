//! A model, with an adapter on it or without, ready to compute: what `sample` and `logprobs` share.

use std::path::{Path, PathBuf};

use tina_coordinator::config::RunConfig;
use tina_model::{
    Adapter, Decoder, Dtype, LoadOptions, LoraConfig, ModelSource, TextModel, parse_device,
};

use crate::Failure;

/// Which model, which adapter, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// hf:ORG/NAME[@REV], wheel:PACKAGE==VERSION, a folder or a .gguf file; without it, the model
    /// that the adapter names
    #[arg(long, value_name = "SOURCE", required_unless_present_any = ["adapter", "run"])]
    model: Option<String>,
    /// Folder of an adapter in PEFT's format, e.g. runs/NAME/adapters/latest
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Folder of a run, e.g. runs/NAME: its model, its newest adapter, its system message
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "adapter"])]
    run: Option<PathBuf>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// How the weights are held: auto is bf16, but f32 on a CPU for a model stored in f32 or f16
    #[arg(long, default_value = "auto", value_name = "auto|f32|bf16")]
    dtype: Dtype,
}

/// A loaded model with its adapter.
pub(crate) struct Policy {
    pub(crate) text: TextModel,
    pub(crate) decoder: Decoder,
    pub(crate) adapter: Option<Adapter>,
    /// The config of the run that it comes from.
    pub(crate) config: Option<RunConfig>,
}

impl Policy {
    /// Opens and loads everything. Blocks.
    pub(crate) fn load(args: &PolicyArgs) -> Result<Self, Failure> {
        let device = parse_device(&args.device)?;
        let run = args.run.as_deref();
        let config = run
            .map(|run| RunConfig::load(&run.join("config.toml"), &[]))
            .transpose()?;
        let folder = run
            .map(|run| run.join("adapters/latest"))
            .or_else(|| args.adapter.clone());
        let lora = folder.as_deref().map(AdapterFolder::read).transpose()?;
        let source = match (&args.model, &config, &lora) {
            (Some(source), _, _) => source.clone(),
            (None, Some(config), _) => config.model.source.clone(),
            (None, None, Some(lora)) => lora.base_model()?,
            (None, None, None) => return Err("name a model: --model SOURCE".into()),
        };
        let model = tina_model::open(&source.parse::<ModelSource>()?)?;
        let mut options = LoadOptions::new(device.clone(), false);
        options.dtype = args.dtype;
        let shape = &model.text.config;
        let adapter = lora
            .map(|lora| Adapter::from_safetensors(&lora.weights, &lora.config, shape, &device))
            .transpose()?;
        let decoder = Decoder::load(shape, model.weights.as_ref(), &options)?;
        Ok(Self {
            text: model.text,
            decoder,
            adapter,
            config,
        })
    }
}

/// An adapter as it lies on disk.
struct AdapterFolder {
    path: PathBuf,
    config_text: String,
    config: LoraConfig,
    weights: Vec<u8>,
}

impl AdapterFolder {
    fn read(path: &Path) -> Result<Self, Failure> {
        let file = |name: &str| {
            let file = path.join(name);
            std::fs::read(&file).map_err(|error| {
                format!(
                    "{}: can't be read: {error} (--adapter names a folder)",
                    file.display()
                )
            })
        };
        let config_text = String::from_utf8(file("adapter_config.json")?)?;
        let config = LoraConfig::from_peft_json(&config_text)?;
        let weights = file("adapter_model.safetensors")?;
        Ok(Self {
            path: path.to_owned(),
            config_text,
            config,
            weights,
        })
    }

    fn base_model(&self) -> Result<String, Failure> {
        let json: serde_json::Value = serde_json::from_str(&self.config_text)?;
        let base = json["base_model_name_or_path"].as_str().unwrap_or_default();
        // Tina writes its own names of sources; other programs write a hub name or a path.
        let is_hub_name = base.split('/').count() == 2 && !Path::new(base).exists();
        match base {
            "" => Err(format!("{}: names no base model; give --model", self.path.display()).into()),
            _ if is_hub_name && !base.contains(':') => Ok(format!("hf:{base}")),
            _ => Ok(base.to_owned()),
        }
    }
}
