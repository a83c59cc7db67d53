use super::*;

/// A scorer of these rewards; `[[reward]]` tables in TOML.
fn scorer(rewards: &str) -> Scorer {
    let text = format!(
        "[run]\nname = \"n\"\n[model]\nsource = \"hf:o/n\"\n[data]\nsource = \"p.jsonl\"\n{rewards}"
    );
    let config = RunConfig::parse(&text, "c.toml", Path::new("/"), &[]).expect("valid");
    Scorer::start(&config, None).expect("starts")
}

fn work(text: &str, gold: &str, tokens: usize) -> Work {
    Work {
        text: Ok(text.to_owned()),
        tokens: TokensOf::Count(tokens),
        gold: gold.to_owned(),
        prompt: String::new(),
        truncated: false,
    }
}

const LENGTH: &str = "
    [[reward]]
    kind = \"numeric\"
    weight = 2.0
    [[reward]]
    kind = \"length\"
    judge = \"numeric\"
";

fn scored(scorer: &Scorer, index: u32, judged: &Judged) -> Arc<Scored> {
    let completion = v1::Completion {
        sample_index: index,
        ..v1::Completion::default()
    };
    let total = scorer.total(&judged.rewards);
    Arc::new(
        Scored {
            completion,
            worker: "w".into(),
            text: String::new(),
            reward: 0.0,
            judged: false,
            correct: false,
            rewards: judged.rewards.clone(),
        }
        .with(total),
    )
}

#[test]
fn a_group_is_finished_when_it_is_complete_and_only_once() {
    let scorer = scorer(LENGTH);
    let all = [
        work("so 7", "7", 10),
        work("so 7 at last", "7", 30),
        work("so 8", "7", 20),
        work("so 7", "seven", 99),
    ];
    let judged = scorer.judge_all(&all);
    assert!(judged[0].rewards[1].share.is_some() && judged[0].rewards[1].value.is_none());
    assert_eq!(judged[3].reasons.len(), 2);
    let group: Vec<_> = (0..)
        .zip(&judged)
        .map(|(at, j)| scored(&scorer, at, j))
        .collect();
    let (groups, changed) = scorer.finish_round(vec![group]);
    let values: Vec<_> = groups[0].iter().map(|one| one.rewards[1].value).collect();
    assert_eq!(values, [Some(0.5), Some(-0.5), Some(0.0), None]);
    let sums: Vec<_> = groups[0]
        .iter()
        .map(|one| (one.reward, one.judged, one.correct))
        .collect();
    assert_eq!(
        sums,
        [
            (2.5, true, true),
            (1.5, true, true),
            (0.0, true, false),
            (0.0, false, false)
        ]
    );
    assert_eq!(changed.len(), 4);
    let (again, changed) = scorer.finish_round(groups.clone());
    assert_eq!((again, changed.len()), (groups, 0));
}

#[test]
fn what_is_not_judged_is_skipped_or_zero_as_the_config_says() {
    let one = |more: &str| {
        let scorer = scorer(&format!(
            "[[reward]]\nkind = \"regex\"\npattern = \"a\"\n{more}"
        ));
        let judged = scorer.judge_all(&[work("a", "gold", 1)]);
        (scorer.total(&judged[0].rewards), judged[0].reasons.len())
    };
    let numeric = "[[reward]]\nkind = \"numeric\"\n";
    let total = |judged| Total {
        reward: 1.0,
        judged,
        correct: false,
    };
    assert_eq!(one(numeric), (total(false), 1));
    assert_eq!(
        one(&format!("{numeric}not_judged = \"zero\"")),
        (total(true), 1)
    );
    assert_eq!(one(&format!("{numeric}weight = 0.0")), (total(true), 1));
}

#[tokio::test]
async fn a_program_and_the_rest_judge_the_same_completion() {
    let scorer = scorer(
        "[[reward]]\nkind = \"numeric\"\n[[reward]]\nkind = \"external\"\ncommand = [\"sh\", \"-c\", \
         \"while read -r line; do id=${line##*'\\\"id\\\":'}; echo '{\\\"reward\\\":0.25,\\\"id\\\":'${id%\\\\}}'}'; done\"]",
    );
    let works = vec![work("so 7", "7", 3), work("so 8", "7", 3)];
    let judged = scorer.judge_many(works).await.expect("judged");
    let values: Vec<Vec<_>> = judged
        .iter()
        .map(|one| one.rewards.iter().map(|reward| reward.value).collect())
        .collect();
    assert_eq!(values, [[Some(1.0), Some(0.25)], [Some(0.0), Some(0.25)]]);
}
