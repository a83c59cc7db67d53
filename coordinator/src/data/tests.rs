use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use super::{set::Loaded, *};
use crate::config::RunConfig;

fn config(sets: &[&str]) -> RunConfig {
    let text = "[run]\nname = \"t\"\n[model]\nsource = \"hf:a/b\"\n\
                [data]\nsource = \"arithmetic:addmix\"\n[[reward]]\nkind = \"numeric\"\n";
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(text, "t.toml", Path::new("/"), &sets).expect("valid")
}

/// A prompt whose tokens are the text's bytes.
fn bytes(problem: &Problem, system: Option<&str>) -> Result<Prompt, DataError> {
    let text = format!("{}{}", system.unwrap_or_default(), problem.prompt);
    Ok(Prompt {
        id: problem.id.clone(),
        tokens: text.bytes().map(u32::from).collect(),
        text,
        gold: problem.answer.clone(),
    })
}

fn build_config(config: &RunConfig) -> Result<DataSet, DataError> {
    DataSet::load_with(config, &bytes)
}

fn build(sets: &[&str]) -> Result<DataSet, DataError> {
    build_config(&config(sets))
}

fn ids(prompts: &[Arc<Prompt>]) -> Vec<&str> {
    prompts.iter().map(|prompt| prompt.id.as_str()).collect()
}

#[test]
fn training_never_sees_what_is_held_out() {
    let data = build(&[]).expect("data");
    let held_out: HashSet<_> = ids(data.held_out(100))
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert_eq!((held_out.len(), data.train_len()), (100, 170));
    let mut trained = HashSet::new();
    for step in 1..=60 {
        for prompt in data.prompts_of_step(step) {
            assert!(!held_out.contains(&prompt.id));
            trained.insert(prompt.id.clone());
        }
    }
    assert_eq!(trained.len(), 170);
}

#[test]
fn the_digest_tells_of_every_change_in_prompts_and_answers() {
    let config = config(&[]);
    let all = loaded(&config);
    let digest = |source: &Loaded| {
        DataSet::build(&config, std::slice::from_ref(source), None, &bytes)
            .expect("data")
            .digest()
    };
    let same = digest(&all);
    assert_eq!(same, digest(&all));
    let last = all.read.problems.len() - 1;
    for at in [0, 7, last] {
        let mut changed = all.clone();
        changed.read.problems[at].prompt += " ";
        assert_ne!(digest(&changed), same, "prompt {at}");
        let mut changed = all.clone();
        changed.read.problems[at].answer += "0";
        assert_ne!(digest(&changed), same, "answer {at}");
    }
    let mut fewer = all.clone();
    fewer.read.problems.remove(0);
    assert_ne!(digest(&fewer), same);
}

/// The prompts of a run are part of what it is: a change here orphans every run there is. The digest
/// is that of the first release.
#[test]
fn one_source_has_the_prompts_that_it_always_had() {
    let data = build(&[]).expect("data");
    let digest = "5f30a4dd4369caae1eb6071f19386bede8cf18ba80f1d025855e9cca4de9bd29";
    assert_eq!(data.digest(), digest);
    let first = ["1+6", "26+6", "25+9", "15+7", "18+7", "13+3", "3+3", "4+7"];
    assert_eq!(ids(&data.prompts_of_step(1)), first);
    let later = ["9+8", "2+8", "17+6", "30+8", "20+8", "11+5", "2+3", "21+8"];
    assert_eq!(ids(&data.prompts_of_step(23)), later);
}

#[test]
fn a_step_has_the_same_prompts_whenever_it_is_asked() {
    let (one, two) = (build(&[]).expect("data"), build(&[]).expect("data"));
    for step in [7, 1, 300, 7] {
        assert_eq!(
            ids(&one.prompts_of_step(step)),
            ids(&two.prompts_of_step(step))
        );
    }
    assert_eq!(ids(one.held_out(100)), ids(two.held_out(100)));
    let other = build(&["run.seed=43"]).expect("data");
    assert_ne!(ids(&one.prompts_of_step(1)), ids(&other.prompts_of_step(1)));
    assert_ne!(ids(one.held_out(100)), ids(other.held_out(100)));
}

#[test]
fn an_epoch_has_every_problem_once_and_the_next_another_order() {
    let data = build(&["algorithm.prompts_per_step=17"]).expect("data");
    let epoch = |first: u64| -> Vec<String> {
        (first..first + 10)
            .flat_map(|step| data.prompts_of_step(step))
            .map(|prompt| prompt.id.clone())
            .collect()
    };
    let (first, second) = (epoch(1), epoch(11));
    assert_ne!(first, second);
    let as_set = |ids: &[String]| ids.iter().cloned().collect::<HashSet<_>>();
    assert_eq!(as_set(&first).len(), 170);
    assert_eq!(as_set(&first), as_set(&second));
}

#[test]
fn without_shuffle_the_source_order_is_kept() {
    let data = build(&["data.shuffle=false", "data.held_out=0"]).expect("data");
    let expected = ["1+1", "1+2", "1+3", "1+4", "1+5", "1+6", "1+7", "1+8"];
    assert_eq!(ids(&data.prompts_of_step(1)), expected);
}

#[test]
fn a_step_larger_than_the_data_goes_round_it() {
    let sets = ["data.source=arithmetic:add1", "data.held_out=80"];
    let data = build(&sets).expect("data");
    let prompts = data.prompts_of_step(1);
    assert_eq!(prompts.len(), 8);
    assert!(prompts.iter().all(|prompt| prompt.id == prompts[0].id));
}

#[test]
fn long_prompts_are_left_out_and_counted() {
    let data = build(&["data.max_prompt_tokens=14", "data.held_out=10"]).expect("data");
    // `What is a + b?` is 14 bytes where both numbers have one digit: 81 problems of 270.
    assert_eq!(
        (
            data.train_len(),
            data.report().sources[0].too_long,
            data.longest_prompt()
        ),
        (71, 189, 14)
    );
    assert_eq!(
        data.summary(),
        "71 problems to train on, 10 held out, 189 left out for their length"
    );
}

#[test]
fn nothing_left_to_train_on_is_an_error_that_says_why() {
    let error = build(&["data.held_out=270"])
        .expect_err("nothing left")
        .to_string();
    assert_eq!(
        error,
        "nothing is left to train on: arithmetic:addmix: 270 rows; data.held_out keeps 270 problems \
         for evaluation"
    );
}

#[test]
fn a_question_that_stands_there_twice_counts_once() {
    let config = config(&["data.held_out=1"]);
    let mut source = loaded(&config);
    source.read.problems.truncate(3);
    let first = source.read.problems[0].clone();
    let again = |answer: &str| Problem {
        id: "again".to_owned(),
        answer: answer.to_owned(),
        ..first.clone()
    };
    source.read.problems.push(again(&first.answer));
    source.read.problems.push(again("another"));
    let data = DataSet::build(&config, &[source], None, &bytes).expect("data");
    assert_eq!(data.train_len(), 2);
    assert!(data.summary().ends_with("2 repeated ones left out"));
    assert_eq!(data.report().sources[0].conflicting, 1);
}

#[test]
fn short_prompts_are_left_out_and_a_limit_is_drawn_after_what_is_held_out() {
    let data = build(&["data.min_prompt_tokens=15", "data.limit=20"]).expect("data");
    let report = &data.report().sources[0];
    assert_eq!((report.too_short, report.over_limit), (81, 69));
    assert_eq!(
        (data.train_len(), report.train, report.held_out),
        (20, 20, 100)
    );
    // What is held out does not depend on the limit.
    let all = build(&["data.min_prompt_tokens=15"]).expect("data");
    assert_eq!(ids(data.held_out(100)), ids(all.held_out(100)));
    let first = build(&["data.limit=20", "data.shuffle=false", "data.held_out=0"]).expect("data");
    let names: Vec<&str> = first.train().map(|prompt| prompt.id.as_str()).collect();
    assert_eq!((names[0], names[19], names.len()), ("1+1", "3+2", 20));
}

fn loaded(config: &RunConfig) -> Loaded {
    let spec = set::SourceSpec::all(config).expect("sources").remove(0);
    Loaded::read(spec, config.data.bad_rows).expect("problems")
}

/// A folder with `NAME.jsonl` files of so many rows each: `NAME 0?`, answer 0, level 0 ...
fn folder(files: &[(&str, usize)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, rows) in files {
        let text: String = (0..*rows)
            .map(|row| {
                format!(
                    "{{\"question\": \"{name} {row}?\", \"answer\": {row}, \"level\": {row}}}\n"
                )
            })
            .collect();
        std::fs::write(folder.path().join(format!("{name}.jsonl")), text).expect("written");
    }
    folder
}

fn several(folder: &Path, data: &str, sets: &[&str]) -> RunConfig {
    let text = format!(
        "[run]\nname = \"t\"\n[model]\nsource = \"hf:a/b\"\n[data]\n{data}\n\
         [[reward]]\nkind = \"numeric\"\n"
    );
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(&text, "t.toml", folder, &sets).expect("valid")
}

const TWO: &str = "held_out = 0\n[[data.sources]]\nsource = \"a.jsonl\"\nweight = 3\n\
                   [[data.sources]]\nsource = \"b.jsonl\"\nweight = 1\nlimit = 10\n\
                   system_prompt = \"S \"\nprompt_template = \"B: {question}\"";

#[test]
fn sources_are_drawn_from_by_weight() {
    let folder = folder(&[("a", 30), ("b", 50)]);
    let data = build_config(&several(folder.path(), TWO, &[])).expect("data");
    assert_eq!(data.train_len(), 40);
    let mut drawn: HashMap<String, usize> = HashMap::new();
    for step in 1..=100 {
        let prompts = data.prompts_of_step(step);
        // 8 prompts a step: 6 and 2 of each.
        let of_b = prompts
            .iter()
            .filter(|prompt| prompt.id.starts_with("b/"))
            .count();
        assert_eq!((prompts.len(), of_b), (8, 2));
        for prompt in prompts {
            assert_eq!(
                prompt.id.starts_with("b/"),
                prompt.text.starts_with("S B: ")
            );
            *drawn.entry(prompt.id.clone()).or_default() += 1;
        }
    }
    // Each source is gone through by itself: 600 / 30 and 200 / 10 times.
    assert_eq!(drawn.len(), 40);
    assert!(drawn.values().all(|&count| count == 20), "{drawn:?}");
    let report = data.report();
    assert_eq!(
        (report.sources[0].share, report.sources[1].share),
        (Some(0.75), Some(0.25))
    );
    assert_eq!(report.sources[1].over_limit, 40);

    let again = build_config(&several(folder.path(), TWO, &[])).expect("data");
    assert_eq!(
        ids(&data.prompts_of_step(77)),
        ids(&again.prompts_of_step(77))
    );
    let other = build_config(&several(folder.path(), TWO, &["run.seed=1"])).expect("data");
    assert_ne!(
        ids(&data.prompts_of_step(77)),
        ids(&other.prompts_of_step(77))
    );
}

#[test]
fn sources_without_weights_are_one() {
    let folder = folder(&[("a", 7), ("b", 3)]);
    let data = "sources = [{source = \"a.jsonl\"}, {source = \"b.jsonl\", filter = [\"level != 1\"]}]\n\
                held_out = 0";
    let sets = ["algorithm.prompts_per_step=9"];
    let data = build_config(&several(folder.path(), data, &sets)).expect("data");
    let drawn: HashSet<String> = data
        .prompts_of_step(5)
        .iter()
        .map(|p| p.id.clone())
        .collect();
    assert_eq!((data.train_len(), drawn.len()), (9, 9));
    assert!(drawn.contains("a/2") && !drawn.contains("b/2"), "{drawn:?}");
}

#[test]
fn the_same_question_in_two_sources_counts_once() {
    let folder = folder(&[("a", 7)]);
    let data = "sources = [{source = \"a.jsonl\", limit = 5}, {source = \"a.jsonl\", \
                prompt_template = \"B: {question}\"}, {source = \"arithmetic:add1\"}]\nheld_out = 0";
    let data = build_config(&several(folder.path(), data, &[])).expect("data");
    let counts = |at: usize| {
        let report = &data.report().sources[at];
        (
            report.rows,
            report.repeated,
            report.over_limit,
            report.train,
        )
    };
    assert_eq!(counts(0), (7, 0, 2, 5));
    assert_eq!(counts(1), (7, 7, 0, 0));
    assert_eq!(counts(2), (81, 0, 0, 81));
}

#[test]
fn a_held_out_source_is_asked_and_its_questions_never_trained_on() {
    let folder = folder(&[("a", 20), ("test", 4)]);
    let leak = "{\"question\": \"a 3?\", \"answer\": 3}\n";
    let path = folder.path().join("test.jsonl");
    let text = std::fs::read_to_string(&path).expect("read") + leak;
    std::fs::write(&path, text).expect("written");
    let data = "source = \"a.jsonl\"\nheld_out_source = \"test.jsonl\"\nheld_out = 5\n\
                filter = [\"level >= 2\"]";
    let config = several(folder.path(), data, &[]);
    let data = build_config(&config).expect("data");
    assert_eq!((data.train_len(), data.held_out(9).len()), (17, 5));
    assert!(data.train().all(|prompt| prompt.text != "a 3?"));
    assert_eq!(
        data.summary(),
        "17 problems to train on, 5 held out, 2 left out by data.filter, 1 left out that \
         data.held_out_source asks"
    );
    let config = several(
        folder.path(),
        "source = \"a.jsonl\"\nheld_out_source = \"test.jsonl\"",
        &[],
    );
    let error = build_config(&config).expect_err("too few").to_string();
    assert!(error.contains("set data.held_out = 5"), "{error}");
}

#[test]
fn epochs_become_steps_when_the_problems_are_known() {
    for (sets, before, after) in [
        (vec!["data.epochs=1"], 0, 22),
        (vec!["data.epochs=2.5"], 0, 54),
        (vec!["data.epochs=2", "run.steps=5"], 5, 5),
        (vec!["data.epochs=0.001"], 0, 1),
        (
            vec!["data.epochs=1", "algorithm.prompts_per_step=17"],
            0,
            10,
        ),
        (vec!["run.steps=7"], 7, 7),
    ] {
        let mut config = config(&sets);
        assert_eq!(config.run.steps, before, "{sets:?}");
        let again = RunConfig::parse(&config.to_toml(), "t.toml", Path::new("/"), &[]);
        assert_eq!(again.expect("valid"), config, "{sets:?}");
        config.settle_steps(170);
        assert_eq!(config.run.steps, after, "{sets:?}");
        assert_eq!(config.learner.schedule_steps, Some(after), "{sets:?}");
        assert_eq!(config.learner.warmup_steps, Some(after / 10), "{sets:?}");
        assert_eq!(config.data.epochs, None);
        let again = RunConfig::parse(&config.to_toml(), "t.toml", Path::new("/"), &[]);
        assert_eq!(again.expect("valid"), config, "{sets:?}");
    }
}
