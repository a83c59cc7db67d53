//! `soft_overlong`: the last tokens before a limit cost more and more (DAPO, arXiv 2503.14476,
//! equation 13).
//!
//! 0 up to `max_len - cache`; then `((max_len - cache) - len) / cache`, down to -1 at `max_len`; -1
//! beyond it. In tokens, as Open-R1 and TRL (`get_soft_overlong_punishment`).

use crate::{
    Verdict,
    completion::{Known, Unit},
};

pub(crate) fn score(max_len: u64, cache: u64, known: &Known<'_>) -> Verdict {
    match known.length(Unit::Tokens) {
        Ok(length) => Verdict::Scored(value(max_len, cache, length)),
        Err(reason) => Verdict::NotJudged(reason),
    }
}

fn value(max_len: u64, cache: u64, length: u64) -> f64 {
    let free = max_len.saturating_sub(cache);
    if length <= free {
        0.0
    } else if length <= max_len {
        -((length - free) as f64) / cache as f64
    } else {
        -1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_rises_in_the_cache_and_stays_beyond_it() {
        let of = |length| value(100, 20, length);
        assert_eq!(
            [of(0), of(80), of(90), of(100), of(101)],
            [0.0, 0.0, -0.5, -1.0, -1.0]
        );
        assert_eq!([value(100, 0, 100), value(100, 0, 101)], [0.0, -1.0]);
    }
}
