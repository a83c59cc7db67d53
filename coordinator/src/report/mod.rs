//! One page about a run: Markdown with SVG plots beside it, from the run's folder alone. Nothing of
//! the run is touched; it may go on, have ended, or have been killed.
//!
//! - [`write()`]: from a run's folder to the page's.
//! - [`read`]: the folder's data; [`facts`]: its config. [`numbers`]: what there is to say, as plain
//!   numbers; [`turn`]: where a curve turned; [`problems`]: single problems.
//! - [`charts`]: the figures, with [`plot`] and `ticks`. `page`: the text, with `summary` and `words`.

pub mod charts;
pub mod facts;
pub mod numbers;
mod page;
pub mod plot;
pub mod problems;
pub mod read;
mod summary;
mod ticks;
pub mod turn;
mod words;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::journal::{JournalError, Reader};

/// The page's file.
const PAGE: &str = "report.md";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not a run's folder.
    #[error(
        "{folder}: no run was begun here (it has no run.db, or an empty one); name a run's folder, \
         like runs/NAME"
    )]
    NoRun {
        /// The folder.
        folder: PathBuf,
    },
    /// The journal can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The kept config can't be understood.
    #[error("{path}: not a config")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A file can't be read or written.
    #[error("{path}: can't be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A report that was written.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// Its numbers.
    pub report: numbers::Report,
    /// The run in five lines.
    pub summary: [String; 5],
}

/// A completion before and after, for the page.
struct Example {
    question: String,
    gold: String,
    before: (String, bool),
    after: (String, bool),
}

/// Writes `report.md` and its plots about the run in `folder` into `out`, which is made where
/// it isn't there; by default into `report/` in the run's folder. Figures of an earlier report
/// that this one doesn't have are removed.
///
/// # Errors
/// `folder` is no run's, its journal can't be read, or `out` can't be written.
pub fn write(folder: &Path, out: Option<&Path>) -> Result<Written, ReportError> {
    let (data, reader) = read::read(folder)?;
    let report = numbers::report(&data);
    let examples = problems::pairs(&data)
        .into_iter()
        .map(|pair| example(&reader, pair))
        .collect::<Result<Vec<_>, _>>()?;
    drop(reader);
    let figures = charts::figures(&report);
    let text = page::page(&report, &figures, &examples);

    let out = out.map_or_else(|| folder.join("report"), Path::to_owned);
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ReportError::File { path, source }
    };
    fs::create_dir_all(&out).map_err(fail(&out))?;
    for file in charts::FILES {
        let path = out.join(file);
        match figures.iter().find(|figure| figure.file == file) {
            Some(figure) => fs::write(&path, &figure.svg).map_err(fail(&path))?,
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(fail(&path)(error));
                }
                _ => {}
            },
        }
    }
    let path = out.join(PAGE);
    fs::write(&path, text).map_err(fail(&path))?;
    Ok(Written {
        page: path,
        summary: summary::summary(&report),
        report,
    })
}

fn example(reader: &Reader, pair: problems::Pair) -> Result<Example, JournalError> {
    Ok(Example {
        question: pair.question,
        gold: pair.gold,
        before: (reader.text(pair.before.0)?, pair.before.1),
        after: (reader.text(pair.after.0)?, pair.after.1),
    })
}

#[cfg(test)]
mod tests;
