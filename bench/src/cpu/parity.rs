//! Whether Tina computes the model that others compute: greedy tokens and log-probs beside those of
//! transformers in f32.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tina_model::{ChatMessage, TextModel};
use tina_proto::v1::SamplingParams;
use tina_rollout_worker::{
    engine::{Event, Work},
    queue::GroupTask,
};

use super::{
    contest::{Done, Held, OURS, Row, Task, Turn, Turns, Unit},
    own::{Own, OwnArgs},
    peers::{Peers, Python},
};
use crate::{
    error::{BenchError, Result},
    host::Scratch,
    peer::PeerDtype,
    processes::own_peak_mib,
    roles::task,
    shapes::mix,
};

/// Sequences that the engine decodes at a time.
const SLOTS: usize = 64;
/// Their time, loading included.
const LIMIT: Duration = Duration::from_secs(1800);

/// What is compared.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Parity {
    /// Prompts
    #[arg(long)]
    pub(crate) prompts: usize,
    /// Tokens after each
    #[arg(long)]
    pub(crate) new: usize,
    /// File for prompts and answers
    #[arg(long)]
    pub(crate) answers: PathBuf,
}

impl Parity {
    pub(crate) fn args(&self) -> Vec<String> {
        let flags = [
            ("--prompts", self.prompts.to_string()),
            ("--new", self.new.to_string()),
            ("--answers", self.answers.display().to_string()),
        ];
        let each = flags.into_iter();
        each.flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}

/// What one side makes of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) prompt: Vec<u32>,
    /// Its own greedy tokens.
    pub(crate) tokens: Vec<u32>,
    /// Log-probs of our greedy tokens, whatever its own are.
    pub(crate) logprobs: Vec<f32>,
}

/// One side against the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Agreement {
    /// Share of prompts with the same tokens from first to last.
    pub(crate) prompts: f64,
    /// Share of tokens that are the same at the same place.
    pub(crate) tokens: f64,
    /// |log-prob − the reference's|.
    pub(crate) mean: f64,
    pub(crate) max: f64,
}

/// Compares answers one by one.
pub(crate) fn compare(answers: &[Answer], reference: &[Answer]) -> Result<Agreement> {
    let same_work = answers.len() == reference.len()
        && answers.iter().zip(reference).all(|(a, b)| {
            a.prompt == b.prompt
                && a.tokens.len() == b.tokens.len()
                && a.logprobs.len() == b.logprobs.len()
        });
    if !same_work || answers.is_empty() {
        return Err(BenchError::Other(
            "the sides did not answer the same prompts at the same length".into(),
        ));
    }
    let (mut whole, mut equal, mut tokens) = (0, 0, 0);
    let (mut sum, mut max, mut count) = (0.0, 0.0, 0);
    for (a, b) in answers.iter().zip(reference) {
        whole += usize::from(a.tokens == b.tokens);
        equal += a
            .tokens
            .iter()
            .zip(&b.tokens)
            .filter(|(a, b)| a == b)
            .count();
        tokens += a.tokens.len();
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            let difference = f64::from((a - b).abs());
            sum += difference;
            // Not max() alone: NaN must not get lost.
            if difference > max || difference.is_nan() {
                max = difference;
            }
            count += 1;
        }
    }
    Ok(Agreement {
        prompts: f64::from(whole as u32) / answers.len() as f64,
        tokens: f64::from(equal as u32) / f64::from(tokens.max(1) as u32),
        mean: sum / f64::from(count.max(1)),
        max,
    })
}

fn rows(prompts: usize, new: usize) -> Vec<Row> {
    let row = |name: &str, key, unit| Row {
        name: name.to_owned(),
        key,
        unit,
        least: None,
    };
    vec![
        row(
            &format!("greedy as transformers f32: of {prompts} prompts, share"),
            "prompts",
            Unit::Share,
        ),
        row(
            &format!("  of their first {new} tokens, share"),
            "tokens",
            Unit::Share,
        ),
        row("  log-probs from it, mean |difference|", "mean", Unit::Nats),
        row("  log-probs from it, max |difference|", "max", Unit::Nats),
    ]
}

/// Ours and transformers in bf16, both beside transformers in f32. Nothing here depends on time, so
/// there is one turn.
pub(crate) async fn hold(
    size: (usize, usize),
    ours: &dyn Fn(&str, &[String]) -> Task,
    peers: &Peers,
    scratch: &Scratch,
) -> Result<Held> {
    let (prompts, new) = size;
    let mut held = Held {
        name: "agreement".to_owned(),
        rows: rows(prompts, new),
        sides: Vec::new(),
    };
    let mut side = |name: &str, turns, absent| {
        held.sides.push(Turns {
            name: name.to_owned(),
            turns,
            absent,
        });
    };
    let python = match &peers.python {
        Ok(python) => python,
        Err(why) => {
            side(OURS, Vec::new(), Some("nothing to compare with".to_owned()));
            side("transformers bf16", Vec::new(), Some(why.clone()));
            return Ok(held);
        }
    };
    let (folder, work) = (scratch.folder("parity")?, scratch.folder("turn")?);
    let parity = Parity {
        prompts,
        new,
        answers: folder.join("tina.json"),
    };
    eprintln!("agreement: {OURS}");
    let Done::Turn(mut turn) = ours("parity", &parity.args()).turn(&work).await? else {
        return Err(BenchError::Other("our own side is absent".into()));
    };
    let own = answers(&parity.answers)?;
    let peer = |dtype| theirs(python, dtype, peers.threads, &parity.answers, &folder);
    let (reference, _) = match peer(PeerDtype::F32).turn(&work).await? {
        Done::Turn(turn) => (answers(&folder.join("f32.json"))?, turn),
        Done::Absent(why) => {
            side(OURS, Vec::new(), Some("nothing to compare with".to_owned()));
            side("transformers bf16", Vec::new(), Some(why));
            return Ok(held);
        }
    };
    set(&mut turn, compare(&own, &reference)?);
    side(OURS, vec![turn], None);
    match peer(PeerDtype::Bf16).turn(&work).await? {
        Done::Turn(mut turn) => {
            set(
                &mut turn,
                compare(&answers(&folder.join("bf16.json"))?, &reference)?,
            );
            side("transformers bf16", vec![turn], None);
        }
        Done::Absent(why) => side("transformers bf16", Vec::new(), Some(why)),
    }
    Ok(held)
}

fn theirs(python: &Python, dtype: PeerDtype, threads: usize, own: &Path, folder: &Path) -> Task {
    eprintln!("agreement: transformers {dtype}");
    let args = [
        "--answers".to_owned(),
        own.display().to_string(),
        "--out".to_owned(),
        folder.join(format!("{dtype}.json")).display().to_string(),
    ];
    let mut program = python.script("answer_transformers.py", dtype, threads, &args);
    program.limit = LIMIT;
    Task::Program(program, &[])
}

fn set(turn: &mut Turn, agreement: Agreement) {
    let Agreement {
        prompts,
        tokens,
        mean,
        max,
    } = agreement;
    for (name, value) in [
        ("prompts", prompts),
        ("tokens", tokens),
        ("mean", mean),
        ("max", max),
    ] {
        turn.values.insert(name.to_owned(), value);
    }
}

fn answers(path: &Path) -> Result<Vec<Answer>> {
    let text = fs::read_to_string(path).map_err(BenchError::file(path))?;
    Ok(serde_json::from_str(&text)?)
}

/// Our side: greedy answers by the worker's engine, with the log-probs that it records.
pub(crate) fn measure(args: &OwnArgs, parity: &Parity) -> Result<()> {
    let own = Own::load(args, false)?;
    let prompts = (0..parity.prompts as u64)
        .map(|n| prompt(&own.text, &question(n)))
        .collect::<Result<Vec<_>>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1) + parity.new;
    let (mut engine, version) = own.engine(SLOTS, longest, false)?;
    let mut events = Vec::new();
    for (group, prompt) in prompts.iter().enumerate() {
        let sampled = task(
            group as u64,
            prompt.clone(),
            parity.new as u32,
            version.clone(),
        );
        let greedy = GroupTask {
            params: SamplingParams {
                temperature: 0.0,
                ..sampled.params.clone()
            },
            ..sampled
        };
        let order = Work::Sample {
            task: Arc::new(greedy),
            indices: vec![0],
            epoch: 1,
        };
        engine.submit(order, &mut events);
    }
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let mut answers: Vec<Option<Answer>> = vec![None; prompts.len()];
    for event in events {
        match event {
            Event::Completed { completion, .. } => {
                let group = completion.group_id as usize;
                if let (Some(place), Some(prompt)) = (answers.get_mut(group), prompts.get(group)) {
                    *place = Some(Answer {
                        prompt: prompt.clone(),
                        tokens: completion.tokens,
                        logprobs: completion.logprobs,
                    });
                }
            }
            Event::Failed(failed) => return Err(BenchError::Other(failed.error)),
            Event::Loaded(_) => {}
        }
    }
    let missing = || BenchError::Other("a prompt got no answer".into());
    let answers = answers
        .into_iter()
        .map(|answer| answer.ok_or_else(missing))
        .collect::<Result<Vec<_>>>()?;
    let text = serde_json::to_string(&answers)?;
    fs::write(&parity.answers, text).map_err(BenchError::file(&parity.answers))?;
    let report = serde_json::json!({
        "numerics": own.decoder.numerics(),
        "peak_mib": own_peak_mib(),
    });
    println!("{report}");
    Ok(())
}

/// As a run asks it: through the chat template, where the model has one.
fn prompt(text: &TextModel, question: &str) -> Result<Vec<u32>> {
    let rendered = match &text.chat {
        None => question.to_owned(),
        Some(chat) => {
            let message = ChatMessage {
                role: "user".to_owned(),
                content: question.to_owned(),
            };
            chat.render(&[message], true)?
        }
    };
    Ok(text.tokenizer.encode(&rendered)?)
}

/// Questions of several kinds, the n-th always the same, the first 776 all different.
fn question(n: u64) -> String {
    let a = 3 + (n / 8 * 37) % 97;
    let (b, c) = (2 + mix(n) % 98, 2 + mix(n << 32) % 9);
    match n % 8 {
        0 => format!("What is {a} + {b}?"),
        1 => format!("What is {a} times {c}? Explain how you got there."),
        2 => format!(
            "A shop sells {a} apples in the morning and {b} in the afternoon. How many is that?"
        ),
        3 => format!("Write a Python function that returns the first {c} multiples of {a}."),
        4 => format!("Name {c} things that weigh about {a} kilograms."),
        5 => format!("Tell a story in {c} sentences about a train that is {a} minutes late."),
        6 => format!("Is {a} a prime number? Is {b}?"),
        _ => format!("Translate to French: \"There are {a} books on {c} tables.\""),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn answer(tokens: &[u32], logprobs: &[f32]) -> Answer {
        Answer {
            prompt: vec![1],
            tokens: tokens.to_vec(),
            logprobs: logprobs.to_vec(),
        }
    }

    #[test]
    fn prompts_tokens_and_log_probs_are_compared_each_for_itself() {
        let reference = [
            answer(&[1, 2], &[-1.0, -2.0]),
            answer(&[3, 4], &[-1.0, -1.0]),
        ];
        let ours = [
            answer(&[1, 2], &[-1.0, -2.25]),
            answer(&[3, 5], &[-1.0, -1.75]),
        ];
        let got = compare(&ours, &reference).unwrap();
        let want = Agreement {
            prompts: 0.5,
            tokens: 0.75,
            mean: 0.25,
            max: 0.75,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn a_log_prob_that_is_no_number_does_not_get_lost() {
        let reference = [answer(&[1, 2], &[-1.0, -2.0])];
        let broken = [answer(&[1, 2], &[f32::NAN, -2.0])];
        assert!(compare(&broken, &reference).unwrap().mean.is_nan());
    }

    #[test]
    fn answers_to_other_prompts_are_not_compared() {
        let reference = [answer(&[1, 2], &[-1.0, -2.0])];
        assert!(compare(&[], &reference).is_err());
        assert!(compare(&[answer(&[1], &[-1.0])], &reference).is_err());
        assert!(compare(&[], &[]).is_err());
    }

    #[test]
    fn no_two_of_the_questions_are_the_same() {
        let questions: BTreeSet<String> = (0..776).map(question).collect();
        assert_eq!(questions.len(), 776);
    }
}
