//! A reward as plain data, and what is wrong with one that can't be.

use crate::{AnswerJudge, FormatRule, TagRule};

/// Whose published numbers a reward reproduces, where they differ from its formula as meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// `shangshang-wang/Tina`, commit c6274cd.
    Tina,
    /// `huggingface/open-r1`, commit 1416fa0.
    OpenR1,
    /// The commit of Open-R1 that Tina starts from, 7041fbc.
    OpenR1Base,
    /// `huggingface/trl` of 2026.
    Trl,
}

impl Compat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tina, Self::OpenR1, Self::OpenR1Base, Self::Trl];

    /// As a config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tina => "tina",
            Self::OpenR1 => "open-r1",
            Self::OpenR1Base => "open-r1-base",
            Self::Trl => "trl",
        }
    }

    /// Characters, reversed verdicts and unclipped curves: all but TRL's.
    pub(crate) fn is_early(self) -> bool {
        self != Self::Trl
    }
}

/// What a reward looks at, and its parameters. The modules of the same names have the formulas and
/// their sources.
#[derive(Clone, Debug, PartialEq)]
pub enum RewardKind {
    /// 1 where the answer equals the gold answer.
    Accuracy {
        /// Who says so.
        judge: AnswerJudge,
        /// Judge only what follows the last of the first of these that is there.
        after: Vec<String>,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// 1 where the text keeps to a form.
    Format {
        /// Which form.
        rule: FormatRule,
        /// For [`FormatRule::Code`]: the language after the fence.
        language: String,
    },
    /// Part marks for tags.
    TagCount {
        /// Which tags.
        rule: TagRule,
    },
    /// Signs of step-by-step reasoning.
    ReasoningSteps {
        /// Signs for full marks.
        steps: u32,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// Shorter than the group is better (Kimi k1.5).
    Length {
        /// Who says what is right.
        judge: AnswerJudge,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// Right answers are worth less the longer they are.
    Cosine {
        /// Who says what is right.
        judge: AnswerJudge,
        /// Tokens (characters in early code) at which the curve ends.
        max_len: u64,
        /// Value of a wrong answer without length; unset: -1, in early code 0.
        min_wrong: Option<f64>,
        /// Value of a wrong answer at `max_len`; unset: -0.5.
        max_wrong: Option<f64>,
        /// Value of a right answer at `max_len`; unset: 0.5.
        min_correct: Option<f64>,
        /// Value of a right answer without length; unset: 1.
        max_correct: Option<f64>,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// Repeated n-grams cost.
    RepetitionPenalty {
        /// Tokens (words in early code) of an n-gram.
        ngram: u32,
        /// Value where nothing but one n-gram stands there; 0 or less.
        max_penalty: f64,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// Right, and as long as asked for (L1).
    L1 {
        /// No longer than asked for, rather than exactly as long.
        max: bool,
        /// Who says what is right.
        judge: AnswerJudge,
        /// Tokens asked for; unset: the prompt says it.
        target: Option<u64>,
        /// Regular expression that finds the length in the prompt, as its first group; unset: "Think
        /// for N tokens" and the like.
        target_pattern: Option<String>,
        /// What a token costs.
        alpha: f64,
        /// Value at the target length, of `max`.
        delta: f64,
        /// Published numbers.
        compat: Option<Compat>,
    },
    /// The last tokens before a limit cost (DAPO).
    SoftOverlong {
        /// The limit, in tokens.
        max_len: u64,
        /// Tokens before it in which the cost rises.
        cache: u64,
    },
    /// The last `\boxed{…}` equals the gold answer.
    Boxed,
    /// The last number equals the gold answer.
    Numeric,
    /// A regular expression matches somewhere in the text.
    Regex {
        /// In Rust's regex syntax.
        pattern: String,
    },
}

/// Why a reward can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// A pattern is not a regular expression, or too big.
    #[error("the pattern can't be used: {0}")]
    Pattern(Box<regex::Error>),
    /// A number that can't be.
    #[error("{key} is {value}: {message}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What would be right.
        message: &'static str,
    },
    /// There is nothing published that this reward could reproduce.
    #[error("there are no numbers of {:?} for this reward", .0.as_str())]
    Compat(Compat),
}

impl RewardError {
    /// The parameter that is wrong.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Pattern(_) => "pattern",
            Self::Value { key, .. } => key,
            Self::Compat(_) => "compat",
        }
    }
}
