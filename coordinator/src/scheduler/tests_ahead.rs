//! Sampling ahead of the learner, stalled workers, and groups that give way to others.

use super::{tests::*, types::*, *};

/// One prompt of two completions a step; workers take adapters in flight.
fn ahead(max_staleness: u64) -> Plan {
    Plan {
        steps: 6,
        groups_per_step: 1,
        samples_per_group: 2,
        max_staleness,
        drain: false,
        ..plan()
    }
}

impl Bench {
    /// The samples of a step, of these versions, come from worker 0, with these rewards.
    fn step_is_sampled(&mut self, step: u64, number: u32, of: &[Version], rewards: [f64; 2]) {
        for (index, reward) in rewards.into_iter().enumerate() {
            let span = |(start, version): (usize, &Version)| v1::VersionSpan {
                start: start as u32,
                version: Some(version.to_wire()),
            };
            let completion = v1::Completion {
                group_id: RoundId::train(step).group(number),
                sample_index: index as u32,
                tokens: vec![1; of.len()],
                logprobs: vec![0.0; of.len()],
                versions: of.iter().enumerate().map(span).collect(),
                ..Default::default()
            };
            self.completes(0, completion, reward);
        }
    }

    /// A completion comes, is scored and journaled; what is commanded then.
    fn completes(&mut self, session: Session, completion: v1::Completion, reward: f64) {
        self.tell(Event::Completion {
            session,
            completion: completion.clone(),
        });
        let mut scored = Scored::clone(&scored(completion));
        scored.reward = reward;
        let scored = Arc::new(scored);
        self.tell(Event::Scored(scored.clone()));
        self.tell(Event::Recorded(vec![scored]));
    }

    fn step_is_learned(&mut self, step: u64) {
        let result = Box::new(v1::StepResult {
            version: Some(version(step).to_wire()),
            probe_logprobs: vec![-1.0, -2.0],
            ..Default::default()
        });
        self.tell(Event::StepResult {
            session: LEARNER,
            result,
        });
    }

    /// Steps of which samples were handed out by the last commands.
    fn steps_handed(&self) -> Vec<u64> {
        let step = |command: &Command| match command {
            Command::Sample { group, .. } => Some(RoundId::of_group(*group).0.step()),
            _ => None,
        };
        self.said.iter().filter_map(step).collect()
    }

    fn one_worker(plan: Plan) -> Self {
        let mut bench = Self::new(plan);
        bench.worker_joins(0, 16, "cpu-x");
        bench.learner_joins();
        bench.loads(0, version(0), &[-1.0, -2.0]);
        bench
    }

    fn batch_sent(&self) -> Option<u64> {
        self.said.iter().find_map(|command| match command {
            Command::SendBatch { version, .. } => Some(version.step + 1),
            _ => None,
        })
    }
}

#[test]
fn as_many_steps_are_sampled_ahead_as_the_staleness_allows() {
    for (staleness, first, then) in [
        (0, vec![1], vec![]),
        (1, vec![1, 2], vec![3]),
        (3, vec![1, 2, 3, 4], vec![5]),
    ] {
        let mut bench = Bench::one_worker(ahead(staleness));
        assert_eq!(bench.steps_handed(), first);
        bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
        assert_eq!(bench.batch_sent(), Some(1));
        assert!(
            bench.steps_handed().is_empty(),
            "no more before the step is learned"
        );
        bench.step_is_learned(1);
        if staleness > 0 {
            bench.loads(0, version(1), &[-1.0, -2.0]);
            assert_eq!(bench.steps_handed(), then);
        }
    }
}

#[test]
fn batches_are_learned_in_order_whichever_is_sampled_first() {
    let mut bench = Bench::one_worker(ahead(2));
    bench.step_is_sampled(2, 0, &[version(0)], [0.0, 1.0]);
    assert_eq!(bench.batch_sent(), None);
    bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
    assert_eq!(bench.batch_sent(), Some(1));
    bench.step_is_learned(1);
    assert_eq!(bench.batch_sent(), Some(2));
}

#[test]
fn a_completion_over_several_versions_counts_when_all_are_recent_enough() {
    let mut bench = Bench::one_worker(ahead(1));
    bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
    bench.step_is_learned(1);
    bench.step_is_sampled(2, 0, &[version(0), version(1)], [0.0, 1.0]);
    assert_eq!(bench.batch_sent(), Some(2));
    bench.step_is_learned(2);
    // Of step 4 are those of version 2 and later.
    let refused = |bench: &Bench| {
        let cancels = |c: &Command| matches!(c, Command::Cancel { .. });
        bench.said.iter().any(cancels)
    };
    let mut late = completion(0, 0, version(1));
    late.group_id = RoundId::train(4).group(0);
    bench.tell(Event::Completion {
        session: 0,
        completion: late.clone(),
    });
    assert!(refused(&bench), "{:?}", bench.said);
    late.versions[0].version = Some(version(9).to_wire());
    bench.tell(Event::Completion {
        session: 0,
        completion: late,
    });
    assert!(refused(&bench), "a version that nobody made");
}

#[test]
fn a_worker_that_is_behind_samples_what_its_version_may_and_a_draining_one_nothing() {
    for (drain, steps) in [(false, vec![3]), (true, vec![])] {
        let mut bench = Bench::one_worker(Plan { drain, ..ahead(1) });
        bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
        bench.step_is_learned(1);
        let asked =
            |c: &Command| matches!(c, Command::LoadAdapter { version: v, .. } if v.step == 1);
        assert!(bench.said.iter().any(asked));
        // It holds version 0, which may not sample for step 3 but for step 2.
        assert!(bench.steps_handed().is_empty());
        bench.loads(0, version(1), &[-1.0, -2.0]);
        assert_eq!(bench.steps_handed(), [3]);
        bench.step_is_sampled(2, 0, &[version(0)], [0.0, 1.0]);
        bench.step_is_learned(2);
        let mut others = completion(0, 0, version(1));
        others.group_id = RoundId::train(3).group(0);
        let failed = v1::SampleFailed {
            group_id: others.group_id,
            sample_indices: vec![0],
            error: "no".into(),
        };
        bench.tell(Event::SampleFailed { session: 0, failed });
        assert_eq!(bench.steps_handed(), steps, "drain: {drain}");
    }
}

#[test]
fn an_evaluation_comes_first_and_holds_the_learner_but_not_the_sampling_ahead() {
    let mut bench = Bench::one_worker(Plan {
        eval_problems: 1,
        eval_samples: 2,
        eval_every: 1,
        ..ahead(1)
    });
    bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
    bench.step_is_sampled(2, 0, &[version(0)], [0.0, 1.0]);
    bench.step_is_learned(1);
    assert_eq!(bench.batch_sent(), None, "an evaluation is due");
    bench.loads(0, version(1), &[-1.0, -2.0]);
    let eval = RoundId::eval(1).group(0);
    let exact =
        |c: &Command| matches!(c, Command::Sample { group, exact: true, .. } if *group == eval);
    assert!(bench.said.iter().any(exact), "{:?}", bench.said);
    assert!(bench.steps_handed().contains(&3), "{:?}", bench.said);
    for index in 0..2 {
        let mut completion = completion(0, index, version(1));
        completion.group_id = eval;
        bench.completes(0, completion, 1.0);
    }
    assert_eq!(bench.batch_sent(), Some(2));
}

#[test]
fn what_the_journal_holds_of_steps_ahead_is_taken_and_what_is_too_old_is_sampled_again() {
    let of = |step: u64, index: u32, version: Version| {
        let mut completion = completion(0, index, version);
        completion.group_id = RoundId::train(step).group(0);
        scored(completion)
    };
    let restored = Restored {
        versions: (0..4).map(version).collect(),
        completions: vec![
            of(4, 0, version(1)),
            of(4, 1, version(3)),
            of(5, 0, version(3)),
        ],
        model_digest: Some("m".into()),
        ..Default::default()
    };
    let mut bench = Bench::new(ahead(1));
    bench.scheduler = Scheduler::new(ahead(1), restored);
    bench.worker_joins(0, 16, "cpu-x");
    bench.learner_joins_with(v1::LearnerReady {
        version: Some(version(3).to_wire()),
        probe_logprobs: vec![-1.0, -2.0],
        ..Default::default()
    });
    bench.loads(0, version(3), &[-1.0, -2.0]);
    assert_eq!(bench.steps_handed(), [4, 5]);
    assert_eq!(samples_for(&bench.said, 0), 2);
    let mut missing = completion(0, 0, version(3));
    missing.group_id = RoundId::train(4).group(0);
    bench.completes(0, missing, 1.0);
    bench.step_is_learned(4);
    let outdated = bench.said.iter().find_map(|command| match command {
        Command::RecordStep(done) => Some(done.outdated),
        _ => None,
    });
    assert_eq!(outdated, Some(1));
}

#[test]
fn samples_of_a_stalled_worker_are_given_to_an_idle_one_and_the_first_result_counts() {
    let mut bench = Bench::with_workers(&[8, 8]);
    let of_group_1: Vec<_> = (0..4)
        .map(|index| completion(1, index, version(0)))
        .collect();
    for completion in &of_group_1 {
        bench.completes(1, completion.clone(), 1.0);
    }
    let said = bench.beats(19, &[0, 1], |_| 0);
    assert_eq!(samples_for(&said, 1), 0, "slow is not stalled");
    let said = bench.beats(3, &[0, 1], |_| 0);
    assert_eq!(samples_for(&said, 1), 4, "{said:?}");
    let said = bench.beats(3, &[0, 1], |_| 0);
    assert_eq!(samples_for(&said, 1), 0, "once is enough");
    bench.tell(Event::Completion {
        session: 1,
        completion: completion(0, 0, version(0)),
    });
    let cancelled = |c: &Command| matches!(c, Command::Cancel { session: 0, .. });
    assert!(bench.said.iter().any(cancelled), "{:?}", bench.said);
    let scores = |c: &&Command| matches!(c, Command::Score { .. });
    assert_eq!(bench.said.iter().filter(scores).count(), 1);
    bench.tell(Event::Completion {
        session: 0,
        completion: completion(0, 0, version(0)),
    });
    assert_eq!(bench.said.iter().filter(scores).count(), 0, "trained twice");
    // The first is lost: what the other has as well stays there.
    let reason = "gone".to_owned();
    bench.tell(Event::WorkerLost { session: 0, reason });
    assert_eq!(samples_for(&bench.said, 1), 0, "{:?}", bench.said);
}

#[test]
fn a_group_without_spread_gives_way_so_often_and_no_more() {
    let mut bench = Bench::one_worker(Plan {
        max_resamples: 2,
        ..ahead(0)
    });
    bench.step_is_sampled(1, 0, &[version(0)], [1.0, 1.0]);
    assert_eq!(bench.batch_sent(), None);
    assert_eq!(samples_for(&bench.said, 0), 2);
    // Asked for again after a reconnect: it is in the journal.
    bench.tell(Event::Completion {
        session: 0,
        completion: completion(0, 0, version(0)),
    });
    assert!(
        matches!(bench.said[..], [Command::Ack { .. }]),
        "{:?}",
        bench.said
    );
    bench.step_is_sampled(1, 1, &[version(0)], [0.0, 0.0]);
    assert_eq!(samples_for(&bench.said, 0), 2);
    bench.step_is_sampled(1, 2, &[version(0)], [1.0, 1.0]);
    assert_eq!(bench.batch_sent(), Some(1), "the last stays as it is");
    bench.step_is_learned(1);
    let done = bench.said.iter().find_map(|command| match command {
        Command::RecordStep(done) => Some((done.resampled, done.tokens)),
        _ => None,
    });
    assert_eq!(done, Some((2, 6)));
}

#[test]
fn a_stop_ends_the_run_with_the_step_under_way_though_others_are_sampled_ahead() {
    let mut bench = Bench::one_worker(ahead(2));
    bench.step_is_sampled(2, 0, &[version(0)], [0.0, 1.0]);
    bench.tell(Event::Stop);
    bench.step_is_sampled(1, 0, &[version(0)], [0.0, 1.0]);
    assert_eq!(bench.batch_sent(), Some(1));
    bench.step_is_learned(1);
    let over = |c: &Command| {
        matches!(
            c,
            Command::Finish {
                stopped_early: true
            }
        )
    };
    assert!(bench.said.iter().any(over), "{:?}", bench.said);
    assert_eq!(bench.batch_sent(), None);
}
