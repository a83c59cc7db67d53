//! Rows of JSON lines, until `data` reads every format.

use std::{io::BufRead as _, path::PathBuf, str::FromStr};

use serde_json::{Map, Value};

use crate::data::DataError;

pub(super) type Row = Map<String, Value>;

pub(super) enum Source {
    Files { files: Vec<SourceFile> },
    #[allow(dead_code, reason = "as data has it")]
    Other,
}

pub(super) struct SourceFile(PathBuf);

impl FromStr for Source {
    type Err = DataError;
    fn from_str(text: &str) -> Result<Self, DataError> {
        Ok(Self::Files {
            files: vec![SourceFile(text.into())],
        })
    }
}

impl std::fmt::Display for SourceFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

impl SourceFile {
    pub(super) fn rows(
        &self,
        _wanted: &[String],
        visit: &mut dyn FnMut(usize, Result<Row, String>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let unreadable = |source| DataError::Unreadable {
            path: self.0.clone(),
            source,
        };
        let file = std::fs::File::open(&self.0).map_err(unreadable)?;
        for (at, line) in std::io::BufReader::new(file).lines().enumerate() {
            let line = line.map_err(unreadable)?;
            if !line.trim().is_empty() {
                visit(at + 1, serde_json::from_str(&line).map_err(|e| e.to_string()))?;
            }
        }
        Ok(())
    }
}

pub(super) fn field<'a>(row: &'a Row, path: &str) -> Option<&'a Value> {
    row.get(path)
}

pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
