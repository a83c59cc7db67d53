//! Verdicts against known ones.
//!
//! `cases/*.jsonl` beside this file always runs: each line a gold, a completion, and the right verdict
//! under the two configurations. With `TINA_VERDICTS` set to a folder that holds recorded calls of
//! math-verify (`math_verify_cases.jsonl`: its own test suite; `generated_cases.jsonl`: golds with
//! realistic answers), the share of equal verdicts is printed, and what differs is listed:
//!
//! `TINA_VERDICTS=FOLDER cargo test -p tina-reward --test agreement -- --nocapture`

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path};

use serde_json::Value;
use tina_reward::math::{
    Judgement, MathConfig, Outcome, Reading, Verifier,
    equal::{Comparison, equal},
    extract::{BoxedContent, Extraction, LatexExtraction, LetterExtraction, PlainExtraction},
    fuel::Fuel,
    parse::{Repairs, Syntax, parse},
};

#[test]
fn own_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let default = Verifier::new(MathConfig::reference());
    let tina = Verifier::new(MathConfig::tina());
    let mut tally = Tally::default();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        for (line, case) in lines(&path) {
            for (name, verifier) in [("default", &default), ("tina", &tina)] {
                let judgement = verifier.verify(text(&case, "gold"), text(&case, "completion"));
                let right = judgement.outcome.verdict() == case[name].as_bool();
                tally.count(right, || {
                    let path = path.file_name().unwrap().display();
                    let told = told(&case, &judgement, "completion");
                    format!("{path}:{line} {name}: wanted {}, {told}", case[name])
                });
            }
        }
    }
    let share = tally.report("own cases");
    assert!(share == 1.0, "see above");
}

#[test]
fn recorded_verdicts() {
    let Ok(folder) = std::env::var("TINA_VERDICTS") else {
        println!("TINA_VERDICTS is not set: skipped");
        return;
    };
    let folder = Path::new(&folder);
    let suite = math_verify_suite(&folder.join("math_verify_cases.jsonl"));
    let [default, tina] = generated(&folder.join("generated_cases.jsonl"));
    assert!(suite >= 0.99, "math_verify_cases: {suite}");
    assert!(default >= 0.98, "generated_cases, default: {default}");
    assert!(tina >= 0.98, "generated_cases, tina: {tina}");
}

/// The suite's cases; answers with the share that agrees.
fn math_verify_suite(path: &Path) -> f64 {
    let mut tally = Tally::default();
    for (_, case) in lines(path) {
        let id = text(&case, "id");
        let config = suite_config(&case["config"]);
        match text(&case, "kind") {
            "verify" => {
                let judgement =
                    Verifier::new(config).verify(text(&case, "gold"), text(&case, "pred"));
                let wanted = case["expected"].as_bool().unwrap();
                let right = judgement.outcome.verdict().unwrap_or(false) == wanted;
                tally.count(right, || {
                    format!("{id}: wanted {wanted}, {}", told(&case, &judgement, "pred"))
                });
            }
            "parse" => {
                let wanted: Vec<&str> = case["expected_output"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|value| value.as_str().unwrap())
                    .collect();
                // A reading is right if it equals what is expected, read as a gold in plain text.
                let kinds = config.answer.kinds.iter().map(|kind| match kind {
                    Extraction::Letters(_) => kind.clone(),
                    _ => Extraction::Plain(PlainExtraction { anywhere: true }),
                });
                let kinds: Vec<Extraction> = kinds.collect();
                let letters = kinds
                    .iter()
                    .any(|kind| matches!(kind, Extraction::Letters(_)));
                let gold = Reading {
                    kinds,
                    ..config.answer.clone()
                };
                let judgement = Verifier::new(MathConfig { gold, ..config })
                    .verify(wanted.first().unwrap_or(&"0"), text(&case, "pred"));
                let right = if wanted.is_empty() {
                    judgement.answer_parsed.is_none()
                } else if letters {
                    judgement.answer_parsed.as_deref() == Some(wanted[0])
                } else if text(&case, "nodeid").contains("gamma") {
                    // Read at all: plain text has no such function.
                    judgement.answer_parsed.is_some()
                } else {
                    judgement.outcome == Outcome::Equal
                };
                tally.count(right, || {
                    format!(
                        "{id}: wanted {wanted:?}, {}",
                        told(&case, &judgement, "pred")
                    )
                });
            }
            _ => {
                let mut fuel = Fuel::new(config.fuel);
                let [gold, answer] = ["gold", "pred"].map(|key| {
                    parse(text(&case, key), Syntax::Plain, NO_REPAIRS, &mut fuel).unwrap()
                });
                let right = equal(&gold, &answer, config.comparison, &mut fuel).unwrap()
                    == case["expected"].as_bool().unwrap();
                tally.count(right, || format!("{id}: {case}"));
            }
        }
    }
    tally.report("math_verify_cases")
}

/// Generated cases; answers with the shares that agree of those whose verdict is certain, under the
/// default and under the paper's configuration.
fn generated(path: &Path) -> [f64; 2] {
    [
        ("verdict", MathConfig::reference()),
        ("verdict_tina_reward", MathConfig::tina()),
    ]
    .map(|(key, config)| {
        let verifier = Verifier::new(config);
        let mut certain = Tally::default();
        let mut debatable = Tally::default();
        for (_, case) in lines(path) {
            let judgement = verifier.verify(text(&case, "gold_input"), text(&case, "pred"));
            let wanted = case[key].as_bool().unwrap();
            let right = judgement.outcome.verdict().unwrap_or(false) == wanted;
            let tally = match text(&case, "label_confidence") {
                "certain" => &mut certain,
                _ => &mut debatable,
            };
            tally.count(right, || {
                let (id, category) = (text(&case, "id"), text(&case, "category"));
                let told = told(&case, &judgement, "pred");
                format!("{id} ({category}): wanted {wanted}, {told}")
            });
        }
        debatable.report(&format!("generated_cases, {key}, debatable"));
        certain.report(&format!("generated_cases, {key}, certain"))
    })
}

#[derive(Default)]
struct Tally {
    right: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn count(&mut self, right: bool, case: impl FnOnce() -> String) {
        if right {
            self.right += 1;
        } else {
            self.wrong.push(case());
        }
    }

    /// Prints the share that agrees and what does not.
    fn report(&self, name: &str) -> f64 {
        let all = self.right + self.wrong.len();
        let share = self.right as f64 / all.max(1) as f64;
        println!("{name}: {} of {all}, {:.2} %", self.right, 100.0 * share);
        for wrong in &self.wrong {
            println!("  {wrong}");
        }
        share
    }
}

const NO_REPAIRS: Repairs = Repairs {
    basic_latex: false,
    units: false,
    malformed_operators: false,
    nits: false,
    equations: false,
};

/// A recorded configuration; what it does not say is as math-verify has it.
fn suite_config(config: &Value) -> MathConfig {
    let flag = |key: &str, or: bool| config[key].as_bool().unwrap_or(or);
    let mut latex = LatexExtraction {
        boxed_priority: match config["boxed_match_priority"].as_i64() {
            Some(priority) => i32::try_from(priority).ok().filter(|&number| number >= 0),
            None => Some(50),
        },
        ..LatexExtraction::reference()
    };
    if let Some(normalization) = config["normalization"].as_object() {
        let flag = |key: &str| normalization[key].as_bool().unwrap();
        latex.repairs = Repairs {
            basic_latex: flag("basic_latex"),
            units: flag("units"),
            malformed_operators: flag("malformed_operators"),
            nits: flag("nits"),
            equations: flag("equations"),
        };
        latex.boxed = BoxedContent::Whole;
    }
    let strings = || {
        let strings = config["strings"].as_array().unwrap().iter();
        strings.map(|letter| letter.as_str().unwrap().to_owned())
    };
    let kinds = match config["extraction"].as_array() {
        None => Reading::reference().kinds,
        Some(kinds) => kinds
            .iter()
            .map(|kind| match kind.as_str().unwrap() {
                "latex" => Extraction::Latex(latex),
                "expr" => Extraction::Plain(PlainExtraction { anywhere: true }),
                _ => Extraction::Letters(LetterExtraction {
                    letters: strings().collect(),
                    anywhere: flag("try_extract_without_anchor", true),
                    lowercase: flag("lowercase", true),
                }),
            })
            .collect(),
    };
    let reading = Reading {
        kinds,
        first_only: config["extraction_mode"] == "first_match",
        as_text: config["fallback_mode"] != "no_fallback",
    };
    let reference = MathConfig::reference();
    let float_rounding = config["float_rounding"].as_u64();
    MathConfig {
        gold: reading.clone(),
        answer: reading,
        comparison: Comparison {
            float_rounding: float_rounding.map_or(reference.comparison.float_rounding, |digits| {
                u32::try_from(digits).unwrap()
            }),
            strict: flag("strict", true),
            set_relation: flag("allow_set_relation_comp", false),
        },
        ..reference
    }
}

fn told(case: &Value, judgement: &Judgement, completion: &str) -> String {
    format!(
        "got {:?}\n    gold {} read as {:?}\n    completion {}: {:?} read as {:?}",
        judgement.outcome,
        case["gold"],
        judgement.gold_parsed,
        case[completion],
        judgement.answer_extracted,
        judgement.answer_parsed
    )
}

/// A file of JSON lines with their numbers.
fn lines(path: &Path) -> Vec<(usize, Value)> {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .lines()
        .enumerate()
        .map(|(line, text)| (line + 1, serde_json::from_str(text).unwrap()))
        .collect()
}

fn text<'v>(case: &'v Value, key: &str) -> &'v str {
    case[key].as_str().unwrap_or_default()
}
