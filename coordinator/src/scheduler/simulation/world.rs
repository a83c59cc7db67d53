//! How hostile a world is, and what a run in a world without faults comes to.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::scheduler::types::{Plan, RoundId, SampleId, Version};

/// Milliseconds since the simulation's start.
pub(super) type Time = u64;

pub(super) const MODEL: &str = "model";

/// How hostile a world is: chances per message or per thousand ticks.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) workers: usize,
    pub(super) plan: Plan,
    /// Chance that a message breaks its stream.
    pub(super) breaks: f64,
    /// Chance that a sample fails, comes twice, or under another version.
    pub(super) mischief: f64,
    /// Chance a tick that the learner, or the coordinator, is killed.
    pub(super) kills: f64,
    pub(super) checkpoint_every: u64,
    /// The learner's arithmetic gives other bits each time.
    pub(super) nondeterministic: bool,
    /// The last worker means ill: it holds samples back, fails them, and brings others'.
    pub(super) hostile: bool,
}

fn plan(rng: &mut ChaCha8Rng) -> Plan {
    Plan {
        steps: rng.random_range(2..6),
        groups_per_step: rng.random_range(1..9),
        samples_per_group: rng.random_range(1..9),
        eval_problems: rng.random_range(0..20),
        eval_samples: rng.random_range(1..4),
        eval_before: true,
        eval_after: true,
        eval_every: rng.random_range(0..3),
        max_staleness: [0, 0, 1, 2, 4][rng.random_range(0..5)],
        drain: rng.random_bool(0.5),
        max_resamples: [0, 0, 1, 3][rng.random_range(0..4)],
        worker_timeout: Duration::from_secs(5),
        learner_timeout: Duration::from_secs(5),
        sync_deadline: Duration::from_secs(3),
        start_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(2),
        progress_timeout: Duration::from_secs(30),
        launched_workers: 0,
        given: Vec::new(),
        probe_tolerance: 0.1,
    }
}

/// The same, but for policies that are given and no learner.
fn evaluation(plan: Plan) -> Plan {
    let version = |step: u64| Version {
        step,
        digest: [step as u8 + 40; 32],
    };
    Plan {
        eval_problems: plan.eval_problems + 1,
        eval_every: 1,
        max_staleness: 0,
        given: (0..=plan.steps).map(version).collect(),
        ..plan
    }
}

impl World {
    pub(super) fn of(seed: u64, rng: &mut ChaCha8Rng) -> Self {
        let calm = seed.is_multiple_of(4);
        let crowd = seed % 16 == 1;
        let hostile = seed % 8 == 3;
        Self {
            workers: if crowd {
                rng.random_range(150..300)
            } else {
                rng.random_range(1..12)
            },
            plan: if seed % 8 == 5 {
                evaluation(plan(rng))
            } else {
                plan(rng)
            },
            breaks: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            mischief: if calm {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            // Where the coordinator never starts anew, nothing covers up for work that got stuck, and
            // nobody may bring what another one was asked for.
            kills: if calm || hostile || seed % 3 == 2 {
                0.0
            } else {
                rng.random_range(0.0..0.02)
            },
            checkpoint_every: rng.random_range(1..4),
            nondeterministic: seed % 8 == 7,
            hostile,
        }
    }
}

pub(super) fn tokens_of(version: Version, id: SampleId) -> Vec<u32> {
    let hash = Sha256::new()
        .chain_update(version.digest)
        .chain_update(id.group.to_le_bytes())
        .chain_update(id.index.to_le_bytes())
        .finalize();
    vec![u32::from(hash[0]), u32::from(hash[1])]
}

pub(super) fn train(version: Version, batch: &[Vec<u32>], nonce: u64) -> Version {
    let mut hash = Sha256::new();
    hash.update(version.digest);
    hash.update(nonce.to_le_bytes());
    for tokens in batch {
        tokens
            .iter()
            .for_each(|token| hash.update(token.to_le_bytes()));
    }
    Version {
        step: version.step + 1,
        digest: hash.finalize().into(),
    }
}

pub(super) fn first_version() -> Version {
    Version {
        step: 0,
        digest: [7; 32],
    }
}

/// What a completion is worth: groups without spread come up.
pub(super) fn reward_of(tokens: &[u32]) -> f64 {
    f64::from(tokens.iter().sum::<u32>() % 3)
}

/// The versions of a run without any fault, in lock step.
pub(super) fn expected(plan: &Plan) -> Vec<Version> {
    if !plan.given.is_empty() {
        return plan.given.clone();
    }
    let mut versions = vec![first_version()];
    for step in 1..=plan.steps {
        let version = versions[step as usize - 1];
        let round = RoundId::train(step);
        let group = |number: u32| -> Vec<Vec<u32>> {
            let group = round.group(number);
            (0..plan.samples_per_group)
                .map(|index| tokens_of(version, SampleId { group, index }))
                .collect()
        };
        let lacks_spread = |group: &Vec<Vec<u32>>| {
            let mut rewards = group.iter().map(|tokens| reward_of(tokens));
            let first = rewards.next();
            rewards.all(|reward| Some(reward) == first)
        };
        let batch: Vec<Vec<u32>> = (0..plan.groups_per_step)
            .flat_map(|place| {
                let number = |n| place + n * plan.groups_per_step;
                let mut tries = (0..plan.max_resamples).map(|n| group(number(n)));
                let kept = tries.find(|group| !lacks_spread(group));
                kept.unwrap_or_else(|| group(number(plan.max_resamples)))
            })
            .collect();
        versions.push(train(version, &batch, 0));
    }
    versions
}

pub(super) fn probe(version: Version) -> Vec<f32> {
    version.digest[..3]
        .iter()
        .map(|byte| -f32::from(*byte))
        .collect()
}
