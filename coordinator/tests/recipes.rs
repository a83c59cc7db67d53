//! The paper's recipes in `deploy/recipes`: all of them pass `tina check`, have the paper's numbers,
//! and render prompts exactly as the paper's code does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]
use std::{collections::BTreeSet, path::PathBuf};

use tina_coordinator::config::{Advantage, Loss, RunConfig};
use tina_model::{ChatMessage, ChatTemplate};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/recipes"))
}

fn recipe(name: &str) -> RunConfig {
    let path = folder().join(format!("{name}.toml"));
    RunConfig::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// Steps, steps of the schedule, completions a prompt, rank, alpha, learning rate, longest completion.
type Numbers = (u64, u64, u32, u32, f64, f64, u32);

const PAPER: [(&str, Numbers); 19] = [
    ("still3", (3750, 7500, 4, 32, 128.0, 1e-6, 3584)),
    ("deepscaler", (5500, 11000, 4, 32, 128.0, 1e-6, 3584)),
    ("open_rs1", (2400, 5000, 4, 32, 128.0, 1e-6, 3584)),
    ("open_rs2", (850, 1500, 4, 32, 128.0, 1e-6, 3584)),
    ("open_rs3", (850, 1500, 4, 32, 128.0, 1e-6, 3584)),
    ("limr", (180, 360, 4, 32, 128.0, 1e-6, 3584)),
    ("open_r1", (11716, 11716, 8, 32, 128.0, 1e-6, 3584)),
    ("open_thoughts", (8262, 8262, 8, 32, 128.0, 1e-6, 3584)),
    ("ii_thought", (6660, 13320, 4, 32, 128.0, 1e-6, 3584)),
    ("limr_lr_5e-6", (180, 360, 4, 32, 128.0, 5e-6, 3584)),
    ("limr_lr_5e-7", (180, 360, 4, 32, 128.0, 5e-7, 3584)),
    ("limr_rank_4", (180, 360, 4, 4, 16.0, 1e-6, 3584)),
    ("limr_rank_8", (180, 360, 4, 8, 32.0, 1e-6, 3584)),
    ("limr_rank_16", (180, 360, 4, 16, 64.0, 1e-6, 3584)),
    ("limr_rank_64", (180, 360, 4, 64, 256.0, 1e-6, 3584)),
    ("limr_rank_128", (180, 360, 4, 128, 512.0, 1e-6, 3584)),
    ("open_rs3_drgrpo", (850, 1500, 4, 32, 128.0, 1e-6, 3584)),
    (
        "open_rs3_no_accuracy",
        (850, 1500, 4, 32, 128.0, 1e-6, 3584),
    ),
    (
        "open_rs3_long_completion",
        (850, 1500, 4, 32, 128.0, 1e-6, 8960),
    ),
];

#[test]
fn every_recipe_is_here_and_there() {
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("deploy/recipes")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name != "base")
        .collect();
    let known: BTreeSet<String> = PAPER.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, known);
    let table = std::fs::read_to_string(folder().join("README.md")).expect("README.md");
    for name in known {
        assert!(
            table.contains(&format!("`{name}`")),
            "{name} is not in README.md"
        );
    }
}

#[test]
fn every_recipe_has_the_papers_numbers() {
    for (name, numbers) in PAPER {
        let config = recipe(name);
        assert_eq!(config.run.name, name);
        let (learner, algorithm) = (&config.learner, &config.algorithm);
        let found = (
            config.run.steps,
            learner.schedule_steps.expect("set"),
            algorithm.completions_per_prompt,
            config.lora.rank,
            config.lora.alpha,
            learner.lr,
            config.sampling.max_tokens,
        );
        assert_eq!(found, numbers, "{name}");
        // A tenth of the schedule, rounded up.
        assert_eq!(learner.warmup_steps, Some(numbers.1.div_ceil(10)), "{name}");
        assert_eq!(algorithm.prompts_per_step, 8);
        assert_eq!((algorithm.kl_beta, algorithm.iterations), (0.04, 1));
        assert_eq!((learner.min_lr_ratio, learner.weight_decay), (0.1, 0.0));
        assert_eq!(
            (learner.beta1, learner.beta2, learner.eps),
            (0.9, 0.999, 1e-8)
        );
        assert_eq!(config.lora.dropout, 0.05);
        assert_eq!(config.lora.target_modules.len(), 7);
        assert_eq!(
            (config.sampling.temperature, config.sampling.top_p),
            (0.7, 1.0)
        );
        assert_eq!((config.run.seed, config.data.max_prompt_tokens), (42, 512));
        assert!(!algorithm.mask_truncated);
        let dr_grpo = (algorithm.loss, algorithm.advantage);
        let expected = match name {
            "open_rs3_drgrpo" => (Loss::DrGrpo, Some(Advantage::Unscaled)),
            _ => (Loss::Grpo, Some(Advantage::Group)),
        };
        assert_eq!(dr_grpo, expected, "{name}");
    }
}

#[test]
fn every_recipe_has_the_papers_rewards() {
    let seven = "accuracy 1, format 1, tag_count 1, length 1, reasoning_steps 1, cosine 1, \
                 repetition_penalty 1";
    let without = "format 1, tag_count 1, length 1, reasoning_steps 1, repetition_penalty 1, \
                   accuracy 0";
    for (name, _) in PAPER {
        let expected = match name {
            "still3" => "length 1, accuracy 2",
            "open_r1" | "open_thoughts" => seven,
            "open_rs3" | "open_rs3_drgrpo" | "open_rs3_long_completion" => {
                "format 1, cosine 2, accuracy 0"
            }
            "open_rs3_no_accuracy" => without,
            _ => "format 1, accuracy 2",
        };
        let rewards = recipe(name).reward;
        let found: Vec<String> = rewards
            .iter()
            .map(|reward| format!("{} {}", reward.kind.as_str(), reward.weight))
            .collect();
        assert_eq!(found.join(", "), expected, "{name}");
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// The model's own names for its special tokens.
fn template(text: &str) -> ChatTemplate {
    let tokens = [
        ("bos_token", "<｜begin▁of▁sentence｜>"),
        ("eos_token", "<｜end▁of▁sentence｜>"),
    ];
    let tokens = tokens.map(|(name, text)| (name.to_owned(), text.to_owned()));
    ChatTemplate::new(text, &tokens).expect("a template")
}

fn edited() -> String {
    std::fs::read_to_string(folder().join("r1_distill_open_r1.jinja")).expect("the template")
}

/// DeepSeek-R1-Distill's own: what was thought is left out, and the thought is begun.
fn stock() -> String {
    let kept = "message.content + '<｜end▁of▁sentence｜>'";
    let cut = "message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>'";
    edited().replace(kept, cut).replace(
        "{{- '<｜Assistant｜>' -}}",
        "{{- '<｜Assistant｜><think>\\n' -}}",
    )
}

const QUESTION: &str = "What is $2 + 2$?";

// Expected texts are what Jinja renders, set up as in transformers, of the template and the system
// prompts in shangshang-wang/Tina, tina/utils, and of the model's own template.

const OPEN_R1: &str = "<｜begin▁of▁sentence｜>\nYou are a helpful AI Assistant that provides \
    well-reasoned and detailed responses.\nYou first think about the reasoning process as an \
    internal monologue and then provide the user with the answer.\nRespond in the following format: \
    <think>\n...\n</think>\n<answer>\n...\n</answer>\n<｜User｜>What is $2 + 2$?<｜Assistant｜>";

const OPEN_RS: &str = "<｜begin▁of▁sentence｜>\nA conversation between User and Assistant. The user \
    asks a question, and the Assistant solves it.\nThe assistant first thinks about the reasoning \
    process in the mind and then provides the user with the answer, and put your final answer \
    within \\boxed{{}} .\nThe reasoning process and answer are enclosed within <think> </think> and \
    <answer> </answer> tags, respectively, \ni.e., <think> reasoning process here </think> <answer> \
    answer here </answer>.\nNote that respond by English, NOT use other languages.\n\
    <｜User｜>What is $2 + 2$?<｜Assistant｜>";

#[test]
fn prompts_are_the_papers_to_the_letter() {
    for (name, _) in PAPER {
        let data = recipe(name).data;
        assert_eq!(data.prompt_template, "{question}");
        let path = data.chat_template.expect("the paper's template");
        let text = std::fs::read_to_string(path).expect("the template");
        let system = data.system_prompt.expect("a system prompt");
        let messages = [message("system", &system), message("user", QUESTION)];
        let rendered = template(&text).render(&messages, true).expect("rendered");
        let expected = match name.starts_with("open_rs") && name != "open_rs1" {
            true => OPEN_RS,
            false => OPEN_R1,
        };
        assert_eq!(rendered, expected, "{name}");
    }
}

#[test]
fn conversations_are_rendered_as_by_transformers() {
    let talk = [
        message("system", "Be brief."),
        message("user", QUESTION),
        message("assistant", "<think>\n2 and 2\n</think>\n\n**4**"),
        message("user", "And 3 + 3?"),
    ];
    let asked = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is $2 + 2$?<｜Assistant｜>";
    let answered = "\n\n**4**<｜end▁of▁sentence｜><｜User｜>And 3 + 3?<｜Assistant｜>";
    let thought = "<think>\n2 and 2\n</think>";
    let render = |text: &str, talk: &[ChatMessage]| template(text).render(talk, true).unwrap();
    assert_eq!(
        render(&edited(), &talk),
        format!("{asked}{thought}{answered}")
    );
    assert_eq!(
        render(&stock(), &talk),
        format!("{asked}{answered}<think>\n")
    );
    let alone = "<｜begin▁of▁sentence｜><｜User｜>What is $2 + 2$?<｜Assistant｜>";
    assert_eq!(render(&edited(), &talk[1..2]), alone);
    assert_eq!(render(&stock(), &talk[1..2]), format!("{alone}<think>\n"));
    let tool = template(&edited()).render(&[message("tool", "4")], true);
    assert!(
        tool.unwrap_err()
            .to_string()
            .contains("system, user or assistant")
    );
}
