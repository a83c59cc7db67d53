//! The run in five lines, and what they share with the page.

use super::{
    facts::Role,
    numbers::{Evaluation, Report, State, Transition},
    problems::Change,
    turn::{FEWEST, Turn},
    words::{dollars, duration, figure, percent, percent_fine},
};

/// The run in five lines.
pub(super) fn summary(report: &Report) -> [String; 5] {
    let totals = &report.totals;
    let of = report
        .steps_planned
        .map_or_else(String::new, |planned| format!(" of {planned}"));
    let state = match report.state {
        State::Finished => "finished",
        State::Open => "going on, or killed",
        State::StoppedEarly => "stopped early",
    };
    let run = format!(
        "{} steps{of}, {state}; {}, {}",
        report.steps_done,
        duration(totals.seconds),
        if totals.usd_per_hour > 0.0 {
            dollars(totals.cost_usd)
        } else {
            "no price given".to_owned()
        }
    );
    let accuracy = match (report.evaluations.first(), report.evaluations.last()) {
        (Some(first), Some(last)) if first.step != last.step => {
            let change = report.problems.as_ref().and_then(|p| p.change);
            format!(
                "accuracy: {} at step {}, {} at step {}{}",
                with_interval(first),
                first.step,
                with_interval(last),
                last.step,
                change.map_or_else(String::new, |change| format!(
                    "; change {}",
                    points(&change)
                ))
            )
        }
        (Some(only), _) => format!("accuracy: {} at step {}", with_interval(only), only.step),
        _ => "accuracy: no evaluation yet".to_owned(),
    };
    let best = match best(report) {
        Some(best) => format!(
            "best checkpoint: step {}, {} (highest lower end of the interval{})",
            best.step,
            with_interval(best),
            match report.evaluations.first() {
                Some(base) if base.step == 0 && base.low >= best.low => {
                    "; the base model's is no lower"
                }
                _ => "",
            }
        ),
        None => "best checkpoint: not known, no checkpoint was evaluated".to_owned(),
    };
    let speed = format!(
        "throughput: {} sampled, {} trained tokens a second; learner waited {}, rollout slots {} of \
         the time, the coordinator worked {}",
        figure(totals.sampled_per_second, 0),
        figure(totals.trained_per_second, 0),
        percent(totals.learner_wait_seconds / totals.seconds),
        percent(totals.rollout_wait_seconds / totals.seconds),
        percent_fine(totals.coordinator_seconds / totals.seconds),
    );
    [run, accuracy, best, transition(report), speed]
}

/// The best checkpoint.
pub(super) fn best(report: &Report) -> Option<&Evaluation> {
    let best = report.best?;
    report.evaluations.iter().find(|eval| eval.step == best)
}

/// The paper's phase transition, in a line.
pub(super) fn transition(report: &Report) -> String {
    let has_format = report.rewards.iter().any(|r| r.role == Role::Format);
    let place = |turn: u64| match report.best {
        Some(best) if report.evaluations.len() > 1 => match best.cmp(&turn) {
            std::cmp::Ordering::Less => "; the best checkpoint is before it",
            std::cmp::Ordering::Equal => "; the best checkpoint is there",
            std::cmp::Ordering::Greater => "; the best checkpoint is after it",
        },
        _ => "",
    };
    if report
        .turns
        .iter()
        .all(|curve| curve.turn == Turn::TooShort)
    {
        return format!("phase transition: not looked for, fewer than {FEWEST} steps");
    }
    match report.transition {
        Transition::Seen { peak, trough } => format!(
            "phase transition: the format reward peaked at step {peak}, the length was least at \
             step {trough}{}",
            place(peak)
        ),
        Transition::FormatOnly { peak } => format!(
            "phase transition: the format reward peaked at step {peak}, the length did not turn{}",
            place(peak)
        ),
        Transition::LengthOnly { trough } if has_format => format!(
            "phase transition: no turn of the format reward seen; the length was least at step \
             {trough}"
        ),
        Transition::LengthOnly { trough } => format!(
            "phase transition: there is no format reward; the length was least at step {trough}"
        ),
        Transition::NotSeen if has_format => "phase transition: no turn seen".to_owned(),
        Transition::NotSeen => {
            "phase transition: there is no format reward, and the length did not turn".to_owned()
        }
    }
}

/// An accuracy.
pub(super) fn with_interval(eval: &Evaluation) -> String {
    format!(
        "{} ({} to {})",
        percent(eval.accuracy),
        percent(eval.low),
        percent(eval.high)
    )
}

/// A difference of accuracies, in percentage points.
pub(super) fn points(change: &Change) -> String {
    let Change { mean, low, high } = change;
    format!(
        "{:+.1} points (95 % interval {:+.1} to {:+.1}, paired over problems)",
        100.0 * mean,
        100.0 * low,
        100.0 * high
    )
}
