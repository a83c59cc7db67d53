//! Rows of JSON lines: one object a line.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use super::{DataError, rows::Visit};

/// Reads a file line by line; empty lines are passed over. `name` is what errors call it.
///
/// # Errors
/// The file can't be read, or what `visit` returns.
pub(super) fn rows(path: &Path, name: &str, visit: &mut Visit<'_>) -> Result<(), DataError> {
    let unreadable = |source| DataError::Unreadable {
        file: name.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(unreadable)?;
        let row = match std::str::from_utf8(&line) {
            Ok(text) => match text.trim_start_matches('\u{feff}').trim() {
                "" => continue,
                text => serde_json::from_str(text).map_err(|error| {
                    format!("not a JSON object ({error}); write one object a line")
                }),
            },
            Err(error) => Err(format!("not UTF-8 text: {error}")),
        };
        visit(index + 1, row)?;
    }
    Ok(())
}
