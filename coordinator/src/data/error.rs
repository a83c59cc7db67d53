//! Why there are no problems to work on.

use std::fmt;

use serde::Serialize;

use super::arithmetic;

/// A row that is no problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadRow {
    /// The file, as the config names it.
    pub file: String,
    /// Its line, or its row in a Parquet file; counted from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Why there are no problems to work on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The source is neither a file nor anything else that is known.
    #[error("{text}: {message}")]
    Source {
        /// As written.
        text: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A file of the Hugging Face Hub can't be had.
    #[error(transparent)]
    Hub(#[from] Box<tina_model::ModelError>),
    /// The file could not be read.
    #[error("{file}: can't be read")]
    Unreadable {
        /// The file, as the config names it.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is damaged, or not what its name says.
    #[error("{file}: not a Parquet file that can be read: {message}")]
    Parquet {
        /// The file, as the config names it.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// Rows are no problems, and the config does not say to skip them.
    #[error("{}", bad_rows(.first, .count))]
    BadRows {
        /// The first of them.
        first: Vec<BadRow>,
        /// All of them.
        count: usize,
    },
    /// The source has no rows that are problems.
    #[error("{file}: there are no problems in it{}", all_bad(.rows, .first_bad))]
    Empty {
        /// The source, as the config names it.
        file: String,
        /// Its rows.
        rows: usize,
        /// The first bad row, where there are any.
        first_bad: Option<BadRow>,
    },
    /// `arithmetic:` with a task that is not built in.
    #[error("data.source: no task {task:?}; built in are {}", arithmetic::TASKS.join(", "))]
    UnknownTask {
        /// As written.
        task: String,
    },
    /// The prompt template is malformed.
    #[error("data.prompt_template: {0}")]
    Template(String),
    /// A filter is malformed, or names a field that no row has.
    #[error("data.filter: {filter:?}: {message}")]
    Filter {
        /// The filter as written.
        filter: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing is left to train on.
    #[error("nothing is left to train on: {0}")]
    NothingLeft(String),
    /// `data.held_out_source` has too few problems.
    #[error(
        "data.held_out_source: {there} problems can be asked, and data.held_out is {wanted}; set \
         data.held_out = {there} ({summary})"
    )]
    HeldOut {
        /// Problems that can be asked.
        there: usize,
        /// As configured.
        wanted: usize,
        /// What became of its rows.
        summary: String,
    },
    /// The model has no chat template.
    #[error(
        "the model has no chat template; set data.chat = false to ask with the bare text of \
         data.prompt_template"
    )]
    NoChatTemplate,
    /// A prompt could not be rendered or tokenized.
    #[error("problem {id}: the prompt can't be made")]
    Render {
        /// The problem.
        id: String,
        /// Why.
        source: tina_model::ModelError,
    },
}

fn bad_rows(first: &[BadRow], count: &usize) -> String {
    let mut text: Vec<String> = first.iter().map(ToString::to_string).collect();
    if *count > first.len() {
        text.push(format!("... and {} bad rows more", count - first.len()));
    }
    text.push("data.bad_rows = \"skip\" leaves bad rows out".to_owned());
    text.join("\n")
}

fn all_bad(rows: &usize, first: &Option<BadRow>) -> String {
    match first {
        Some(row) => format!("; all its {rows} rows are bad, the first: {row}"),
        None => String::new(),
    }
}
