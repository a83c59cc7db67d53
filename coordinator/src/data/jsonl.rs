//! Problems from JSON lines: one object a line, with a question and an answer.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use serde_json::{Map, Value};

use super::{DataError, Problem, PromptTemplate};

/// Which fields of a row are what, and how the user's message is made of them.
#[derive(Clone, Debug)]
pub struct RowFormat {
    /// Field of the question.
    pub question_field: String,
    /// Field of the gold answer.
    pub answer_field: String,
    /// The user's message.
    pub template: PromptTemplate,
}

/// Reads all problems of a file; empty lines are passed over.
///
/// # Errors
/// The file can't be read, or a line is not such a row; the error names file and line.
pub fn read(path: &Path, format: &RowFormat) -> Result<Vec<Problem>, DataError> {
    let unreadable = |source| DataError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut problems = Vec::new();
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(unreadable)?;
        let at = |message| DataError::Row {
            path: path.to_owned(),
            line: index + 1,
            message,
        };
        let text = std::str::from_utf8(&line)
            .map_err(|error| at(format!("not UTF-8 text: {error}")))?
            .trim_start_matches('\u{feff}')
            .trim();
        if !text.is_empty() {
            problems.push(row(text, index + 1, format).map_err(at)?);
        }
    }
    if problems.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(problems)
}

fn row(text: &str, line: usize, format: &RowFormat) -> Result<Problem, String> {
    let row: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| format!("not a JSON object ({error}); write one object a line"))?;
    let missing = |name: &str, key: &str| {
        let fields: Vec<&str> = row.keys().map(String::as_str).collect();
        format!(
            "no field {name:?}; the row has {}; set {key}",
            fields.join(", ")
        )
    };
    let text_of = |name: &str| match row.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::Bool(value)) => Some(value.to_string()),
        _ => None,
    };
    let required = |name: &str, key: &str| match row.get(name) {
        None => Err(missing(name, key)),
        Some(value) => text_of(name)
            .filter(|text| !text.trim().is_empty())
            .ok_or_else(|| {
                format!("field {name:?} must be text or a number, and not empty; it is {value}")
            }),
    };
    let question = required(&format.question_field, "data.question_field")?;
    let answer = required(&format.answer_field, "data.answer_field")?;
    let field = |name: &str| match name {
        "question" => Some(question.clone()),
        "answer" => Some(answer.clone()),
        _ => text_of(name),
    };
    let prompt = format
        .template
        .fill(field)
        .map_err(|name| missing(&name, "data.prompt_template"))?;
    let id = text_of("id").unwrap_or_else(|| line.to_string());
    Ok(Problem {
        id,
        question,
        answer,
        prompt,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, template: &str) -> Result<Vec<Problem>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, text).expect("written");
        let format = RowFormat {
            question_field: "problem".to_owned(),
            answer_field: "answer".to_owned(),
            template: PromptTemplate::parse(template).expect("a template"),
        };
        read(&path, &format).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_become_problems() {
        let text = "{\"problem\": \"1 + 1?\", \"answer\": 2, \"unit\": \"m\"}\n\n\
                    {\"id\": \"b\", \"problem\": \"x?\", \"answer\": \"y\", \"unit\": \"s\"}\r\n";
        let problems = read_text(text, "In {unit}: {question}").expect("rows");
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[0].id, "1");
        assert_eq!(problems[0].answer, "2");
        assert_eq!(problems[0].prompt, "In m: 1 + 1?");
        assert_eq!(problems[1].id, "b");
        assert_eq!(problems[1].prompt, "In s: x?");
    }

    #[test]
    fn a_bad_row_is_named_with_its_line_and_what_to_do() {
        let good = "{\"problem\": \"1 + 1?\", \"answer\": 2}\n";
        for (row, words) in [
            ("{\"problem\": 1", vec!["p.jsonl:2:", "not a JSON object"]),
            ("[1]", vec!["p.jsonl:2:", "one object a line"]),
            (
                "{\"question\": 1}",
                vec!["p.jsonl:2:", "\"problem\"", "data.question_field"],
            ),
            (
                "{\"problem\": \"x\"}",
                vec!["p.jsonl:2:", "\"answer\"", "data.answer_field"],
            ),
            (
                "{\"problem\": \"x\", \"answer\": null}",
                vec!["p.jsonl:2:", "it is null"],
            ),
            (
                "{\"problem\": \" \", \"answer\": 1}",
                vec!["p.jsonl:2:", "not empty"],
            ),
        ] {
            let error = read_text(&format!("{good}{row}"), "{question}").expect_err(row);
            for word in words {
                assert!(error.contains(word), "{row}: {error}");
            }
        }
        let error = read_text(good, "{unit} {question}").expect_err("no such field");
        assert!(
            error.contains("\"unit\"") && error.contains("data.prompt_template"),
            "{error}"
        );
        assert!(
            read_text("\n", "{question}")
                .expect_err("empty")
                .contains("no problems")
        );
    }
}
