//! Rows of any format: JSON objects, whose fields are found by a path.

use serde_json::{Map, Value};

use super::DataError;

/// One row of a file.
pub type Row = Map<String, Value>;

/// What hears each row: its line (or row, in a Parquet file) counted from 1, and the row or what is
/// wrong with it.
pub type Visit<'a> = dyn FnMut(usize, Result<Row, String>) -> Result<(), DataError> + 'a;

/// A field of a row: by its name, or, where no field has that name, by a path through what is
/// nested: `extra.answer`, `choices.0`.
pub fn field<'a>(row: &'a Row, path: &str) -> Option<&'a Value> {
    if let Some(value) = row.get(path) {
        return Some(value);
    }
    let mut steps = path.split('.');
    let mut value = row.get(steps.next()?)?;
    for step in steps {
        value = match value {
            Value::Object(fields) => fields.get(step)?,
            Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

/// A value as the text of a question, an answer or a part of a prompt; none for null, lists and
/// objects.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A value in an error message: its beginning, where it is long.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_or_by_path() {
        let row: Row = serde_json::from_str(
            r#"{"a": {"b": [1, {"c": "x"}]}, "a.b": 2, "d": null, "e": true}"#,
        )
        .expect("a row");
        let found = |path: &str| field(&row, path).and_then(text);
        assert_eq!(
            found("a.b").as_deref(),
            Some("2"),
            "a name comes before a path"
        );
        assert_eq!(found("e").as_deref(), Some("true"));
        assert_eq!(found("d"), None);
        let row: Row = serde_json::from_str(r#"{"a": {"b": [1, {"c": "x"}]}}"#).expect("a row");
        let found = |path: &str| field(&row, path).and_then(text);
        assert_eq!(found("a.b.0").as_deref(), Some("1"));
        assert_eq!(found("a.b.1.c").as_deref(), Some("x"));
        for none in ["a", "a.x", "a.b.2", "a.b.x", "a.b.0.c", ""] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
