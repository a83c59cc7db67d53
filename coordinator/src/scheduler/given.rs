//! Policies that are given up front: an evaluation by itself has no learner that makes them. Each
//! is taken up in turn, and what follows is as in any run: workers load it, then it is evaluated.

use super::{
    Scheduler,
    types::{Command, Session},
};

impl Scheduler {
    /// True when the policies are given, and no learner is needed.
    pub(super) fn has_given(&self) -> bool {
        !self.plan.given.is_empty()
    }

    /// True when all given policies are evaluated.
    pub(super) fn given_are_done(&self) -> bool {
        self.has_given() && self.next_given().is_none()
    }

    /// The place of the first given policy that isn't evaluated.
    fn next_given(&self) -> Option<usize> {
        let mut places = 0..self.plan.given.len();
        places.find(|place| !self.evals.contains(&(*place as u64)))
    }

    /// Takes up the next given policy, when the one before is evaluated and a worker said which
    /// model it has. False when nothing changed.
    pub(super) fn take_given(&mut self, out: &mut Vec<Command>) -> bool {
        let Some(place) = self.next_given() else {
            return false;
        };
        let version = self.plan.given[place];
        if self.policy() == Some(version) {
            return false;
        }
        let Some(model_digest) = self.model_digest.clone() else {
            return false;
        };
        match self.history.get(place) {
            Some(recorded) if *recorded != version => {
                let reason = format!(
                    "the journal has {recorded} where {version} is to be evaluated: it is of \
                     other adapters"
                );
                self.fail(reason, out);
                return false;
            }
            Some(_) => {}
            None => {
                self.history.push(version);
                out.push(Command::RecordStart {
                    version,
                    model_digest,
                });
            }
        }
        self.adopt(version, None);
        true
    }

    /// Turns a learner away that dials into an evaluation.
    pub(super) fn decline_learner(session: Session, out: &mut Vec<Command>) {
        let reason = "this is an evaluation: nothing is trained, no learner is needed".to_owned();
        out.push(Command::StopLearner { session, reason });
    }
}
