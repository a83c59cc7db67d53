//! A report as Markdown.

use super::{EvaluationReport, Interval};

/// All numbers of a report, for people.
pub(super) fn markdown(report: &EvaluationReport) -> String {
    let mut text = format!(
        "# Evaluation\n\n{}: {} completions a problem, temperature {}, top-p {}, {} tokens at most, \
         {}, seed {}. Intervals are of 95 %, over problems.\n\n",
        report.model,
        report.samples,
        report.temperature,
        report.top_p,
        report.max_tokens,
        match report.prompt {
            "paper" => "the paper's prompt",
            _ => "the config's prompt",
        },
        report.seed,
    );
    text += &results(report);
    if !report.changes.is_empty() {
        text += "\n## Changes\n\nDifference of pass@1 in percentage points, paired by problem.\n\n";
        let rows = report.changes.iter().map(|change| {
            let difference = &change.difference;
            let verdict = if difference.low > 0.0 {
                "better"
            } else if difference.high < 0.0 {
                "worse"
            } else {
                "can't be told"
            };
            vec![
                change.adapter.clone(),
                change.than.clone(),
                change.suite.clone(),
                signed(difference),
                verdict.to_owned(),
            ]
        });
        text += &table(
            &["adapter", "than", "suite", "difference", "verdict"],
            rows.collect(),
        );
    }
    text
}

fn results(report: &EvaluationReport) -> String {
    let largest = |report: &EvaluationReport| {
        let suites = report.adapters.iter().flat_map(|adapter| &adapter.suites);
        suites
            .flat_map(|suite| &suite.pass_at_k)
            .map(|pass| pass.k)
            .max()
    };
    let powers: Vec<u32> = crate::statistics::powers(largest(report).unwrap_or(1))
        .filter(|k| *k > 1)
        .collect();
    let names: Vec<String> = powers.iter().map(|k| format!("pass@{k}")).collect();
    let mut header = vec!["adapter", "suite", "problems", "pass@1"];
    header.extend(names.iter().map(String::as_str));
    header.extend([
        "length",
        "truncated",
        "not judged",
        "tokens",
        "time",
        "cost",
    ]);
    let mut rows = Vec::new();
    for adapter in &report.adapters {
        for suite in &adapter.suites {
            let mut row = vec![
                adapter.adapter.clone(),
                suite.suite.clone(),
                suite.problems.to_string(),
                percent(&suite.pass_at_1),
            ];
            row.extend(powers.iter().map(|k| {
                let found = suite.pass_at_k.iter().find(|pass| pass.k == *k);
                found.map_or_else(|| "-".to_owned(), |pass| percent(&pass.chance))
            }));
            row.extend([
                format!("{:.1}", suite.length_mean),
                format!("{:.1} %", 100.0 * suite.truncated_share),
                suite.not_judged.to_string(),
                suite.tokens.to_string(),
                clock(suite.seconds),
                format!("${:.4}", suite.cost_usd),
            ]);
            rows.push(row);
        }
        if adapter.suites.len() > 1 {
            let mut row = vec![String::new(); header.len()];
            row[0].clone_from(&adapter.adapter);
            row[1] = "mean of suites".to_owned();
            row[3] = format!("{:.2}", 100.0 * adapter.mean_of_suites);
            let last = row.len();
            row[last - 3] = adapter.tokens.to_string();
            row[last - 2] = clock(adapter.seconds);
            row[last - 1] = format!("${:.4}", adapter.cost_usd);
            rows.push(row);
        }
    }
    table(&header, rows)
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let line = |cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(header.iter().map(ToString::to_string).collect());
    text += &line(vec!["---".to_owned(); header.len()]);
    text.extend(rows.into_iter().map(line));
    text
}

/// `33.33 (19.00 to 51.00)`, in percent.
fn percent(share: &Interval) -> String {
    let [value, low, high] = [share.value, share.low, share.high].map(|x| 100.0 * x);
    format!("{value:.2} ({low:.2} to {high:.2})")
}

fn signed(difference: &Interval) -> String {
    let [value, low, high] = [difference.value, difference.low, difference.high].map(|x| 100.0 * x);
    format!("{value:+.2} ({low:+.2} to {high:+.2})")
}

fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

impl EvaluationReport {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        markdown(self)
    }
}
