//! Batches as a coordinator sends them, sound and spoilt.

use tina_proto::v1::VersionSpan;

use super::*;

const LIMITS: Limits = Limits {
    vocab_size: 100,
    max_sequence_tokens: 8,
};

fn version() -> PolicyVersion {
    PolicyVersion::new(4, [7; 32])
}

fn completion(group: u64, index: u32, tokens: &[u32]) -> TrainingCompletion {
    TrainingCompletion {
        completion: Some(Completion {
            group_id: group,
            sample_index: index,
            tokens: tokens.to_vec(),
            logprobs: vec![-0.5; tokens.len()],
            finish_reason: FinishReason::Stop.into(),
            versions: vec![VersionSpan {
                start: 0,
                version: Some(version()),
            }],
            decode_seconds: 0.1,
        }),
        reward: 1.0,
        judged: true,
    }
}

fn group(id: u64) -> TrainingGroup {
    TrainingGroup {
        group_id: id,
        prompt_tokens: vec![1, 2, 3],
        completions: vec![completion(id, 1, &[4, 5]), completion(id, 0, &[6])],
        params: Some(SamplingParams {
            temperature: 0.7,
            top_p: 1.0,
            ..Default::default()
        }),
    }
}

fn begin(groups: u32) -> Assembly {
    Assembly::begin(
        BeginStep {
            version: Some(version()),
            groups,
            known: Vec::new(),
        },
        &version(),
        &[],
        LIMITS,
    )
}

/// The error of a step of this one group.
fn refusal(group: TrainingGroup) -> String {
    let mut assembly = begin(1);
    assembly.push(group);
    assembly
        .finish(&EndStep { step: 5 })
        .unwrap_err()
        .to_string()
}

#[test]
fn a_sound_batch_keeps_the_order_of_groups_and_sorts_their_samples() {
    let mut assembly = begin(2);
    let mut second = group(3);
    second.completions[0].judged = false;
    second.completions[1]
        .completion
        .as_mut()
        .unwrap()
        .finish_reason = FinishReason::Length.into();
    assembly.push(group(9));
    assembly.push(second);
    let batch = assembly.finish(&EndStep { step: 5 }).unwrap();
    assert_eq!(
        batch.groups.iter().map(|g| g.id).collect::<Vec<_>>(),
        [9, 3]
    );
    let samples = &batch.groups[1].samples;
    assert_eq!((samples[0].index, &samples[0].tokens), (0, &vec![6]));
    assert_eq!((samples[0].reward, samples[0].truncated), (Some(1.0), true));
    assert_eq!((samples[1].reward, samples[1].truncated), (None, false));
}

#[test]
fn a_step_from_another_version_is_refused() {
    for other in [
        PolicyVersion::new(4, [8; 32]),
        PolicyVersion::new(3, [7; 32]),
    ] {
        let begin = BeginStep {
            version: Some(other),
            groups: 1,
            known: Vec::new(),
        };
        let mut assembly = Assembly::begin(begin, &version(), &[], LIMITS);
        assembly.push(group(1));
        let error = assembly.finish(&EndStep { step: 5 }).unwrap_err();
        assert!(
            matches!(error, BatchError::UnknownVersion { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_completion_of_another_version_is_refused_by_name() {
    let mut bad = group(2);
    let spans = &mut bad.completions[0].completion.as_mut().unwrap().versions;
    spans.push(VersionSpan {
        start: 1,
        version: Some(PolicyVersion::new(5, [9; 32])),
    });
    let error = refusal(bad);
    assert!(
        error.contains("group 2, sample 1") && error.contains("5:09090909"),
        "{error}"
    );
}

#[test]
fn older_versions_count_when_they_are_announced_and_none_that_the_learner_did_not_make() {
    let older = PolicyVersion::new(3, [9; 32]);
    let batch = |known: PolicyVersion, made: &[PolicyVersion]| {
        let begin = BeginStep {
            version: Some(version()),
            groups: 1,
            known: vec![known],
        };
        let mut assembly = Assembly::begin(begin, &version(), made, LIMITS);
        let mut group = group(2);
        let completion = group.completions[0].completion.as_mut().unwrap();
        let (start, version) = (0, Some(older.clone()));
        completion
            .versions
            .insert(0, VersionSpan { start, version });
        completion.versions[1].start = 1;
        assembly.push(group);
        assembly.finish(&EndStep { step: 5 })
    };
    assert!(batch(older.clone(), &[]).is_ok());
    assert!(batch(older.clone(), std::slice::from_ref(&older)).is_ok());
    let another = PolicyVersion::new(3, [1; 32]);
    let to_come = PolicyVersion::new(5, [9; 32]);
    for (known, made) in [(older.clone(), vec![another]), (to_come, vec![])] {
        let error = batch(known, &made).unwrap_err();
        assert!(
            matches!(error, BatchError::ForeignVersion { .. }),
            "{error}"
        );
    }
}

#[test]
fn missing_surplus_and_repeated_groups_are_refused() {
    let finish = |announced, ids: &[u64]| {
        let mut assembly = begin(announced);
        ids.iter().for_each(|id| assembly.push(group(*id)));
        assembly.finish(&EndStep { step: 5 }).unwrap_err()
    };
    assert_eq!(
        finish(2, &[1]),
        BatchError::GroupCount {
            expected: 2,
            found: 1
        }
    );
    assert_eq!(
        finish(1, &[1, 2]),
        BatchError::GroupCount {
            expected: 1,
            found: 2
        }
    );
    assert_eq!(
        finish(0, &[]),
        BatchError::GroupCount {
            expected: 0,
            found: 0
        }
    );
    assert!(finish(2, &[1, 1]).to_string().contains("came twice"));
    let mut assembly = begin(1);
    assembly.push(group(1));
    let error = assembly.finish(&EndStep { step: 6 }).unwrap_err();
    assert_eq!(
        error,
        BatchError::WrongStep {
            expected: 5,
            found: 6
        }
    );
}

#[test]
fn whatever_is_wrong_in_a_completion_is_named() {
    type Spoil = fn(&mut Completion);
    let cases: [(&str, Spoil); 10] = [
        ("token 1 is 100; the vocabulary has 100", |c| {
            c.tokens[1] = 100
        }),
        ("the log-prob of token 0 is NaN", |c| {
            c.logprobs[0] = f32::NAN
        }),
        ("the log-prob of token 1 is -inf", |c| {
            c.logprobs[1] = f32::NEG_INFINITY
        }),
        ("the log-prob of token 1 is 0.5", |c| c.logprobs[1] = 0.5),
        ("2 tokens, but 1 log-probs", |c| c.logprobs.truncate(1)),
        ("it has no tokens", |c| c.tokens.clear()),
        ("9 tokens; the run's limit is 8", |c| {
            c.tokens = vec![1; 6];
            c.logprobs = vec![-1.0; 6];
        }),
        ("it belongs to group 8", |c| c.group_id = 8),
        ("no version is given", |c| c.versions.clear()),
        ("no finish reason", |c| c.finish_reason = 0),
    ];
    for (expected, spoil) in cases {
        let mut bad = group(2);
        spoil(bad.completions[0].completion.as_mut().unwrap());
        let error = refusal(bad);
        assert!(error.starts_with("group 2, sample 1: "), "{error}");
        assert!(error.contains(expected), "{expected} is not in: {error}");
    }
}

#[test]
fn whatever_is_wrong_in_a_group_is_named() {
    type Spoil = fn(&mut TrainingGroup);
    let cases: [(&str, Spoil); 8] = [
        ("its prompt is empty", |g| g.prompt_tokens.clear()),
        ("prompt: token 2 is 4000", |g| g.prompt_tokens[2] = 4000),
        ("it has no completions", |g| g.completions.clear()),
        ("a completion is missing", |g| {
            g.completions[1].completion = None
        }),
        ("sample 0 came twice", |g| {
            g.completions[0].completion.as_mut().unwrap().sample_index = 0;
        }),
        ("sampling parameters are missing", |g| g.params = None),
        ("temperature NaN", |g| {
            g.params.as_mut().unwrap().temperature = f32::NAN
        }),
        ("its reward is inf", |g| {
            g.completions[0].reward = f64::INFINITY
        }),
    ];
    for (expected, spoil) in cases {
        let mut bad = group(2);
        spoil(&mut bad);
        let error = refusal(bad);
        assert!(
            error.starts_with("group 2") && error.contains(expected),
            "{error}"
        );
    }
}
