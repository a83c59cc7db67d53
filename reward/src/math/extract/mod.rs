//! Where in a completion the answer stands: math-verify 0.9.0's rules (`parser.py`), written anew.
//!
//! A rule has a priority; the lower, the earlier it is asked. The reference's: 0 "final answer is …
//! I hope", 50 "final answer … is", 100 "answer:", 200 "answer", 300 anywhere; a box at the
//! priority that the configuration gives. Among the finds of one priority the one that ends last
//! comes first, then the longest. [`finds`] gives the finds of one priority in that order; the
//! caller reads them until one parses.
//!
//! - [`latex`]: `$…$`, `\[…\]` and the like, several joined by "and", boxes. [`plain`]: numbers and
//!   sums as typed. [`letters`]: multiple choice. [`boxed`]: what is inside of boxes.
//!
//! The reference's regular expressions look around and backtrack, so its time is not bounded; here
//! each rule is a scan that costs time linear in the text.

mod boxed;
mod latex;
mod letters;
mod plain;
#[cfg(test)]
mod tests;
mod text;

use std::{borrow::Cow, collections::BTreeSet};

use super::parse::Repairs;
use text::Text;

/// "final answer is … I hope".
const HOPE: i32 = 0;
/// "final answer … is".
const FINAL: i32 = 50;
/// "answer: …".
const COLON: i32 = 100;
/// "answer …".
const ANSWER: i32 = 200;
/// A letter at the start of the text.
const START: i32 = 250;
/// Anywhere.
const ANYWHERE: i32 = 300;

/// Which boxes of a LaTeX environment are read. A box outside of an environment is always read as
/// [`BoxedContent::Last`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxedContent {
    /// All, joined by commas.
    All,
    /// The last, and those before it that belong to it.
    Last,
    /// None: the environment is read as it is.
    Whole,
}

/// How answers in LaTeX are found: the reference's `LatexExtractionConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatexExtraction {
    /// Also anywhere, not only behind the word "answer".
    pub anywhere: bool,
    /// When boxes are asked for; none never asks (the reference's -1).
    pub boxed_priority: Option<i32>,
    /// What is made of boxes inside of an environment.
    pub boxed: BoxedContent,
    /// Repairs before parsing.
    pub repairs: Repairs,
}

/// How answers as typed are found: the reference's `ExprExtractionConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainExtraction {
    /// Also anywhere, not only behind the word "answer".
    pub anywhere: bool,
}

/// How letters of a multiple choice are found: the reference's `StringExtractionConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterExtraction {
    /// The choices, as they are written: `A`, `B`, …
    pub letters: Vec<String>,
    /// Also anywhere, not only behind the word "answer".
    pub anywhere: bool,
    /// Choices compare in lower case.
    pub lowercase: bool,
}

/// One kind of answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extraction {
    /// In LaTeX.
    Latex(LatexExtraction),
    /// As typed.
    Plain(PlainExtraction),
    /// A letter.
    Letters(LetterExtraction),
}

/// A place where an answer may stand.
#[derive(Clone, Debug, PartialEq)]
pub struct Find<'t> {
    /// First byte, of the words before the answer too.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// What stands there.
    pub content: Content<'t>,
}

/// What stands at a place.
#[derive(Clone, Debug, PartialEq)]
pub enum Content<'t> {
    /// LaTeX; several parts are one set of answers.
    Latex {
        /// The parts, boxes opened.
        parts: Vec<LatexPart<'t>>,
        /// Repairs before parsing.
        repairs: Repairs,
    },
    /// A number.
    Number {
        /// Digits with sign and decimal point, without separators: `-1234.5`.
        digits: String,
        /// Whether it stands before a percent sign or word.
        percent: bool,
    },
    /// Numbers with operators between them.
    Plain(&'t str),
    /// A letter of a multiple choice.
    Letter {
        /// As written.
        written: &'t str,
        /// As compared.
        compared: String,
    },
}

/// One environment.
#[derive(Clone, Debug, PartialEq)]
pub struct LatexPart<'t> {
    /// Without its delimiters, boxes opened.
    pub text: Cow<'t, str>,
    /// Whether it stands before a percent sign or word.
    pub percent: bool,
}

/// A text, and what of it is worth to be worked out once.
#[derive(Debug)]
pub struct Source<'t> {
    text: Text<'t>,
}

impl<'t> Source<'t> {
    /// Looks where the word "answer" stands; time linear in the text.
    pub fn new(text: &'t str) -> Self {
        Self {
            text: Text::new(text),
        }
    }

    /// The finds of one priority, the best first: ending last, then the longest, then in the order
    /// of `kinds`.
    pub fn finds(&self, kinds: &[Extraction], priority: i32) -> Vec<Find<'t>> {
        let mut finds = Vec::new();
        for kind in kinds {
            match kind {
                Extraction::Latex(latex) => latex::finds(&self.text, latex, priority, &mut finds),
                Extraction::Plain(plain) => plain::finds(&self.text, *plain, priority, &mut finds),
                Extraction::Letters(letters) => {
                    letters::finds(&self.text, letters, priority, &mut finds);
                }
            }
        }
        // Stable, as the reference's: at the same place the kind that was asked first.
        finds.sort_by(|a, b| b.end.cmp(&a.end).then(a.start.cmp(&b.start)));
        finds
    }
}

/// The priorities at which these kinds are asked, in order.
pub fn priorities(kinds: &[Extraction]) -> BTreeSet<i32> {
    let mut all = BTreeSet::from([HOPE, FINAL, COLON, ANSWER]);
    for kind in kinds {
        let anywhere = match kind {
            Extraction::Latex(latex) => {
                all.extend(latex.boxed_priority);
                latex.anywhere
            }
            Extraction::Plain(plain) => plain.anywhere,
            Extraction::Letters(letters) => {
                if letters.anywhere {
                    all.insert(START);
                }
                letters.anywhere
            }
        };
        if anywhere {
            all.insert(ANYWHERE);
        }
    }
    all
}
