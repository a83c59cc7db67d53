//! What `data.source` says: a built-in task, files of this machine, files of the Hub.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use tina_model::DatasetFile;

use super::{DataError, arithmetic, jsonl, parquet, rows::Visit};

/// Files that one source may name by a range.
const MAX_FILES: usize = 10_000;

/// Where problems come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `arithmetic:TASK`, built in.
    Arithmetic {
        /// One of [`arithmetic::TASKS`].
        task: String,
    },
    /// Files, read one after the other: several where a range such as `{00..09}` stands in the name.
    Files {
        /// As written.
        text: String,
        /// At least one.
        files: Vec<SourceFile>,
    },
}

/// One file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    place: Place,
    format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Hub(DatasetFile),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    Parquet,
}

impl FromStr for Source {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        if let Some(task) = text.strip_prefix("arithmetic:") {
            if !arithmetic::TASKS.contains(&task) {
                return Err(DataError::UnknownTask {
                    task: task.to_owned(),
                });
            }
            return Ok(Self::Arithmetic {
                task: task.to_owned(),
            });
        }
        let bad = |message: String| DataError::Source {
            text: text.to_owned(),
            message,
        };
        if text.is_empty() {
            return Err(bad("must not be empty".to_owned()));
        }
        if scheme(text).is_some_and(|scheme| scheme != "hf") {
            return Err(bad(
                "the part before the colon is neither arithmetic nor hf; write arithmetic:TASK, \
                 hf:ORG/NAME[@REV]:PATH, or a file's path"
                    .to_owned(),
            ));
        }
        let files = expand(text).map_err(&bad)?;
        let files: Result<Vec<SourceFile>, DataError> = files
            .into_iter()
            .map(|name| {
                let format = Format::of(&name).map_err(&bad)?;
                let place = match name.starts_with("hf:") {
                    true => Place::Hub(name.parse().map_err(Box::new)?),
                    false => Place::Local(PathBuf::from(name)),
                };
                Ok(SourceFile { place, format })
            })
            .collect();
        Ok(Self::Files {
            text: text.to_owned(),
            files: files?,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arithmetic { task } => write!(f, "arithmetic:{task}"),
            Self::Files { text, .. } => f.write_str(text),
        }
    }
}

impl Source {
    /// Whether the text names a file of this machine, whose path may be relative.
    pub fn is_local(text: &str) -> bool {
        !text.is_empty() && scheme(text).is_none()
    }

    /// A short name: the task, or the file's name without folder and extension.
    pub fn name(&self) -> &str {
        match self {
            Self::Arithmetic { task } => task,
            Self::Files { text, .. } => {
                let file = text.rsplit(['/', ':']).next().unwrap_or(text);
                file.rsplit_once('.').map_or(file, |(stem, _)| stem)
            }
        }
    }
}

/// What stands before the colon of `hf:...`; a file's path has none.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    (scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric())).then_some(scheme)
}

impl fmt::Display for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Local(path) => write!(f, "{}", path.display()),
            Place::Hub(file) => write!(f, "{file}"),
        }
    }
}

impl SourceFile {
    /// The file's name without folder and extension.
    pub(super) fn stem(&self) -> String {
        let path = match &self.place {
            Place::Local(path) => path,
            Place::Hub(file) => Path::new(&file.path),
        };
        let stem = path.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    }

    /// Reads the file row by row; a file of the Hub is fetched first, where the cache lacks it.
    ///
    /// `wanted`: the fields that will be looked at; others may be left out of the rows, which saves
    /// much where rows are long. Empty: all.
    ///
    /// # Errors
    /// The file can't be had or read, or what `visit` returns.
    pub fn rows(&self, wanted: &[String], visit: &mut Visit<'_>) -> Result<(), DataError> {
        let path = match &self.place {
            Place::Local(path) => path.clone(),
            Place::Hub(file) => file.fetch().map_err(Box::new)?,
        };
        let name = self.to_string();
        match self.format {
            Format::JsonLines => jsonl::rows(&path, &name, visit),
            Format::Parquet => parquet::rows(&path, &name, wanted, visit),
        }
    }
}

impl Format {
    /// By the file's extension; what has none of the known is taken for JSON lines.
    fn of(name: &str) -> Result<Self, String> {
        let extension = Path::new(name).extension().unwrap_or_default();
        let extension = extension.to_string_lossy().to_lowercase();
        match extension.as_str() {
            "parquet" => Ok(Self::Parquet),
            "csv" | "tsv" | "arrow" | "feather" | "gz" | "zst" | "bz2" | "xz" | "zip" => Err(
                format!(".{extension} files are not read: JSON lines (.jsonl) and .parquet are"),
            ),
            _ => Ok(Self::JsonLines),
        }
    }
}

/// `part-{08..10}.jsonl` is `part-08.jsonl`, `part-09.jsonl`, `part-10.jsonl`; a text without a
/// range is itself.
fn expand(text: &str) -> Result<Vec<String>, String> {
    let range = text.find('{').and_then(|open| {
        let close = open + text[open..].find('}')?;
        let (first, last) = text[open + 1..close].split_once("..")?;
        let is_number = |part: &str| {
            !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        (is_number(first) && is_number(last)).then_some((open, close, first, last))
    });
    let Some((open, close, first, last)) = range else {
        return Ok(vec![text.to_owned()]);
    };
    let number = |part: &str| part.parse::<usize>().unwrap_or(usize::MAX);
    let (from, to) = (number(first), number(last));
    if from > to {
        return Err(format!("the range {{{first}..{last}}} is empty"));
    }
    if to - from >= MAX_FILES {
        return Err(format!(
            "the range {{{first}..{last}}} has more than {MAX_FILES} files"
        ));
    }
    let width = first.len();
    let (before, after) = (&text[..open], &text[close + 1..]);
    Ok((from..=to)
        .map(|number| format!("{before}{number:0width$}{after}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<String> {
        match text.parse::<Source>().expect(text) {
            Source::Files { files, .. } => files.iter().map(ToString::to_string).collect(),
            Source::Arithmetic { .. } => panic!("{text}: not files"),
        }
    }

    #[test]
    fn a_source_is_a_task_a_file_or_a_range_of_files() {
        let task: Source = "arithmetic:add1".parse().expect("a task");
        assert_eq!(
            (task.name(), task.to_string().as_str()),
            ("add1", "arithmetic:add1")
        );
        assert_eq!(files("/data/x.jsonl"), ["/data/x.jsonl"]);
        assert_eq!(files("hf:a/b@v1:c/d.parquet"), ["hf:a/b@v1:c/d.parquet"]);
        assert_eq!(
            files("hf:a/b:train-{00008..00010}-of-00011.parquet"),
            ["00008", "00009", "00010"].map(|n| format!("hf:a/b:train-{n}-of-00011.parquet"))
        );
        assert_eq!(files("x{9..10}.jsonl"), ["x9.jsonl", "x10.jsonl"]);
        assert_eq!(files("x{a..b}.jsonl"), ["x{a..b}.jsonl"]);
        let file: Source = "hf:a/b:c/train.parquet".parse().expect("a file");
        assert_eq!(file.name(), "train");
    }

    #[test]
    fn what_is_no_source_says_what_would_be() {
        for (text, word) in [
            ("", "must not be empty"),
            ("s3:bucket/x.jsonl", "neither arithmetic nor hf"),
            ("https://x/y.jsonl", "neither arithmetic nor hf"),
            ("hf:a/b", "write hf:ORG/NAME[@REVISION]:PATH"),
            ("arithmetic:addmax", "addmix"),
            ("x.csv", "JSON lines"),
            ("x.jsonl.gz", "JSON lines"),
            ("x{3..1}.jsonl", "empty"),
            ("x{0..10000}.jsonl", "more than"),
        ] {
            let error = text.parse::<Source>().expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
