//! Rows of any format: JSON objects, whose fields are found by a path.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::DataError;

/// One row of a file.
pub type Row = Map<String, Value>;

/// What hears each row: its line (or row, in a Parquet file) counted from 1, and the row or what is
/// wrong with it.
pub type Visit<'a> = dyn FnMut(usize, Result<Row, String>) -> Result<(), DataError> + 'a;

/// A field of a row: by its name, or, where no field has that name, by a path through what is
/// nested: `extra.answer`, `choices.0`. A path goes on inside a text that holds a JSON object or list.
pub fn field<'a>(row: &'a Row, path: &str) -> Option<Cow<'a, Value>> {
    if let Some(value) = row.get(path) {
        return Some(Cow::Borrowed(value));
    }
    let steps: Vec<&str> = path.split('.').collect();
    let (first, rest) = steps.split_first()?;
    walk(row.get(*first)?, rest)
}

fn walk<'a>(value: &'a Value, steps: &[&str]) -> Option<Cow<'a, Value>> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(Cow::Borrowed(value));
    };
    match value {
        Value::Object(fields) => walk(fields.get(*step)?, rest),
        Value::Array(items) => walk(items.get(step.parse::<usize>().ok()?)?, rest),
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            let inner: Value = serde_json::from_str(text).ok()?;
            walk(&inner, steps).map(|found| Cow::Owned(found.into_owned()))
        }
        _ => None,
    }
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
        let found = |path: &str| field(&row, path).and_then(|value| text(&value));
        assert_eq!(
            found("a.b").as_deref(),
            Some("2"),
            "a name comes before a path"
        );
        assert_eq!(found("e").as_deref(), Some("true"));
        assert_eq!(found("d"), None);
        let row: Row = serde_json::from_str(r#"{"a": {"b": [1, {"c": "x"}]}}"#).expect("a row");
        let found = |path: &str| field(&row, path).and_then(|value| text(&value));
        assert_eq!(found("a.b.0").as_deref(), Some("1"));
        assert_eq!(found("a.b.1.c").as_deref(), Some("x"));
        let row: Row =
            serde_json::from_str(r#"{"a": {"b": [1, {"c": "x"}], "j": "[{\"v\": \"7\"}]"}}"#)
                .expect("a row");
        let found = |path: &str| field(&row, path).and_then(|value| text(&value));
        assert_eq!(found("a.j.0.v").as_deref(), Some("7"), "JSON in a text");
        for none in [
            "a",
            "a.j.1",
            "a.b.1.c.0",
            "a.x",
            "a.b.2",
            "a.b.x",
            "a.b.0.c",
            "",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
