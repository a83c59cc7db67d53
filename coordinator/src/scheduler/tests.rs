//! What the scheduler does in single situations; `simulation` has all of them at once.

use super::{types::*, *};

const MODEL: &str = "m";

fn version(step: u64) -> Version {
    Version {
        step,
        digest: [step as u8 + 1; 32],
    }
}

fn plan() -> Plan {
    Plan {
        steps: 2,
        groups_per_step: 2,
        samples_per_group: 4,
        eval_problems: 0,
        eval_before: false,
        eval_after: false,
        eval_every: 0,
        max_staleness: 0,
        worker_timeout: Duration::from_secs(5),
        learner_timeout: Duration::from_secs(5),
        sync_deadline: Duration::from_secs(3),
        start_timeout: Duration::from_secs(60),
        probe_tolerance: 0.1,
    }
}

/// A scheduler, and what it last commanded.
struct Bench {
    scheduler: Scheduler,
    now: Duration,
    said: Vec<Command>,
}

const LEARNER: Session = 1000;

impl Bench {
    fn new(plan: Plan) -> Self {
        let scheduler = Scheduler::new(plan, Restored::default());
        Self {
            scheduler,
            now: Duration::ZERO,
            said: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) -> &[Command] {
        self.said.clear();
        self.scheduler.handle(self.now, event, &mut self.said);
        &self.said
    }

    fn wait(&mut self, seconds: u64) -> &[Command] {
        self.now += Duration::from_secs(seconds);
        self.tell(Event::Tick)
    }

    fn device(numerics: &str) -> Option<v1::DeviceInfo> {
        Some(v1::DeviceInfo {
            numerics: numerics.into(),
            ..Default::default()
        })
    }

    fn worker_joins(&mut self, session: Session, slots: u32, numerics: &str) {
        let worker_id = format!("w{session}");
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
        };
        self.tell(Event::WorkerReady { session, ready });
    }

    fn learner_joins(&mut self) {
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
            version: Some(version(0).to_wire()),
            probe_logprobs: vec![-1.0, -2.0],
            device: Self::device("cpu-x"),
            ..Default::default()
        });
        self.tell(Event::LearnerReady {
            session: LEARNER,
            ready,
        });
    }

    fn loads(&mut self, session: Session, of: Version, probe: &[f32]) -> &[Command] {
        let (version, probe_logprobs) = (Some(of.to_wire()), probe.to_vec());
        let loaded = v1::AdapterLoaded {
            version,
            probe_logprobs,
            ..Default::default()
        };
        self.tell(Event::AdapterLoaded { session, loaded })
    }

    /// One worker after the other, then the learner, all of the same arithmetic and ready.
    fn with_workers(slots: &[u32]) -> Self {
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
    fn handed(&self) -> Vec<(Session, u32, usize)> {
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

    fn status(&self, worker: &str) -> v1::WorkerStatus {
        let workers = self.scheduler.snapshot().workers;
        workers
            .into_iter()
            .find(|status| status.worker_id == worker)
            .unwrap()
    }
}

fn completion(group: u32, index: u32, of: Version) -> v1::Completion {
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
fn a_failed_sample_is_tried_elsewhere_and_the_third_failure_ends_the_run() {
    let mut bench = Bench::with_workers(&[8, 8]);
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
    for group in 0..2 {
        for index in 0..4 {
            let completion = completion(group, index, version(0));
            bench.tell(Event::Completion {
                session: 0,
                completion: completion.clone(),
            });
            let scored = Arc::new(Scored {
                completion,
                worker: "w0".into(),
                text: String::new(),
                reward: 0.0,
                judged: true,
                correct: false,
                rewards: Vec::new(),
            });
            let recorded = (scored.id(), version(0));
            bench.tell(Event::Scored(scored));
            bench.tell(Event::Recorded(vec![recorded]));
        }
    }
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
