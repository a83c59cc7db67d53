//! From a run's folder to plain data.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tina_proto::v1;

use super::{ReportError, facts::Facts};
use crate::{
    journal::{Answer, Counters, EvalPrompt, Reader},
    run::{ADDRESS_FILE, CONFIG_FILE, JOURNAL_FILE},
};

/// A run as its folder has it at one moment.
#[derive(Debug, Default)]
pub struct RunData {
    /// The folder's name.
    pub folder: String,
    /// The run's name for itself.
    pub run_id: String,
    /// What the config says.
    pub facts: Facts,
    /// The coordinator's address is still there: the run goes on, or was killed.
    pub open: bool,
    /// As last recorded.
    pub counters: Counters,
    /// All steps, in order.
    pub steps: Vec<v1::StepRecord>,
    /// By step, lengths of its completions in tokens.
    pub lengths: BTreeMap<u64, Vec<u32>>,
    /// All evaluations, in order.
    pub evals: Vec<EvalData>,
}

/// An evaluation with all that was asked and answered.
#[derive(Debug, Default)]
pub struct EvalData {
    /// Its record.
    pub record: v1::EvalRecord,
    /// Its problems.
    pub prompts: Vec<EvalPrompt>,
    /// Its completions.
    pub answers: Vec<Answer>,
}

/// Reads the run in `folder`; the reader is for what else is wanted of the same moment.
pub(super) fn read(folder: &Path) -> Result<(RunData, Reader), ReportError> {
    let journal = folder.join(JOURNAL_FILE);
    let reader = Reader::open(&journal)?.ok_or_else(|| ReportError::NoRun {
        folder: folder.to_owned(),
    })?;
    let mut evals = Vec::new();
    for record in reader.evals()? {
        evals.push(EvalData {
            prompts: reader.eval_prompts(record.step)?,
            answers: reader.answers(record.step)?,
            record,
        });
    }
    let data = RunData {
        folder: name_of(folder),
        run_id: reader.run_id()?,
        facts: facts(folder.join(CONFIG_FILE))?,
        open: folder.join(ADDRESS_FILE).exists(),
        counters: reader.counters()?,
        steps: reader.steps()?,
        lengths: reader.lengths()?,
        evals,
    };
    Ok((data, reader))
}

/// The folder's own name, also of `.` and `..`.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(
        || folder.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// A run whose config is gone still has its journal.
fn facts(path: PathBuf) -> Result<Facts, ReportError> {
    match fs::read_to_string(&path) {
        Ok(text) => Facts::parse(&text).map_err(|source| ReportError::Config {
            path,
            source: Box::new(source),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Facts::default()),
        Err(source) => Err(ReportError::File { path, source }),
    }
}
