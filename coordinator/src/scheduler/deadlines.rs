//! What doesn't come, what falls silent, and what lives without getting on.

use super::{
    Scheduler,
    types::{Command, Session},
};

impl Scheduler {
    pub(super) fn check_deadlines(&mut self, out: &mut Vec<Command>) {
        self.check_missing(out);
        if self.over.is_some() {
            return;
        }
        let silent: Vec<Session> = self
            .workers
            .values()
            .filter(|worker| self.now > worker.last_seen + self.plan.worker_timeout)
            .map(|worker| worker.session)
            .collect();
        for session in silent {
            let reason = format!("silent for {:.1} s", self.plan.worker_timeout.as_secs_f64());
            out.push(Command::CloseWorker {
                session,
                reason: reason.clone(),
            });
            self.worker_lost(session, &reason);
        }
        if let Some(learner) = &self.learner
            && self.now > learner.last_seen + self.plan.learner_timeout
        {
            let session = learner.session;
            let reason = format!(
                "silent for {:.1} s",
                self.plan.learner_timeout.as_secs_f64()
            );
            out.push(Command::CloseLearner { session, reason });
            self.learner_lost(session);
        }
        // After the silent ones: those may come back as they are, these are to end.
        self.stop_stuck_workers(out);
        self.stop_stuck_learner(out);
    }

    /// Ends a run that can't go on without a worker or a learner that doesn't come.
    fn check_missing(&mut self, out: &mut Vec<Command>) {
        let missing = self.missing();
        if missing.is_none() || self.paused {
            self.missing_since = None;
        }
        if self.paused {
            return;
        }
        let patience = self.plan.start_timeout;
        let seconds = patience.as_secs_f64();
        if !self.begun && self.now > patience {
            let reason = format!(
                "the run could not begin within {seconds:.0} s (cluster.start_timeout_s): {}",
                missing.unwrap_or_default()
            );
            return self.fail(reason, out);
        }
        let Some(missing) = missing else { return };
        let since = *self.missing_since.get_or_insert(self.now);
        if self.now > since + patience {
            let reason = format!(
                "the run stood still for {seconds:.0} s (cluster.start_timeout_s): {missing}"
            );
            self.fail(reason, out);
        } else if let Some(reason) = self.all_refused() {
            self.fail(reason, out);
        }
    }

    /// Heartbeats come from beside the engine: a worker that lives may be stuck all the same. Its
    /// samples go to others, and its process is told to end.
    fn stop_stuck_workers(&mut self, out: &mut Vec<Command>) {
        let (now, patience) = (self.now, self.plan.progress_timeout);
        let policy = self.policy.as_ref().map(|policy| policy.version);
        let mut stuck = Vec::new();
        for worker in self.workers.values_mut() {
            if !worker.has_work(policy) {
                worker.progress = now;
            } else if now > worker.progress + patience {
                let what = match worker.in_flight.len() {
                    0 => "loading an adapter".to_owned(),
                    count => format!("{count} samples in flight"),
                };
                stuck.push((worker.session, worker.id.clone(), what));
            }
        }
        for (session, id, what) in stuck {
            let seconds = patience.as_secs_f64();
            let reason =
                format!("stuck: no progress for {seconds} s (cluster.progress_timeout_s), {what}");
            out.push(Command::Warn(format!(
                "worker {id} is told to end; {reason}"
            )));
            self.worker_lost(session, &reason);
            out.push(Command::StopWorker { session, reason });
        }
    }

    /// Why nobody can sample, when every worker that the run started is there and all that are
    /// there are refused: waiting, or starting them anew, would change nothing.
    fn all_refused(&self) -> Option<String> {
        let launched = self.plan.launched_workers;
        if launched == 0 || self.workers.len() < launched {
            return None;
        }
        let reasons: Option<Vec<String>> = self
            .workers
            .values()
            .map(|worker| Some(format!("{}: {}", worker.id, worker.refused.as_ref()?)))
            .collect();
        reasons.map(|reasons| format!("all workers are refused; {}", reasons.join("; ")))
    }

    /// Heartbeats come from beside the learner's work: one that lives may be stuck all the same.
    fn stop_stuck_learner(&mut self, out: &mut Vec<Command>) {
        let (now, patience) = (self.now, self.plan.progress_timeout);
        let Some(learner) = &mut self.learner else {
            return;
        };
        if !learner.busy {
            learner.progress = now;
        } else if now > learner.progress + patience {
            let (session, seconds) = (learner.session, patience.as_secs_f64());
            let reason = format!(
                "stuck: no progress with its batch for {seconds} s (cluster.progress_timeout_s)"
            );
            out.push(Command::Warn(format!(
                "the learner is told to end; {reason}"
            )));
            out.push(Command::StopLearner { session, reason });
            self.learner_lost(session);
        }
    }
}
