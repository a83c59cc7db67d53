//! `numeric`: the last number of the completion equals the gold answer.

use crate::{Verdict, number::Number};

pub(crate) fn score(completion: &str, gold: &str) -> Verdict {
    match Number::parse(gold) {
        Some(gold) => Verdict::right(Number::last_in(completion) == Some(gold)),
        None => Verdict::NotJudged(format!("the gold answer {gold:?} is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_decides() {
        assert_eq!(score("3 + 4 = 7", "7"), Verdict::Scored(1.0));
        assert_eq!(score("7 is 3 + 4", "7"), Verdict::Scored(0.0));
        assert_eq!(score("1,234.50 dollars", "1234.5"), Verdict::Scored(1.0));
        assert_eq!(score("no number", "7"), Verdict::Scored(0.0));
    }

    #[test]
    fn a_gold_that_is_no_number_is_not_judged() {
        assert!(matches!(score("7", "seven"), Verdict::NotJudged(_)));
        assert!(matches!(score("7", ""), Verdict::NotJudged(_)));
    }
}
