//! Whether a completion's answer is right: the question that several rewards share.

use std::sync::LazyLock;

use crate::{
    Verdict, boxed, choice,
    math::{MathConfig, Outcome, Reading, Unjudged, Verifier},
    numeric,
};

/// Who says whether an answer is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerJudge {
    /// The verifier of mathematics as the paper's rewards configure it: LaTeX only, boxes first, a
    /// bare number is no answer.
    #[default]
    Tina,
    /// The verifier of mathematics as math-verify is by default: plain expressions count too.
    Default,
    /// As the paper's evaluation: boxes first, plain expressions count, five decimals; where the
    /// gold answer is one capital letter, a choice's letter.
    Evaluation,
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
    /// There is no gold answer to judge by.
    NoGold(String),
    /// It could not be told: the gold answer is not understood, or it would be too much work.
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

    /// As the published code sees it: without a gold answer every answer is right, and what else
    /// can't be judged is wrong.
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

/// The verifiers that rewards ask, by [`AnswerJudge::Default`] and by [`Judge::reversed`].
static VERIFIERS: LazyLock<[[Verifier; 2]; 3]> = LazyLock::new(|| {
    [
        MathConfig::tina(),
        MathConfig::reference(),
        MathConfig::evaluation(),
    ]
    .map(|config| {
        let reversed = MathConfig {
            gold: Reading::latex(),
            swapped: true,
            ..config.clone()
        };
        [Verifier::new(config), Verifier::new(reversed)]
    })
});

pub(crate) fn judge(judge: Judge, gold: &str, text: &str) -> Correctness {
    let config = match judge.by {
        AnswerJudge::Numeric => return numeric::score(text, gold).into(),
        AnswerJudge::Boxed => return boxed::score(text, gold).into(),
        AnswerJudge::Tina => 0,
        AnswerJudge::Default => 1,
        AnswerJudge::Evaluation if choice::is_choice(gold) => {
            return choice::score(text, gold).into();
        }
        AnswerJudge::Evaluation => 2,
    };
    let verifier = &VERIFIERS[config][usize::from(judge.reversed)];
    match verifier.verify(gold, text).outcome {
        Outcome::Equal => Correctness::Right,
        Outcome::Different(_) => Correctness::Wrong,
        Outcome::NotJudged(why @ Unjudged::NoGold) => Correctness::NoGold(why.to_string()),
        Outcome::NotJudged(why) => Correctness::NotJudged(why.to_string()),
    }
}
