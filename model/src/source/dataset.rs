//! Files of dataset repositories on the Hugging Face Hub.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{hub, hub_name, plain};
use crate::error::{ModelError, Result};

/// One file of a dataset: `hf:ORG/NAME[@REVISION]:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatasetFile {
    /// `ORG/NAME`.
    pub repo: String,
    /// A branch, a tag or a commit; the main branch if there is none.
    pub revision: Option<String>,
    /// The file's path in the repository.
    pub path: String,
}

impl DatasetFile {
    /// Gives the file's path on this machine. It is fetched into Hugging Face's cache if it isn't
    /// there, under the same rules as a model: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` mean what they mean to Hugging Face's own tools.
    ///
    /// # Errors
    /// There is no such repository, revision or file, it may not be read, or the Hub is out of reach
    /// and the cache does not have it; the error says what to do.
    pub fn fetch(&self) -> Result<PathBuf> {
        let wanted = hub::Wanted::DatasetFile {
            path: self.path.clone(),
        };
        hub::fetch(&self.repo, self.revision.as_deref(), wanted)
    }
}

impl FromStr for DatasetFile {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |message: &str| ModelError::BadDatasetFile {
            text: text.to_owned(),
            message: message.to_owned(),
        };
        let rest = text
            .strip_prefix("hf:")
            .ok_or_else(|| bad("it does not begin with hf:"))?;
        let (name, path) = rest
            .split_once(':')
            .ok_or_else(|| bad("there is no file's path after the repository"))?;
        let (repo, revision) = hub_name(name).map_err(bad)?;
        // It becomes part of a URL and of a path in the cache.
        if !path.split('/').all(|part| plain(part, "-_.=+")) {
            return Err(bad(
                "a path is names of letters, digits, `-`, `_`, `.`, `=` and `+`, with `/` between",
            ));
        }
        Ok(Self {
            repo,
            revision,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for DatasetFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        write!(f, ":{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_written_alike() {
        for (text, repo, revision, path) in [
            ("hf:a/b:train.jsonl", "a/b", None, "train.jsonl"),
            (
                "hf:openai/gsm8k@refs/convert/parquet:main/train/0000.parquet",
                "openai/gsm8k",
                Some("refs/convert/parquet"),
                "main/train/0000.parquet",
            ),
        ] {
            let file: DatasetFile = text.parse().unwrap();
            assert_eq!((&*file.repo, &*file.path), (repo, path));
            assert_eq!(file.revision.as_deref(), revision);
            assert_eq!(file.to_string(), text);
        }
    }

    #[test]
    fn what_could_reach_another_path_is_refused() {
        for text in [
            "a/b:x.jsonl",
            "hf:a/b",
            "hf:a:x.jsonl",
            "hf:a/b:",
            "hf:a/b:../x.jsonl",
            "hf:a/b:/x.jsonl",
            "hf:a/b:x//y.jsonl",
            "hf:a/b:x?y=1",
            "hf:a/b@:x.jsonl",
            "hf:../b:x.jsonl",
        ] {
            let error = text.parse::<DatasetFile>().unwrap_err().to_string();
            assert!(
                error.contains("write hf:ORG/NAME[@REVISION]:PATH"),
                "{error}"
            );
        }
    }
}
