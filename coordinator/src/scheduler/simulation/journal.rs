//! A journal in memory, which checks what it is told to write.

use std::{collections::BTreeMap, sync::Arc};

use crate::scheduler::types::{Plan, Purpose, Restored, RoundId, SampleId, Scored, Version};

pub(super) enum Write {
    Start(Version, String),
    Completion(Arc<Scored>),
    Step(Version, Vec<Vec<Arc<Scored>>>),
    Eval(Version, Vec<Vec<Arc<Scored>>>),
    Rollback(Version),
}

#[derive(Default)]
pub(super) struct Journal {
    pub(super) versions: Vec<Version>,
    pub(super) evals: Vec<u64>,
    pub(super) completions: BTreeMap<SampleId, Arc<Scored>>,
    pub(super) model: Option<String>,
}

impl Journal {
    /// Makes the writes that wait durable; returns the completions among them.
    pub(super) fn commit(&mut self, writes: Vec<Write>, plan: &Plan) -> Vec<Arc<Scored>> {
        let journal = self;
        let mut recorded = Vec::new();
        for write in writes {
            match write {
                Write::Start(version, model) => {
                    assert_eq!(version.step, journal.versions.len() as u64);
                    assert!(version.step == 0 || !plan.given.is_empty());
                    journal.versions.push(version);
                    journal.model = Some(model);
                }
                Write::Completion(scored) => {
                    let id = scored.id();
                    let before = journal.completions.insert(id, scored.clone());
                    recorded.push(scored);
                    assert!(before.is_none(), "{id:?} was counted twice");
                }
                Write::Step(version, groups) => {
                    assert_eq!(version.step, journal.versions.len() as u64);
                    let shape = (plan.groups_per_step, plan.samples_per_group);
                    journal.check_round(RoundId::train(version.step), &groups, shape);
                    journal.versions.push(version);
                }
                Write::Eval(version, groups) => {
                    let shape = (plan.eval_problems, plan.eval_samples);
                    journal.check_round(RoundId::eval(version.step), &groups, shape);
                    assert!(!journal.evals.contains(&version.step), "evaluated twice");
                    journal.evals.push(version.step);
                }
                Write::Rollback(version) => {
                    journal.versions.truncate(version.step as usize);
                    journal.versions.push(version);
                    journal.evals.retain(|&step| step < version.step);
                    let keep = RoundId::train(version.step);
                    journal
                        .completions
                        .retain(|id, _| RoundId::of_group(id.group).0 <= keep);
                }
            }
        }
        recorded
    }

    /// A round is whole, in order, and written.
    fn check_round(&self, round: RoundId, groups: &[Vec<Arc<Scored>>], shape: (u32, u32)) {
        assert_eq!(groups.len(), shape.0 as usize);
        for (g, group) in groups.iter().enumerate() {
            assert_eq!(group.len(), shape.1 as usize);
            for (index, scored) in group.iter().enumerate() {
                let id = scored.id();
                let (of, number) = RoundId::of_group(id.group);
                let place = (number % shape.0) as usize;
                assert_eq!(
                    (of, place, id.index),
                    (round, g, index as u32),
                    "out of order"
                );
                assert_eq!(&self.completions[&id], scored);
            }
        }
    }

    /// What a coordinator that starts again goes on from.
    pub(super) fn restored(&self) -> Restored {
        let done = self.versions.len().saturating_sub(1) as u64;
        let open = |id: RoundId| match id.purpose() {
            Purpose::Train => id.step() > done,
            Purpose::Eval => !self.evals.contains(&id.step()),
        };
        Restored {
            versions: self.versions.clone(),
            evals: self.evals.clone(),
            completions: self
                .completions
                .values()
                .filter(|scored| open(RoundId::of_group(scored.completion.group_id).0))
                .cloned()
                .collect(),
            model_digest: self.model.clone(),
        }
    }
}
