//! `tina logprobs`: the log-prob of every token, for comparison with other programs.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write as _},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use tina_model::Distribution;

use crate::{
    Failure,
    policy::{Policy, PolicyArgs},
};

/// Read JSON lines {"text": ...} or {"tokens": [...]}, print the log-prob of every token
///
/// Text is tokenized as it stands, special tokens in it are recognised and none are added. For n
/// tokens there are n - 1 log-probs: of the second token given the first, and so on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policy: PolicyArgs,
    /// File to read; without it, standard input
    input: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Text { text: String },
    Tokens { tokens: Vec<u32> },
}

#[derive(Serialize)]
struct Reply {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let input: Box<dyn BufRead> = match &args.input {
        Some(path) => Box::new(BufReader::new(
            File::open(path).map_err(|error| format!("{}: {error}", path.display()))?,
        )),
        None => Box::new(std::io::stdin().lock()),
    };
    let policy = Policy::load(&args.policy)?;
    let mut out = std::io::stdout().lock();
    for (index, line) in input.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let reply =
            reply(&policy, &line).map_err(|error| format!("line {}: {error}", index + 1))?;
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    Ok(())
}

fn reply(policy: &Policy, line: &str) -> Result<Reply, Failure> {
    let line = serde_json::from_str(line)
        .map_err(|_| "expected {\"text\": \"...\"} or {\"tokens\": [1, 2, ...]}")?;
    let tokens = match line {
        Line::Text { text } => policy.text.tokenizer.encode(&text)?,
        Line::Tokens { tokens } => tokens,
    };
    if tokens.len() < 2 {
        return Ok(Reply {
            tokens,
            logprobs: Vec::new(),
        });
    }
    let logprobs =
        policy
            .decoder
            .sequence_log_probs(&tokens, policy.adapter.as_ref(), &Distribution::FULL)?;
    Ok(Reply { tokens, logprobs })
}
