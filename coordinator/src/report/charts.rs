//! The report's figures.

use super::{
    facts::Role,
    numbers::{LENGTH, Report, Step},
    plot::{Chart, Layer, figure},
    turn::{self, Turn},
};

/// A figure of the report: an SVG file.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The file's name.
    pub file: &'static str,
    /// What it shows, for those who can't see it.
    pub alt: &'static str,
    /// The document.
    pub svg: String,
}

/// Files that figures may have.
pub(super) const FILES: [&str; 7] = [
    "accuracy.svg",
    "rewards.svg",
    "length.svg",
    "signal.svg",
    "learning.svg",
    "time.svg",
    "throughput.svg",
];

/// Every figure that there are numbers for.
pub fn figures(report: &Report) -> Vec<Figure> {
    let all = [
        (
            FILES[0],
            "Accuracy of the evaluations with 95 % intervals",
            vec![accuracy(report)],
            1,
        ),
        (
            FILES[1],
            "Total reward with its spread, and each reward apart",
            rewards(report),
            1,
        ),
        (
            FILES[2],
            "Completion length: mean, and the middle 80 %",
            vec![length(report)],
            1,
        ),
        (
            FILES[3],
            "Truncated completions, groups without signal, verdicts not given",
            vec![signal(report)],
            1,
        ),
        (
            FILES[4],
            "Loss, KL, entropy, gradient norm and learning rate",
            learning(report),
            2,
        ),
        (
            FILES[5],
            "Where each step's time went, and who waited",
            vec![time(report), waits(report)],
            1,
        ),
        (
            FILES[6],
            "Sampled and trained tokens per second",
            vec![throughput(report)],
            1,
        ),
    ];
    all.into_iter()
        .filter_map(|(file, alt, charts, columns)| {
            let svg = figure(&charts, columns)?;
            Some(Figure { file, alt, svg })
        })
        .collect()
}

/// A number of a step.
type Value = fn(&Step) -> f64;

fn chart(title: &str, y_title: &str, layers: Vec<Layer>) -> Chart {
    Chart {
        title: title.to_owned(),
        x_title: "step".to_owned(),
        y_title: y_title.to_owned(),
        layers,
        marks: Vec::new(),
        from_zero: true,
    }
}

fn points(report: &Report, of: impl Fn(&Step) -> f64) -> Vec<(f64, f64)> {
    let point = |step: &Step| (step.step as f64, of(step));
    report.steps.iter().map(point).collect()
}

/// A curve as it is, faint, and smoothed over it as the search for a turn sees it.
fn smoothed(name: &str, hue: usize, points: Vec<(f64, f64)>) -> [Layer; 2] {
    let values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
    let smooth = turn::smoothed(&values, turn::window(values.len()));
    let smooth = points.iter().zip(smooth).map(|(&(x, _), y)| (x, y));
    let line = |name: &str, faint, points| Layer::Line {
        name: name.to_owned(),
        hue,
        faint,
        points,
    };
    let smooth = smooth.collect();
    [line("", true, points), line(name, false, smooth)]
}

fn mark(report: &Report, curve: &str) -> Vec<(f64, String)> {
    let of_curve = report.turns.iter().find(|turn| turn.curve == curve);
    match of_curve.map(|found| found.turn) {
        Some(Turn::Seen { step, .. }) => vec![(step as f64, format!("turn, step {step}"))],
        _ => Vec::new(),
    }
}

fn accuracy(report: &Report) -> Chart {
    let points = report.evaluations.iter().map(|eval| {
        let percent = |share: f64| 100.0 * share;
        (
            eval.step as f64,
            percent(eval.accuracy),
            percent(eval.low),
            percent(eval.high),
        )
    });
    let layer = Layer::Intervals {
        name: "accuracy".into(),
        hue: 0,
        points: points.collect(),
    };
    let mut chart = chart(
        "Accuracy on held-out problems, 95 % intervals",
        "%",
        vec![layer],
    );
    chart.from_zero = false;
    if let Some(best) = report.best {
        chart
            .marks
            .push((best as f64, format!("best, step {best}")));
    }
    chart
}

fn rewards(report: &Report) -> Vec<Chart> {
    let spread = Layer::Band {
        name: "± 1 standard deviation".into(),
        hue: 0,
        points: report
            .steps
            .iter()
            .map(|step| {
                let (mean, std) = (step.reward_mean, step.reward_std);
                (step.step as f64, mean - std, mean + std)
            })
            .collect(),
    };
    let mut layers = vec![spread];
    layers.extend(smoothed("mean", 0, points(report, |step| step.reward_mean)));
    let mut charts = vec![chart("Total reward of a completion", "reward", layers)];

    // Accuracy and format apart, then all others; few enough lines a chart to tell apart.
    let of_role = |role: Role| {
        let all = report.rewards.iter().enumerate();
        all.filter(move |(_, reward)| reward.role == role)
            .collect::<Vec<_>>()
    };
    let parts = [
        (
            Role::Accuracy,
            "Accuracy reward, by which evaluation counts",
        ),
        (Role::Format, "Format rewards"),
        (Role::Other, "Other rewards"),
    ];
    for (first, (role, title)) in (1..).zip(parts) {
        for few in of_role(role).chunks(6) {
            let (mut layers, mut marks) = (Vec::new(), Vec::new());
            for (hue, (at, reward)) in few.iter().enumerate() {
                let value = |step: &Step| step.rewards.get(*at).copied().unwrap_or(f64::NAN);
                layers.extend(smoothed(&reward.name, first + hue, points(report, value)));
                marks.extend(mark(report, &reward.name));
            }
            let mut chart = chart(title, "mean, unweighted", layers);
            if role == Role::Format {
                chart.marks = marks;
            }
            if let [(_, reward)] = few {
                chart.title = format!("{title}: {}", reward.name);
            }
            charts.push(chart);
        }
    }
    charts
}

fn length(report: &Report) -> Chart {
    let band = Layer::Band {
        name: "10th to 90th percentile".into(),
        hue: 2,
        points: report
            .steps
            .iter()
            .map(|step| (step.step as f64, step.tokens_p10, step.tokens_p90))
            .collect(),
    };
    let mut layers = vec![band];
    layers.extend(smoothed("mean", 2, points(report, |step| step.tokens_mean)));
    let mut chart = chart("Completion length", "tokens", layers);
    chart.marks = mark(report, LENGTH);
    chart
}

fn signal(report: &Report) -> Chart {
    let shares: [(&str, Value); 3] = [
        ("groups without signal", |step| step.groups_without_signal),
        ("truncated completions", |step| step.truncated_share),
        ("verdicts not given", |step| step.not_judged_share),
    ];
    let layers = shares
        .into_iter()
        .enumerate()
        .flat_map(|(hue, (name, of))| smoothed(name, hue, points(report, |step| 100.0 * of(step))));
    chart("What a step can't learn from", "%", layers.collect())
}

fn learning(report: &Report) -> Vec<Chart> {
    let panels: [(&str, &str, bool, Value); 5] = [
        ("Loss", "loss", false, |step| step.loss),
        ("KL to the base model", "nats a token", true, |step| step.kl),
        ("Entropy", "nats a token", true, |step| step.entropy),
        ("Gradient norm", "norm before clipping", true, |step| {
            step.grad_norm
        }),
        ("Learning rate", "learning rate", true, |step| step.lr),
    ];
    panels
        .into_iter()
        .enumerate()
        .map(|(hue, (title, unit, from_zero, of))| {
            let points = points(report, of);
            // 0 throughout: it isn't computed (kl_beta = 0).
            let idle = points
                .iter()
                .all(|(_, value)| *value == 0.0 || value.is_nan());
            let layers = if idle {
                Vec::new()
            } else {
                smoothed(title, hue, points).into()
            };
            let mut chart = chart(title, unit, layers);
            chart.from_zero = from_zero;
            chart
        })
        .collect()
}

fn time(report: &Report) -> Chart {
    let rows = report.steps.iter().map(|step| {
        let parts = vec![
            step.seconds_sample,
            step.seconds_score,
            step.seconds_learn,
            step.seconds_sync,
        ];
        (step.step as f64, parts)
    });
    let names = ["sampling", "scoring", "learning", "sync"];
    let bars = Layer::Bars {
        names: names.map(str::to_owned).into(),
        rows: rows.collect(),
    };
    chart("Where a step's time goes", "s a step", vec![bars])
}

/// Lines, not bars: the waits lie within the step's parts and within each other.
fn waits(report: &Report) -> Chart {
    let waits: [(&str, Value); 3] = [
        ("learner without a batch", |step| step.seconds_learner_wait),
        ("rollout slots held back", |step| step.seconds_rollout_wait),
        ("coordinator's own work", |step| step.seconds_coordinator),
    ];
    let layers = waits
        .into_iter()
        .enumerate()
        .filter_map(|(hue, (name, of))| {
            let points = points(report, of);
            // 0 throughout: a journal from before these were kept.
            let kept = points.iter().any(|(_, value)| *value > 0.0);
            kept.then(|| smoothed(name, hue, points))
        });
    chart(
        "Who waits, evaluations in between included",
        "s a step",
        layers.flatten().collect(),
    )
}

fn throughput(report: &Report) -> Chart {
    let rates: [(&str, Value); 2] = [
        ("sampled, while sampling", |step| step.sampled_per_second),
        ("trained, while learning", |step| step.trained_per_second),
    ];
    let layers = rates
        .into_iter()
        .enumerate()
        .flat_map(|(hue, (name, of))| smoothed(name, hue, points(report, of)));
    chart("Throughput", "tokens a second", layers.collect())
}
