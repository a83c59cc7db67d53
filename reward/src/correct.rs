//! Whether a completion's answer is right: the question that several rewards share.

use crate::{Verdict, boxed, numeric};

/// Who says whether an answer is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerJudge {
    /// The verifier of mathematics as the paper's rewards configure it: LaTeX only, boxes first, a
    /// bare number is no answer.
    #[default]
    Tina,
    /// The verifier of mathematics as math-verify is by default: plain expressions count too.
    Default,
    /// As the reward `boxed`.
    Boxed,
    /// As the reward `numeric`.
    Numeric,
}

/// Who says so, and what is said where the gold answer can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judge {
    pub(crate) by: AnswerJudge,
    /// As Open-R1's length and cosine rewards do, and its accuracy at first: the gold answer is
    /// looked for in LaTeX only, and is compared with the answer's place taken.
    pub(crate) reversed: bool,
}

impl Judge {
    pub(crate) fn of(by: AnswerJudge) -> Self {
        Self {
            by,
            reversed: false,
        }
    }

    pub(crate) fn reversed(by: AnswerJudge) -> Self {
        Self { by, reversed: true }
    }
}

/// Whether an answer is right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Correctness {
    Right,
    Wrong,
    /// The gold answer can't be read: no completion can be judged by it.
    NoGold(String),
    /// This answer could not be judged.
    NotJudged(String),
}

impl Correctness {
    /// As a verdict of full marks or none.
    pub(crate) fn verdict(self) -> Verdict {
        self.decided()
            .map_or_else(Verdict::NotJudged, Verdict::right)
    }

    /// Right or wrong, or why that is not known.
    pub(crate) fn decided(self) -> Result<bool, String> {
        match self {
            Self::Right => Ok(true),
            Self::Wrong => Ok(false),
            Self::NoGold(reason) | Self::NotJudged(reason) => Err(reason),
        }
    }

    /// As the published code sees it: an unreadable gold answer makes every answer right, and an
    /// answer that can't be judged is wrong.
    pub(crate) fn published(&self) -> bool {
        matches!(self, Self::Right | Self::NoGold(_))
    }
}

impl From<Verdict> for Correctness {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Scored(value) if value >= 1.0 => Self::Right,
            Verdict::Scored(_) => Self::Wrong,
            Verdict::NotJudged(reason) => Self::NoGold(reason),
        }
    }
}

pub(crate) fn judge(judge: Judge, gold: &str, text: &str) -> Correctness {
    match judge.by {
        AnswerJudge::Numeric => numeric::score(text, gold).into(),
        AnswerJudge::Tina | AnswerJudge::Default | AnswerJudge::Boxed => {
            boxed::score(text, gold).into()
        }
    }
}
