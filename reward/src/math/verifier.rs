//! The verdict on a completion.

use super::{
    MathConfig,
    equal::{self, equal},
    fuel::{Fuel, OutOfFuel},
    parse::ParseError,
    read::{Answer, read},
};

/// Says whether a completion's answer equals a gold answer. Cheap to make and to share.
#[derive(Clone, Debug)]
pub struct Verifier {
    config: MathConfig,
}

/// What the verdict is, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub outcome: Outcome,
    /// How the gold was understood; none if it was not.
    pub gold_parsed: Option<String>,
    /// The completion's answer as it is written there; none if none was found.
    pub answer_extracted: Option<String>,
    /// How the answer was understood; none if it was not.
    pub answer_parsed: Option<String>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is the gold.
    Equal,
    /// It is not.
    Different(Difference),
    /// It could not be told: not the same as [`Outcome::Different`].
    NotJudged(Unjudged),
}

/// Why an answer is not the gold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The completion has none.
    #[error("no answer found")]
    NoAnswer,
    /// The completion's is in no language of answers, nor the gold's text.
    #[error("the answer is not understood: {0}")]
    NotUnderstood(ParseError),
    /// Both are understood and are not the same.
    #[error("not equal")]
    Unequal,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// The gold's text has no answer in it.
    #[error("no answer found in the gold")]
    NoGold,
    /// The gold is in no language of answers.
    #[error("the gold is not understood: {0}")]
    GoldNotUnderstood(ParseError),
    /// A verdict would cost more work than it may.
    #[error("{0}")]
    TooMuchWork(String),
}

impl Outcome {
    /// True, false, or not known.
    pub fn verdict(&self) -> Option<bool> {
        match self {
            Self::Equal => Some(true),
            Self::Different(_) => Some(false),
            Self::NotJudged(_) => None,
        }
    }

    /// Why it is not true; none if it is.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Equal => None,
            Self::Different(why) => Some(why.to_string()),
            Self::NotJudged(why) => Some(why.to_string()),
        }
    }
}

impl Verifier {
    /// Takes a configuration.
    pub fn new(config: MathConfig) -> Self {
        Self { config }
    }

    /// The configuration.
    pub fn config(&self) -> &MathConfig {
        &self.config
    }

    /// Judges a completion. `gold` is a text as well: `$\frac{1}{2}$`, `1/2`, `The answer is 1/2.`
    ///
    /// Time is linear in the texts' lengths to find the answers, and bounded by
    /// [`MathConfig::fuel`] from there on. Never panics.
    pub fn verify(&self, gold: &str, completion: &str) -> Judgement {
        let mut fuel = Fuel::new(self.config.fuel);
        let gold = read(gold, &self.config.gold, &mut fuel);
        let answer = read(completion, &self.config.answer, &mut fuel);
        let outcome = self.compare(&gold, &answer, &mut fuel);
        Judgement {
            outcome,
            gold_parsed: parsed(&gold),
            answer_parsed: parsed(&answer),
            answer_extracted: answer.extracted,
        }
    }

    fn compare(&self, gold: &Answer, answer: &Answer, fuel: &mut Fuel) -> Outcome {
        if gold.extracted.is_none() {
            return Outcome::NotJudged(Unjudged::NoGold);
        }
        // Text is compared with text alone, as written.
        if gold.texts.iter().any(|text| answer.texts.contains(text)) {
            return Outcome::Equal;
        }
        if let (false, Some(problem)) = (gold.understood, &gold.problem) {
            return Outcome::NotJudged(match problem {
                ParseError::OutOfFuel(why) => too_much_work(*why),
                _ => Unjudged::GoldNotUnderstood(problem.clone()),
            });
        }
        if answer.extracted.is_none() {
            return Outcome::Different(Difference::NoAnswer);
        }
        if let (false, Some(problem)) = (answer.understood, &answer.problem) {
            return match problem {
                ParseError::OutOfFuel(why) => Outcome::NotJudged(too_much_work(*why)),
                _ => Outcome::Different(Difference::NotUnderstood(problem.clone())),
            };
        }
        let (Some(gold), Some(answer)) = (&gold.tree, &answer.tree) else {
            return Outcome::Different(Difference::Unequal);
        };
        let (left, right) = if self.config.swapped {
            (answer, gold)
        } else {
            (gold, answer)
        };
        match equal(left, right, self.config.comparison, fuel) {
            Ok(true) => Outcome::Equal,
            Ok(false) => Outcome::Different(Difference::Unequal),
            Err(equal::NotJudged::TooMuchWork(why)) => {
                Outcome::NotJudged(Unjudged::TooMuchWork(why))
            }
        }
    }
}

fn too_much_work(why: OutOfFuel) -> Unjudged {
    Unjudged::TooMuchWork(why.to_string())
}

/// How an answer was understood, for people.
fn parsed(answer: &Answer) -> Option<String> {
    match &answer.tree {
        Some(tree) => Some(tree.to_string()),
        None if answer.understood => answer.texts.first().cloned(),
        None => None,
    }
}
