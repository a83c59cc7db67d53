//! How answers are read and compared, as plain data.

use super::{
    equal::Comparison,
    extract::{BoxedContent, Extraction, LatexExtraction, PlainExtraction},
    parse::Repairs,
};

/// Work that one verdict may cost: about a millisecond on one core.
const FUEL: u64 = 30_000;

/// Everything that a verdict depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MathConfig {
    /// How the gold answer is read.
    pub gold: Reading,
    /// How the completion is read.
    pub answer: Reading,
    /// How the two are compared.
    pub comparison: Comparison,
    /// Compare the other way round, the completion as if it were the gold. The length rewards of
    /// Tina and Open-R1 call `verify(answer, gold)`, which differs where `verify` is not symmetric.
    pub swapped: bool,
    /// Units of [`Fuel`](super::fuel::Fuel) for reading both and comparing.
    pub fuel: u64,
}

/// How an answer is read from a text: the arguments of the reference's `parse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Kinds of answers, in the order in which they are asked.
    pub kinds: Vec<Extraction>,
    /// Only the first find is read, even if it does not parse (`extraction_mode="first_match"`);
    /// otherwise the first that parses.
    pub first_only: bool,
    /// The first find also counts as text, equal to the same text alone
    /// (`fallback_mode="first_match"`).
    pub as_text: bool,
}

impl MathConfig {
    /// math-verify 0.9.0 as it is without arguments: `verify(parse(gold), parse(completion))`.
    pub fn reference() -> Self {
        Self {
            gold: Reading::reference(),
            answer: Reading::reference(),
            comparison: Comparison {
                float_rounding: 6,
                strict: true,
                set_relation: false,
            },
            swapped: false,
            fuel: FUEL,
        }
    }

    /// The paper's accuracy reward (`tina/post_train_hf/rewards.py`; Open-R1's and TRL's is the
    /// same): the gold as the reference reads it, first find only; of the completion LaTeX alone,
    /// boxes first, nothing without an anchor.
    pub fn tina() -> Self {
        Self {
            gold: Reading {
                first_only: true,
                ..Reading::reference()
            },
            answer: Reading::boxed_latex(),
            ..Self::reference()
        }
    }
}

impl MathConfig {
    /// The paper's evaluation (`scripts/eval/run_eval_custom_tasks.py`, lighteval's
    /// `multilingual_extractive_match`): as the reference, with boxes first and five decimals.
    pub fn evaluation() -> Self {
        let reference = Self::reference();
        let boxes_first = Extraction::Latex(LatexExtraction {
            boxed_priority: Some(0),
            ..LatexExtraction::reference()
        });
        Self {
            answer: Reading {
                kinds: vec![
                    boxes_first,
                    Extraction::Plain(PlainExtraction { anywhere: true }),
                ],
                ..Reading::reference()
            },
            comparison: Comparison {
                float_rounding: 5,
                ..reference.comparison
            },
            ..reference
        }
    }
}

impl Reading {
    /// The default arguments of the reference's `parse`: LaTeX, then plain; the first that parses.
    pub fn reference() -> Self {
        Self {
            kinds: vec![
                Extraction::Latex(LatexExtraction::reference()),
                Extraction::Plain(PlainExtraction { anywhere: true }),
            ],
            first_only: false,
            as_text: true,
        }
    }

    /// LaTeX alone, as `LatexExtractionConfig()` finds it, first find only: how the length rewards
    /// of Tina and Open-R1 read the gold.
    pub fn latex() -> Self {
        Self {
            kinds: vec![Extraction::Latex(LatexExtraction::reference())],
            first_only: true,
            as_text: true,
        }
    }

    /// How the paper's accuracy reward reads a completion: a box first, then LaTeX behind the word
    /// "answer".
    pub fn boxed_latex() -> Self {
        Self {
            kinds: vec![Extraction::Latex(LatexExtraction {
                anywhere: false,
                boxed_priority: Some(0),
                boxed: BoxedContent::All,
                repairs: Repairs {
                    basic_latex: true,
                    units: true,
                    malformed_operators: false,
                    nits: false,
                    equations: true,
                },
            })],
            first_only: true,
            as_text: true,
        }
    }
}

impl LatexExtraction {
    /// The reference's `LatexExtractionConfig()`.
    pub fn reference() -> Self {
        Self {
            anywhere: true,
            boxed_priority: Some(50),
            boxed: BoxedContent::All,
            repairs: Repairs {
                basic_latex: true,
                units: true,
                malformed_operators: true,
                nits: true,
                equations: false,
            },
        }
    }
}
