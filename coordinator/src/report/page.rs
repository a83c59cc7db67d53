//! The report in words: Markdown, as GitHub and most viewers read it.

use std::fmt::Write as _;

use super::{
    Example,
    charts::Figure,
    facts::Role,
    numbers::{Report, Step},
    problems::ProblemRow,
    summary::{best, points, summary, transition},
    turn::{FEWEST, Shape, Turn},
    words::{cell, dollars, duration, fenced, figure, percent, percent_fine, shortened},
};

/// Characters of a question in a table.
const QUESTION: usize = 90;
/// Characters of a completion that is shown.
const COMPLETION: usize = 1500;

/// The page.
pub(super) fn page(report: &Report, figures: &[Figure], examples: &[Example]) -> String {
    let mut page = format!("# Run {}\n\n", cell(&report.run));
    for line in summary(report) {
        let _ = writeln!(page, "- {line}");
    }
    let mut section = |title: &str, figure: &str, text: String| {
        let figure = figures.iter().find(|found| found.file == figure);
        if text.is_empty() && figure.is_none() {
            return;
        }
        let _ = write!(page, "\n## {title}\n\n");
        if let Some(Figure { file, alt, .. }) = figure {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(page, "![{alt}]({file}){gap}");
        }
        if !text.is_empty() {
            page.push_str(text.trim_end());
            page.push('\n');
        }
    };
    section("Evaluations", "accuracy.svg", evaluations(report));
    section("Rewards", "rewards.svg", rewards(report));
    section("Completion length", "length.svg", lengths(report));
    section("Where the curves turned", "", turns(report));
    section("Signal", "signal.svg", String::new());
    section("Learning", "learning.svg", learning(report));
    section("Time and cost", "time.svg", time(report));
    section("Throughput", "throughput.svg", throughput(report));
    section("Problems", "", problems(report));
    section("Before and after", "", before_and_after(report, examples));
    section("Settings", "", settings(report));
    page
}

fn evaluations(report: &Report) -> String {
    if report.evaluations.is_empty() {
        return "No evaluation was made.".to_owned();
    }
    let most = report.evaluations.iter().flat_map(|e| &e.pass_at_k);
    let most = most.map(|pass| pass.k).max().filter(|k| *k > 1);
    let (pass, line) = most.map_or_else(Default::default, |k| {
        (format!(" pass@{k} |"), "--:|".to_owned())
    });
    let mut text = format!(
        "| step | accuracy | 95 % interval |{pass} problems | samples each | not judged | length | \
         truncated | time | cost until then |\n\
         |--:|--:|:-:|{line}--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for eval in &report.evaluations {
        let bold = if report.best == Some(eval.step) {
            "**"
        } else {
            ""
        };
        let pass = most.map_or_else(String::new, |k| {
            let found = eval.pass_at_k.iter().find(|pass| pass.k == k);
            format!(" {} |", percent(found.map_or(f64::NAN, |pass| pass.value)))
        });
        let _ = writeln!(
            text,
            "| {bold}{}{bold} | {bold}{}{bold} | {} to {} |{pass} {} | {} | {} | {} | {} | {} | {} |",
            eval.step,
            percent(eval.accuracy),
            percent(eval.low),
            percent(eval.high),
            eval.problems,
            eval.samples,
            eval.not_judged,
            figure(eval.tokens_mean, 1),
            percent(eval.truncated_share),
            duration(eval.seconds),
            if eval.cost_usd.is_finite() {
                dollars(eval.cost_usd)
            } else {
                "-".to_owned()
            },
        );
    }
    if report.evaluations.len() > 1 {
        text += "\nBold: the best checkpoint, by the lower end of its interval. Intervals are over \
                 problems.\n";
    }
    if let Some(problems) = &report.problems
        && let Some(change) = &problems.change
    {
        let _ = writeln!(
            text,
            "\nFrom the first evaluation to the last, on the {} problems of both: **{}**; {} \
             problems gained, {} lost.",
            problems.compared,
            points(change),
            problems.gained,
            problems.lost
        );
    }
    text
}

/// Mean over the first tenth of the steps, and over the last.
fn ends(report: &Report, of: impl Fn(&Step) -> f64) -> (f64, f64) {
    let count = report.steps.len().div_ceil(10);
    let mean = |steps: &[Step]| {
        let finite = steps.iter().map(&of).filter(|value| value.is_finite());
        let (sum, count) = finite.fold((0.0, 0u32), |(sum, count), v| (sum + v, count + 1));
        sum / f64::from(count)
    };
    let last = report.steps.len() - count;
    (mean(&report.steps[..count]), mean(&report.steps[last..]))
}

const ENDS: &str = "| | first tenth of the steps | last tenth |\n|---|--:|--:|\n";

fn rewards(report: &Report) -> String {
    if report.steps.is_empty() {
        return "No step is done.".to_owned();
    }
    let mut text = String::from(ENDS);
    let mut row = |name: &str, (first, last): (f64, f64), show: fn(f64) -> String| {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            cell(name),
            show(first),
            show(last)
        );
    };
    let three: fn(f64) -> String = |value| figure(value, 3);
    row("total reward", ends(report, |s| s.reward_mean), three);
    row(
        "its standard deviation",
        ends(report, |s| s.reward_std),
        three,
    );
    for (at, reward) in report.rewards.iter().enumerate() {
        let role = match reward.role {
            Role::Accuracy => ", accuracy",
            Role::Format => ", format",
            Role::Other => "",
        };
        let name = format!(
            "`{}` ({}{role}, weight {})",
            reward.name.replace('`', "'"),
            reward.kind,
            figure(reward.weight, 2)
        );
        let part = ends(report, |s| s.rewards.get(at).copied().unwrap_or(f64::NAN));
        row(&name, part, three);
    }
    row(
        "verdicts not given",
        ends(report, |s| s.not_judged_share),
        percent,
    );
    row(
        "groups without signal",
        ends(report, |s| s.groups_without_signal),
        percent,
    );
    text
}

fn lengths(report: &Report) -> String {
    if report.steps.is_empty() {
        return String::new();
    }
    let mut text = String::from(ENDS);
    let mut row = |name: &str, (first, last): (f64, f64), show: fn(f64) -> String| {
        let _ = writeln!(text, "| {name} | {} | {} |", show(first), show(last));
    };
    let one: fn(f64) -> String = |value| figure(value, 1);
    row("mean length, tokens", ends(report, |s| s.tokens_mean), one);
    row("10th percentile", ends(report, |s| s.tokens_p10), one);
    row("90th percentile", ends(report, |s| s.tokens_p90), one);
    row("truncated", ends(report, |s| s.truncated_share), percent);
    text
}

fn turns(report: &Report) -> String {
    let mut text = format!(
        "The paper's phase transition is a peak of the format reward and, close to it, a trough of \
         the completion length, while accuracy does not turn. Here: {}.\n\n\
         | curve | looked for | seen |\n|---|---|---|\n",
        transition(report).trim_start_matches("phase transition: ")
    );
    for curve in &report.turns {
        let role = match curve.role {
            Some(Role::Accuracy) => " (accuracy)",
            Some(Role::Format) => " (format)",
            _ => "",
        };
        let (shape, toward, back) = match curve.shape {
            Shape::Peak => ("peak", "rises", "fallen"),
            Shape::Trough => ("trough", "falls", "risen again"),
        };
        let digits = if curve.role.is_some() { 3 } else { 1 };
        let show = |value: f64| figure(value, digits);
        let seen = match curve.turn {
            Turn::Seen {
                step,
                value,
                before,
                after,
                back_by,
            } => format!(
                "**step {step}**: {} before, {} there, {} after; {back} for certain by step \
                 {back_by}",
                show(before),
                show(value),
                show(after)
            ),
            Turn::NotBack { before, value } => format!(
                "no turn seen: {toward} from {} to {}, and has not {back}",
                show(before),
                show(value)
            ),
            Turn::OtherWay { value, after } => format!(
                "no turn seen: goes the other way, from {} to {}",
                show(value),
                show(after)
            ),
            Turn::Flat { threshold } => format!(
                "no turn seen: moves by less than {}, what would count",
                show(threshold)
            ),
            Turn::TooShort => format!("not looked for: fewer than {FEWEST} steps with a value"),
        };
        let _ = writeln!(text, "| {}{role} | {shape} | {seen} |", cell(&curve.curve));
    }
    text += "\nRule: the curve is smoothed by a centred mean over a twentieth of the run (at least 3 \
             steps); a turn counts when it moves there and back by at least 7 standard errors of a \
             smoothed value and 5 % of the curve's largest value.\n";
    text
}

fn learning(report: &Report) -> String {
    if report.steps.is_empty() {
        return String::new();
    }
    let mut text = String::from(ENDS);
    let mut row = |name: &str, (first, last): (f64, f64)| {
        let show = |value: f64| {
            if value.is_finite() && value != 0.0 && value.abs() < 1e-3 {
                format!("{value:.2e}")
            } else {
                figure(value, 4)
            }
        };
        let _ = writeln!(text, "| {name} | {} | {} |", show(first), show(last));
    };
    row("loss", ends(report, |s| s.loss));
    if report
        .steps
        .iter()
        .any(|step| step.kl.is_finite() && step.kl != 0.0)
    {
        row("KL, nats a token", ends(report, |s| s.kl));
    }
    row("entropy, nats a token", ends(report, |s| s.entropy));
    row("gradient norm", ends(report, |s| s.grad_norm));
    row("learning rate", ends(report, |s| s.lr));
    let idle = report
        .steps
        .iter()
        .filter(|s| s.tokens_trained == 0)
        .count();
    if idle > 0 {
        let _ = writeln!(
            text,
            "\n{idle} of {} steps trained on nothing: none of their groups had a signal.",
            report.steps.len()
        );
    }
    text
}

fn time(report: &Report) -> String {
    let totals = &report.totals;
    let mut text = String::from("| | time | share |\n|---|--:|--:|\n");
    for part in &report.time {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            part.what,
            duration(part.seconds),
            percent(part.seconds / totals.seconds)
        );
    }
    let _ = writeln!(text, "| **together** | {} | |", duration(totals.seconds));
    text += "\nWithin that time:\n\n| | time | share |\n|---|--:|--:|\n";
    let waits = [
        ("learner without a batch", totals.learner_wait_seconds),
        ("rollout slots held back", totals.rollout_wait_seconds),
        ("coordinator's own work", totals.coordinator_seconds),
    ];
    for (what, seconds) in waits {
        let share = percent_fine(seconds / totals.seconds);
        let _ = writeln!(text, "| {what} | {} | {share} |", duration(seconds));
    }
    if totals.usd_per_hour > 0.0 {
        let _ = writeln!(
            text,
            "\nCost: {} for {:.2} hours at {} an hour{}.",
            dollars(totals.cost_usd),
            totals.seconds / 3600.0,
            dollars(totals.usd_per_hour),
            best(report).map_or_else(String::new, |best| format!(
                "; {} until the best checkpoint",
                dollars(best.cost_usd)
            ))
        );
    } else {
        let _ = writeln!(
            text,
            "\n{:.2} hours; `cost.usd_per_hour` gives no price.",
            totals.seconds / 3600.0
        );
    }
    text
}

fn throughput(report: &Report) -> String {
    let totals = &report.totals;
    format!(
        "| | tokens | tokens a second |\n|---|--:|--:|\n\
         | sampled (speed: in steps, while sampling) | {} | {} |\n\
         | trained (speed: while learning) | {} | {} |\n",
        totals.tokens_sampled,
        figure(totals.sampled_per_second, 1),
        totals.tokens_trained,
        figure(totals.trained_per_second, 1)
    )
}

fn problems(report: &Report) -> String {
    let Some(problems) = &report.problems else {
        return String::new();
    };
    let mut text = String::new();
    let lists = [
        ("Hardest", &problems.hardest),
        ("Easiest", &problems.easiest),
    ];
    for (title, rows) in lists {
        let _ = write!(
            text,
            "{title}, over all evaluations:\n\n| problem | question | gold | right | at the first | \
             at the last | length |\n|---|---|---|--:|--:|--:|--:|\n"
        );
        for row in rows {
            let ProblemRow {
                correct, samples, ..
            } = row;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {correct} of {samples} | {} | {} | {} |",
                cell(&shortened(&row.problem, 30)),
                cell(&shortened(&row.question, QUESTION)),
                cell(&shortened(&row.gold, 40)),
                percent(row.first),
                percent(row.last),
                figure(row.tokens_mean, 0)
            );
        }
        text.push('\n');
    }
    text
}

fn before_and_after(report: &Report, examples: &[Example]) -> String {
    let steps = (report.evaluations.first(), report.evaluations.last());
    let (Some(first), Some(last)) = steps else {
        return String::new();
    };
    let mut text = String::new();
    for example in examples {
        let verdict = |right| if right { "right" } else { "wrong" };
        let _ = write!(
            text,
            "**{}** (gold: {})\n\nStep {}, {}:\n\n{}\n\nStep {}, {}:\n\n{}\n\n",
            cell(&shortened(&example.question, 600)),
            cell(&shortened(&example.gold, 60)),
            first.step,
            verdict(example.before.1),
            fenced(&shortened(&example.before.0, COMPLETION)),
            last.step,
            verdict(example.after.1),
            fenced(&shortened(&example.after.0, COMPLETION)),
        );
    }
    if !text.is_empty() {
        text.insert_str(
            0,
            "The first completions of the same problems: one that became right, one that became \
             wrong, one that stayed as it was, as far as there are such; each the first of its \
             kind.\n\n",
        );
    }
    text
}

fn settings(report: &Report) -> String {
    if report.settings.is_empty() {
        return "The run's `config.toml` is gone.".to_owned();
    }
    let mut text = String::from("| key | value |\n|---|---|\n");
    for (key, value) in &report.settings {
        let _ = writeln!(text, "| `{key}` | {} |", cell(value));
    }
    text
}
