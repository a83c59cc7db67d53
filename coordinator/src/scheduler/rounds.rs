//! The rounds that are open: when each may begin, what comes in for it, when it is over.
//!
//! A step's batch is the round of its prompts, known before any is sampled, so every prompt is
//! trained on exactly once however workers and learner hurry or tarry. With `max_staleness = n` the
//! rounds of up to n further steps are sampled while the learner trains: with v steps done those of
//! steps up to v + 1 + n, which is AReaL's bound on what may be started, (n + v + 1) batches
//! (arXiv 2505.24298, equation 3). As the round of step s opens with version s - 1 - n at the
//! earliest and admits no older one, no token is older than n versions when it is trained on.

use std::{sync::Arc, time::Duration};

use super::{
    Scheduler,
    learning::Learning,
    round::{Admits, Restore, Round, Shape, State},
    types::{Command, EvalDone, Purpose, RoundId, Scored, Timings},
};

impl Scheduler {
    /// True when a held-out evaluation of the newest version has to come before the next step.
    pub(super) fn eval_is_due(&self) -> bool {
        let (plan, done) = (&self.plan, self.steps_done());
        let due = (done == 0 && plan.eval_before)
            || (done == plan.steps && plan.eval_after)
            || (plan.eval_every > 0
                && done > 0
                && done < plan.steps
                && done.is_multiple_of(plan.eval_every));
        plan.eval_problems > 0 && due && !self.evals.contains(&done)
    }

    /// The round that comes next, or `None` when all are done or open.
    pub(super) fn next_round(&self) -> Option<RoundId> {
        let done = self.steps_done();
        let eval = RoundId::eval(done);
        if self.eval_is_due() && self.learning.is_none() && !self.rounds.contains_key(&eval) {
            return Some(eval);
        }
        let mut newest = self.rounds.keys().rev();
        let open = newest.find(|id| id.purpose() == Purpose::Train);
        let learning = self.learning.as_ref().map(|learning| learning.step);
        let begun = done.max(learning.unwrap_or(0));
        let next = open.map_or(begun, |id| id.step().max(begun)) + 1;
        (next <= self.plan.steps && !self.has_given()).then(|| RoundId::train(next))
    }

    /// Staleness decides: a step may be sampled when the policy version at hand is recent enough.
    /// In lock step, and for an evaluation, the workers are awaited that load it.
    fn may_open(&self, id: RoundId) -> bool {
        if self.paused || self.stop_after.is_some() {
            return false;
        }
        let staleness = id.base_step().saturating_sub(self.steps_done());
        let in_turn = match (id.purpose(), self.plan.max_staleness) {
            (Purpose::Eval, _) => self.synced_at.is_some(),
            (Purpose::Train, 0) => self.synced_at.is_some() && !self.eval_is_due(),
            (Purpose::Train, _) => true,
        };
        in_turn && staleness <= self.plan.max_staleness
    }

    /// What the round has in samples, and which versions may make them.
    fn frame(&self, id: RoundId) -> Option<(Admits, Shape)> {
        let (plan, version) = (&self.plan, self.policy.as_ref()?.version);
        Some(match id.purpose() {
            Purpose::Eval => {
                let shape = Shape {
                    groups: plan.eval_problems,
                    per_group: plan.eval_samples,
                    max_resamples: 0,
                };
                (Admits::Exactly(version), shape)
            }
            Purpose::Train => {
                let shape = Shape {
                    groups: plan.groups_per_step,
                    per_group: plan.samples_per_group,
                    max_resamples: plan.max_resamples,
                };
                let admits = match plan.max_staleness {
                    0 => Admits::Exactly(self.history.get(id.base_step() as usize).copied()?),
                    n => Admits::Since(id.base_step().saturating_sub(n)),
                };
                (admits, shape)
            }
        })
    }

    /// Opens the rounds that may be sampled now.
    pub(super) fn open_rounds(&mut self, out: &mut Vec<Command>) {
        while let Some(id) = self.next_round().filter(|&id| self.may_open(id)) {
            let Some(round) = self.begin_round(id) else {
                break;
            };
            self.rounds.insert(id, round);
            if !std::mem::replace(&mut self.begun, true) {
                self.step_since = self.now;
            }
        }
        if !self.rounds.is_empty() {
            for (session, completion) in std::mem::take(&mut self.early) {
                self.take_completion(session, completion, true, out);
            }
        }
    }

    /// A round with what the journal has of it.
    pub(super) fn begin_round(&mut self, id: RoundId) -> Option<Round> {
        let (admits, shape) = self.frame(id)?;
        let mut round = Round::new(id, admits, shape, self.now);
        let (history, now) = (&self.history, self.now);
        self.restored
            .retain(|scored| round.restore(scored, history, now) == Restore::Foreign);
        Some(round)
    }

    /// Closes rounds that are complete: an evaluation is noted, the batch of the next step goes to
    /// the learner once that has none and nothing is to be evaluated before. False when none was.
    pub(super) fn close_rounds(&mut self, out: &mut Vec<Command>) -> bool {
        let next = RoundId::train(self.steps_done() + 1);
        let may_learn = self.learning.is_none() && !self.eval_is_due();
        let over = self.rounds.values().find(|round| {
            round.is_complete()
                && (round.id.purpose() == Purpose::Eval || round.id == next && may_learn)
        });
        let Some(round) = over
            .map(|round| round.id)
            .and_then(|id| self.rounds.remove(&id))
        else {
            return false;
        };
        self.tokens_sampled += round.tokens;
        if !round.slowest.is_zero() {
            self.slowest = round.slowest;
        }
        match (round.id.purpose(), round.admits) {
            (Purpose::Eval, Admits::Exactly(version)) => {
                self.evals.insert(round.id.step());
                self.step_since = self.now;
                out.push(Command::RecordEval(Box::new(EvalDone {
                    version,
                    seconds: self.now - round.opened,
                    groups: round.batch(),
                    tokens: round.tokens,
                })));
            }
            _ => {
                let completed = round.completed.unwrap_or(self.now);
                let timings = Timings {
                    sync: match self.synced_at {
                        Some(at) if self.plan.max_staleness == 0 => at - self.sync_since,
                        _ => Duration::ZERO,
                    },
                    sample: round.last_arrival - round.opened,
                    score: completed - round.last_arrival,
                    ..Timings::default()
                };
                self.learning = Some(Learning::new(round, timings, self.now));
            }
        }
        true
    }

    /// The round that a group is of, if it is open.
    pub(super) fn round_of(&mut self, group: u64) -> Option<&mut Round> {
        self.rounds.get_mut(&RoundId::of_group(group).0)
    }

    pub(super) fn scored(&mut self, scored: Arc<Scored>, out: &mut Vec<Command>) {
        let round = RoundId::of_group(scored.completion.group_id).0;
        if let Some(round) = self.rounds.get_mut(&round)
            && round.admits.admits(&scored.completion, &self.history)
            && round.scored(&scored)
        {
            out.push(Command::Record(scored));
        }
    }

    pub(super) fn recorded(&mut self, all: &[Arc<Scored>], out: &mut Vec<Command>) {
        let now = self.now;
        for scored in all {
            let sample = scored.id();
            let Some(round) = self.round_of(sample.group) else {
                continue;
            };
            if matches!(round.state(sample), Some(State::Arrived)) {
                for session in round.recorded(scored, now) {
                    if self.workers.contains_key(&session) {
                        out.push(Command::Ack { session, sample });
                    }
                }
            }
        }
    }

    /// True when every completion of this round is in the journal.
    pub(super) fn is_recorded(&self, id: RoundId) -> bool {
        match id.purpose() {
            Purpose::Train => {
                id.step() <= self.steps_done()
                    || self.learning.as_ref().is_some_and(|l| l.step == id.step())
            }
            Purpose::Eval => self.evals.contains(&id.step()),
        }
    }

    /// True when samples wait for a worker.
    pub(super) fn has_pending(&self) -> bool {
        self.rounds.values().any(Round::has_pending)
    }

    /// From now on no round is begun, and the run ends with the step that is under way.
    pub(super) fn stop(&mut self) {
        let open = self.rounds.keys().any(|id| id.purpose() == Purpose::Train);
        let under_way = u64::from(open || self.learning.is_some());
        self.stop_after.get_or_insert(self.steps_done() + under_way);
    }

    /// True when a stop was asked for, and the step that was under way then is done.
    pub(super) fn has_stopped(&self) -> bool {
        self.stop_after
            .is_some_and(|last| self.steps_done() >= last)
            && self.learning.is_none()
    }
}
