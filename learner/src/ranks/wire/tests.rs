use super::*;
use crate::share::AdapterFile;

const LIMITS: Limits = Limits {
    vocab_size: 10,
    max_sequence_tokens: 8,
};

fn pass(seed: u32) -> Pass<'static> {
    let completion = |tokens: Vec<u32>| Scored {
        sampled: tokens.iter().map(|token| -(*token as f32)).collect(),
        tokens: Cow::Owned(tokens),
        advantage: 0.5,
        weight: 0.25,
    };
    Pass {
        parts: vec![
            Part {
                key: 7,
                prompt: Cow::Owned(vec![1, seed]),
                completions: vec![completion(vec![3, 4]), completion(vec![5])],
            },
            Part {
                key: 1 << 32,
                prompt: Cow::Owned(vec![2]),
                completions: vec![completion(vec![6])],
            },
        ],
        distribution: Distribution {
            temperature: 0.7,
            top_k: 5,
            ..Distribution::FULL
        },
        base: None,
        start: Some(vec![-1.0, f32::NEG_INFINITY, -2.0, -3.0]),
    }
}

fn file() -> AdapterFile {
    let bytes: std::sync::Arc<[u8]> = vec![9; 100].into();
    AdapterFile {
        version: PolicyVersion::of_bytes(3, &bytes),
        bytes,
    }
}

/// Calls `f` with a job of all of three passes, as two nodes.
fn with_job<T>(f: impl FnOnce(&Job<'_>) -> T) -> T {
    let (file, passes) = (file(), [pass(0), pass(1), pass(2)]);
    let nodes = [Node { start: 0, end: 2 }, Node { start: 2, end: 3 }];
    f(&Job {
        adapter: &file,
        dropout_seed: Some(11),
        nodes: &nodes,
        passes: &passes,
        needs_base: true,
        parameters: 3,
    })
}

fn chunk(offset: u64, data: &[u8]) -> AdapterChunk {
    AdapterChunk {
        version: None,
        offset,
        total: 100,
        data: data.to_vec(),
    }
}

#[test]
fn a_job_arrives_as_it_was_given() {
    with_job(|job| {
        let bytes = &job.adapter.bytes;
        let head = job_message(5, job, bytes.len() as u64, None);
        let mut order = Order::begin(head, None, 1000).unwrap();
        order.take_chunk(&chunk(0, &bytes[..60])).unwrap();
        for pass in pass_messages(5, job) {
            assert!(!order.is_complete());
            order.take_pass(pass, &LIMITS).unwrap();
        }
        assert!(!order.is_complete());
        order.take_chunk(&chunk(60, &bytes[60..])).unwrap();
        assert!(order.is_complete());
        assert_eq!(
            (order.job, order.passes, order.dropout_seed),
            (5, 3, Some(11))
        );
        assert_eq!(order.nodes, job.nodes);
        for (index, pass) in &order.received {
            assert_eq!(*pass, job.passes[*index]);
        }
        // Where the rank holds the adapter, only passes come.
        let digest = job.adapter.version.digest.clone();
        let mut order = Order::begin(job_message(6, job, 0, None), Some(&digest), 1000).unwrap();
        for pass in pass_messages(6, job) {
            order.take_pass(pass, &LIMITS).unwrap();
        }
        assert!(order.is_complete());
    });
}

#[test]
fn a_job_that_can_t_be_is_refused_before_anything_is_kept_of_it() {
    let spoilt = |spoil: fn(&mut RankJob)| {
        let mut head = with_job(|job| job_message(5, job, 100, None));
        spoil(&mut head);
        Order::begin(head, Some(&[1; 32]), 1000).unwrap_err()
    };
    assert!(spoilt(|job| job.adapter = None).contains("digest"));
    assert!(spoilt(|job| job.adapter_bytes = 1001).contains("1000 are taken"));
    assert!(spoilt(|job| job.adapter_bytes = 0).contains("never sent"));
    assert!(spoilt(|job| job.nodes.clear()).contains("0 nodes"));
    assert!(spoilt(|job| job.passes = u32::MAX).contains("nodes of"));
    assert!(spoilt(|job| job.nodes[0].end = 3).contains("overlap"));
    assert!(spoilt(|job| job.nodes[0].start = 1 << 31).contains("none of"));

    let mut order =
        with_job(|job| Order::begin(job_message(5, job, 100, None), None, 100)).unwrap();
    assert!(order.take_chunk(&chunk(1, &[9; 10])).is_err());
    assert!(order.take_chunk(&chunk(0, &[9; 101])).is_err());
    assert!(
        order
            .take_chunk(&chunk(0, &[8; 100]))
            .unwrap_err()
            .contains("came as")
    );
}

#[test]
fn a_pass_that_can_t_be_is_refused() {
    let spoilt = |spoil: fn(&mut RankPass)| {
        with_job(|job| {
            let mut order = Order::begin(job_message(5, job, 100, None), None, 100).unwrap();
            let mut pass = pass_messages(5, job).remove(0);
            spoil(&mut pass);
            let problem = order.take_pass(pass, &LIMITS).unwrap_err();
            assert!(order.received.is_empty());
            problem
        })
    };
    assert!(spoilt(|pass| pass.job = 4).contains("of no node"));
    assert!(spoilt(|pass| pass.pass = 3).contains("of no node"));
    assert!(spoilt(|pass| pass.params = None).contains("sampling"));
    assert!(spoilt(|pass| pass.parts.clear()).contains("nothing"));
    assert!(spoilt(|pass| pass.parts[0].prompt_tokens.clear()).contains("prompt"));
    assert!(spoilt(|pass| pass.parts[0].completions.clear()).contains("without"));
    assert!(spoilt(|pass| pass.parts[0].prompt_tokens[0] = 10).contains("prompt"));
    assert!(spoilt(|pass| pass.parts[0].completions[0].tokens[1] = 10).contains("vocabulary"));
    assert!(spoilt(|pass| pass.parts[0].completions[0].tokens = vec![1; 9]).contains("9 tokens"));
    assert!(spoilt(|pass| pass.parts[0].completions[0].logprobs[0] = f32::NAN).contains("finite"));
    assert!(spoilt(|pass| pass.parts[0].completions[0].logprobs.push(0.0)).contains("one a token"));
    assert!(spoilt(|pass| pass.parts[0].completions[0].advantage = f64::NAN).contains("advantage"));
    assert!(spoilt(|pass| pass.start_logprobs[0] = f32::NAN).contains("log-probs"));
    assert!(spoilt(|pass| pass.base_logprobs = vec![-1.0]).contains("4 targets"));
}

fn outcome(seed: f64) -> Outcome {
    Outcome {
        stats: LossStats {
            loss: seed,
            tokens: 4,
            kl: seed + 0.1,
            ratio: seed + 0.2,
            ratio_squared: seed + 0.3,
            ratio_max: seed + 0.4,
            clipped: 1,
            corrected: 2,
            diff: seed + 0.5,
            diff_max: seed + 0.6,
        },
        entropy: seed + 0.7,
        rows: 9,
        new: vec![-0.5, -0.25, f32::NEG_INFINITY, -1.0],
        base: Some(vec![-4.0; 4]),
        seconds_forward: 0.0,
        seconds_backward: 0.0,
    }
}

fn gradient(job: u64, start: u32, end: u32, values: &[f32]) -> GradientChunk {
    GradientChunk {
        job,
        node: Some(PassRange { start, end }),
        data: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    }
}

#[test]
fn an_answer_arrives_as_it_was_made() {
    let mut awaited = with_job(|job| Awaited::new(5, job));
    for pass in [0, 1] {
        let done = done_message(5, pass, outcome(pass as f64));
        assert_eq!(awaited.pass_done(done).unwrap(), 3, "its completions");
    }
    assert!(
        awaited
            .chunk(&gradient(5, 0, 2, &[1.5, -0.0]))
            .unwrap()
            .is_none()
    );
    let sum = awaited
        .chunk(&gradient(5, 0, 2, &[f32::NAN]))
        .unwrap()
        .unwrap();
    assert_eq!(sum.node, Node { start: 0, end: 2 });
    assert_eq!(sum.outcomes, [outcome(0.0), outcome(1.0)]);
    let bits: Vec<u32> = sum.values.iter().map(|value| value.to_bits()).collect();
    assert_eq!(bits, [1.5, -0.0, f32::NAN].map(f32::to_bits));
    assert!(!awaited.is_over());
    awaited.pass_done(done_message(5, 2, outcome(2.0))).unwrap();
    assert!(
        awaited
            .chunk(&gradient(5, 2, 3, &[0.0; 3]))
            .unwrap()
            .is_some()
    );
    assert!(awaited.is_over());
}

#[test]
fn an_answer_that_nobody_asked_for_is_refused() {
    let refused = |done: PassDone| {
        with_job(|job| Awaited::new(5, job))
            .pass_done(done)
            .unwrap_err()
    };
    let made = || done_message(5, 1, outcome(0.0));
    assert!(refused(PassDone { job: 4, ..made() }).contains("nobody"));
    assert!(refused(PassDone { pass: 3, ..made() }).contains("nobody"));
    assert!(
        refused(PassDone {
            sums: None,
            ..made()
        })
        .contains("another")
    );
    let cut = PassDone {
        logprobs: vec![-1.0],
        ..made()
    };
    assert!(refused(cut).contains("4 targets"));
    let bare = PassDone {
        base_logprobs: Vec::new(),
        ..made()
    };
    assert!(refused(bare).contains("another"));
    let mut awaited = with_job(|job| Awaited::new(5, job));
    awaited.pass_done(made()).unwrap();
    assert!(awaited.pass_done(made()).unwrap_err().contains("twice"));

    let refused = |chunks: &[GradientChunk]| {
        let mut awaited = with_job(|job| Awaited::new(5, job));
        let found: Result<Vec<_>, _> = chunks.iter().map(|chunk| awaited.chunk(chunk)).collect();
        found.unwrap_err()
    };
    assert!(refused(&[gradient(4, 0, 2, &[0.0])]).contains("nobody"));
    assert!(refused(&[gradient(5, 0, 1, &[0.0])]).contains("nobody"));
    assert!(refused(&[gradient(5, 0, 2, &[0.0; 4])]).contains("3 values"));
    assert!(refused(&[gradient(5, 0, 2, &[])]).contains("0 bytes"));
    assert!(
        refused(&[gradient(5, 0, 2, &[0.0]), gradient(5, 2, 3, &[0.0])]).contains("1 are there")
    );
    assert!(refused(&[gradient(5, 2, 3, &[0.0; 3])]).contains("without pass 2"));
    let mut odd = gradient(5, 0, 2, &[0.0]);
    odd.data.pop();
    assert!(refused(&[odd]).contains("3 bytes"));
}
