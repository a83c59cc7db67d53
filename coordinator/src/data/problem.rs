//! From the rows of a source to problems.

use serde_json::{Map, Value};
use tina_reward::number::Number;

use super::{
    BadRow, DataError, Filter, PromptTemplate, Source, arithmetic,
    rows::{Row, field, shown, text},
};
use crate::config::{Answers, BadRows};

/// Bad rows that are shown; all are counted.
const SHOWN: usize = 5;

/// A question whose answer can be checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// Name of the problem in its source: the row's `id`, or its line.
    pub id: String,
    /// The question as the source has it.
    pub question: String,
    /// The gold answer.
    pub answer: String,
    /// The user's message: the template, filled in.
    pub prompt: String,
    /// Other fields of the row: those of [`RowFormat::keep`] that it has.
    pub extra: Map<String, Value>,
}

/// Which fields of a row are what, how the user's message is made of them, and which rows count. A
/// field may be a path through what is nested (`extra.answer`, `choices.0`).
#[derive(Clone, Debug)]
pub struct RowFormat {
    /// Field of the question.
    pub question_field: String,
    /// Field of the gold answer.
    pub answer_field: String,
    /// The user's message.
    pub template: PromptTemplate,
    /// Rows that don't meet all of these are left out.
    pub filter: Vec<Filter>,
    /// Rows whose gold answer is of another kind are left out.
    pub answers: Answers,
    /// Further fields to keep in [`Problem::extra`].
    pub keep: Vec<String>,
}

impl RowFormat {
    /// A format without filters that keeps nothing further.
    pub fn new(question_field: &str, answer_field: &str, template: PromptTemplate) -> Self {
        Self {
            question_field: question_field.to_owned(),
            answer_field: answer_field.to_owned(),
            template,
            filter: Vec::new(),
            answers: Answers::Any,
            keep: Vec::new(),
        }
    }

    /// The fields that are looked at.
    fn wanted(&self) -> Vec<String> {
        let own = [&self.question_field, &self.answer_field];
        let template = self.template.fields().filter(|name| !is_own(name));
        let mut wanted = vec!["id".to_owned()];
        wanted.extend(own.into_iter().cloned());
        wanted.extend(template.map(str::to_owned));
        wanted.extend(self.filter.iter().map(|filter| filter.field().to_owned()));
        wanted.extend(self.keep.iter().cloned());
        wanted
    }
}

/// What a template calls the question and the answer, whatever the row does.
fn is_own(name: &str) -> bool {
    name == "question" || name == "answer"
}

/// The problems of a source, and what became of its other rows.
#[derive(Clone, Debug, Default)]
pub struct SourceProblems {
    /// In the source's order.
    pub problems: Vec<Problem>,
    /// Rows of the source, good or bad.
    pub rows: usize,
    /// Rows that are no problems.
    pub bad: usize,
    /// The first of them.
    pub first_bad: Vec<BadRow>,
    /// Rows that a filter left out.
    pub filtered: usize,
    /// Rows left out for the kind of their answer.
    pub unfit_answer: usize,
}

/// Reads all problems of a source: the built-in, or files that are local or on the Hub (fetched
/// first), in either format.
///
/// # Errors
/// See [`DataError`]: with [`BadRows::Fail`] bad rows are an error that names the first five by file
/// and line; a source without a single good row always is one.
pub fn read_problems(
    source: &Source,
    format: &RowFormat,
    bad_rows: BadRows,
) -> Result<SourceProblems, DataError> {
    let mut read = Reading {
        format,
        out: SourceProblems::default(),
        filter_fields: vec![false; format.filter.len()],
        fields: Vec::new(),
    };
    match source {
        Source::Arithmetic { task } => read.arithmetic(task)?,
        Source::Files { files, .. } => {
            let wanted = format.wanted();
            for file in files {
                let name = file.to_string();
                // Lines are counted by file, so its name tells equal ones apart.
                let prefix = (files.len() > 1).then(|| file.stem());
                file.rows(&wanted, &mut |line, row| {
                    read.row(&name, prefix.as_deref(), line, row);
                    Ok(())
                })?;
            }
        }
    }
    let Reading {
        out,
        filter_fields,
        fields,
        ..
    } = read;
    if out.bad > 0 && bad_rows == BadRows::Fail {
        return Err(DataError::BadRows {
            first: out.first_bad,
            count: out.bad,
        });
    }
    if out.rows == out.bad {
        return Err(DataError::Empty {
            file: source.to_string(),
            rows: out.rows,
            first_bad: out.first_bad.into_iter().next(),
        });
    }
    if let Some(at) = filter_fields.iter().position(|there| !there) {
        return Err(format.filter[at].unknown_field(&source.to_string(), &fields));
    }
    Ok(out)
}

struct Reading<'a> {
    format: &'a RowFormat,
    out: SourceProblems,
    /// Which filters' fields some row has had.
    filter_fields: Vec<bool>,
    /// Fields of the first row.
    fields: Vec<String>,
}

impl Reading<'_> {
    fn row(&mut self, file: &str, prefix: Option<&str>, line: usize, row: Result<Row, String>) {
        self.out.rows += 1;
        let made = row.and_then(|row| {
            if !self.keeps(&row) {
                return Ok(None);
            }
            problem(&row, prefix, line, self.format).map(Some)
        });
        match made {
            Ok(Some(problem)) if fits(&problem.answer, self.format.answers) => {
                self.out.problems.push(problem);
            }
            Ok(Some(_)) => self.out.unfit_answer += 1,
            Ok(None) => self.out.filtered += 1,
            Err(message) => {
                self.out.bad += 1;
                if self.out.first_bad.len() < SHOWN {
                    self.out.first_bad.push(BadRow {
                        file: file.to_owned(),
                        line,
                        message,
                    });
                }
            }
        }
    }

    fn keeps(&mut self, row: &Row) -> bool {
        if self.fields.is_empty() {
            self.fields = row.keys().cloned().collect();
        }
        for (there, filter) in self.filter_fields.iter_mut().zip(&self.format.filter) {
            *there |= field(row, filter.field()).is_some();
        }
        self.format.filter.iter().all(|filter| filter.keeps(row))
    }

    /// The built-in problems, whose fields have names of their own.
    fn arithmetic(&mut self, task: &str) -> Result<(), DataError> {
        for mut problem in arithmetic::problems(task)? {
            self.out.rows += 1;
            let row: Row = [
                ("id", &problem.id),
                ("question", &problem.question),
                ("answer", &problem.answer),
            ]
            .into_iter()
            .map(|(name, text)| (name.to_owned(), Value::from(text.as_str())))
            .collect();
            let filled = self
                .format
                .template
                .fill(|name| row.get(name).and_then(text));
            problem.prompt = filled.map_err(|name| {
                DataError::Template(format!(
                    "built-in problems have no field {name:?}: {{question}}"
                ))
            })?;
            if !self.keeps(&row) {
                self.out.filtered += 1;
            } else if !fits(&problem.answer, self.format.answers) {
                self.out.unfit_answer += 1;
            } else {
                self.out.problems.push(problem);
            }
        }
        Ok(())
    }
}

/// What a gold answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// A number and nothing else.
    Number,
    /// Any other text.
    Text,
}

impl AnswerKind {
    /// The kind of one gold answer.
    pub fn of(answer: &str) -> Self {
        match Number::parse(answer) {
            Some(_) => Self::Number,
            None => Self::Text,
        }
    }
}

/// Whether the gold answer is of the kind that is asked for.
fn fits(answer: &str, answers: Answers) -> bool {
    match answers {
        Answers::Any => true,
        Answers::Number => AnswerKind::of(answer) == AnswerKind::Number,
    }
}

fn problem(
    row: &Row,
    prefix: Option<&str>,
    line: usize,
    format: &RowFormat,
) -> Result<Problem, String> {
    let missing = |name: &str, key: &str| {
        let fields: Vec<&str> = row.keys().map(String::as_str).collect();
        format!(
            "no field {name:?}; the row has {}; set {key}",
            fields.join(", ")
        )
    };
    let text_of = |name: &str| field(row, name).and_then(text);
    let required = |name: &str, key: &str| match field(row, name) {
        None => Err(missing(name, key)),
        Some(value) => text(value)
            .filter(|text| !text.trim().is_empty())
            .ok_or_else(|| {
                let value = shown(value);
                format!("field {name:?} must be text or a number, and not empty; it is {value}")
            }),
    };
    let question = required(&format.question_field, "data.question_field")?;
    let answer = required(&format.answer_field, "data.answer_field")?;
    let filled = format.template.fill(|name| match name {
        "question" => Some(question.clone()),
        "answer" => Some(answer.clone()),
        _ => text_of(name),
    });
    let prompt = filled.map_err(|name| missing(&name, "data.prompt_template"))?;
    let id = text_of("id").unwrap_or_else(|| line.to_string());
    let kept = format.keep.iter();
    let extra = kept.filter_map(|name| Some((name.clone(), field(row, name)?.clone())));
    Ok(Problem {
        id: prefix.map_or_else(|| id.clone(), |prefix| format!("{prefix}:{id}")),
        extra: extra.collect(),
        question,
        answer,
        prompt,
    })
}

#[cfg(test)]
mod tests;
