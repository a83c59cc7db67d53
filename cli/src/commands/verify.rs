//! `tina verify`: verdicts on mathematical answers, for people and for comparison.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::PathBuf,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tina_reward::math::{MathConfig, Verifier};

use crate::Failure;

/// Most lines that are judged at once.
const BATCH: usize = 1024;

/// Read JSON lines {"gold": ..., "completion": ...}, print whether each completion's answer is the gold
///
/// A line of output for each line of input, in the same order: {"verdict": true, false or null (not
/// judged), "gold_parsed", "answer_extracted", "answer_parsed", "reason"}. A line that can't be read
/// is answered with {"line", "error"}, and the command then fails at the end. Other fields of a line
/// are ignored. A gold is a text as a completion is: LaTeX stands between $ signs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How answers are found: as the paper's accuracy reward does (LaTeX alone, boxes first), or as
    /// math-verify does by default
    #[arg(long, value_enum, default_value = "tina")]
    config: Config,
    /// File to read; without it, standard input
    input: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Config {
    Tina,
    Default,
}

#[derive(Deserialize)]
struct Line {
    gold: String,
    completion: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Reply {
    Judged {
        verdict: Option<bool>,
        gold_parsed: Option<String>,
        answer_extracted: Option<String>,
        answer_parsed: Option<String>,
        reason: Option<String>,
    },
    Unread {
        line: usize,
        error: String,
    },
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let input: Box<dyn Read> = match &args.input {
        Some(path) => {
            Box::new(File::open(path).map_err(|error| format!("{}: {error}", path.display()))?)
        }
        None => Box::new(std::io::stdin().lock()),
    };
    let verifier = Verifier::new(match args.config {
        Config::Tina => MathConfig::tina(),
        Config::Default => MathConfig::reference(),
    });
    let mut input = BufReader::with_capacity(1 << 20, input);
    let mut out = std::io::stdout().lock();
    let mut count = 0;
    let mut unread = Vec::new();
    loop {
        let lines = batch(&mut input)?;
        if lines.is_empty() {
            break;
        }
        let replies: Vec<Option<Reply>> = lines
            .par_iter()
            .enumerate()
            .map(|(index, line)| reply(&verifier, count + index + 1, line))
            .collect();
        count += lines.len();
        for reply in replies.into_iter().flatten() {
            if let Reply::Unread { line, .. } = reply {
                unread.push(line);
            }
            serde_json::to_writer(&mut out, &reply)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    match unread.first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} of {count} lines could not be read; the first is line {first}",
            unread.len()
        )
        .into()),
    }
}

/// The next line, and as many more as have come already: who writes one line and waits for its
/// verdict is not kept waiting. Empty at the end.
fn batch(input: &mut BufReader<Box<dyn Read>>) -> std::io::Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    while lines.is_empty() || (lines.len() < BATCH && input.buffer().contains(&b'\n')) {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Nothing for an empty line.
fn reply(verifier: &Verifier, number: usize, line: &[u8]) -> Option<Reply> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    Some(match serde_json::from_slice::<Line>(line) {
        Ok(Line { gold, completion }) => {
            let judgement = verifier.verify(&gold, &completion);
            Reply::Judged {
                verdict: judgement.outcome.verdict(),
                reason: judgement.outcome.reason(),
                gold_parsed: judgement.gold_parsed,
                answer_extracted: judgement.answer_extracted,
                answer_parsed: judgement.answer_parsed,
            }
        }
        Err(error) => Reply::Unread {
            line: number,
            error: format!("{error}; expected {{\"gold\": \"...\", \"completion\": \"...\"}}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(line: &str) -> serde_json::Value {
        let verifier = Verifier::new(MathConfig::tina());
        serde_json::to_value(reply(&verifier, 7, line.as_bytes())).unwrap()
    }

    #[test]
    fn a_line_is_judged() {
        let judged =
            replied(r#"{"id": 1, "gold": "$\\frac{1}{2}$", "completion": "\\boxed{0.5}"}"#);
        assert_eq!(judged["verdict"], true);
        assert_eq!(judged["answer_extracted"], "0.5");
        assert_eq!(judged["reason"], serde_json::Value::Null);
        let judged = replied(r#"{"gold": "$2$", "completion": "I do not know."}"#);
        assert_eq!(judged["verdict"], false);
        assert_eq!(judged["reason"], "no answer found");
    }

    #[test]
    fn a_bad_line_is_named_and_an_empty_one_passed_over() {
        let unread = replied(r#"{"gold": "1"}"#);
        assert_eq!(unread["line"], 7);
        assert!(unread["error"].as_str().unwrap().contains("completion"));
        assert_eq!(replied(" \n"), serde_json::Value::Null);
    }

    #[test]
    fn lines_that_have_come_are_read_at_once() {
        let text: Box<dyn Read> = Box::new("a\nb\nc".as_bytes());
        let mut input = BufReader::new(text);
        assert_eq!(batch(&mut input).unwrap(), [b"a\n", b"b\n"]);
        assert_eq!(batch(&mut input).unwrap(), [b"c"]);
        assert!(batch(&mut input).unwrap().is_empty());
    }
}
