use std::path::Path;

use tempfile::TempDir;

use super::super::{ConfigError, RunConfig};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }
    folder
}

fn load(path: &Path, sets: &[&str]) -> Result<RunConfig, Vec<String>> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::load(path, &sets).map_err(|error| match error {
        ConfigError::Problems(problems) => problems.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    })
}

/// What a refused config says, with the folder's path left out.
fn errors(folder: &TempDir, name: &str, sets: &[&str]) -> Vec<String> {
    let errors = load(&folder.path().join(name), sets).expect_err("refused");
    let path = format!("{}/", folder.path().display());
    errors
        .iter()
        .map(|error| error.replace(&path, ""))
        .collect()
}

const BASE: &str = "
[run]
name = \"base\"
steps = 30
[model]
source = \"models/small\"
[data]
source = \"problems.jsonl\"
chat_template = \"chat.jinja\"
[learner]
lr = 1e-6
beta2 = 0.95
[[reward]]
kind = \"numeric\"
[[reward]]
kind = \"boxed\"
weight = 2
";

#[test]
fn tables_are_merged_and_lists_replaced() {
    let folder = folder(&[
        ("base.toml", BASE),
        (
            "middle.toml",
            "extends = \"base.toml\"\n[learner]\nlr = 2e-6\n[run]\nname = \"middle\"",
        ),
        (
            "top.toml",
            "extends = \"middle.toml\"\nrun.name = \"top\"\n[[reward]]\nkind = \"boxed\"",
        ),
    ]);
    let config = load(&folder.path().join("top.toml"), &["learner.beta1=0.8"]).expect("valid");
    assert_eq!(config.run.name, "top");
    assert_eq!(config.run.steps, 30);
    let learner = &config.learner;
    assert_eq!(
        (learner.lr, learner.beta1, learner.beta2),
        (2e-6, 0.8, 0.95)
    );
    assert_eq!(config.reward.len(), 1);
    assert_eq!(config.reward[0].weight, 1.0);
    // The files that it was made of are still configs by themselves.
    let middle = load(&folder.path().join("middle.toml"), &[]).expect("valid");
    assert_eq!(
        (middle.run.name.as_str(), middle.reward.len()),
        ("middle", 2)
    );
}

#[test]
fn a_path_starts_from_the_file_that_it_stands_in() {
    let folder = folder(&[
        ("shared/base.toml", BASE),
        (
            "mine/top.toml",
            "extends = \"../shared/base.toml\"\ndata.source = \"own.jsonl\"",
        ),
    ]);
    let top = folder.path().join("mine/top.toml");
    let config = load(&top, &["cluster.token_file=token"]).expect("valid");
    let at = |path: &str| folder.path().join(path).display().to_string();
    assert_eq!(config.data.source, Some(at("mine/own.jsonl")));
    assert_eq!(config.model.source, at("mine/../shared/models/small"));
    assert_eq!(
        config.data.chat_template,
        Some(at("mine/../shared/chat.jinja"))
    );
    // The command line's start from the file that was named.
    assert_eq!(config.cluster.token_file, Some(at("mine/token")));
}

#[test]
fn an_error_names_the_file_that_it_is_in() {
    let wrong = BASE.replace("beta2", "beta3");
    let folder = folder(&[
        ("configs/base.toml", &wrong),
        (
            "configs/top.toml",
            "extends = \"base.toml\"\n[run]\nstpes = 1\nkeep_last = 0",
        ),
        ("configs/broken.toml", "extends = \"no.toml\"\n[run\n"),
        ("configs/on_broken.toml", "extends = \"broken.toml\""),
    ]);
    assert_eq!(
        errors(&folder, "configs/top.toml", &["lora.rank=0"]),
        [
            "configs/top.toml:3:1: run.stpes: unknown key; did you mean `steps`?",
            "configs/top.toml:4:1: run.keep_last: must be 1 or more",
            "configs/base.toml:12:1: learner.beta3: unknown key; did you mean `beta2`?",
            "--set lora.rank=0: lora.rank: must be between 1 and 4096",
        ]
    );
    let broken = errors(&folder, "configs/on_broken.toml", &[]);
    assert!(
        broken[0].starts_with("configs/broken.toml:2:"),
        "{broken:?}"
    );
}

#[test]
fn what_cannot_be_extended_is_refused_at_the_key() {
    let folder = folder(&[
        ("gone.toml", "extends = \"nowhere.toml\""),
        ("number.toml", "extends = 3"),
        ("itself.toml", "\nextends = \"./itself.toml\""),
        ("a.toml", "extends = \"b.toml\""),
        ("b.toml", "extends = \"c.toml\""),
        ("c.toml", "extends = \"b.toml\""),
        ("base.toml", BASE),
    ]);
    let gone = errors(&folder, "gone.toml", &[]);
    assert!(
        gone[0].starts_with("gone.toml:1:11: extends: nowhere.toml can't be read"),
        "{gone:?}"
    );
    let number = errors(&folder, "number.toml", &[]);
    assert!(number[0].contains("number.toml:1:11: extends: expected a config file"));
    assert_eq!(
        errors(&folder, "itself.toml", &[]),
        ["itself.toml:2:11: extends: goes in a circle: itself.toml -> ./itself.toml"]
    );
    assert_eq!(
        errors(&folder, "a.toml", &[]),
        ["c.toml:1:11: extends: goes in a circle: b.toml -> c.toml -> b.toml"]
    );
    assert_eq!(
        errors(&folder, "base.toml", &["extends=a.toml"]),
        ["--set extends=a.toml: extends: stands in the file; --set can't change it"]
    );
}

#[test]
fn a_tower_of_files_is_refused() {
    let files: Vec<_> = (0..20)
        .map(|n| (format!("{n}.toml"), format!("extends = \"{}.toml\"", n + 1)))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    let tower = folder(&files);
    assert_eq!(
        errors(&tower, "0.toml", &[]),
        ["15.toml:1:11: extends: a config is 16 files at most"]
    );
}

#[test]
fn what_is_explained_says_where_it_was_written_and_can_be_read_again() {
    let folder = folder(&[
        ("base.toml", BASE),
        (
            "top.toml",
            "extends = \"base.toml\"\n[run]\nname = \"top\"\n[data]\nsystem_prompt = \"a\\nb # c\"",
        ),
    ]);
    let path = folder.path().join("top.toml");
    let text = RunConfig::explain(&path, &["learner.lr=1e-5".to_owned()]).expect("valid");
    let short = text.replace(&format!("{}/", folder.path().display()), "");
    for line in [
        "name = \"top\"  # top.toml:3",
        "steps = 30  # base.toml:4",
        "seed = 42",
        "lr = 0.00001  # --set",
        "weight = 2.0  # base.toml:17",
    ] {
        assert!(
            short.lines().any(|l| l.replace("1e-5", "0.00001") == line),
            "{line}\n{short}"
        );
    }
    let again = RunConfig::parse(&text, "again.toml", Path::new("/"), &[]).expect("valid");
    let config = load(&path, &["learner.lr=1e-5"]).expect("valid");
    assert_eq!(again, config);
}
