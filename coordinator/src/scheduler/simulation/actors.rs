//! Workers and the learner: what they answer, and when they don't.

use std::{collections::BTreeMap, sync::Arc};

use rand::RngExt;
use tina_proto::v1;

use super::{
    Happening, Simulation,
    world::{MODEL, probe, tokens_of, train},
};
use crate::scheduler::types::{
    Command, Event, RoundId, SampleId, Scored, Session, Version, versions,
};

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Honest,
    OtherModel,
    OtherArithmetic,
    Hostile,
}

pub(super) struct SimWorker {
    pub(super) kind: Kind,
    pub(super) session: Option<Session>,
    pub(super) process: u64,
    pub(super) has_model: bool,
    pub(super) wanted: Option<Version>,
    pub(super) loaded: Option<Version>,
    pub(super) decoding: BTreeMap<SampleId, Decoding>,
    pub(super) unacked: BTreeMap<SampleId, v1::Completion>,
}

/// What a worker is sampling.
pub(super) struct Decoding {
    /// The stream that asked for it last.
    session: Session,
    begun: Version,
    pub(super) exact: bool,
}

pub(super) struct SimLearner {
    pub(super) session: Option<Session>,
    pub(super) process: u64,
    pub(super) training: bool,
    pub(super) held: Version,
    pub(super) checkpoint: Version,
}

impl Simulation {
    pub(super) fn dial(&mut self) -> Session {
        let session = self.next_session;
        self.next_session += 1;
        self.streams.insert(session, self.now);
        session
    }

    pub(super) fn worker_dials(&mut self, index: usize) {
        if self.workers[index].session.is_some() {
            return;
        }
        let session = self.dial();
        self.workers[index].session = Some(session);
        self.dialled.insert(session, index);
        let device = v1::DeviceInfo {
            device: "cpu".into(),
            numerics: "cpu-sim".into(),
            ..Default::default()
        };
        let hello = v1::WorkerHello {
            worker_id: format!("w{index}"),
            device: Some(device),
            ..Default::default()
        };
        self.report(session, Event::WorkerHello { session, hello });
        if self.workers[index].has_model {
            self.worker_ready(index);
        } else {
            let delay = self.rng.random_range(10..2000);
            let process = self.workers[index].process;
            self.later(delay, Happening::ModelLoaded(index, process));
        }
    }

    pub(super) fn worker_ready(&mut self, index: usize) {
        let Some(session) = self.workers[index].session else {
            return;
        };
        let slots = self.rng.random_range(1..9);
        let other = self.workers[index].kind == Kind::OtherModel;
        let model_digest = if other {
            "another".into()
        } else {
            MODEL.into()
        };
        let ready = v1::WorkerReady {
            model_digest,
            slots,
            ..Default::default()
        };
        self.report(session, Event::WorkerReady { session, ready });
        let unacked: Vec<_> = self.workers[index].unacked.values().cloned().collect();
        for completion in unacked {
            self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
    }

    pub(super) fn worker_obeys(&mut self, index: usize, session: Session, command: Command) {
        let process = self.workers[index].process;
        match command {
            Command::LoadAdapter { version, .. } => {
                if self.rng.random_bool(self.world.mischief) {
                    return; // hangs: the deadline must help
                }
                let worker = &mut self.workers[index];
                worker
                    .decoding
                    .retain(|_, decoding| decoding.session == session);
                if self.rng.random_bool(self.world.mischief) {
                    let loaded = v1::AdapterLoaded {
                        version: Some(version.to_wire()),
                        error: "no".into(),
                        ..Default::default()
                    };
                    return self.report(session, Event::AdapterLoaded { session, loaded });
                }
                self.workers[index].wanted = Some(version);
                let delay = self.rng.random_range(5..200);
                self.later(delay, Happening::AdapterLoaded(index, process, version));
            }
            Command::Sample {
                group,
                indices,
                version,
                exact,
                ..
            } => {
                if self.workers[index].kind == Kind::Hostile {
                    return self.answer_with_malice(session, group, &indices, version);
                }
                let worker = &self.workers[index];
                assert!(worker.kind == Kind::Honest, "a refused worker got work");
                let held = worker.loaded.expect("asked before it had an adapter");
                if exact || self.world.plan.drain {
                    assert_eq!(held, version, "asked for an adapter it hasn't");
                }
                assert!(held.step >= version.step, "asked for one that is to come");
                for index_in_group in indices {
                    let id = SampleId {
                        group,
                        index: index_in_group,
                    };
                    let begun = held;
                    let decoding = Decoding {
                        session,
                        begun,
                        exact,
                    };
                    self.workers[index].decoding.insert(id, decoding);
                    // Some workers stall, and others are given the same.
                    let stalls = self.rng.random_bool(self.world.mischief);
                    let delay = self.rng.random_range(20..1500) * if stalls { 6 } else { 1 };
                    self.later(delay, Happening::Decoded(index, process, id));
                }
            }
            Command::Cancel { group, indices, .. } => {
                for index_in_group in indices {
                    let id = SampleId {
                        group,
                        index: index_in_group,
                    };
                    self.workers[index].decoding.remove(&id);
                    self.workers[index].unacked.remove(&id);
                }
            }
            Command::Ack { sample, .. } => {
                self.workers[index].unacked.remove(&sample);
            }
            _ => unreachable!(),
        }
    }

    /// Holds samples back, fails them, brings them under another version, and brings samples that it
    /// may not have been asked for.
    fn answer_with_malice(
        &mut self,
        session: Session,
        group: u64,
        indices: &[u32],
        version: Version,
    ) {
        for &index in indices {
            let id = SampleId { group, index };
            let completion = |id: SampleId, of: Version| v1::Completion {
                group_id: id.group,
                sample_index: id.index,
                tokens: tokens_of(of, id),
                versions: vec![v1::VersionSpan {
                    start: 0,
                    version: Some(of.to_wire()),
                }],
                ..Default::default()
            };
            let event = match self.rng.random_range(0..4) {
                0 => continue,
                1 => Event::SampleFailed {
                    session,
                    failed: v1::SampleFailed {
                        group_id: group,
                        sample_indices: vec![index],
                        error: "malice".into(),
                    },
                },
                2 => Event::Completion {
                    session,
                    completion: completion(
                        id,
                        Version {
                            step: 99,
                            ..version
                        },
                    ),
                },
                _ => {
                    let plan = &self.world.plan;
                    let (round, _) = RoundId::of_group(group);
                    let other = SampleId {
                        group: round.group(self.rng.random_range(0..plan.groups_per_step)),
                        index: self.rng.random_range(0..plan.samples_per_group),
                    };
                    Event::Completion {
                        session,
                        completion: completion(other, version),
                    }
                }
            };
            self.report(session, event);
        }
    }

    pub(super) fn decoded(&mut self, index: usize, id: SampleId) {
        let worker = &mut self.workers[index];
        let (Some(Decoding { begun, .. }), Some(held)) =
            (worker.decoding.remove(&id), worker.loaded)
        else {
            return;
        };
        // The last token is of the adapter that is held by now.
        let mut tokens = tokens_of(begun, id);
        let span = |start, version: Version| v1::VersionSpan {
            start,
            version: Some(version.to_wire()),
        };
        let mut versions = vec![span(0, begun)];
        if held != begun {
            tokens[1] = tokens_of(held, id)[1];
            versions.push(span(1, held));
        }
        let session = worker.session;
        // The hostile one fails at it, too: three workers may not.
        let most = if self.world.hostile { 1 } else { 2 };
        let spoil = self.rng.random_bool(self.world.mischief)
            && *self.spoiled.get(&id).unwrap_or(&0) < most;
        let mut completion = v1::Completion {
            group_id: id.group,
            sample_index: id.index,
            tokens,
            versions,
            ..Default::default()
        };
        if spoil && let Some(session) = session {
            *self.spoiled.entry(id).or_default() += 1;
            if self.rng.random_bool(0.5) {
                let failed = v1::SampleFailed {
                    group_id: id.group,
                    sample_indices: vec![id.index],
                    error: "mischief".into(),
                };
                return self.report(session, Event::SampleFailed { session, failed });
            }
            let wrong = v1::PolicyVersion {
                step: 99,
                digest: vec![9; 32],
            };
            completion.versions[0].version = Some(wrong);
            return self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
        self.workers[index].unacked.insert(id, completion.clone());
        if let Some(session) = session {
            if self.rng.random_bool(self.world.mischief) {
                let completion = completion.clone();
                self.report(
                    session,
                    Event::Completion {
                        session,
                        completion,
                    },
                );
            }
            self.report(
                session,
                Event::Completion {
                    session,
                    completion,
                },
            );
        }
    }

    pub(super) fn learner_obeys(&mut self, session: Session, command: Command) {
        match command {
            Command::WelcomeLearner { resume, .. } => {
                if let Some(resume) = resume
                    && self.learner.checkpoint.step > resume.step + 1
                {
                    panic!("the journal fell behind the checkpoint");
                }
                let version = self.learner.held;
                let result = v1::StepResult {
                    version: Some(version.to_wire()),
                    probe_logprobs: probe(version),
                    ..Default::default()
                };
                let ready = v1::LearnerReady {
                    model_digest: MODEL.into(),
                    version: Some(version.to_wire()),
                    probe_logprobs: probe(version),
                    last_result: (version.step > 0).then_some(result),
                    ..Default::default()
                };
                self.report(
                    session,
                    Event::LearnerReady {
                        session,
                        ready: Box::new(ready),
                    },
                );
            }
            Command::SendBatch {
                version, groups, ..
            } => {
                let batch: Vec<Arc<Scored>> = groups.into_iter().flatten().collect();
                self.learn(version, &batch);
            }
            Command::ReplayBatch { version, .. } => {
                let round = RoundId::train(version.step + 1);
                // Where a group gave way to another, the last of its place.
                let mut batch: BTreeMap<(u32, u32), Arc<Scored>> = BTreeMap::new();
                for (id, scored) in &self.journal.completions {
                    let (of, number) = RoundId::of_group(id.group);
                    if of == round {
                        let place = number % self.world.plan.groups_per_step;
                        batch.insert((place, id.index), scored.clone());
                    }
                }
                let batch: Vec<Arc<Scored>> = batch.into_values().collect();
                self.learn(version, &batch);
            }
            _ => unreachable!(),
        }
    }

    pub(super) fn learn(&mut self, version: Version, batch: &[Arc<Scored>]) {
        let plan = &self.world.plan;
        assert_eq!(
            self.learner.held, version,
            "sent a batch for a version it hasn't"
        );
        assert_eq!(
            batch.len(),
            (plan.groups_per_step * plan.samples_per_group) as usize
        );
        let oldest = version.step.saturating_sub(plan.max_staleness);
        for scored in batch {
            let sampled = versions(&scored.completion).expect("spans that cover it");
            let fine = sampled
                .iter()
                .all(|v| (oldest..=version.step).contains(&v.step));
            assert!(fine, "step {} trained on {sampled:?}", version.step + 1);
        }
        let tokens: Vec<Vec<u32>> = batch.iter().map(|s| s.completion.tokens.clone()).collect();
        let nonce = if self.world.nondeterministic {
            self.rng.random()
        } else {
            0
        };
        let next = train(version, &tokens, nonce);
        let delay = self.rng.random_range(50..1500);
        self.learner.training = true;
        self.later(delay, Happening::Trained(self.learner.process, next));
    }
}
