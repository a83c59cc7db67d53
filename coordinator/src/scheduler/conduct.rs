//! How a worker behaves: one that keeps failing rests and is then tried with a single sample, and
//! what it brings unasked is not taken. So a broken or hostile worker wastes its own slots only.

use std::{sync::Arc, time::Duration};

use tina_proto::v1;

use super::{
    Scheduler,
    round::State,
    types::{Command, MAX_SAMPLE_FAILURES, RoundId, SampleId, Session},
};

/// Failures in a row after which a worker rests.
const FAILURES: u32 = 8;
/// Its first rest; it doubles with every further one that no good sample came before.
const REST: Duration = Duration::from_secs(2);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Times that a worker has to fail at a sample until nothing is expected of it, where there are too
/// few to ask [`MAX_SAMPLE_FAILURES`] of them.
const TRIES: u32 = 2;

/// What is known of a worker, over all its streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Conduct {
    /// Samples that it failed at since it last brought a good one.
    in_a_row: u32,
    /// Why, the last time.
    last_error: String,
    rests: u32,
    rest_until: Duration,
    /// Samples that it failed at in all.
    pub(super) failures: u32,
    /// Completions that it brought and nobody had asked it for.
    pub(super) unasked: u32,
    /// Completions that were taken because a coordinator before this one may have asked for them.
    claims: u32,
}

impl Conduct {
    fn failed(&mut self, error: &str, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        error.clone_into(&mut self.last_error);
        // Of many that fail at once the first eight count.
        if self.is_on_trial() && !self.rests(now) {
            let doubled = REST.saturating_mul(1 << self.rests.min(16));
            self.rest_until = now + doubled.min(LONGEST_REST);
            self.rests += 1;
        }
    }

    pub(super) fn brought_a_good_one(&mut self) {
        (self.in_a_row, self.rests, self.rest_until) = (0, 0, Duration::ZERO);
    }

    /// True while it gets nothing.
    pub(super) fn rests(&self, now: Duration) -> bool {
        now < self.rest_until
    }

    /// True while it gets no more than one sample at a time.
    pub(super) fn is_on_trial(&self) -> bool {
        self.in_a_row >= FAILURES
    }

    /// What a person should know of it.
    pub(super) fn trouble(&self) -> Option<String> {
        self.is_on_trial().then(|| {
            format!(
                "failing: {} samples in a row, the last: {}",
                self.in_a_row, self.last_error
            )
        })
    }
}

impl Scheduler {
    /// Whether this worker may have been asked for a completion before this process began: of a run
    /// that goes on, as many as it can have had (in its slots, and on their way).
    pub(super) fn claim(&mut self, session: Session) -> bool {
        let resumed = self.resumed;
        let Some(worker) = self.workers.get_mut(&session) else {
            return false;
        };
        let may = resumed && worker.conduct.claims < worker.slots.saturating_mul(2);
        worker.conduct.claims += u32::from(may);
        may
    }

    /// A completion came that nobody had asked this worker for.
    pub(super) fn refuse_unasked(
        &mut self,
        session: Session,
        id: SampleId,
        out: &mut Vec<Command>,
    ) {
        let Some(worker) = self.workers.get_mut(&session) else {
            return;
        };
        worker.conduct.unasked = worker.conduct.unasked.saturating_add(1);
        let (name, count) = (&worker.id, worker.conduct.unasked);
        // Who sends them without end is not named without end.
        if count.is_power_of_two() {
            let (round, group) = RoundId::of_group(id.group);
            out.push(Command::Warn(format!(
                "worker {name} brought sample {} of group {group} ({round:?}), which it was never asked \
                 for: not taken ({count} so far)",
                id.index
            )));
        }
    }

    pub(super) fn sample_failed(
        &mut self,
        session: Session,
        failed: &v1::SampleFailed,
        out: &mut Vec<Command>,
    ) {
        for &index in &failed.sample_indices {
            let id = SampleId {
                group: failed.group_id,
                index,
            };
            let now = self.now;
            let Some(worker) = self.heard_worker(session) else {
                return;
            };
            let name = worker.id.clone();
            if worker.in_flight.remove(&id).is_some() {
                worker.progress = now;
                self.free.insert(session);
                self.note_failure(id, session, &name, &failed.error, out);
            }
        }
    }

    /// A sample that a worker had in flight came to nothing: another tries. The run ends where none is
    /// left to.
    pub(super) fn note_failure(
        &mut self,
        id: SampleId,
        session: Session,
        worker: &Arc<str>,
        error: &str,
        out: &mut Vec<Command>,
    ) {
        let now = self.now;
        if let Some(worker) = self.workers.get_mut(&session) {
            worker.conduct.failed(error, now);
        }
        let (round_id, group) = RoundId::of_group(id.group);
        let Some(round) = self.round_of(id.group) else {
            return;
        };
        round.fail(id, worker, error);
        round.take_from(id, session);
        let sample = format!("sample {} of group {group} ({round_id:?})", id.index);
        if let Some(reasons) = self.hopeless(id) {
            return self.fail(format!("{sample} failed {reasons}"), out);
        }
        out.push(Command::Warn(format!(
            "{sample} failed at worker {worker}: {error}"
        )));
    }

    /// How often and why a sample failed, when nobody is left who may make it: several workers failed
    /// at it, or every one that is there, or may be back soon, did so again and again.
    fn hopeless(&self, id: SampleId) -> Option<String> {
        let round = self.rounds.get(&RoundId::of_group(id.group).0)?;
        if !matches!(round.state(id), Some(State::Pending)) {
            return None; // another is at it
        }
        let failures = round.failures(id);
        let times: u32 = failures.iter().map(|failure| failure.times).sum();
        let gave_up = |worker: &str| {
            let own = failures.iter().find(|failure| *failure.worker == *worker);
            own.is_some_and(|failure| failure.times >= TRIES)
        };
        let somebody_may = || {
            let patience = self.plan.start_timeout;
            let mut here = self.workers.values().filter(|w| w.refused.is_none());
            let mut back = self
                .lost
                .iter()
                .filter(|(_, lost)| self.now < lost.last_seen + patience);
            // They come one by one, and who is first decides nothing.
            let coming = self.now < self.plan.worker_timeout;
            coming || here.any(|w| !gave_up(&w.id)) || back.any(|(id, _)| !gave_up(id))
        };
        let several = failures.len() >= MAX_SAMPLE_FAILURES;
        if !several && (times < MAX_SAMPLE_FAILURES as u32 || somebody_may()) {
            return None;
        }
        let reasons: Vec<String> = failures
            .iter()
            .map(|failure| format!("worker {}: {}", failure.worker, failure.error))
            .collect();
        Some(format!("{times} times: {}", reasons.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{
        tests::{Bench, completion, plan, samples_for, version},
        types::{Event, Restored, versions},
    };

    fn fail(bench: &mut Bench, session: Session, index: u32) -> Vec<Command> {
        let failed = v1::SampleFailed {
            group_id: RoundId::train(1).group(0),
            sample_indices: vec![index],
            error: "no".into(),
        };
        bench.tell(Event::SampleFailed { session, failed }).to_vec()
    }

    fn bring(bench: &mut Bench, session: Session, group: u32, index: u32) -> Vec<Command> {
        let completion = completion(group, index, version(0));
        bench
            .tell(Event::Completion {
                session,
                completion,
            })
            .to_vec()
    }

    fn is_taken(said: &[Command]) -> bool {
        said.iter().any(|c| matches!(c, Command::Score { .. }))
    }

    fn warns_of(said: &[Command], words: &str) -> bool {
        said.iter()
            .any(|c| matches!(c, Command::Warn(text) if text.contains(words)))
    }

    #[test]
    fn a_completion_that_nobody_asked_a_worker_for_is_not_taken_and_the_worker_is_named() {
        let mut bench = Bench::with_workers(&[4, 4]);
        let said = bring(&mut bench, 0, 1, 2);
        assert!(
            !is_taken(&said) && warns_of(&said, "worker w0 brought sample 2"),
            "{said:?}"
        );
        assert!(
            said.iter()
                .any(|c| matches!(c, Command::Cancel { session: 0, .. }))
        );
        assert_eq!(bench.status("w0").unasked, 1);
        assert!(is_taken(&bring(&mut bench, 1, 1, 2)));
        // Who goes on is not named each time.
        assert!(warns_of(&bring(&mut bench, 0, 1, 3), "2 so far"));
        assert!(!warns_of(&bring(&mut bench, 0, 1, 3), "brought"));
        assert_eq!(bench.status("w0").unasked, 3);
    }

    #[test]
    fn what_a_worker_was_asked_for_before_it_dialled_anew_is_taken() {
        let mut bench = Bench::with_workers(&[4, 8]);
        let reason = "broken".to_owned();
        bench.tell(Event::WorkerLost { session: 0, reason });
        assert_eq!(samples_for(&bench.said, 1), 4, "others get them");
        bench.worker_joins_as("w0", 7, 4, "cpu-x");
        let said = bring(&mut bench, 7, 1, 3);
        assert!(is_taken(&said), "{said:?}");
        let other = |c: &Command| matches!(c, Command::Cancel { session: 1, .. });
        assert!(said.iter().any(other), "{said:?}");
    }

    #[test]
    fn of_a_run_that_goes_on_a_worker_may_bring_twice_as_many_as_it_has_slots() {
        let mut bench = Bench::new(plan());
        let restored = Restored {
            versions: vec![version(0)],
            ..Restored::default()
        };
        bench.scheduler = Scheduler::new(plan(), restored);
        bench.worker_joins(0, 1, "cpu-x");
        bench.worker_joins(1, 8, "cpu-x");
        bench.learner_joins();
        bench.loads(1, version(0), &[-1.0, -2.0]);
        bench.loads(0, version(0), &[-1.0, -2.0]);
        let taken = [0, 1, 2].map(|index| is_taken(&bring(&mut bench, 0, 0, index)));
        assert_eq!(taken, [true, true, false]);
    }

    #[test]
    fn one_worker_alone_does_not_end_the_run_while_another_may_come_back() {
        let mut bench = Bench::with_workers(&[1, 8]);
        bench.scheduler.plan.start_timeout = Duration::from_secs(600);
        bench.tell(Event::WorkerLost {
            session: 1,
            reason: "cut off".into(),
        });
        let mut said = Vec::new();
        for _ in 0..40 {
            said.extend(fail(&mut bench, 0, 0));
            said.extend(bench.beats(3, &[0], |second| second));
        }
        assert_eq!(Bench::failure(&said), None);
        let status = bench.status("w0");
        assert!(status.state.starts_with("failing"), "{status:?}");
        // It rests for longer each time.
        assert!((9..20).contains(&status.failures), "{status:?}");
        bench.worker_joins_as("w1", 2, 8, "cpu-x");
        let said = bench.loads(2, version(0), &[-1.0, -2.0]).to_vec();
        assert!(samples_for(&said, 2) > 0, "{said:?}");
    }

    #[test]
    fn a_worker_that_is_alone_ends_the_run_when_it_fails_at_a_sample_three_times() {
        let mut bench = Bench::with_workers(&[8]);
        bench.now += 2 * plan().worker_timeout;
        for _ in 0..2 {
            let said = fail(&mut bench, 0, 0);
            assert_eq!(Bench::failure(&said), None);
            assert_eq!(samples_for(&said, 0), 1);
        }
        let said = fail(&mut bench, 0, 0);
        let reason = Bench::failure(&said).unwrap();
        assert!(reason.contains("sample 0 of group 0") && reason.contains("worker w0: no"));
    }

    #[test]
    fn three_workers_that_fail_at_one_sample_end_the_run() {
        let mut bench = Bench::with_workers(&[8, 8, 8, 8]);
        let mut said = Vec::new();
        for _ in 0..3 {
            let mut asked = bench.scheduler.workers.values();
            let id = SampleId {
                group: RoundId::train(1).group(0),
                index: 0,
            };
            let session = asked.find(|w| w.in_flight.contains_key(&id));
            let session = session.unwrap().session;
            said = fail(&mut bench, session, 0);
        }
        assert!(Bench::failure(&said).unwrap().contains("failed 3 times"));
    }

    #[test]
    fn samples_of_one_that_only_says_that_it_gets_on_go_to_idle_workers_too() {
        let mut bench = Bench::with_workers(&[4, 8]);
        bench.beats(1, &[0, 1], |second| second);
        for index in 0..4 {
            assert!(is_taken(&bring(&mut bench, 1, 0, index)));
        }
        let mut tokens = 100;
        let mut hedged = Vec::new();
        for _ in 0..25 {
            tokens += 100;
            hedged.extend(bench.beats(1, &[0, 1], |_| tokens));
        }
        assert_eq!(samples_for(&hedged, 1), 4, "{hedged:?}");
    }

    #[test]
    fn versions_that_go_back_make_no_sense() {
        let mut back = completion(0, 0, version(2));
        back.tokens = vec![1, 2];
        back.logprobs = vec![0.0; 2];
        let span = |start, step| v1::VersionSpan {
            start,
            version: Some(version(step).to_wire()),
        };
        back.versions = vec![span(0, 2), span(1, 3)];
        assert_eq!(versions(&back), Some(vec![version(2), version(3)]));
        for (first, then) in [(2, 1), (2, 2)] {
            back.versions = vec![span(0, first), span(1, then)];
            assert_eq!(versions(&back), None);
        }
    }

    #[test]
    fn a_worker_that_keeps_failing_rests_ever_longer_and_one_good_sample_clears_it() {
        let mut conduct = Conduct::default();
        let mut now = Duration::from_secs(100);
        (1..FAILURES).for_each(|_| conduct.failed("no", now));
        assert!(!conduct.rests(now) && !conduct.is_on_trial());
        // All that were in flight fail at once: one rest.
        (0..50).for_each(|_| conduct.failed("out of memory", now));
        assert!(conduct.rests(now) && conduct.rests(now + REST / 2));
        assert!(conduct.trouble().unwrap().contains("out of memory"));
        now += REST;
        assert!(!conduct.rests(now) && conduct.is_on_trial());
        conduct.failed("no", now);
        assert!(conduct.rests(now + REST) && !conduct.rests(now + 2 * REST));
        for _ in 0..40 {
            now = conduct.rest_until;
            conduct.failed("no", now);
        }
        assert_eq!(conduct.rest_until, now + LONGEST_REST);
        conduct.brought_a_good_one();
        assert!(!conduct.rests(now) && !conduct.is_on_trial());
        assert_eq!(conduct.trouble(), None);
    }
}
