//! `tina reward`: the rewards of a config on completions of a file.

use std::{
    collections::HashMap,
    io::{BufRead as _, Write as _},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tina_coordinator::{
    config::RunConfig,
    scoring::{Judged, Scorer, TokensOf, Work},
};
use tina_model::{ModelSource, Tokenizer};

use crate::Failure;

/// Score completions without a run: JSON lines in, each reward's value out
///
/// Reads {"completion": "...", "gold": "..."} from standard input, one a line. Further fields:
/// "prompt" (its whole text), "tokens" (their number, or the ids), "truncated" (cut off by the token
/// limit), and "group": lines with the same "group" are completions of one prompt, for rewards that
/// compare them; without it, lines in a row with the same gold and prompt are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's config.
    config: PathBuf,
    /// Set a key: section.key=value, e.g. reward.0.compat=tina
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Count tokens with the tokenizer of model.source even where it has to be fetched; that of a
    /// model in files is used anyway
    #[arg(long)]
    fetch: bool,
}

#[derive(Deserialize)]
struct Line {
    completion: String,
    gold: Text,
    #[serde(default)]
    prompt: String,
    tokens: Option<LineTokens>,
    #[serde(default)]
    truncated: bool,
    group: Option<Text>,
}

/// Text, or a number that stands for its digits.
#[derive(Clone, Deserialize, PartialEq, Eq, Hash)]
#[serde(untagged)]
enum Text {
    Text(String),
    Number(serde_json::Number),
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LineTokens {
    Count(usize),
    Ids(Vec<u32>),
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.sets)?;
    let scorer = Scorer::start(&config, None)?;
    let mut tokenizer = None;
    let (mut works, mut groups) = (Vec::new(), Groups::default());
    for (at, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let fail = |error: Failure| format!("line {}: {error}", at + 1);
        let mut line: Line = serde_json::from_str(&line).map_err(|error| fail(error.into()))?;
        let group = line.group.take();
        let mut work = line.work();
        count_tokens(&scorer, &config, args.fetch, &mut tokenizer, &mut work).map_err(fail)?;
        groups.add(works.len(), group, &work);
        works.push(work);
    }
    let mut judged = scorer.judge_many(works).await?;
    for group in groups.members {
        let mut rewards: Vec<_> = judged
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| group.contains(at))
            .map(|(_, judged)| &mut judged.rewards)
            .collect();
        scorer.finish(&mut rewards);
    }
    let mut out = std::io::stdout().lock();
    for judged in &judged {
        writeln!(out, "{}", reply(&scorer, judged))?;
    }
    Ok(())
}

impl Line {
    fn work(self) -> Work {
        Work {
            text: Ok(self.completion),
            tokens: match self.tokens {
                None => TokensOf::Unknown,
                Some(LineTokens::Count(count)) => TokensOf::Count(count),
                Some(LineTokens::Ids(ids)) => TokensOf::Ids(ids),
            },
            gold: self.gold.into_string(),
            prompt: self.prompt,
            truncated: self.truncated,
        }
    }
}

/// Which lines belong together.
#[derive(Default)]
struct Groups {
    members: Vec<std::collections::BTreeSet<usize>>,
    named: HashMap<Text, usize>,
    /// Gold and prompt of the line before, if its group had no name.
    last: Option<(String, String)>,
}

impl Groups {
    fn add(&mut self, at: usize, name: Option<Text>, work: &Work) {
        let like = (work.gold.clone(), work.prompt.clone());
        let group = match name {
            Some(name) => {
                self.last = None;
                let next = self.members.len();
                *self.named.entry(name).or_insert(next)
            }
            None if self.last.as_ref() == Some(&like) => self.members.len().saturating_sub(1),
            None => {
                self.last = Some(like);
                self.members.len()
            }
        };
        if group == self.members.len() {
            self.members.push(Default::default());
        }
        self.members[group].insert(at);
    }
}

/// Counts the tokens where a reward needs it and the line does not say.
fn count_tokens(
    scorer: &Scorer,
    config: &RunConfig,
    fetch: bool,
    tokenizer: &mut Option<Tokenizer>,
    work: &mut Work,
) -> Result<(), Failure> {
    let Some((needs, name)) = scorer.needs() else {
        return Ok(());
    };
    if work.tokens.borrow().suffice(needs) {
        return Ok(());
    }
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => {
            let source: ModelSource = config.model.source.parse()?;
            let in_files = matches!(source, ModelSource::Folder(_) | ModelSource::Gguf(_));
            if !in_files && !fetch {
                return Err(format!(
                    "reward {name:?} needs the completion's tokens: write their number (or the ids, \
                     for repetition_penalty) as \"tokens\", or have them counted with the tokenizer \
                     of {source} by --fetch"
                )
                .into());
            }
            tokenizer.insert(tina_model::open_text(&source)?.tokenizer)
        }
    };
    if let Ok(text) = &work.text {
        work.tokens = TokensOf::Ids(tokenizer.encode(text)?);
    }
    Ok(())
}

fn reply(scorer: &Scorer, judged: &Judged) -> Value {
    let total = scorer.total(&judged.rewards);
    let values = judged
        .rewards
        .iter()
        .map(|reward| (reward.name.to_string(), reward.value.into()));
    let mut reply = json!({
        "rewards": Value::Object(values.collect()),
        "reward": total.reward,
        "judged": total.judged,
        "correct": total.correct,
    });
    if !judged.reasons.is_empty() {
        let reasons = judged.reasons.iter();
        let reasons = reasons.map(|(name, why)| (name.to_string(), why.clone().into()));
        reply["not_judged"] = Value::Object(reasons.collect());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_name_belong_together_and_so_do_neighbours_alike() {
        let mut groups = Groups::default();
        let work = |gold: &str| Work {
            text: Ok(String::new()),
            tokens: TokensOf::Unknown,
            gold: gold.to_owned(),
            prompt: String::new(),
            truncated: false,
        };
        let name = |name: &str| Some(Text::Text(name.to_owned()));
        for (at, (group, gold)) in [
            (None, "1"),
            (None, "1"),
            (None, "2"),
            (name("a"), "2"),
            (None, "2"),
            (name("a"), "3"),
            (None, "1"),
        ]
        .into_iter()
        .enumerate()
        {
            groups.add(at, group, &work(gold));
        }
        let members: Vec<Vec<usize>> = groups
            .members
            .iter()
            .map(|group| group.iter().copied().collect())
            .collect();
        assert_eq!(members, [vec![0, 1], vec![2], vec![3, 5], vec![4], vec![6]]);
    }
}
