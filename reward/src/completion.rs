//! What a reward is told of a completion, and what several rewards find out together.

use std::cell::RefCell;

use crate::correct::{Correctness, Judge, judge};

/// What is known of a completion's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// Nothing: rewards that count tokens can't judge.
    Unknown,
    /// How many there are, the token that ended the completion among them.
    Count(usize),
    /// The tokens themselves.
    Ids(&'a [u32]),
}

impl Tokens<'_> {
    /// How many there are.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Unknown => None,
            Self::Count(count) => Some(*count),
            Self::Ids(ids) => Some(ids.len()),
        }
    }
}

/// A completion to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// Its text, special tokens left out.
    pub text: &'a str,
    /// Its tokens.
    pub tokens: Tokens<'a>,
    /// The problem's answer.
    pub gold: &'a str,
    /// The whole text that the model was to continue; empty: not known.
    pub prompt: &'a str,
    /// It was cut off by the token limit.
    pub truncated: bool,
}

/// A completion, and what was found out about it: whether its answer is right is judged once,
/// however many rewards ask.
#[derive(Debug)]
pub struct Known<'a> {
    /// The completion.
    pub completion: Completion<'a>,
    judged: RefCell<Vec<(Judge, Correctness)>>,
}

impl<'a> Known<'a> {
    /// A completion of which nothing was found out yet.
    pub fn new(completion: Completion<'a>) -> Self {
        Self {
            completion,
            judged: RefCell::default(),
        }
    }

    /// Whether its answer is right, as `by` sees it.
    pub(crate) fn correctness(&self, by: Judge) -> Correctness {
        if let Some((_, known)) = self.judged.borrow().iter().find(|(judge, _)| *judge == by) {
            return known.clone();
        }
        let found = judge(by, self.completion.gold, self.completion.text);
        self.judged.borrow_mut().push((by, found.clone()));
        found
    }

    /// Its length in `unit`.
    pub(crate) fn length(&self, unit: Unit) -> Result<u64, String> {
        match unit {
            Unit::Characters => Ok(self.completion.text.chars().count() as u64),
            Unit::Tokens => match self.completion.tokens.count() {
                Some(count) => Ok(count as u64),
                None => Err("the number of its tokens is not known".to_owned()),
            },
        }
    }
}

/// What a length is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Tokens: what the limits of sampling count too.
    Tokens,
    /// Unicode scalar values, as Python's `len` counts: what the published code takes.
    Characters,
}
