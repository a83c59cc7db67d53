use std::{collections::HashSet, path::Path};

use super::*;

fn config(sets: &[&str]) -> RunConfig {
    let text = "[run]\nname = \"t\"\n[model]\nsource = \"hf:a/b\"\n\
                [data]\nsource = \"arithmetic:addmix\"\n[[reward]]\nkind = \"numeric\"\n";
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(text, "t.toml", Path::new("/"), &sets).expect("valid")
}

/// A prompt whose tokens are the text's bytes.
fn bytes(problem: &Problem) -> Result<Prompt, DataError> {
    Ok(Prompt {
        id: problem.id.clone(),
        text: problem.prompt.clone(),
        tokens: problem.prompt.bytes().map(u32::from).collect(),
        gold: problem.answer.clone(),
    })
}

fn build(sets: &[&str]) -> Result<DataSet, DataError> {
    let config = config(sets);
    DataSet::build(&config, &problems(&config)?, bytes)
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
    let all = problems(&config).expect("problems");
    let digest = |problems: &[Problem]| {
        DataSet::build(&config, problems, bytes)
            .expect("data")
            .digest()
    };
    let same = digest(&all);
    assert_eq!(same, digest(&all));
    for at in [0, 7, all.len() - 1] {
        let mut changed = all.clone();
        changed[at].prompt += " ";
        assert_ne!(digest(&changed), same, "prompt {at}");
        let mut changed = all.clone();
        changed[at].answer += "0";
        assert_ne!(digest(&changed), same, "answer {at}");
    }
    assert_ne!(digest(&all[1..]), same);
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
        (data.train_len(), data.too_long(), data.longest_prompt()),
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
    assert!(error.contains("270 distinct problems"), "{error}");
}

#[test]
fn a_question_that_stands_there_twice_counts_once() {
    let config = config(&["data.held_out=1"]);
    let mut problems = problems(&config).expect("problems")[..3].to_vec();
    problems.push(Problem {
        id: "again".to_owned(),
        ..problems[0].clone()
    });
    let data = DataSet::build(&config, &problems, bytes).expect("data");
    assert_eq!(data.train_len(), 2);
    assert!(data.summary().ends_with("1 repeated ones left out"));
}
