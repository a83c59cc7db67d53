//! What became of the rows of each source.

use std::fmt;

use serde::Serialize;

use super::BadRow;

/// What became of all rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// The sources to train on, in the config's order.
    pub sources: Vec<SourceReport>,
    /// `data.held_out_source`, where there is one.
    pub held_out_source: Option<SourceReport>,
    /// Tokens of every prompt that was made of the sources to train on, sorted; also of those that
    /// were left out for their length.
    #[serde(skip)]
    pub prompt_tokens: Vec<u32>,
}

/// What became of a source's rows: each is counted once.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceReport {
    /// As the config names it.
    pub source: String,
    /// Its share of the prompts drawn, where sources have weights.
    pub share: Option<f64>,
    /// All of its rows.
    pub rows: usize,
    /// Rows that are no problems.
    pub bad: usize,
    /// The first of them.
    pub first_bad: Vec<BadRow>,
    /// Left out by `data.filter`.
    pub filtered: usize,
    /// Left out by `data.answer`.
    pub unfit_answer: usize,
    /// Left out because the same prompt, or the same question in another source, stands before it.
    pub repeated: usize,
    /// Of those, how many have another gold answer than the first.
    pub conflicting: usize,
    /// Left out because `data.held_out_source` asks the same.
    pub in_held_out: usize,
    /// Left out by `data.min_prompt_tokens`.
    pub too_short: usize,
    /// Left out by `data.max_prompt_tokens`.
    pub too_long: usize,
    /// Left out by `data.limit`.
    pub over_limit: usize,
    /// To train on.
    pub train: usize,
    /// Held out.
    pub held_out: usize,
}

impl SourceReport {
    /// What was left out, and why: words for each reason that there was.
    fn left_out(reports: &[&Self]) -> Vec<String> {
        let sum = |count: fn(&Self) -> usize| reports.iter().copied().map(count).sum::<usize>();
        [
            (sum(|r| r.bad), "bad rows skipped"),
            (sum(|r| r.filtered), "left out by data.filter"),
            (sum(|r| r.unfit_answer), "left out for their answer"),
            (
                sum(|r| r.in_held_out),
                "left out that data.held_out_source asks",
            ),
            (
                sum(|r| r.too_short + r.too_long),
                "left out for their length",
            ),
            (sum(|r| r.repeated), "repeated ones left out"),
            (sum(|r| r.over_limit), "left out by data.limit"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect()
    }
}

impl fmt::Display for SourceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows", self.source, self.rows)?;
        Self::left_out(&[self])
            .iter()
            .try_for_each(|words| write!(f, ", {words}"))
    }
}

impl DataReport {
    /// The first bad rows of each source.
    pub fn first_bad(&self) -> impl Iterator<Item = &BadRow> {
        let sources = self.sources.iter().chain(&self.held_out_source);
        sources.flat_map(|report| &report.first_bad)
    }

    /// One line for a person: how many problems there are, and what was left out.
    pub fn summary(&self) -> String {
        let sources: Vec<&SourceReport> = self.sources.iter().collect();
        let train: usize = sources.iter().map(|report| report.train).sum();
        let held_out: usize = sources
            .iter()
            .copied()
            .chain(&self.held_out_source)
            .map(|report| report.held_out)
            .sum();
        let mut words = vec![
            format!("{train} problems to train on"),
            format!("{held_out} held out"),
        ];
        words.extend(SourceReport::left_out(&sources));
        words.join(", ")
    }
}
