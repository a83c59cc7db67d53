//! What the scheduler and its shell say to each other: names, the plan, events and commands.

use std::{fmt, sync::Arc, time::Duration};

use tina_proto::v1;
use tina_reward::Share;

/// One stream of a worker or a learner; the shell gives each a new number.
pub type Session = u64;

/// A policy version: the step that made it, and the digest of the adapter's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Optimiser updates applied so far.
    pub step: u64,
    /// SHA-256 of the adapter's safetensors file.
    pub digest: [u8; 32],
}

impl Version {
    /// From the wire; `None` when the digest isn't 32 bytes.
    pub fn from_wire(version: &v1::PolicyVersion) -> Option<Self> {
        let digest = version.digest.as_slice().try_into().ok()?;
        Some(Self {
            step: version.step,
            digest,
        })
    }

    /// As it goes over the wire.
    pub fn to_wire(self) -> v1::PolicyVersion {
        v1::PolicyVersion {
            step: self.step,
            digest: self.digest.to_vec(),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.step)?;
        self.digest
            .iter()
            .take(6)
            .try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// What a round of samples is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The batch of a step.
    Train,
    /// Held-out problems under a policy version.
    Eval,
}

/// One round of samples: the batch of a step, or an evaluation. Ordered as rounds come in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundId(u64);

/// Bits of a group's id that count the groups of its round.
const GROUP_BITS: u32 = 24;

impl RoundId {
    /// A round has fewer groups than this.
    pub const GROUPS: u32 = 1 << GROUP_BITS;

    /// The batch of step `step` (steps count from 1).
    pub fn train(step: u64) -> Self {
        Self(step << 1)
    }

    /// The evaluation after `step` steps.
    pub fn eval(step: u64) -> Self {
        Self((step << 1) | 1)
    }

    /// The step that is being sampled for, or after which is evaluated.
    pub fn step(self) -> u64 {
        self.0 >> 1
    }

    /// What it is for.
    pub fn purpose(self) -> Purpose {
        if self.0 & 1 == 1 {
            Purpose::Eval
        } else {
            Purpose::Train
        }
    }

    /// Steps done when this round is sampled at staleness 0.
    pub fn base_step(self) -> u64 {
        match self.purpose() {
            Purpose::Train => self.step().saturating_sub(1),
            Purpose::Eval => self.step(),
        }
    }

    /// The id of its group number `index`.
    pub fn group(self, index: u32) -> u64 {
        (self.0 << GROUP_BITS) | u64::from(index)
    }

    /// The round and the index in it of a group.
    pub fn of_group(group: u64) -> (Self, u32) {
        (
            Self(group >> GROUP_BITS),
            (group & ((1 << GROUP_BITS) - 1)) as u32,
        )
    }
}

impl fmt::Debug for RoundId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.purpose() {
            Purpose::Train => write!(out, "step {}", self.step()),
            Purpose::Eval => write!(out, "evaluation after step {}", self.step()),
        }
    }
}

/// One completion's name in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId {
    /// Its group.
    pub group: u64,
    /// Its place in the group.
    pub index: u32,
}

/// What one reward said of one completion.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardValue {
    /// The reward's name in the config.
    pub name: Arc<str>,
    /// Its value; `None`: it could not be judged, or waits for its group.
    pub value: Option<f64>,
    /// It waits for its group: what is known of this completion alone.
    pub share: Option<Share>,
}

/// A completion with its verdicts; what the journal holds and the learner trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// As it came from the worker.
    pub completion: v1::Completion,
    /// Who sampled it.
    pub worker: Arc<str>,
    /// Its text, special tokens left out.
    pub text: String,
    /// Weighted sum of the rewards that judged it; without those that wait for its group.
    pub reward: f64,
    /// False: some reward could not judge it, and so it takes no part in its group.
    pub judged: bool,
    /// Right, as evaluation counts it.
    pub correct: bool,
    /// Each reward apart, in the config's order.
    pub rewards: Vec<RewardValue>,
}

impl Scored {
    /// Its name.
    pub fn id(&self) -> SampleId {
        SampleId {
            group: self.completion.group_id,
            index: self.completion.sample_index,
        }
    }

    /// The version that sampled its last token; `None` when the spans make no sense.
    pub fn version(&self) -> Option<Version> {
        versions(&self.completion)?.last().copied()
    }
}

/// The versions that sampled a completion, in the order of its tokens; `None` when its spans don't
/// cover it, name no version, or go back to an older one. (More than one where an adapter was taken in
/// under way, which is always a newer one.)
pub fn versions(completion: &v1::Completion) -> Option<Vec<Version>> {
    let spans = &completion.versions;
    let starts = spans.iter().map(|span| span.start);
    let ordered = starts.clone().is_sorted_by(|a, b| a < b);
    let inside = starts
        .clone()
        .all(|start| start == 0 || (start as usize) < completion.tokens.len());
    if spans.first()?.start != 0 || !ordered || !inside {
        return None;
    }
    let versions: Vec<Version> = spans
        .iter()
        .map(|span| Version::from_wire(span.version.as_ref()?))
        .collect::<Option<_>>()?;
    versions
        .is_sorted_by(|one, next| one.step < next.step)
        .then_some(versions)
}

/// What the run is to do, and how patient to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Optimiser updates in all.
    pub steps: u64,
    /// Prompts of a step.
    pub groups_per_step: u32,
    /// Completions of a prompt.
    pub samples_per_group: u32,
    /// Held-out problems; 0: no evaluation.
    pub eval_problems: u32,
    /// Completions of a problem in an evaluation.
    pub eval_samples: u32,
    /// Evaluate before the first step.
    pub eval_before: bool,
    /// Evaluate after the last step.
    pub eval_after: bool,
    /// Evaluate after every so many steps; 0: not between.
    pub eval_every: u64,
    /// Policy versions that may lie between sampling a token and training on it. 0: lock step.
    pub max_staleness: u64,
    /// Workers end what they sample before they take a new adapter; else they take it in between
    /// two tokens.
    pub drain: bool,
    /// How often a group whose completions are all rewarded alike gives way to another prompt's
    /// (DAPO's dynamic sampling); 0: never.
    pub max_resamples: u32,
    /// Silence after which a worker is lost.
    pub worker_timeout: Duration,
    /// Silence after which the learner is lost.
    pub learner_timeout: Duration,
    /// How long workers may take to load a new adapter before the run goes on without them.
    pub sync_deadline: Duration,
    /// How long the run may take until it can first sample, and later go without a worker that can
    /// sample or a learner that can train, when it needs one.
    pub start_timeout: Duration,
    /// How long a worker may have samples without getting on with them before idle workers are given
    /// the same: the first result counts.
    pub stall_timeout: Duration,
    /// How long a role may have work without getting on with it before its process is told to end.
    pub progress_timeout: Duration,
    /// Workers that the run starts itself; 0: others may be started by hand at any time.
    pub launched_workers: usize,
    /// Policies to evaluate in turn instead of training, the step of each its place here (`steps`
    /// is the last one's, and an evaluation is due after each); empty: a learner makes them.
    pub given: Vec<Version>,
    /// Largest difference between a worker's and the learner's log-probs of the probe, where
    /// their arithmetic differs (on a CPU with the same arithmetic it is 0).
    pub probe_tolerance: f32,
}

/// So many workers that fail at one sample end the run; where fewer are there, so many failures, when
/// each of them has failed more than once.
pub const MAX_SAMPLE_FAILURES: usize = 3;

/// What the journal knew when the run was resumed.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The versions of the steps done, from step 0 on; empty: a new run.
    pub versions: Vec<Version>,
    /// Steps after which the evaluation is done.
    pub evals: Vec<u64>,
    /// Completions of the rounds under way, ordered by group.
    pub completions: Vec<Arc<Scored>>,
    /// The base model's digest that the run began with.
    pub model_digest: Option<String>,
}

/// What happens to a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker's stream opened.
    WorkerHello {
        /// Its stream.
        session: Session,
        /// Who it says it is.
        hello: v1::WorkerHello,
    },
    /// Its model is loaded.
    WorkerReady {
        /// Its stream.
        session: Session,
        /// The model it loaded, and its slots.
        ready: v1::WorkerReady,
    },
    /// It loaded an adapter, or could not.
    AdapterLoaded {
        /// Its stream.
        session: Session,
        /// Which, and the probe's log-probs.
        loaded: v1::AdapterLoaded,
    },
    /// It lives.
    WorkerHeartbeat {
        /// Its stream.
        session: Session,
        /// Its load.
        heartbeat: v1::WorkerHeartbeat,
    },
    /// Its stream closed.
    WorkerLost {
        /// Its stream.
        session: Session,
        /// Why, for a person.
        reason: String,
    },
    /// A completion came; its sizes and numbers are checked.
    Completion {
        /// The worker's stream.
        session: Session,
        /// The completion.
        completion: v1::Completion,
    },
    /// Samples that a worker could not make, or that came malformed.
    SampleFailed {
        /// The worker's stream.
        session: Session,
        /// Which, and why.
        failed: v1::SampleFailed,
    },
    /// A completion has its verdicts.
    Scored(Arc<Scored>),
    /// Completions that are in the journal now: the very ones of `Record`.
    Recorded(Vec<Arc<Scored>>),
    /// A learner's stream opened.
    LearnerHello {
        /// Its stream.
        session: Session,
        /// Who it says it is.
        hello: v1::LearnerHello,
    },
    /// Its model is loaded and its adapter published.
    LearnerReady {
        /// Its stream.
        session: Session,
        /// What it holds.
        ready: Box<v1::LearnerReady>,
    },
    /// It lives.
    LearnerHeartbeat {
        /// Its stream.
        session: Session,
        /// What it is at.
        heartbeat: v1::LearnerHeartbeat,
    },
    /// It finished a step, and its adapter is published.
    StepResult {
        /// Its stream.
        session: Session,
        /// The new version and its metrics.
        result: Box<v1::StepResult>,
    },
    /// It refused a batch.
    BatchRefused {
        /// Its stream.
        session: Session,
        /// Which step's, and why.
        refused: v1::BatchRefused,
    },
    /// It can't go on.
    LearnerFailed {
        /// Its stream.
        session: Session,
        /// Why.
        error: String,
    },
    /// Its stream closed.
    LearnerLost {
        /// Its stream.
        session: Session,
        /// Why, for a person.
        reason: String,
    },
    /// Time went by.
    Tick,
    /// Hand out no prompts after this step.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Finish this step, then end.
    Stop,
}

impl Event {
    /// True for what comes again and again while all goes its way: none of it says that a worker has
    /// to load something, or that one came, left or stalls.
    pub(super) fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Completion { .. }
                | Self::Scored(_)
                | Self::Recorded(_)
                | Self::AdapterLoaded { .. }
                | Self::WorkerHeartbeat { .. }
                | Self::LearnerHeartbeat { .. }
        )
    }
}

/// Wall time of a step's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the step's begin to the last worker's acknowledgement of the policy version.
    pub sync: Duration,
    /// From the first prompt sent to the last completion in.
    pub sample: Duration,
    /// From the last completion in until all are scored and in the journal.
    pub score: Duration,
    /// From the batch sent to its result.
    pub learn: Duration,
    /// What the step added to the run's time: in lock step the sum of the above, else the time since
    /// the step before (or an evaluation in between) was done.
    pub total: Duration,
}

/// A step that is done.
#[derive(Clone, Debug)]
pub struct StepDone {
    /// The version it made.
    pub version: Version,
    /// The learner's own metrics.
    pub metrics: v1::StepMetrics,
    /// Where its time went.
    pub timings: Timings,
    /// Its batch: groups in order, completions in order.
    pub groups: Vec<Vec<Arc<Scored>>>,
    /// Tokens of its completions, those of groups that gave way to others included.
    pub tokens: u64,
    /// Groups without spread that gave way to others.
    pub resampled: u32,
    /// Groups of which completions were found too old, and sampled again.
    pub outdated: u32,
}

/// An evaluation that is done.
#[derive(Clone, Debug)]
pub struct EvalDone {
    /// The version it was made under.
    pub version: Version,
    /// Wall time from the first prompt to the last verdict.
    pub seconds: Duration,
    /// Problems in order, completions in order.
    pub groups: Vec<Vec<Arc<Scored>>>,
    /// Tokens of its completions.
    pub tokens: u64,
}

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Note a version that no step made: the one that the run starts from, or one that is given.
    RecordStart {
        /// Version 0, or a given one.
        version: Version,
        /// The base model's digest.
        model_digest: String,
    },
    /// Tell a worker to load an adapter.
    LoadAdapter {
        /// The worker's stream.
        session: Session,
        /// The adapter.
        version: Version,
    },
    /// Send samples of one group to a worker.
    Sample {
        /// The worker's stream.
        session: Session,
        /// The group.
        group: u64,
        /// Which of its samples.
        indices: Vec<u32>,
        /// The version to sample under.
        version: Version,
        /// Under no other: not under a newer one that the worker takes in meanwhile.
        exact: bool,
    },
    /// Tell a worker to forget samples.
    Cancel {
        /// The worker's stream.
        session: Session,
        /// The group.
        group: u64,
        /// Which of its samples.
        indices: Vec<u32>,
    },
    /// Tell a worker that a completion is in the journal.
    Ack {
        /// The worker's stream.
        session: Session,
        /// The completion.
        sample: SampleId,
    },
    /// Close a worker's stream.
    CloseWorker {
        /// The worker's stream.
        session: Session,
        /// Why.
        reason: String,
    },
    /// Close the learner's stream.
    CloseLearner {
        /// The learner's stream.
        session: Session,
        /// Why.
        reason: String,
    },
    /// Tell a worker's process to end: it is stuck.
    StopWorker {
        /// The worker's stream.
        session: Session,
        /// Why.
        reason: String,
    },
    /// Tell the learner's process to end: it is stuck.
    StopLearner {
        /// The learner's stream.
        session: Session,
        /// Why.
        reason: String,
    },
    /// Welcome a learner, which resumes from this version.
    WelcomeLearner {
        /// The learner's stream.
        session: Session,
        /// The newest version recorded; `None`: a new run.
        resume: Option<Version>,
    },
    /// Give a completion its verdicts.
    Score {
        /// Who sampled it.
        worker: Arc<str>,
        /// The completion.
        completion: v1::Completion,
    },
    /// Write a completion to the journal.
    Record(Arc<Scored>),
    /// Send the learner a batch.
    SendBatch {
        /// The learner's stream.
        session: Session,
        /// The version that the learner holds and trains.
        version: Version,
        /// Groups in order, completions in order.
        groups: Vec<Vec<Arc<Scored>>>,
    },
    /// Send the learner a batch out of the journal: its checkpoint is older than the journal.
    ReplayBatch {
        /// The learner's stream.
        session: Session,
        /// The version that the learner holds; the batch makes the next step.
        version: Version,
    },
    /// Note a step that is done.
    RecordStep(Box<StepDone>),
    /// Note an evaluation that is done.
    RecordEval(Box<EvalDone>),
    /// Forget everything after this version: the learner's adapter of that step is another one
    /// than the journal's (its arithmetic isn't deterministic), so what followed is void.
    Rollback {
        /// The version that holds now.
        version: Version,
    },
    /// Tell the log and the person something.
    Warn(String),
    /// The run is over.
    Finish {
        /// Before its last step.
        stopped_early: bool,
    },
    /// The run can't go on.
    Fail {
        /// Why, and what to do.
        reason: String,
    },
}
