//! What the scheduler commands, done: onto the wire, into the journal, to the scorer.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use tina_proto::v1::{self, LearnerCommand, WorkerCommand, learner_command, worker_command};

use super::{
    RunEvent, best_step, prompts,
    shell::{Note, Outcome, Shell},
};
use crate::{
    data::Prompt,
    journal::Write,
    scheduler::types::{Command, Event, RoundId, Scored, Session, Version, versions},
    scoring::Unscored,
    status::{eval_record, step_record},
};

/// Tells a worker's process to end.
pub(super) fn stop_worker(reason: String) -> WorkerCommand {
    let stop = v1::WorkerStop { reason };
    WorkerCommand {
        command: Some(worker_command::Command::Stop(stop)),
    }
}

/// Tells the learner's process to end.
pub(super) fn stop_learner(reason: String) -> LearnerCommand {
    let stop = v1::LearnerStop { reason };
    LearnerCommand {
        command: Some(learner_command::Command::Stop(stop)),
    }
}

impl Shell {
    /// Sends a worker a command; if that can't be, what follows.
    pub(super) fn command(
        &mut self,
        session: Session,
        command: worker_command::Command,
    ) -> Option<Event> {
        let outbox = self.workers.get(&session)?;
        if outbox.send(WorkerCommand {
            command: Some(command),
        }) {
            return None;
        }
        let reason = "it doesn't read its commands".to_owned();
        if let Some(outbox) = self.workers.remove(&session) {
            outbox.close(&reason);
        }
        Some(Event::WorkerLost { session, reason })
    }

    pub(super) fn tell_learner(
        &mut self,
        session: Session,
        commands: impl IntoIterator<Item = learner_command::Command>,
    ) -> Option<Event> {
        let outbox = self.learners.get(&session)?;
        let sent = commands.into_iter().all(|command| {
            outbox.send(LearnerCommand {
                command: Some(command),
            })
        });
        if sent {
            return None;
        }
        let reason = "it doesn't read its commands".to_owned();
        if let Some(outbox) = self.learners.remove(&session) {
            outbox.close(&reason);
        }
        Some(Event::LearnerLost { session, reason })
    }

    pub(super) fn obey(&mut self, command: Command, follow: &mut VecDeque<Event>) {
        match command {
            Command::RecordStart {
                version,
                model_digest,
            } => {
                self.parts.journal.write(Write::Start {
                    version,
                    model_digest,
                });
            }
            Command::LoadAdapter { session, version } => {
                let held = self.parts.shared.adapters.get(&version.digest);
                let bytes = held.map_or(0, |(_, bytes)| bytes.len() as u64);
                let route = self.relays.route(session, version);
                let checks = route.checked.then(|| {
                    let checks = self.parts.shared.adapters.checks(&version.digest);
                    checks.map(|checks| checks.to_wire())
                });
                let load = v1::LoadAdapter {
                    version: Some(version.to_wire()),
                    bytes,
                    nccl: self.broadcasts.place(session, version),
                    sources: route.sources,
                    checks: checks.flatten(),
                    depth: route.depth,
                };
                follow.extend(self.command(session, worker_command::Command::LoadAdapter(load)));
            }
            Command::Sample {
                session,
                group,
                indices,
                version,
                exact,
            } => {
                follow.extend(self.send_sample(session, group, indices, version, exact));
            }
            Command::Cancel {
                session,
                group,
                indices,
            } => {
                let cancel = v1::Cancel {
                    group_id: group,
                    sample_indices: indices,
                };
                follow.extend(self.command(session, worker_command::Command::Cancel(cancel)));
            }
            Command::Ack { session, sample } => {
                let ack = v1::CompletionAck {
                    group_id: sample.group,
                    sample_index: sample.index,
                };
                follow.extend(self.command(session, worker_command::Command::CompletionAck(ack)));
            }
            Command::CloseWorker { session, reason } => {
                if let Some(outbox) = self.workers.remove(&session) {
                    outbox.close(&reason);
                }
            }
            Command::CloseLearner { session, reason } => {
                if let Some(outbox) = self.learners.remove(&session) {
                    outbox.close(&reason);
                }
            }
            Command::StopWorker { session, reason } => {
                if let Some(outbox) = self.workers.remove(&session) {
                    outbox.finish(stop_worker(reason));
                }
            }
            Command::StopLearner { session, reason } => {
                if let Some(outbox) = self.learners.remove(&session) {
                    outbox.finish(stop_learner(reason));
                }
            }
            Command::WelcomeLearner { session, resume } => {
                let welcome = v1::LearnerWelcome {
                    spec: Some(self.parts.shared.spec.clone()),
                    resume: resume.map(Version::to_wire),
                    heartbeat_ms: self.parts.shared.heartbeat_ms,
                };
                let welcome = learner_command::Command::Welcome(welcome);
                follow.extend(self.tell_learner(session, [welcome]));
            }
            Command::Score { worker, completion } => self.unscored.push((worker, completion)),
            Command::Record(scored) => self.parts.journal.write(Write::Completion(scored)),
            Command::SendBatch {
                session,
                version,
                groups,
            } => {
                let groups = self.finish(groups);
                follow.extend(self.send_batch(session, version, &groups));
            }
            Command::ReplayBatch { session, version } => {
                let (journal, notes) = (self.parts.journal.clone(), self.parts.notes.clone());
                tokio::spawn(async move {
                    let batch = journal.batch(RoundId::train(version.step + 1)).await;
                    let _ = notes.send(match batch {
                        Ok(batch) => Note::Replay(session, version, batch),
                        Err(error) => Note::Failed(error.to_string()),
                    });
                });
            }
            Command::RecordStep(mut done) => {
                done.groups = self.finish(std::mem::take(&mut done.groups));
                self.tokens_sampled += done.tokens;
                self.tokens_trained += done.metrics.tokens_trained;
                let counters = self.counters();
                let before = std::mem::replace(&mut self.at_last_step, counters);
                let record = step_record(&done, &before, &counters, self.cost(&counters));
                self.parts.history.step(record.clone());
                let record = Box::new(record);
                self.tell(RunEvent::Step(record.clone()));
                self.parts.journal.write(Write::Step { record, counters });
            }
            Command::RecordEval(mut done) => {
                done.groups = self.finish(std::mem::take(&mut done.groups));
                self.tokens_sampled += done.tokens;
                let reward = self.parts.config.eval.reward.as_deref().unwrap_or_default();
                let (mut record, counters) = (eval_record(&done, reward), self.counters());
                if !self.parts.given.is_empty() {
                    // All there is to do: loading and earlier starts are part of its price.
                    let others = self.parts.history.evals.iter();
                    let before: f64 = others.map(|record| record.seconds).sum();
                    record.seconds = (counters.elapsed.as_secs_f64() - before).max(0.0);
                }
                self.parts.history.eval(record.clone());
                self.parts.journal.write(Write::Eval {
                    record: record.clone(),
                    counters,
                });
                if let Some(step) = best_step(&self.parts.history.evals)
                    && let Some(shelf) = &self.parts.shelf
                {
                    shelf.best(step);
                }
                self.tell(RunEvent::Eval(record));
            }
            Command::Rollback { version } => {
                self.parts.journal.write(Write::Rollback(version));
                self.parts.history.roll_back(version.step);
                self.parts.prompts.roll_back(version.step);
                let best = best_step(&self.parts.history.evals);
                if let Some(shelf) = &self.parts.shelf {
                    shelf.roll_back(version.step, best);
                }
            }
            Command::Warn(text) => self.warn(text),
            Command::Finish { stopped_early } => {
                self.outcome = Some(Outcome::Finished { stopped_early });
            }
            Command::Fail { reason } => self.outcome = Some(Outcome::Failed(reason)),
        }
    }

    /// Verdicts that depend on the whole group, given and journaled. What was found of each
    /// completion alone is in the journal since it was acknowledged, so a run that is resumed comes
    /// to the same.
    pub(super) fn finish(&self, groups: Vec<Vec<Arc<Scored>>>) -> Vec<Vec<Arc<Scored>>> {
        let (groups, finished) = self.parts.scorer.finish_round(groups);
        if !finished.is_empty() {
            self.parts.journal.write(Write::Rewards(finished));
        }
        groups
    }

    pub(super) fn warn(&self, text: String) {
        // Whoever hears the note shows it; as a warning it would stand on standard error twice.
        tracing::info!("warning: {text}");
        self.tell(RunEvent::Note(text));
    }

    pub(super) fn tell(&self, event: RunEvent) {
        let _ = self.parts.events.send(event); // nobody has to listen
    }

    /// A group's prompt; where it is the first of its round that is asked for, all of the round's are
    /// journaled.
    pub(super) fn prompt(&mut self, group: u64) -> Option<Arc<Prompt>> {
        let (prompt, fresh) = self.parts.prompts.of(group);
        if !fresh.is_empty() {
            self.parts.journal.write(Write::Prompts(fresh));
        }
        prompt
    }

    pub(super) fn send_sample(
        &mut self,
        session: Session,
        group: u64,
        indices: Vec<u32>,
        version: Version,
        exact: bool,
    ) -> Option<Event> {
        let (round, index) = RoundId::of_group(group);
        let Some(prompt) = self.prompt(group) else {
            self.fail(format!("{round:?} has no prompt {index}"));
            return None;
        };
        let sample = v1::Sample {
            group_id: group,
            prompt_tokens: prompt.tokens.clone(),
            sample_indices: indices,
            prompt_key: prompts::key(group, &prompt),
            params: Some(self.parts.prompts.params(round).clone()),
            version: Some(version.to_wire()),
            exact,
        };
        self.command(session, worker_command::Command::Sample(sample))
    }

    pub(super) fn send_batch(
        &mut self,
        session: Session,
        version: Version,
        groups: &[Vec<Arc<Scored>>],
    ) -> Option<Event> {
        let step = version.step + 1;
        let round = RoundId::train(step);
        let sampled_by = groups
            .iter()
            .flatten()
            .filter_map(|scored| versions(&scored.completion));
        let known: BTreeSet<Version> = sampled_by.flatten().collect();
        let begin = v1::BeginStep {
            version: Some(version.to_wire()),
            groups: groups.len() as u32,
            known: known.into_iter().map(Version::to_wire).collect(),
        };
        let params = self.parts.prompts.params(round).clone();
        let group = |group: &Vec<Arc<Scored>>| {
            let group_id = group.first().map_or(0, |scored| scored.completion.group_id);
            let prompt = self.prompt(group_id);
            let completion = |scored: &Arc<Scored>| v1::TrainingCompletion {
                completion: Some(scored.completion.clone()),
                reward: scored.reward,
                judged: scored.judged,
            };
            learner_command::Command::Group(v1::TrainingGroup {
                group_id,
                prompt_tokens: prompt.map_or_else(Vec::new, |prompt| prompt.tokens.clone()),
                completions: group.iter().map(completion).collect(),
                params: Some(params.clone()),
            })
        };
        let commands: Vec<_> = std::iter::once(learner_command::Command::BeginStep(begin))
            .chain(groups.iter().map(group))
            .chain([learner_command::Command::EndStep(v1::EndStep { step })])
            .collect();
        self.tell_learner(session, commands)
    }

    /// Scores what waits, beside the loop.
    pub(super) fn score(&mut self) {
        if self.unscored.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.unscored);
        let waiting: Vec<Unscored> = waiting
            .into_iter()
            .map(|(worker, completion)| {
                let prompt = self.prompt(completion.group_id);
                let (gold, prompt) = prompt
                    .map(|prompt| (prompt.gold.clone(), prompt.text.clone()))
                    .unwrap_or_default();
                Unscored {
                    worker,
                    completion,
                    gold,
                    prompt,
                }
            })
            .collect();
        let (scorer, notes) = (self.parts.scorer.clone(), self.parts.notes.clone());
        let (tokenizer, busy) = (self.parts.tokenizer.clone(), self.busy_elsewhere.clone());
        tokio::spawn(async move {
            let done = |all| drop(notes.send(Note::Scored(all)));
            if let Err(error) = scorer.score(tokenizer, waiting, &busy, done).await {
                let _ = notes.send(Note::Failed(error.to_string()));
            }
        });
    }

    /// Puts the policy's adapter on disk when it is new.
    pub(super) fn save_adapter(&mut self) {
        let policy = self.parts.scheduler.policy();
        if let Some(version) = policy.filter(|version| version.step > 0)
            && self.saved != policy
            && let Some(shelf) = &self.parts.shelf
            && let Some((_, bytes)) = self.parts.shared.adapters.get(&version.digest)
        {
            shelf.save(version.step, bytes);
            self.saved = policy;
        }
    }
}
