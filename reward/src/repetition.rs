//! `repetition_penalty`: repeated n-grams cost ("Demystifying Long Chain-of-Thought Reasoning", arXiv
//! 2502.03373, appendix C.2).
//!
//! `r = max_penalty * (1 - distinct / all)` over the n-grams; fewer than n items: 0. The paper and TRL
//! (`get_repetition_penalty_reward`) take n-grams of tokens; Tina and Open-R1 those of lower-cased
//! words between white space. (Open-R1's segmentation of Chinese words, by jieba, is not here: tokens
//! serve every language.)

use std::{collections::HashSet, hash::Hash};

use crate::{
    Verdict,
    completion::{Known, Tokens},
};

/// How `repetition_penalty` judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Repetition {
    /// Of words rather than tokens.
    pub(crate) words: bool,
    pub(crate) ngram: usize,
    /// 0 or less.
    pub(crate) max_penalty: f64,
}

pub(crate) fn score(rule: &Repetition, known: &Known<'_>) -> Verdict {
    if rule.words {
        let text = known.completion.text.to_lowercase();
        let words: Vec<&str> = text
            .split(is_python_space)
            .filter(|word| !word.is_empty())
            .collect();
        return Verdict::Scored(penalty(rule, &words));
    }
    match known.completion.tokens {
        Tokens::Ids(tokens) => Verdict::Scored(penalty(rule, tokens)),
        Tokens::Count(_) | Tokens::Unknown => {
            Verdict::NotJudged("its tokens are not known".to_owned())
        }
    }
}

fn penalty<T: Hash + Eq>(rule: &Repetition, items: &[T]) -> f64 {
    let all = (items.len() + 1).saturating_sub(rule.ngram);
    let distinct: HashSet<&[T]> = items.windows(rule.ngram).collect();
    if distinct.len() == all {
        return 0.0;
    }
    (1.0 - distinct.len() as f64 / all as f64) * rule.max_penalty
}

/// What Python's `str.split` splits at: Unicode's white space, and four separators of ASCII.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_repeated_ngrams_costs() {
        let rule = |ngram| Repetition {
            words: false,
            ngram,
            max_penalty: -1.0,
        };
        assert_eq!(penalty(&rule(2), &[5; 5]), -0.75);
        assert_eq!(penalty(&rule(2), &[1, 2, 3, 4]), 0.0);
        assert_eq!(penalty(&rule(3), &[1, 2]), 0.0);
        assert_eq!(penalty(&rule(3), &[1, 2, 3, 1, 2, 3]), -0.25);
        assert_eq!(penalty::<u32>(&rule(3), &[]), 0.0);
    }
}
