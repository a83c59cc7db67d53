//! `tina-bench verify`: verdicts on mathematical answers, ours and math-verify's, on the same texts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tina_reward::math::{MathConfig, Verifier};

use crate::{
    error::{BenchError, Result, require},
    table::{Table, figure, write_json},
};

/// Time verdicts on completions of about 2,000 characters, one core, ours and math-verify's
///
/// Golds and texts come from a data file of JSON lines with a problem's `answer` and `solution`;
/// each completion is made of solutions, cut to length, and ends with a boxed answer: the right one
/// in three of five, another problem's in the others. Without a file, texts and answers are made up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// JSON lines with `answer` and `solution`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Verdicts to time
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Characters of a completion
    #[arg(long, default_value_t = 2000)]
    length: usize,
    /// How answers are found: as the paper's accuracy reward does, or as math-verify by default
    #[arg(long, value_enum, default_value = "tina")]
    config: Config,
    /// Python with bench/peers/requirements-verify.txt installed; without it the peer is left out
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// The peer's script
    #[arg(long, default_value = "bench/peers/verify_math_verify.py")]
    peer_script: PathBuf,
    /// File for the results as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Config {
    Tina,
    Default,
}

/// A problem of the data file.
#[derive(Deserialize)]
struct Problem {
    answer: String,
    #[serde(default)]
    solution: String,
}

#[derive(Serialize)]
struct Case {
    gold: String,
    completion: String,
}

/// One side's verdicts.
#[derive(Deserialize, Serialize)]
struct Timed {
    version: String,
    seconds: Vec<f64>,
    verdicts: Vec<Option<bool>>,
}

#[derive(Serialize)]
struct Results {
    ours: Timed,
    peer: Option<Timed>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let problems = match &args.data {
        Some(path) => problems(path)?,
        None => made_up(),
    };
    if problems.is_empty() {
        return Err(BenchError::Other(
            "no line of the data file has an answer and a solution".to_owned(),
        ));
    }
    let cases: Vec<Case> = (0..args.count as usize)
        .map(|index| case(&problems, index, args.length))
        .collect();
    let ours = ours(&cases, args.config);
    let peer = match &args.python {
        Some(python) => Some(peer(python, args, &cases)?),
        None => None,
    };
    let mut table = Table::new([
        "",
        "verdicts/s",
        "median ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "right %",
    ]);
    table.row("tina", row(&ours));
    if let Some(peer) = &peer {
        table.row(&format!("math-verify {}", peer.version), row(peer));
    }
    println!("{table}");
    if let Some(peer) = &peer {
        let same = ours
            .verdicts
            .iter()
            .zip(&peer.verdicts)
            .filter(|(ours, peer)| ours.unwrap_or(false) == peer.unwrap_or(false))
            .count();
        println!(
            "{} times the peer's verdicts per second; the same verdict on {same} of {}",
            figure(total(peer) / total(&ours)),
            cases.len()
        );
    }
    match &args.out {
        Some(path) => write_json(path, &Results { ours, peer }),
        None => Ok(()),
    }
}

fn problems(path: &Path) -> Result<Vec<Problem>> {
    let text = fs::read_to_string(path).map_err(BenchError::file(path))?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str::<Problem>(line).ok())
        .filter(|problem| !problem.answer.is_empty() && !problem.solution.is_empty())
        .collect())
}

/// Problems of the kinds that data sets have.
fn made_up() -> Vec<Problem> {
    const SENTENCE: &str = "We let $x_{%}$ be the number in question, so that \\(x_{%} + 3 = \
        \\frac{%}{7}\\), and the identity \\[ (a+b)^2 = a^2 + 2ab + b^2 \\] gives $$\\sqrt{%} < %.5.$$ ";
    (2..400)
        .map(|n| {
            let answer = match n % 10 {
                0 => format!("{n}"),
                1 => format!("\\frac{{{n}}}{{{}}}", n + 1),
                2 => format!("{n}\\sqrt{{{}}}", n % 7 + 2),
                3 => format!("x^2 + {n}x - {}", n / 2),
                4 => format!("(-\\infty, {n}] \\cup [{}, \\infty)", n + 5),
                5 => format!("({n}, -{}, \\pi)", n + 2),
                6 => format!("{n}.25"),
                7 => format!(
                    "\\begin{{pmatrix}} {n} & 1 \\\\ 0 & {} \\end{{pmatrix}}",
                    n + 1
                ),
                8 => format!("\\frac{{x+{n}}}{{(x-1)(x+2)}}"),
                _ => format!("{n}, -{n}"),
            };
            Problem {
                solution: SENTENCE.replace('%', &n.to_string()),
                answer,
            }
        })
        .collect()
}

fn case(problems: &[Problem], index: usize, length: usize) -> Case {
    let at = |index: usize| &problems[index % problems.len()];
    let right = index % 5 < 3;
    // Steps prime to most sizes: the texts differ from round to round.
    let answer = &at(if right { index } else { index * 7 + 1 }).answer;
    let ending = format!("\n\nTherefore, the final answer is $\\boxed{{{answer}}}$.");
    let mut text = String::new();
    let mut next = index;
    while text.chars().count() + ending.len() < length {
        text += &at(next).solution;
        text.push('\n');
        next = next * 3 + 1;
        next %= problems.len().max(2) * 5;
    }
    let room = length.saturating_sub(ending.chars().count());
    let text: String = text.chars().take(room).collect();
    Case {
        gold: format!("${}$", at(index).answer),
        completion: text + &ending,
    }
}

fn ours(cases: &[Case], config: Config) -> Timed {
    let verifier = Verifier::new(match config {
        Config::Tina => MathConfig::tina(),
        Config::Default => MathConfig::reference(),
    });
    let (seconds, verdicts) = cases
        .iter()
        .map(|case| {
            let start = Instant::now();
            let judgement = verifier.verify(&case.gold, &case.completion);
            (start.elapsed().as_secs_f64(), judgement.outcome.verdict())
        })
        .unzip();
    Timed {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seconds,
        verdicts,
    }
}

fn peer(python: &Path, args: &Args, cases: &[Case]) -> Result<Timed> {
    require(&args.peer_script, "--peer-script")?;
    let file = std::env::temp_dir().join(format!("tina-bench-verify-{}.jsonl", std::process::id()));
    let mut text = String::new();
    for case in cases {
        text += &serde_json::to_string(case)?;
        text.push('\n');
    }
    fs::write(&file, text).map_err(BenchError::file(&file))?;
    let output = Command::new(python)
        .arg(&args.peer_script)
        .args([
            "--config",
            match args.config {
                Config::Tina => "tina",
                Config::Default => "default",
            },
        ])
        .arg(&file)
        .output();
    fs::remove_file(&file).map_err(BenchError::file(&file))?;
    let output = output.map_err(|source| BenchError::Spawn {
        program: python.to_owned(),
        source,
    })?;
    if !output.status.success() {
        return Err(BenchError::Ended {
            what: "math-verify",
            status: output.status.to_string(),
            tail: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn total(timed: &Timed) -> f64 {
    timed.seconds.iter().sum()
}

fn row(timed: &Timed) -> Vec<String> {
    let mut sorted = timed.seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        let at = (share * (sorted.len().max(1) - 1) as f64).round() as usize;
        figure(1e3 * sorted.get(at).copied().unwrap_or(0.0))
    };
    let right = timed.verdicts.iter().filter(|&&v| v == Some(true)).count();
    vec![
        figure(timed.seconds.len() as f64 / total(timed)),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        quantile(1.0),
        figure(100.0 * right as f64 / timed.verdicts.len().max(1) as f64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_have_their_length_and_three_in_five_are_right() {
        let problems = made_up();
        let cases: Vec<Case> = (0..50).map(|index| case(&problems, index, 2000)).collect();
        assert!(
            cases
                .iter()
                .all(|case| case.completion.chars().count() == 2000)
        );
        let right = ours(&cases, Config::Tina).verdicts;
        let count = right
            .iter()
            .filter(|&&verdict| verdict == Some(true))
            .count();
        assert_eq!(count, 30, "{right:?}");
    }
}
