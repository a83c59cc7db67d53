//! The problems of a run: where they come from, what is held out, and which prompts a step has.
//!
//! - [`Source`]: what `data.source` says. `jsonl`, `parquet`: files, read row by row. [`rows`]: a
//!   row's fields. [`arithmetic`]: the built-in generator.
//! - [`read_problems`]: from the rows of a source to problems. [`Filter`]: which rows count.
//!   `template`: `{field}` in a text.
//! - [`PromptRenderer`]: from a problem to the tokens that the model sees.
//! - [`DataSet`]: prompts, tokenized once; [`DataSet::prompts_of_step`] is a function of the seed
//!   and the step alone. `mixture`: sources with weights. [`DataReport`]: what became of the rows.

pub mod arithmetic;
mod error;
mod filter;
mod jsonl;
mod mixture;
mod parquet;
mod problem;
mod render;
mod report;
pub mod rows;
mod set;
mod source;
mod template;

pub use error::{BadRow, DataError};
pub use filter::Filter;
pub use problem::{AnswerKind, Problem, RowFormat, SourceProblems, read_problems};
pub use render::{PromptRenderer, TEMPLATE_TIME};
pub use report::{DataReport, SourceReport};
pub use set::{DataSet, Prompt};
pub use source::{Source, SourceFile};
pub use template::PromptTemplate;

#[cfg(test)]
mod tests;
