//! What the scheduler does in single situations; `simulation` has all of them at once.

use super::{types::*, *};

const MODEL: &str = "m";

pub(super) fn version(step: u64) -> Version {
    Version {
        step,
        digest: [step as u8 + 1; 32],
    }
}

pub(super) fn plan() -> Plan {
    Plan {
        steps: 2,
        groups_per_step: 2,
        samples_per_group: 4,
        eval_problems: 0,
        eval_samples: 1,
        eval_before: false,
        eval_after: false,
        eval_every: 0,
        max_staleness: 0,
        drain: true,
        max_resamples: 0,
        worker_timeout: Duration::from_secs(5),
        learner_timeout: Duration::from_secs(5),
        sync_deadline: Duration::from_secs(3),
        start_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(20),
        progress_timeout: Duration::from_secs(30),
        launched_workers: 0,
        given: Vec::new(),
        probe_tolerance: 0.1,
    }
}

/// A scheduler, and what it last commanded.
pub(super) struct Bench {
    pub(super) scheduler: Scheduler,
    pub(super) now: Duration,
    pub(super) said: Vec<Command>,
}

pub(super) const LEARNER: Session = 1000;

impl Bench {
    pub(super) fn new(plan: Plan) -> Self {
        let scheduler = Scheduler::new(plan, Restored::default());
        Self {
            scheduler,
            now: Duration::ZERO,
            said: Vec::new(),
        }
    }

    pub(super) fn tell(&mut self, event: Event) -> &[Command] {
        self.said.clear();
        self.scheduler.handle(self.now, event, &mut self.said);
        &self.said
    }

    pub(super) fn wait(&mut self, seconds: u64) -> &[Command] {
        self.now += Duration::from_secs(seconds);
        self.tell(Event::Tick)
    }

    pub(super) fn device(numerics: &str) -> Option<v1::DeviceInfo> {
        Some(v1::DeviceInfo {
            numerics: numerics.into(),
            ..Default::default()
        })
    }

    pub(super) fn worker_joins(&mut self, session: Session, slots: u32, numerics: &str) {
        self.worker_joins_as(&format!("w{session}"), session, slots, numerics);
    }

    pub(super) fn worker_joins_as(
        &mut self,
        id: &str,
        session: Session,
        slots: u32,
        numerics: &str,
    ) {
        let worker_id = id.to_owned();
        let hello = v1::WorkerHello {
            worker_id,
            ..Default::default()
        };
        self.tell(Event::WorkerHello { session, hello });
        let device = Self::device(numerics);
        let ready = v1::WorkerReady {
            model_digest: MODEL.into(),
            slots,
            device,
            ..Default::default()
        };
        self.tell(Event::WorkerReady { session, ready });
    }

    pub(super) fn learner_joins(&mut self) {
        self.learner_joins_with(v1::LearnerReady {
            version: Some(version(0).to_wire()),
            probe_logprobs: vec![-1.0, -2.0],
            ..Default::default()
        });
    }

    pub(super) fn learner_joins_with(&mut self, ready: v1::LearnerReady) {
        let hello = v1::LearnerHello {
            learner_id: "l".into(),
            ..Default::default()
        };
        self.tell(Event::LearnerHello {
            session: LEARNER,
            hello,
        });
        let ready = Box::new(v1::LearnerReady {
            model_digest: MODEL.into(),
            device: Self::device("cpu-x"),
            ..ready
        });
        self.tell(Event::LearnerReady {
            session: LEARNER,
            ready,
        });
    }

    pub(super) fn loads(&mut self, session: Session, of: Version, probe: &[f32]) -> &[Command] {
        let (version, probe_logprobs) = (Some(of.to_wire()), probe.to_vec());
        let loaded = v1::AdapterLoaded {
            version,
            probe_logprobs,
            ..Default::default()
        };
        self.tell(Event::AdapterLoaded { session, loaded })
    }

    /// Seconds in which these workers and the learner send heartbeats that count so many tokens, and
    /// one completion learned from; what was commanded meanwhile.
    pub(super) fn beats(
        &mut self,
        seconds: u64,
        workers: &[Session],
        tokens: impl Fn(u64) -> u64,
    ) -> Vec<Command> {
        let mut all = Vec::new();
        for second in 1..=seconds {
            all.extend(self.wait(1).iter().cloned());
            for &session in workers {
                let heartbeat = v1::WorkerHeartbeat {
                    tokens_total: tokens(second),
                    ..Default::default()
                };
                all.extend(
                    self.tell(Event::WorkerHeartbeat { session, heartbeat })
                        .iter()
                        .cloned(),
                );
            }
            let heartbeat = v1::LearnerHeartbeat {
                phase: "learning".into(),
                done: tokens(second) as u32,
                ..Default::default()
            };
            let session = LEARNER;
            all.extend(
                self.tell(Event::LearnerHeartbeat { session, heartbeat })
                    .iter()
                    .cloned(),
            );
        }
        all
    }

    /// The reason that the run failed for.
    pub(super) fn failure(said: &[Command]) -> Option<&str> {
        said.iter().find_map(|command| match command {
            Command::Fail { reason } => Some(reason.as_str()),
            _ => None,
        })
    }

    /// Completions of all samples of step 1 come from worker 0, and are scored and journaled.
    pub(super) fn samples_are_done(&mut self) {
        for group in 0..2 {
            for index in 0..4 {
                let completion = completion(group, index, version(0));
                self.tell(Event::Completion {
                    session: 0,
                    completion: completion.clone(),
                });
                let scored = scored(completion);
                self.tell(Event::Scored(scored.clone()));
                self.tell(Event::Recorded(vec![scored]));
            }
        }
    }

    /// One worker after the other, then the learner, all of the same arithmetic and ready.
    pub(super) fn with_workers(slots: &[u32]) -> Self {
        let mut bench = Self::new(plan());
        for (session, &slots) in slots.iter().enumerate() {
            bench.worker_joins(session as Session, slots, "cpu-x");
        }
        bench.learner_joins();
        let mut said = Vec::new();
        for session in 0..slots.len() {
            said.extend_from_slice(bench.loads(session as Session, version(0), &[-1.0, -2.0]));
        }
        bench.said = said;
        bench
    }

    /// Who was handed how many samples of which group.
    pub(super) fn handed(&self) -> Vec<(Session, u32, usize)> {
        self.said
            .iter()
            .filter_map(|command| match command {
                Command::Sample {
                    session,
                    group,
                    indices,
                    ..
                } => Some((*session, RoundId::of_group(*group).1, indices.len())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn status(&self, worker: &str) -> v1::WorkerStatus {
        let workers = self.scheduler.snapshot().workers;
        workers
            .into_iter()
            .find(|status| status.worker_id == worker)
            .unwrap()
    }
}

pub(super) fn completion(group: u32, index: u32, of: Version) -> v1::Completion {
    v1::Completion {
        group_id: RoundId::train(1).group(group),
        sample_index: index,
        tokens: vec![1],
        logprobs: vec![0.0],
        versions: vec![v1::VersionSpan {
            start: 0,
            version: Some(of.to_wire()),
        }],
        ..Default::default()
    }
}

/// Samples that these commands hand to a worker.
pub(super) fn samples_for(said: &[Command], who: Session) -> usize {
    let of = |command: &Command| match command {
        Command::Sample {
            session, indices, ..
        } if *session == who => indices.len(),
        _ => 0,
    };
    said.iter().map(of).sum()
}

pub(super) fn scored(completion: v1::Completion) -> Arc<Scored> {
    Arc::new(Scored {
        completion,
        worker: "w0".into(),
        text: String::new(),
        reward: 0.0,
        judged: true,
        correct: false,
        rewards: Vec::new(),
    })
}

#[test]
fn groups_stay_whole_where_they_fit_and_spread_over_workers() {
    assert_eq!(
        Bench::with_workers(&[4, 4]).handed(),
        [(0, 0, 4), (1, 1, 4)]
    );
}

#[test]
fn a_group_is_split_rather_than_leaving_slots_free() {
    assert_eq!(
        Bench::with_workers(&[3, 2]).handed(),
        [(0, 0, 3), (1, 0, 1), (1, 1, 1)]
    );
}

#[test]
fn slots_that_a_heartbeat_says_are_new_are_filled_and_those_gone_run_empty() {
    let mut bench = Bench::with_workers(&[3]);
    assert_eq!(bench.handed(), [(0, 0, 3)]);
    let beat = |slots| Event::WorkerHeartbeat {
        session: 0,
        heartbeat: v1::WorkerHeartbeat {
            slots,
            ..Default::default()
        },
    };
    bench.tell(beat(5));
    assert_eq!(bench.handed(), [(0, 0, 1), (0, 1, 1)]);
    assert_eq!(bench.status("w0").slots, 5);
    // Five are in flight; one that ends leaves four, of which two are too many.
    bench.tell(beat(2));
    assert_eq!(bench.handed(), []);
    let completion = completion(0, 0, version(0));
    bench.tell(Event::Completion {
        session: 0,
        completion,
    });
    assert_eq!(bench.handed(), []);
    // One that doesn't say keeps what it had.
    bench.tell(beat(0));
    assert_eq!(bench.status("w0").slots, 2);
}

#[test]
fn what_was_in_flight_at_a_silent_worker_goes_to_another() {
    let mut bench = Bench::with_workers(&[4, 8]);
    bench.now += Duration::from_secs(4);
    let heartbeat = v1::WorkerHeartbeat::default();
    bench.tell(Event::WorkerHeartbeat {
        session: 1,
        heartbeat,
    });
    bench.tell(Event::LearnerHeartbeat {
        session: LEARNER,
        heartbeat: Default::default(),
    });
    bench.wait(2);
    let closed = |command: &Command| matches!(command, Command::CloseWorker { session: 0, .. });
    assert!(bench.said.iter().any(closed), "{:?}", bench.said);
    let again: usize = bench
        .handed()
        .iter()
        .map(|(session, _, count)| *session as usize * count)
        .sum();
    assert_eq!(again, 4, "{:?}", bench.handed());
    assert!(bench.status("w0").state.starts_with("lost"));
}

#[test]
fn a_completion_of_another_version_is_refused_and_sampled_again() {
    let mut bench = Bench::with_workers(&[8]);
    let completion = completion(0, 0, version(7));
    bench.tell(Event::Completion {
        session: 0,
        completion,
    });
    assert!(
        bench
            .said
            .iter()
            .any(|c| matches!(c, Command::Cancel { .. }))
    );
    assert!(
        !bench
            .said
            .iter()
            .any(|c| matches!(c, Command::Score { .. } | Command::Ack { .. }))
    );
    assert_eq!(bench.handed(), [(0, 0, 1)]);
}

#[test]
fn a_failed_sample_is_tried_elsewhere_and_when_all_failed_twice_the_run_ends() {
    let mut bench = Bench::with_workers(&[8, 8]);
    bench.now += 2 * plan().worker_timeout;
    let failed = v1::SampleFailed {
        group_id: RoundId::train(1).group(0),
        sample_indices: vec![2],
        error: "out of memory".into(),
    };
    bench.tell(Event::SampleFailed {
        session: 0,
        failed: failed.clone(),
    });
    assert_eq!(bench.handed(), [(1, 0, 1)]);
    bench.tell(Event::SampleFailed {
        session: 1,
        failed: failed.clone(),
    });
    let [(session, 0, 1)] = bench.handed()[..] else {
        panic!("{:?}", bench.said)
    };
    bench.tell(Event::SampleFailed {
        session,
        failed: failed.clone(),
    });
    let session = 1 - session;
    assert_eq!(bench.handed(), [(session, 0, 1)]);
    bench.tell(Event::SampleFailed { session, failed });
    let Some(Command::Fail { reason }) = bench.said.last() else {
        panic!("{:?}", bench.said)
    };
    assert!(
        reason.contains("sample 2 of group 0") && reason.contains("out of memory"),
        "{reason}"
    );
}

#[test]
fn one_differing_bit_of_a_probe_refuses_a_worker_of_the_same_arithmetic() {
    let mut bench = Bench::new(plan());
    bench.worker_joins(0, 4, "cpu-x");
    bench.worker_joins(1, 4, "cuda-bf16");
    bench.worker_joins(2, 4, "cuda-bf16");
    bench.learner_joins();
    bench.loads(0, version(0), &[-1.0, (-2.0f32).next_up()]);
    assert!(
        bench.status("w0").state.starts_with("refused"),
        "{:?}",
        bench.status("w0")
    );
    bench.loads(1, version(0), &[-1.0, -2.05]);
    assert_eq!(bench.status("w1").state, "ready");
    assert!((bench.status("w1").probe_diff_max - 0.05).abs() < 1e-6);
    bench.loads(2, version(0), &[-1.0, -2.5]);
    assert!(bench.status("w2").state.starts_with("refused"));
}

#[test]
fn given_policies_are_evaluated_in_turn_by_workers_that_agree() {
    let mut bench = Bench::new(Plan {
        steps: 1,
        eval_problems: 2,
        eval_samples: 3,
        eval_before: true,
        eval_after: true,
        eval_every: 1,
        given: vec![version(0), version(1)],
        ..plan()
    });
    bench.worker_joins(0, 8, "cpu-x");
    let asked = |c: &Command| matches!(c, Command::LoadAdapter { session: 0, version: v } if *v == version(0));
    assert!(bench.said.iter().any(asked), "needs no learner");
    bench.worker_joins(1, 8, "cpu-x");
    bench.worker_joins(2, 8, "cpu-x");
    bench.loads(0, version(0), &[f32::NAN, -2.0]);
    assert!(bench.status("w0").state.contains("not finite"));
    bench.loads(1, version(0), &[-1.0, -2.0]);
    bench.loads(2, version(0), &[-1.0, (-2.0f32).next_up()]);
    assert!(
        bench.status("w2").state.contains("worker w1"),
        "{:?}",
        bench.status("w2")
    );
    assert_eq!(bench.handed(), [(1, 0, 3), (1, 1, 3)]);

    let hello = v1::LearnerHello::default();
    let said = bench.tell(Event::LearnerHello {
        session: LEARNER,
        hello,
    });
    assert!(matches!(
        said,
        [Command::StopLearner {
            session: LEARNER,
            ..
        }]
    ));

    for (place, of) in [version(0), version(1)].into_iter().enumerate() {
        if place == 1 {
            bench.loads(1, of, &[-3.0]);
        }
        let mut said = Vec::new();
        for (group, index) in (0..6).map(|n| (n / 3, n % 3)) {
            let mut completion = completion(group, index, of);
            completion.group_id = RoundId::eval(place as u64).group(group);
            bench.tell(Event::Completion {
                session: 1,
                completion: completion.clone(),
            });
            let scored = scored(completion);
            bench.tell(Event::Scored(scored.clone()));
            said = bench.tell(Event::Recorded(vec![scored])).to_vec();
        }
        let done = said.iter().find_map(|command| match command {
            Command::RecordEval(done) => Some(done),
            _ => None,
        });
        let done = done.expect("the round is done");
        assert_eq!(done.version, of);
        assert!(done.groups.iter().map(Vec::len).eq([3, 3]));
        let over = said.iter().any(|c| {
            matches!(
                c,
                Command::Finish {
                    stopped_early: false
                }
            )
        });
        assert_eq!(over, place == 1);
    }
}

#[test]
fn a_worker_that_does_not_acknowledge_in_time_is_left_out_until_it_does() {
    let mut bench = Bench::new(plan());
    bench.worker_joins(0, 4, "cpu-x");
    bench.worker_joins(1, 4, "cpu-x");
    bench.learner_joins();
    bench.loads(0, version(0), &[-1.0, -2.0]);
    assert!(bench.handed().is_empty(), "did not wait");
    bench.wait(3);
    assert_eq!(bench.handed(), [(0, 0, 4)]);
    let asked = |c: &Command| matches!(c, Command::LoadAdapter { session: 1, .. });
    assert!(bench.said.iter().any(asked), "not asked again");
    bench.loads(1, version(0), &[-1.0, -2.0]);
    assert_eq!(bench.handed(), [(1, 1, 4)]);
}

#[test]
fn a_pause_holds_the_next_step_and_not_this_one() {
    let mut bench = Bench::with_workers(&[8]);
    bench.tell(Event::Pause);
    bench.samples_are_done();
    assert!(
        bench
            .said
            .iter()
            .any(|c| matches!(c, Command::SendBatch { .. }))
    );
    let result = Box::new(v1::StepResult {
        version: Some(version(1).to_wire()),
        probe_logprobs: vec![-1.0, -2.0],
        ..Default::default()
    });
    bench.tell(Event::StepResult {
        session: LEARNER,
        result,
    });
    bench.loads(0, version(1), &[-1.0, -2.0]);
    assert!(bench.handed().is_empty());
    assert_eq!(bench.scheduler.phase(), v1::Phase::Paused);
    bench.tell(Event::Resume);
    assert_eq!(bench.handed().len(), 2);
}

#[test]
fn a_result_that_was_missed_is_adopted_with_the_probe_of_now() {
    let mut plan = plan();
    (plan.groups_per_step, plan.samples_per_group) = (1, 1);
    let restored = Restored {
        versions: vec![version(0)],
        completions: vec![scored(completion(0, 0, version(0)))],
        model_digest: Some(MODEL.into()),
        ..Default::default()
    };
    let mut bench = Bench::new(plan);
    bench.scheduler = Scheduler::new(bench.scheduler.plan.clone(), restored);
    bench.worker_joins(0, 4, "cpu-x");
    let of = Some(version(1).to_wire());
    bench.learner_joins_with(v1::LearnerReady {
        version: of.clone(),
        probe_logprobs: vec![-1.0, -2.0],
        last_result: Some(v1::StepResult {
            version: of,
            probe_logprobs: vec![-3.0],
            ..Default::default()
        }),
        ..Default::default()
    });
    assert_eq!(bench.scheduler.steps_done(), 1, "{:?}", bench.said);
    bench.loads(0, version(1), &[-1.0, -2.0]);
    assert_eq!(bench.status("w0").state, "ready");
}

#[test]
fn a_run_without_workers_in_mid_step_ends_after_the_start_timeout_and_not_before() {
    let mut bench = Bench::with_workers(&[8]);
    let lost = |session| Event::WorkerLost {
        session,
        reason: "gone".into(),
    };
    bench.tell(lost(0));
    assert_eq!(Bench::failure(&bench.beats(55, &[], |_| 0)), None);
    bench.worker_joins(1, 8, "cpu-x");
    bench.loads(1, version(0), &[-1.0, -2.0]);
    assert_eq!(
        Bench::failure(&bench.beats(10, &[1], |second| second)),
        None
    );
    bench.tell(lost(1));
    assert_eq!(
        Bench::failure(&bench.beats(55, &[], |_| 0)),
        None,
        "waits anew"
    );
    let said = bench.beats(10, &[], |_| 0);
    let reason = Bench::failure(&said).unwrap();
    assert!(
        reason.contains("start_timeout_s") && reason.contains("waiting for a rollout worker"),
        "{reason}"
    );
}

#[test]
fn a_run_whose_learner_does_not_come_back_ends_after_the_start_timeout() {
    let mut bench = Bench::with_workers(&[8]);
    bench.samples_are_done();
    bench.tell(Event::LearnerLost {
        session: LEARNER,
        reason: "gone".into(),
    });
    assert_eq!(
        Bench::failure(&bench.beats(55, &[0], |second| second)),
        None
    );
    let said = bench.beats(10, &[0], |second| second);
    let reason = Bench::failure(&said).unwrap();
    assert!(reason.contains("waiting for a learner"), "{reason}");
}

#[test]
fn a_pause_lets_a_run_wait_for_its_workers() {
    let mut bench = Bench::with_workers(&[8]);
    bench.tell(Event::Pause);
    assert_eq!(Bench::failure(&bench.beats(100, &[], |_| 0)), None);
    bench.tell(Event::Resume);
    assert_eq!(Bench::failure(&bench.beats(55, &[], |_| 0)), None);
    assert!(Bench::failure(&bench.beats(10, &[], |_| 0)).is_some());
}

#[test]
fn when_all_launched_workers_are_refused_the_run_ends_at_once_with_the_reasons() {
    for (launched, ends) in [(0, false), (1, true), (2, false)] {
        let mut bench = Bench::new(Plan {
            launched_workers: launched,
            ..plan()
        });
        bench.worker_joins(0, 4, "cpu-x");
        bench.learner_joins();
        bench.loads(0, version(0), &[-1.0]);
        let said = bench.beats(1, &[0], |_| 0);
        assert_eq!(
            Bench::failure(&said).is_some(),
            ends,
            "{launched}: {said:?}"
        );
        if let Some(reason) = Bench::failure(&said) {
            assert!(reason.contains("w0: under the adapter"), "{reason}");
        }
    }
}

#[test]
fn a_worker_that_lives_and_makes_no_tokens_is_told_to_end_and_others_get_its_samples() {
    let mut bench = Bench::with_workers(&[4, 4]);
    let told = |said: &[Command], who: Session| {
        let stop =
            |c: &Command| matches!(c, Command::StopWorker { session, .. } if *session == who);
        said.iter().any(stop)
    };
    let said = bench.beats(100, &[0, 1], |second| second);
    assert!(!told(&said, 0) && !told(&said, 1), "slow is not stuck");
    let mut bench = Bench::with_workers(&[4, 4]);
    assert!(!told(&bench.beats(29, &[0, 1], |_| 0), 0));
    let mut again = 0;
    for index in 0..4 {
        let completion = completion(1, index, version(0));
        let said = bench.tell(Event::Completion {
            session: 1,
            completion,
        });
        again += samples_for(said, 1);
    }
    let said = bench.beats(3, &[0, 1], |_| 0);
    assert!(told(&said, 0) && !told(&said, 1), "{said:?}");
    assert_eq!(again + samples_for(&said, 1), 4);
    assert!(bench.status("w0").state.contains("progress_timeout_s"));
}

#[test]
fn a_worker_that_never_answers_to_an_adapter_is_told_to_end() {
    let mut bench = Bench::new(plan());
    bench.worker_joins(0, 4, "cpu-x");
    bench.learner_joins();
    let stop = |c: &Command| matches!(c, Command::StopWorker { session: 0, .. });
    assert!(!bench.beats(29, &[0], |_| 0).iter().any(stop));
    assert!(bench.beats(3, &[0], |_| 0).iter().any(stop));
}

#[test]
fn a_learner_that_lives_and_does_not_get_on_with_its_batch_is_told_to_end() {
    let stop = |c: &Command| {
        matches!(
            c,
            Command::StopLearner {
                session: LEARNER,
                ..
            }
        )
    };
    let mut bench = Bench::with_workers(&[8]);
    assert!(
        !bench
            .beats(50, &[0], |second| second * u64::from(second < 2))
            .iter()
            .any(stop)
    );
    let mut bench = Bench::with_workers(&[8]);
    bench.samples_are_done();
    assert!(
        !bench.beats(100, &[0], |second| second).iter().any(stop),
        "slow is not stuck"
    );
    assert!(!bench.beats(29, &[0], |_| 0).iter().any(stop));
    assert!(bench.beats(3, &[0], |_| 0).iter().any(stop));
    assert!(bench.scheduler.snapshot().message.contains("learner"));
}

#[test]
fn a_second_worker_of_the_same_id_is_turned_away_and_the_first_may_dial_in_anew() {
    let mut bench = Bench::new(plan());
    let mut closed = |session: Session, address: &str| {
        let hello = v1::WorkerHello {
            worker_id: "w".into(),
            address: address.into(),
            ..Default::default()
        };
        let said = bench.tell(Event::WorkerHello { session, hello });
        let closed = said.iter().find_map(|command| match command {
            Command::CloseWorker { session, .. } => Some(*session),
            _ => None,
        });
        bench.wait(4);
        closed
    };
    assert_eq!(closed(0, "here:1 (10.0.0.1:5000)"), None);
    assert_eq!(closed(1, "here:2 (10.0.0.1:5001)"), Some(1));
    // By now the first is silent for too long.
    assert_eq!(closed(2, "here:2 (10.0.0.1:5002)"), None);
    assert_eq!(closed(3, "here:2 (10.0.0.1:5003)"), Some(2));
}
