//! A reward, ready to score.

use regex::Regex;

use crate::{
    Verdict,
    accuracy::{self, Accuracy},
    boxed,
    completion::{Known, Tokens},
    cosine::{self, Cosine},
    format::{self, Format},
    l1::{self, L1, Target},
    length::{self, Length},
    numeric, pattern, reasoning_steps,
    repetition::{self, Repetition},
    soft_overlong,
    spec::{Compat, RewardError, RewardKind},
    tag_count::{self, TagRule},
};

/// What a reward says of one completion alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Its verdict.
    Verdict(Verdict),
    /// The verdict depends on the others of its group: [`Reward::finish`] gives it.
    Share(Share),
}

/// What the verdicts of a group need to know of one completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Its length, in the unit of the reward.
    pub length: u64,
    /// What was found of it alone.
    pub value: f64,
}

/// The shortest and the longest of a group; `None` where all are equally long.
pub(crate) fn range(shares: &[Share]) -> Option<(u64, u64)> {
    let lengths = || shares.iter().map(|share| share.length);
    let (min, max) = (lengths().min()?, lengths().max()?);
    (min < max).then_some((min, max))
}

/// What must be known of a completion's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing.
    Text,
    /// How many there are.
    Count,
    /// The tokens themselves.
    Ids,
}

/// A reward, ready to score; made from a [`RewardKind`].
#[derive(Clone, Debug)]
pub struct Reward {
    rule: Rule,
    needs: Needs,
}

#[derive(Clone, Debug)]
enum Rule {
    Accuracy(Accuracy),
    Format(Format),
    TagCount(TagRule),
    ReasoningSteps(Regex, u32),
    Length(Length),
    Cosine(Cosine),
    Repetition(Repetition),
    L1(L1),
    SoftOverlong { max_len: u64, cache: u64 },
    Boxed,
    Numeric,
    Regex(Regex),
}

fn compile(text: &str) -> Result<Regex, RewardError> {
    pattern::compile(text).map_err(broken)
}

fn broken(error: regex::Error) -> RewardError {
    RewardError::Pattern(Box::new(error))
}

/// Whether the published numbers of early code are wanted; `trl`: TRL has this reward too.
fn early(compat: Option<Compat>, trl: bool) -> Result<bool, RewardError> {
    match compat {
        Some(Compat::Trl) if !trl => Err(RewardError::Compat(Compat::Trl)),
        compat => Ok(compat.is_some_and(Compat::is_early)),
    }
}

fn demand(
    fine: bool,
    key: &'static str,
    value: f64,
    message: &'static str,
) -> Result<(), RewardError> {
    if fine {
        Ok(())
    } else {
        Err(RewardError::Value {
            key,
            value,
            message,
        })
    }
}

impl Reward {
    /// Makes the reward.
    ///
    /// # Errors
    /// A pattern that is no regular expression, a parameter out of range, or published numbers that
    /// there are none of.
    pub fn new(kind: &RewardKind) -> Result<Self, RewardError> {
        let counts = |early: bool| if early { Needs::Text } else { Needs::Count };
        let positive = "must be 1 or more";
        let (rule, needs) = match kind {
            RewardKind::Accuracy {
                judge,
                after,
                compat,
            } => {
                let rule = Accuracy {
                    judge: *judge,
                    after: after.clone(),
                    published: compat.is_some(),
                    base: *compat == Some(Compat::OpenR1Base),
                };
                (Rule::Accuracy(rule), Needs::Text)
            }
            RewardKind::Format { rule, language } => {
                let format = Format::new(*rule, language).map_err(broken)?;
                (Rule::Format(format), Needs::Text)
            }
            RewardKind::TagCount { rule } => (Rule::TagCount(*rule), Needs::Text),
            RewardKind::ReasoningSteps { steps, compat } => {
                demand(*steps > 0, "steps", f64::from(*steps), positive)?;
                let signs = reasoning_steps::compile(early(*compat, false)?).map_err(broken)?;
                (Rule::ReasoningSteps(signs, *steps), Needs::Text)
            }
            RewardKind::Length { judge, compat } => {
                let published = early(*compat, false)?;
                let judge = *judge;
                (Rule::Length(Length { judge, published }), counts(published))
            }
            RewardKind::Cosine {
                judge,
                max_len,
                min_wrong,
                max_wrong,
                min_correct,
                max_correct,
                compat,
            } => {
                demand(*max_len > 0, "max_len", *max_len as f64, positive)?;
                let published = early(*compat, true)?;
                let rule = Cosine {
                    judge: *judge,
                    published,
                    max_len: *max_len,
                    min_wrong: min_wrong.unwrap_or(if published { 0.0 } else { -1.0 }),
                    max_wrong: max_wrong.unwrap_or(-0.5),
                    min_correct: min_correct.unwrap_or(0.5),
                    max_correct: max_correct.unwrap_or(1.0),
                };
                (Rule::Cosine(rule), counts(published))
            }
            RewardKind::RepetitionPenalty {
                ngram,
                max_penalty,
                compat,
            } => {
                demand(*ngram > 0, "ngram", f64::from(*ngram), positive)?;
                let negative = "must be 0 or less: it is added to the other rewards";
                demand(*max_penalty <= 0.0, "max_penalty", *max_penalty, negative)?;
                let words = early(*compat, true)?;
                let rule = Repetition {
                    words,
                    ngram: *ngram as usize,
                    max_penalty: *max_penalty,
                };
                let needs = if words { Needs::Text } else { Needs::Ids };
                (Rule::Repetition(rule), needs)
            }
            RewardKind::L1 {
                max,
                judge,
                target,
                target_pattern,
                alpha,
                delta,
                compat,
            } => {
                let published = match compat {
                    None => false,
                    Some(Compat::Tina) => true,
                    Some(other) => return Err(RewardError::Compat(*other)),
                };
                demand(*alpha >= 0.0, "alpha", *alpha, "must be 0 or more")?;
                let target = match target {
                    Some(target) => Target::Fixed(*target),
                    None => {
                        Target::Prompt(compile(target_pattern.as_deref().unwrap_or(l1::TARGET))?)
                    }
                };
                let rule = L1 {
                    judge: *judge,
                    published,
                    target,
                    alpha: *alpha,
                    delta: *delta,
                    max: *max,
                };
                (Rule::L1(rule), counts(published))
            }
            RewardKind::SoftOverlong { max_len, cache } => {
                let message = "must not be more than max_len";
                demand(cache <= max_len, "cache", *cache as f64, message)?;
                let (max_len, cache) = (*max_len, *cache);
                (Rule::SoftOverlong { max_len, cache }, Needs::Count)
            }
            RewardKind::Boxed => (Rule::Boxed, Needs::Text),
            RewardKind::Numeric => (Rule::Numeric, Needs::Text),
            RewardKind::Regex { pattern } => (Rule::Regex(compile(pattern)?), Needs::Text),
        };
        Ok(Self { rule, needs })
    }

    /// What must be known of a completion's tokens.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// True when the verdict depends on the other completions of the same prompt.
    pub fn is_relative(&self) -> bool {
        match &self.rule {
            Rule::Length(_) => true,
            Rule::L1(rule) => rule.published,
            _ => false,
        }
    }

    /// What is to be said of one completion alone. Work linear in the text, but for the verifier of
    /// mathematics, whose fuel is bounded.
    pub fn score(&self, known: &Known<'_>) -> Finding {
        let completion = &known.completion;
        let (text, gold) = (completion.text, completion.gold);
        Finding::Verdict(match &self.rule {
            Rule::Length(rule) => return length::share(rule, known),
            Rule::L1(rule) => return l1::score(rule, known),
            Rule::Accuracy(rule) => accuracy::score(rule, known),
            Rule::Format(format) => format::score(format, text),
            Rule::TagCount(rule) => tag_count::score(*rule, text),
            Rule::ReasoningSteps(signs, steps) => reasoning_steps::score(signs, *steps, text),
            Rule::Cosine(rule) => cosine::score(rule, known),
            Rule::Repetition(rule) => repetition::score(rule, known),
            Rule::SoftOverlong { max_len, cache } => soft_overlong::score(*max_len, *cache, known),
            Rule::Boxed => boxed::score(text, gold),
            Rule::Numeric => numeric::score(text, gold),
            Rule::Regex(regex) => pattern::score(regex, text),
        })
    }

    /// The values of a group, from the shares of those of its completions that could be judged, in
    /// their order.
    pub fn finish(&self, shares: &[Share]) -> Vec<f64> {
        match &self.rule {
            Rule::Length(_) => length::finish(shares),
            Rule::L1(_) => l1::finish(shares),
            _ => shares.iter().map(|share| share.value).collect(),
        }
    }

    /// The verdicts on all completions of one prompt, in their order.
    pub fn score_group(&self, group: &[Known<'_>]) -> Vec<Verdict> {
        let findings: Vec<Finding> = group.iter().map(|known| self.score(known)).collect();
        let shares: Vec<Share> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Share(share) => Some(*share),
                Finding::Verdict(_) => None,
            })
            .collect();
        let mut values = self.finish(&shares).into_iter();
        findings
            .into_iter()
            .map(|finding| match finding {
                Finding::Verdict(verdict) => verdict,
                Finding::Share(_) => values.next().map_or_else(
                    || Verdict::NotJudged("its group has no value for it".to_owned()),
                    Verdict::Scored,
                ),
            })
            .collect()
    }
}

impl Tokens<'_> {
    /// True when this is enough for a reward with such needs.
    pub fn suffice(&self, needs: Needs) -> bool {
        match self {
            Self::Unknown => needs == Needs::Text,
            Self::Count(_) => needs <= Needs::Count,
            Self::Ids(_) => true,
        }
    }
}
