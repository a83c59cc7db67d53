//! The sources that a config names, each with its own word on every key or that of `[data]`.

use super::{
    DataError, Filter, PromptTemplate, RowFormat, Source, SourceProblems, SourceReport,
    problem::read_problems,
};
use crate::config::{BadRows, RunConfig, SourceSection};

/// One of the sources that a config names, with its own word on each key or that of `[data]`.
#[derive(Clone, Debug)]
pub(super) struct SourceSpec {
    pub(super) source: Source,
    pub(super) format: RowFormat,
    pub(super) weight: Option<f64>,
    pub(super) system: Option<String>,
    /// 0: none.
    pub(super) limit: usize,
}

impl SourceSpec {
    fn new(config: &RunConfig, own: &SourceSection) -> Result<Self, DataError> {
        let data = &config.data;
        let template = own
            .prompt_template
            .as_ref()
            .unwrap_or(&data.prompt_template);
        let answer_template = own
            .answer_template
            .as_ref()
            .unwrap_or(&data.answer_template);
        let filter = own.filter.as_ref().unwrap_or(&data.filter);
        Ok(Self {
            source: own.source.parse()?,
            format: RowFormat {
                question_field: own
                    .question_field
                    .as_ref()
                    .unwrap_or(&data.question_field)
                    .clone(),
                answer_field: own
                    .answer_field
                    .as_ref()
                    .unwrap_or(&data.answer_field)
                    .clone(),
                template: PromptTemplate::parse(template).map_err(DataError::Template)?,
                answer_template: PromptTemplate::parse(answer_template)
                    .map_err(DataError::AnswerTemplate)?,
                filter: filter
                    .iter()
                    .map(|text| Filter::parse(text))
                    .collect::<Result<_, _>>()?,
                answers: own.answer.unwrap_or(data.answer),
                keep: Vec::new(),
            },
            weight: own.weight,
            system: own
                .system_prompt
                .clone()
                .or_else(|| data.system_prompt.clone()),
            limit: own.limit.unwrap_or(data.limit),
        })
    }

    /// All that a config names to train on.
    pub(super) fn all(config: &RunConfig) -> Result<Vec<Self>, DataError> {
        let one = config.data.source.iter().map(|source| bare(source));
        one.chain(config.data.sources.iter().cloned())
            .map(|own| Self::new(config, &own))
            .collect()
    }

    /// The source of the held-out problems, where it is one of its own.
    pub(super) fn held_out(config: &RunConfig) -> Result<Option<Self>, DataError> {
        let Some(source) = &config.data.held_out_source else {
            return Ok(None);
        };
        let mut spec = Self::new(config, &bare(source))?;
        spec.format.filter.clear();
        spec.limit = 0;
        Ok(Some(spec))
    }
}

/// A source with nothing said of it.
fn bare(source: &str) -> SourceSection {
    SourceSection {
        source: source.to_owned(),
        weight: None,
        question_field: None,
        answer_field: None,
        prompt_template: None,
        answer_template: None,
        system_prompt: None,
        filter: None,
        answer: None,
        limit: None,
    }
}

/// A source as read.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    /// As the config names it.
    pub(super) source: String,
    /// A short name.
    pub(super) name: String,
    pub(super) read: SourceProblems,
    pub(super) weight: Option<f64>,
    pub(super) system: Option<String>,
    pub(super) limit: usize,
}

impl Loaded {
    pub(super) fn read(spec: SourceSpec, bad_rows: BadRows) -> Result<Self, DataError> {
        Ok(Self {
            read: read_problems(&spec.source, &spec.format, bad_rows)?,
            source: spec.source.to_string(),
            name: spec.source.name().to_owned(),
            weight: spec.weight,
            system: spec.system,
            limit: spec.limit,
        })
    }

    /// What reading it came to.
    pub(super) fn report(&self) -> SourceReport {
        SourceReport {
            source: self.source.clone(),
            rows: self.read.rows,
            bad: self.read.bad,
            first_bad: self.read.first_bad.clone(),
            filtered: self.read.filtered,
            unfit_answer: self.read.unfit_answer,
            ..SourceReport::default()
        }
    }
}
