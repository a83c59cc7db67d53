//! Numbers and states in words, for people.

use tina_coordinator::{statistics::Estimate, status::accuracy_of};
use tina_proto::v1;

/// `1:05`, or `2:01:05`.
pub(crate) fn clock(seconds: f64) -> String {
    let seconds = if seconds.is_finite() {
        seconds.round().max(0.0) as u64
    } else {
        0
    };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// `$0.0123` below a dollar, `$12.34` above.
pub(crate) fn dollars(usd: f64) -> String {
    if usd < 1.0 {
        format!("${usd:.4}")
    } else {
        format!("${usd:.2}")
    }
}

/// `12·9f3a1c2b`: step and the digest's first bytes.
pub(crate) fn version(version: Option<&v1::PolicyVersion>) -> String {
    version.map_or_else(
        || "none".to_owned(),
        |version| {
            let digest = hex(&version.digest);
            format!("{}·{}", version.step, digest.get(..8).unwrap_or(&digest))
        },
    )
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the run is doing.
pub(crate) fn phase(status: &v1::RunStatus) -> &'static str {
    match status.phase() {
        v1::Phase::Unspecified => "unknown",
        v1::Phase::Starting => "starting",
        v1::Phase::Sampling => "sampling",
        v1::Phase::Learning => "learning",
        v1::Phase::Syncing => "syncing",
        v1::Phase::Evaluating => "evaluating",
        v1::Phase::Paused => "paused",
        v1::Phase::Stopping => "stopping",
        v1::Phase::Done => "done",
        v1::Phase::Failed => "failed",
    }
}

/// One line for a step that is done.
pub(crate) fn step(record: &v1::StepRecord, steps: u64, remaining_seconds: f64) -> String {
    let width = steps.to_string().len();
    let rewards = match record.rewards.as_slice() {
        [] | [_] => String::new(),
        many => {
            let each: Vec<_> = many
                .iter()
                .map(|r| format!("{} {:.2}", r.name, r.mean))
                .collect();
            format!(" ({})", each.join(", "))
        }
    };
    let left = if remaining_seconds > 0.0 {
        format!("  {} left", clock(remaining_seconds))
    } else {
        String::new()
    };
    format!(
        "step {:>width$}/{steps}  reward {:.3} ± {:.3}{rewards}  no signal {:.0} %  length {:.1}  \
         {:.0} tok/s  sample {:.1} s, score {:.2} s, learn {:.1} s, sync {:.2} s  {}{left}",
        record.step,
        record.reward_mean,
        record.reward_std,
        100.0 * record.groups_without_signal,
        record.completion_tokens_mean,
        record.tokens_per_second,
        record.seconds_sample,
        record.seconds_score,
        record.seconds_learn,
        record.seconds_sync,
        dollars(record.cost_usd),
    )
}

/// How far the learner's log-probs are from the sampled ones, and over what that is known.
pub(crate) fn log_prob_difference(metrics: &v1::StepMetrics) -> String {
    match metrics.tokens_trained {
        0 => "log-probs, learner to worker: - (no group had a signal)".to_owned(),
        tokens => format!(
            "log-probs, learner to worker: {:.2e} apart at most, over {tokens} tokens",
            metrics.logprob_diff_max
        ),
    }
}

/// One line for an evaluation of a run.
pub(crate) fn evaluation(record: &v1::EvalRecord) -> String {
    let what = format!("accuracy after step {}", record.step);
    evaluation_of(&what, "held-out problems", record)
}

/// One line for an evaluation: of what, and on which problems.
pub(crate) fn evaluation_of(what: &str, problems: &str, record: &v1::EvalRecord) -> String {
    format!(
        "{what}: {} of {} {problems}{}  length {:.1}  {:.1} s",
        percent(accuracy_of(record)),
        record.problems,
        match record.samples {
            0 | 1 => String::new(),
            samples => format!(", {samples} times each"),
        },
        record.completion_tokens_mean,
        record.seconds,
    )
}

/// `29.0 % (21.0 to 38.6)`: a share and its 95 % interval.
pub(crate) fn percent(share: Estimate) -> String {
    format!(
        "{:.1} % ({:.1} to {:.1})",
        100.0 * share.mean,
        100.0 * share.low,
        100.0 * share.high
    )
}

/// A row of bars, lowest to highest.
pub(crate) fn curve(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = (high - low).max(1e-9);
    values
        .iter()
        .map(|value| BARS[((value - low) / range * 7.0).round() as usize & 7])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_prices_read_well() {
        assert_eq!(clock(65.4), "1:05");
        assert_eq!(clock(7265.0), "2:01:05");
        assert_eq!(clock(f64::NAN), "0:00");
        assert_eq!(dollars(0.01234), "$0.0123");
        assert_eq!(dollars(12.345), "$12.35");
    }

    #[test]
    fn a_step_is_told_in_one_line() {
        let reward = |name: &str, mean| v1::RewardRecord {
            name: name.into(),
            mean,
            not_judged: 0,
        };
        let record = v1::StepRecord {
            step: 3,
            reward_mean: 0.125,
            reward_std: 0.331,
            rewards: vec![reward("numeric", 0.125), reward("format", 1.0)],
            groups_without_signal: 0.375,
            completion_tokens_mean: 22.9,
            tokens_per_second: 411.6,
            seconds_sample: 3.56,
            seconds_score: 0.004,
            seconds_learn: 4.0,
            seconds_sync: 0.051,
            cost_usd: 0.0012,
            ..Default::default()
        };
        assert_eq!(
            step(&record, 30, 130.0),
            "step  3/30  reward 0.125 ± 0.331 (numeric 0.12, format 1.00)  no signal 38 %  length \
             22.9  412 tok/s  sample 3.6 s, score 0.00 s, learn 4.0 s, sync 0.05 s  $0.0012  2:10 \
             left"
        );
    }

    #[test]
    fn a_difference_is_told_with_what_it_was_taken_over() {
        let mut metrics = v1::StepMetrics::default();
        assert!(log_prob_difference(&metrics).contains(": - ("));
        (metrics.tokens_trained, metrics.logprob_diff_max) = (12, 0.0025);
        assert_eq!(
            log_prob_difference(&metrics),
            "log-probs, learner to worker: 2.50e-3 apart at most, over 12 tokens"
        );
    }

    #[test]
    fn a_curve_has_a_bar_a_value() {
        assert_eq!(curve(&[0.0, 0.5, 1.0]), "▁▅█");
        assert_eq!(curve(&[0.3, 0.3]), "▁▁");
        assert_eq!(curve(&[]), "");
    }
}
