//! Which problems of the evaluations were hard, which were easy, and which changed.

use std::collections::HashMap;

use serde::Serialize;

use super::read::{EvalData, RunData};
use crate::{
    scheduler::types::SampleId,
    statistics::{Estimate, Tally, difference},
};

/// Problems listed at either end.
const LISTED: usize = 5;
/// Completions shown before and after.
const SHOWN: usize = 3;

/// What the evaluations say of single problems.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Problems {
    /// Problems that both the first and the last evaluation asked.
    pub compared: usize,
    /// Of these, with a larger share of right completions at the last.
    pub gained: usize,
    /// Of these, with a smaller share.
    pub lost: usize,
    /// The accuracy of the last less that of the first, over these.
    pub change: Option<Change>,
    /// Fewest right completions over all evaluations first, of these the longest.
    pub hardest: Vec<ProblemRow>,
    /// Most right completions over all evaluations first, of these the shortest.
    pub easiest: Vec<ProblemRow>,
}

/// A mean difference of accuracy with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Mean over problems.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<Estimate> for Change {
    fn from(Estimate { mean, low, high }: Estimate) -> Self {
        Self { mean, low, high }
    }
}

/// One problem over all evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProblemRow {
    /// Its name.
    pub problem: String,
    /// What is asked, without what all prompts have in common.
    pub question: String,
    /// The gold answer.
    pub gold: String,
    /// Right completions of all.
    pub correct: u32,
    /// Completions.
    pub samples: u32,
    /// Share of right completions at the first evaluation that asked it.
    pub first: f64,
    /// And at the last.
    pub last: f64,
    /// Mean length of its completions, in tokens.
    pub tokens_mean: f64,
}

/// A problem's completion at the first evaluation and at the last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    /// What is asked.
    pub(super) question: String,
    /// The gold answer.
    pub(super) gold: String,
    /// At the first: which, and whether it is right.
    pub(super) before: (SampleId, bool),
    /// At the last.
    pub(super) after: (SampleId, bool),
}

/// A problem's place in an evaluation.
#[derive(Clone, Copy, Default)]
struct Asked {
    tally: Tally,
    tokens: u64,
    /// The completion of the lowest index.
    example: Option<(SampleId, bool)>,
}

/// What an evaluation says of each of its problems, by name; in the order they were asked.
fn asked(eval: &EvalData) -> (Vec<&str>, HashMap<&str, Asked>) {
    let names: HashMap<u64, &str> = eval
        .prompts
        .iter()
        .map(|prompt| (prompt.group, &*prompt.problem))
        .collect();
    let (mut order, mut all) = (Vec::new(), HashMap::<&str, Asked>::new());
    for answer in &eval.answers {
        let Some(name) = names.get(&answer.sample.group) else {
            continue;
        };
        let problem = all.entry(name).or_insert_with(|| {
            order.push(*name);
            Asked::default()
        });
        problem.tally.samples += 1;
        problem.tally.correct += u32::from(answer.correct);
        problem.tokens += u64::from(answer.tokens);
        problem
            .example
            .get_or_insert((answer.sample, answer.correct));
    }
    (order, all)
}

/// How each problem of an evaluation went, in the order they were asked.
pub(super) fn tallies(eval: &EvalData) -> Vec<Tally> {
    let (order, all) = asked(eval);
    order
        .iter()
        .filter_map(|name| all.get(name).map(|asked| asked.tally))
        .collect()
}

/// `None` without an evaluation whose completions the journal has.
pub(super) fn problems(data: &RunData) -> Option<Problems> {
    let first = data.evals.iter().find(|eval| !eval.answers.is_empty())?;
    let last = data.evals.iter().rfind(|eval| !eval.answers.is_empty())?;
    let questions = questions(last);
    let golds: HashMap<&str, &str> = last
        .prompts
        .iter()
        .map(|prompt| (&*prompt.problem, &*prompt.gold))
        .collect();

    let mut rows: Vec<ProblemRow> = Vec::new();
    let mut tokens: Vec<u64> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for eval in &data.evals {
        let (order, all) = asked(eval);
        for name in order {
            let Some(asked) = all.get(name) else { continue };
            let at = *places.entry(name.to_owned()).or_insert_with(|| {
                rows.push(ProblemRow {
                    problem: name.to_owned(),
                    question: questions.get(name).cloned().unwrap_or_default(),
                    gold: golds.get(name).copied().unwrap_or_default().to_owned(),
                    correct: 0,
                    samples: 0,
                    first: asked.tally.share(),
                    last: 0.0,
                    tokens_mean: 0.0,
                });
                tokens.push(0);
                rows.len() - 1
            });
            let row = &mut rows[at];
            row.correct += asked.tally.correct;
            row.samples += asked.tally.samples;
            row.last = asked.tally.share();
            tokens[at] += asked.tokens;
            row.tokens_mean = tokens[at] as f64 / f64::from(row.samples.max(1));
        }
    }

    let (old, new) = paired(first, last);
    let shares = || old.iter().zip(&new).map(|(a, b)| (a.share(), b.share()));
    let several = data.evals.len() > 1;
    let mut result = Problems {
        compared: if several { old.len() } else { 0 },
        gained: shares().filter(|(a, b)| b > a).count(),
        lost: shares().filter(|(a, b)| b < a).count(),
        change: difference(&new, &old).filter(|_| several).map(Change::from),
        ..Problems::default()
    };
    let share = |row: &ProblemRow| f64::from(row.correct) / f64::from(row.samples.max(1));
    // Both sorts are stable: what is equal stays in the order it was asked.
    rows.sort_by(|a, b| {
        let by_share = share(a).total_cmp(&share(b));
        by_share.then(b.tokens_mean.total_cmp(&a.tokens_mean))
    });
    result.hardest = rows.iter().take(LISTED).cloned().collect();
    rows.sort_by(|a, b| {
        let by_share = share(b).total_cmp(&share(a));
        by_share.then(a.tokens_mean.total_cmp(&b.tokens_mean))
    });
    result.easiest = rows.into_iter().take(LISTED).collect();
    Some(result)
}

/// How the problems went that both evaluations asked.
fn paired(first: &EvalData, last: &EvalData) -> (Vec<Tally>, Vec<Tally>) {
    let ((order, old), (_, new)) = (asked(first), asked(last));
    order
        .iter()
        .filter_map(|name| Some((old.get(name)?.tally, new.get(name)?.tally)))
        .unzip()
}

/// Problems whose completions are worth showing, from the first evaluation and the last: one that
/// became right, one that became wrong, one that stayed right, one that stayed wrong, as far as
/// there are such, three in all; each the first of its kind, whatever is in it.
pub(super) fn pairs(data: &RunData) -> Vec<Pair> {
    let kept = || data.evals.iter().filter(|eval| !eval.answers.is_empty());
    let (Some(first), Some(last)) = (kept().next(), kept().next_back()) else {
        return Vec::new();
    };
    if first.record.step == last.record.step {
        return Vec::new();
    }
    let questions = questions(last);
    let ((order, old), (_, new)) = (asked(first), asked(last));
    let mut kinds: [Vec<Pair>; 4] = Default::default();
    for name in order {
        let both = (old.get(name), new.get(name));
        let (Some(before), Some(after)) = (
            both.0.and_then(|asked| asked.example),
            both.1.and_then(|asked| asked.example),
        ) else {
            continue;
        };
        let kind = match (before.1, after.1) {
            (false, true) => 0,
            (true, false) => 1,
            (true, true) => 2,
            (false, false) => 3,
        };
        let prompt = last.prompts.iter().find(|prompt| prompt.problem == name);
        if kinds[kind].len() < SHOWN {
            kinds[kind].push(Pair {
                question: questions.get(name).cloned().unwrap_or_default(),
                gold: prompt.map_or_else(String::new, |prompt| prompt.gold.clone()),
                before,
                after,
            });
        }
    }
    // The first of each kind, then the second of each, …
    let mut kinds = kinds.map(Vec::into_iter);
    let mut chosen = Vec::new();
    for _ in 0..SHOWN {
        chosen.extend(kinds.iter_mut().filter_map(Iterator::next));
    }
    chosen.truncate(SHOWN);
    chosen
}

/// By name, what sets a problem's prompt apart from the others': the text without what all begin
/// with and all end with (chat template, system prompt, instruction), cut at the marks between.
fn questions(eval: &EvalData) -> HashMap<&str, String> {
    let texts: Vec<&str> = eval.prompts.iter().map(|prompt| &*prompt.text).collect();
    let (mut head, mut tail) = (usize::MAX, usize::MAX);
    if let Some(one) = texts.first() {
        for text in &texts {
            let same = one.bytes().zip(text.bytes());
            head = head.min(same.take_while(|(a, b)| a == b).count());
            let same = one.bytes().rev().zip(text.bytes().rev());
            tail = tail.min(same.take_while(|(a, b)| a == b).count());
        }
    }
    let question = |text: &str| {
        if texts.len() < 2 {
            return text.trim().to_owned();
        }
        // Back to the last mark of the head, and on to the first of the tail: a question's first
        // words may be those of all others.
        let head = head.min(text.len());
        let begin = text
            .get(..floor(text, head))
            .and_then(|head| head.rfind(['\n', '>']).map(|at| (head, at)))
            .map_or(0, |(head, at)| {
                at + head[at..].chars().next().map_or(1, char::len_utf8)
            });
        let from = floor(text, text.len() - tail.min(text.len() - begin));
        let end = text
            .get(from..)
            .and_then(|tail| tail.find(['\n', '<']))
            .map_or(text.len(), |at| from + at);
        text.get(begin..end.max(begin))
            .unwrap_or(text)
            .trim()
            .to_owned()
    };
    eval.prompts
        .iter()
        .map(|prompt| (&*prompt.problem, question(&prompt.text)))
        .collect()
}

/// The last character boundary of `text` at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::EvalPrompt;

    #[test]
    fn a_question_is_what_sets_its_prompt_apart() {
        let eval = |texts: &[&str]| EvalData {
            prompts: (0u64..)
                .zip(texts)
                .map(|(group, text)| EvalPrompt {
                    group,
                    problem: group.to_string(),
                    text: (*text).to_owned(),
                    gold: String::new(),
                })
                .collect(),
            ..EvalData::default()
        };
        let one = eval(&[
            "<|im_start|>user\nWhat is 17 + 5?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\nWhat is 12 + 3?<|im_end|>\n<|im_start|>assistant\n",
        ]);
        let found = questions(&one);
        assert_eq!(found["0"], "What is 17 + 5?");
        assert_eq!(found["1"], "What is 12 + 3?");
        let two = eval(&[
            "<｜User｜>Où é?<｜Assistant｜>",
            "<｜User｜>Où è?<｜Assistant｜>",
        ]);
        assert_eq!(questions(&two)["1"], "Où è?");
        // One problem, the same problem twice, and a bare text.
        assert_eq!(questions(&eval(&[" x "]))["0"], "x");
        assert_eq!(questions(&eval(&["same", "same"]))["1"], "same");
        assert_eq!(questions(&eval(&["1 + 1 =", "1 + 2 ="]))["1"], "1 + 2 =");
    }
}
