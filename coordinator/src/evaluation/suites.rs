//! Suites: problems to evaluate on, from files at hand or the Hub.

use std::path::{Path, PathBuf};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use super::EvaluationError;
use crate::{
    config::RunConfig,
    data::{
        Problem, PromptTemplate, Source,
        rows::{Row, field, text},
    },
};

/// The suite of the problems that the run itself keeps from training.
pub const HELD_OUT: &str = "held-out";

/// Suites by name, and where the Hub has them: the Parquet files that it makes of every dataset.
/// The datasets are those of the paper's evaluation (`scripts/eval/run_eval_custom_tasks.py` of
/// shangshang-wang/Tina), and GSM8K's test split.
pub const SUITES: [(&str, &str); 7] = [
    (
        "aime24",
        "hf:HuggingFaceH4/aime_2024@refs/convert/parquet:default/train/0000.parquet",
    ),
    (
        "aime25",
        "hf:yentinglin/aime_2025@refs/convert/parquet:default/train/0000.parquet",
    ),
    (
        "amc23",
        "hf:knoveleng/AMC-23@refs/convert/parquet:default/train/0000.parquet",
    ),
    (
        "math500",
        "hf:HuggingFaceH4/MATH-500@refs/convert/parquet:default/test/0000.parquet",
    ),
    (
        "minerva",
        "hf:knoveleng/Minerva-Math@refs/convert/parquet:default/train/0000.parquet",
    ),
    (
        "gpqa",
        "hf:Idavidrein/gpqa@refs/convert/parquet:gpqa_diamond/train/0000.parquet",
    ),
    (
        "gsm8k",
        "hf:openai/gsm8k@refs/convert/parquet:main/test/0000.parquet",
    ),
];

/// Fields that hold the question, and the gold answer, in the suites above and their like; the
/// config's own come first.
const QUESTIONS: [&str; 3] = ["problem", "question", "Question"];
const ANSWERS: [&str; 4] = ["answer", "expected_answer", "solution", "Correct Answer"];
/// Wrong choices, of a row that has the right one in `Correct Answer`.
const WRONG_CHOICES: [&str; 3] = [
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
];

/// What the paper's evaluation asks, by OpenAI's simple-evals (MIT licence).
const MATH_PROMPT: &str = "Solve the following math problem efficiently and clearly.  The last \
    line of your response should be of the following format: 'Therefore, the final answer is: \
    $\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is just the final number \
    or expression that solves the problem. Think step by step before answering.\n\n";
const CHOICE_PROMPT: &str = "Answer the following multiple choice question. The last line of your \
    response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is \
    one of ABCD. Think step by step before answering.\n\n";

/// How problems are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptStyle {
    /// As the paper's evaluation does: its user prompt, no system message.
    #[default]
    Paper,
    /// As the run does: `data.prompt_template` and `data.system_prompt`.
    Config,
}

impl PromptStyle {
    /// As the command line writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Config => "config",
        }
    }
}

/// Where the problems of a suite are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) name: String,
    /// `None`: the run's own held-out problems.
    pub(super) source: Option<String>,
}

/// Finds a suite: `NAME.jsonl` or `NAME.parquet` in the folder given, a name of [`SUITES`], a file.
/// Nothing of the Hub is touched unless `download` is set.
pub(super) fn find(
    wanted: &str,
    folder: Option<&Path>,
    download: bool,
) -> Result<Place, EvaluationError> {
    let place = |name: &str, source: String| Place {
        name: name.to_owned(),
        source: Some(source),
    };
    let shown = |path: PathBuf| path.display().to_string();
    if wanted == HELD_OUT {
        return Ok(Place {
            name: wanted.to_owned(),
            source: None,
        });
    }
    let in_folder = folder.into_iter().flat_map(|folder| {
        ["jsonl", "parquet"].map(|extension| folder.join(format!("{wanted}.{extension}")))
    });
    if let Some(path) = in_folder.into_iter().find(|path| path.is_file()) {
        return Ok(place(wanted, shown(path)));
    }
    let known = SUITES.iter().find(|(name, _)| *name == wanted);
    let missing = |message: String| EvaluationError::Suite {
        name: wanted.to_owned(),
        message,
    };
    match known {
        Some((name, source)) if download => Ok(place(name, (*source).to_owned())),
        Some((name, source)) => Err(missing(format!(
            "it is not at hand, and nothing is downloaded unasked: --download fetches {source}, \
             --suite-dir DIR names a folder with {name}.jsonl or {name}.parquet"
        ))),
        None if Path::new(wanted).is_file() => {
            let stem = Path::new(wanted).file_stem().unwrap_or_default();
            Ok(place(&stem.to_string_lossy(), wanted.to_owned()))
        }
        None => {
            let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
            Err(missing(format!(
                "there is no such file; suites are {}, {HELD_OUT} (the run's own), or a .jsonl or \
                 .parquet file",
                names.join(", ")
            )))
        }
    }
}

/// Reads the problems of a suite, `limit` at most.
pub(super) fn read(
    place: &Place,
    source: &str,
    config: &RunConfig,
    style: PromptStyle,
    limit: usize,
) -> Result<Vec<Problem>, EvaluationError> {
    let bad = |message: String| EvaluationError::Suite {
        name: place.name.clone(),
        message,
    };
    let template = match style {
        PromptStyle::Paper => None,
        PromptStyle::Config => {
            Some(PromptTemplate::parse(&config.data.prompt_template).map_err(&bad)?)
        }
    };
    let Source::Files { files, .. } = source.parse::<Source>()? else {
        return Err(bad("a suite is a file".to_owned()));
    };
    let mut problems = Vec::new();
    let mut wrong = None;
    for file in &files {
        file.rows(&[], &mut |line, row| {
            if problems.len() < limit && wrong.is_none() {
                let problem = row.and_then(|row| problem(&row, line, config, template.as_ref()));
                match problem {
                    Ok(problem) => problems.push(problem),
                    Err(message) => wrong = Some(format!("{file}:{line}: {message}")),
                }
            }
            Ok(())
        })?;
    }
    match wrong {
        Some(message) => Err(bad(message)),
        None if problems.is_empty() => Err(bad(format!("{source}: there are no problems in it"))),
        None => Ok(problems),
    }
}

/// A row as a problem; `template`: the config's, instead of the paper's prompt.
fn problem(
    row: &Row,
    line: usize,
    config: &RunConfig,
    template: Option<&PromptTemplate>,
) -> Result<Problem, String> {
    let own = &config.data;
    let asked = first(row, &own.question_field, &QUESTIONS)
        .ok_or_else(|| no_field(row, "question", &QUESTIONS))?;
    let id = ["id", "unique_id", "Record ID"]
        .iter()
        .find_map(|name| value(row, name))
        .unwrap_or_else(|| line.to_string());
    let choices: Vec<String> = WRONG_CHOICES
        .iter()
        .filter_map(|name| value(row, name))
        .collect();
    let right = value(row, "Correct Answer");
    let (question, answer, header) = match right {
        Some(right) if !choices.is_empty() => {
            let (question, letter) = lettered(&asked, &right, choices, config.run.seed, line);
            (question, letter, CHOICE_PROMPT)
        }
        _ => {
            let answer = first(row, &own.answer_field, &ANSWERS)
                .ok_or_else(|| no_field(row, "answer", &ANSWERS))?;
            (asked, gold(&answer), MATH_PROMPT)
        }
    };
    let prompt = match template {
        None => format!("{header}{question}"),
        Some(template) => template
            .fill(|name| match name {
                "question" => Some(question.clone()),
                "answer" => Some(answer.clone()),
                name => value(row, name),
            })
            .map_err(|name| format!("no field {name:?}, which data.prompt_template names"))?,
    };
    Ok(Problem {
        id,
        question,
        answer,
        prompt,
        ..Problem::default()
    })
}

fn value(row: &Row, name: &str) -> Option<String> {
    field(row, name).and_then(|value| text(&value))
}

/// The first of these fields that has a text.
fn first(row: &Row, own: &str, others: &[&str]) -> Option<String> {
    std::iter::once(own)
        .chain(others.iter().copied())
        .filter_map(|name| value(row, name))
        .find(|text| !text.trim().is_empty())
}

fn no_field(row: &Row, what: &str, names: &[&str]) -> String {
    let fields: Vec<&str> = row.keys().map(String::as_str).collect();
    format!(
        "no field for the {what}: the row has {}; looked for are data.{what}_field of the config, {}",
        fields.join(", "),
        names.join(", ")
    )
}

/// The question with its choices, and the right one's letter. Its place is drawn by the run's seed
/// and the row; the paper's evaluation draws it anew each time, by a generator without a seed of its
/// own (`random.randint`), so that its questions differ between two runs.
fn lettered(
    question: &str,
    right: &str,
    mut choices: Vec<String>,
    seed: u64,
    row: usize,
) -> (String, String) {
    let hash = Sha256::new()
        .chain_update(b"tina choices ")
        .chain_update(seed.to_le_bytes())
        .chain_update((row as u64).to_le_bytes())
        .finalize();
    let place = ChaCha8Rng::from_seed(hash.into()).random_range(0..=choices.len());
    choices.insert(place, right.to_owned());
    let letter = |place: usize| char::from(b'A' + place as u8);
    let mut text = format!("{}\n", question.trim());
    for (place, choice) in choices.iter().enumerate() {
        text += &format!("\n{}) {}", letter(place), choice.trim());
    }
    (text, letter(place).to_string())
}

/// A gold answer as the verifier reads it: what follows `####` in GSM8K's; in dollar signs where it
/// is LaTeX without any.
fn gold(answer: &str) -> String {
    let answer = answer.rsplit("####").next().unwrap_or(answer).trim();
    let marked = answer.contains('$') || answer.contains("\\boxed") || answer.contains("\\[");
    let latex = answer.contains(['\\', '^', '_', '{']);
    if latex && !marked {
        format!("${answer}$")
    } else {
        answer.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> RunConfig {
        let text = format!(
            "[run]\nname = \"t\"\n[model]\nsource = \"m\"\n[data]\nsource = \"p.jsonl\"\n{more}\n\
             [[reward]]\nkind = \"numeric\"\n"
        );
        RunConfig::parse(&text, "t.toml", Path::new("."), &[]).unwrap()
    }

    fn read_text(
        text: &str,
        config: &RunConfig,
        style: PromptStyle,
    ) -> Result<Vec<Problem>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("own.jsonl"), text).unwrap();
        let place = find("own", Some(folder.path()), false).unwrap();
        let source = place.source.clone().unwrap();
        read(&place, &source, config, style, 100).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_of_all_kinds_become_problems_with_the_papers_prompt() {
        let text = "{\"problem\": \"1 + 1?\", \"answer\": 2}\n\
            {\"question\": \"Eggs?\", \"answer\": \"9 - 1 = 8.\\n#### 1,008\", \"id\": \"g\"}\n\
            {\"problem\": \"Half?\", \"answer\": \"\\\\frac{1}{2}\", \"solution\": \"no\"}\n\
            {\"problem\": \"Size?\", \"solution\": \"so $\\\\boxed{1.6}$\"}\n";
        let problems = read_text(text, &config(""), PromptStyle::Paper).unwrap();
        let golds: Vec<&str> = problems.iter().map(|p| p.answer.as_str()).collect();
        assert_eq!(golds, ["2", "1,008", "$\\frac{1}{2}$", "so $\\boxed{1.6}$"]);
        assert_eq!((&*problems[0].id, &*problems[1].id), ("1", "g"));
        let prompt = &problems[0].prompt;
        assert!(
            prompt.starts_with("Solve the following math problem efficiently and clearly.  The")
        );
        assert!(prompt.contains("$\\boxed{ANSWER}$") && prompt.ends_with("answering.\n\n1 + 1?"));

        let own = config("prompt_template = \"Say: {question}\"\nquestion_field = \"q\"");
        let text = "{\"q\": \"2?\", \"problem\": \"no\", \"answer\": 2}\n";
        let problems = read_text(text, &own, PromptStyle::Config).unwrap();
        assert_eq!(problems[0].prompt, "Say: 2?");

        let error = read_text("{\"x\": 1}\n", &own, PromptStyle::Paper).unwrap_err();
        assert!(
            error.contains("own.jsonl:1") && error.contains("data.question_field"),
            "{error}"
        );
    }

    #[test]
    fn the_right_choice_stands_where_the_seed_puts_it() {
        let row = |n: usize| {
            format!(
                "{{\"Question\": \"Which {n}?\", \"Correct Answer\": \"yes\\n\", \
                 \"Incorrect Answer 1\": \"a\", \"Incorrect Answer 2\": \"b\", \
                 \"Incorrect Answer 3\": \"c\"}}\n"
            )
        };
        let text: String = (0..40).map(row).collect();
        let problems = read_text(&text, &config(""), PromptStyle::Paper).unwrap();
        let again = read_text(&text, &config(""), PromptStyle::Paper).unwrap();
        assert_eq!(problems, again);
        for problem in &problems {
            assert!(
                problem
                    .prompt
                    .starts_with("Answer the following multiple choice question.")
            );
            let right = format!("\n{}) yes", problem.answer);
            assert!(problem.prompt.contains(&right), "{}", problem.prompt);
            assert!(problem.prompt.find(") a") < problem.prompt.find(") c"));
        }
        for letter in ["A", "B", "C", "D"] {
            assert!(problems.iter().any(|problem| problem.answer == letter));
        }
    }

    #[test]
    fn nothing_is_downloaded_unasked() {
        let error = find("aime24", None, false).unwrap_err().to_string();
        assert!(
            error.contains("--download") && error.contains("--suite-dir"),
            "{error}"
        );
        let found = find("aime24", None, true).unwrap().source.unwrap();
        assert!(found.starts_with("hf:HuggingFaceH4/aime_2024"));
        let error = find("aime42", None, true).unwrap_err().to_string();
        assert!(error.contains("aime24, aime25"), "{error}");
        for (_, source) in SUITES {
            assert!(source.parse::<Source>().is_ok(), "{source}");
        }
    }
}
