//! From a completion to its rewards: bounded work on text, and programs of the user's under a
//! deadline.
//!
//! - [`Scorer`]: all rewards of a config. [`Scorer::judge`] looks at completions one by one;
//!   [`Scorer::finish`] gives what depends on the whole group, once it is complete.
//! - [`external`]: programs that score.

pub mod external;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    future::join_all,
    stream::{self, StreamExt as _, TryStreamExt as _},
};
use serde_json::{Value, json};
use tina_model::Tokenizer;
use tina_proto::{platform, v1};
use tina_reward::{Completion, Finding, Known, Needs, Reward, RewardError, Share, Tokens, Verdict};

use self::external::{External, ExternalSpec, GaveUp};
use crate::{
    config::{NotJudged, RewardSection, RunConfig},
    scheduler::types::{RewardValue, Scored},
};

/// How long an external reward may take over a completion, where the config doesn't say, in s.
const TIMEOUT_S: f64 = 10.0;

/// Completions that wait for programs at a time, of those that are at hand all at once.
const AT_ONCE: usize = 512;

/// What a completion's tokens are known by; owned [`Tokens`].
#[derive(Clone, Debug, PartialEq)]
pub enum TokensOf {
    /// Nothing.
    Unknown,
    /// How many there are.
    Count(usize),
    /// The tokens themselves.
    Ids(Vec<u32>),
}

impl TokensOf {
    /// As the reward crate takes them.
    pub fn borrow(&self) -> Tokens<'_> {
        match self {
            Self::Unknown => Tokens::Unknown,
            Self::Count(count) => Tokens::Count(*count),
            Self::Ids(ids) => Tokens::Ids(ids),
        }
    }
}

/// A completion to be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Its text, special tokens left out; or why its tokens are no text.
    pub text: Result<String, String>,
    /// Its tokens.
    pub tokens: TokensOf,
    /// The problem's answer.
    pub gold: String,
    /// The whole text that the model was to continue; empty: not known.
    pub prompt: String,
    /// It was cut off by the token limit.
    pub truncated: bool,
}

impl Work {
    /// What an external reward is told of it.
    fn request(&self) -> Value {
        json!({
            "completion": self.text.as_deref().unwrap_or(""),
            "gold": self.gold,
            "prompt": self.prompt,
            "tokens": self.tokens.borrow().count(),
            "truncated": self.truncated,
        })
    }
}

/// What all rewards say of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Each reward, in the config's order.
    pub rewards: Vec<RewardValue>,
    /// Why a reward could not judge it, by the reward's name.
    pub reasons: Vec<(Arc<str>, String)>,
}

/// A completion's rewards taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// The weighted sum.
    pub reward: f64,
    /// False: a reward whose word counts could not judge it, so it takes no part in its group.
    pub judged: bool,
    /// Right, as evaluation counts it.
    pub correct: bool,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    weight: f64,
    not_judged: NotJudged,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Own(Reward),
    Program(External),
}

/// Gives completions their verdicts.
#[derive(Clone, Debug)]
pub struct Scorer {
    rules: Arc<[Rule]>,
    eval: usize,
}

impl Scorer {
    /// The rewards of a config. Programs are started at once, so this needs a Tokio runtime; what
    /// they write to standard error goes to `reward-N.log` in the folder `logs` (N from 0, as the config counts), or to this
    /// program's own.
    ///
    /// # Errors
    /// A reward that can't be made; [`RunConfig::load`] refuses it before.
    pub fn start(config: &RunConfig, logs: Option<&Path>) -> Result<Self, RewardError> {
        let rule = |(at, section): (usize, &RewardSection)| {
            let source = match section.spec() {
                Some(kind) => Source::Own(Reward::new(&kind)?),
                None => Source::Program(External::start(ExternalSpec {
                    name: section.name().to_owned(),
                    command: section.command.clone().unwrap_or_default(),
                    slots: section.slots.unwrap_or(1),
                    timeout: Duration::from_secs_f64(section.timeout_s.unwrap_or(TIMEOUT_S)),
                    log: logs.map(|folder| folder.join(format!("reward-{at}.log"))),
                })),
            };
            Ok(Rule {
                name: section.name().into(),
                weight: section.weight,
                not_judged: section.not_judged,
                source,
            })
        };
        Ok(Self {
            rules: config
                .reward
                .iter()
                .enumerate()
                .map(rule)
                .collect::<Result<_, _>>()?,
            eval: config.eval_reward(),
        })
    }

    /// The most that any reward must know of a completion's tokens, and that reward's name.
    pub fn needs(&self) -> Option<(Needs, &str)> {
        self.rules
            .iter()
            .map(|rule| match &rule.source {
                Source::Own(reward) => (reward.needs(), &*rule.name),
                Source::Program(_) => (Needs::Text, &*rule.name),
            })
            .max_by_key(|(needs, _)| *needs)
    }

    /// True when some reward is a program of the user's: verdicts then come one by one.
    pub fn has_programs(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.source, Source::Program(_)))
    }

    /// What all rewards say of one completion; programs are asked, the rest is computed meanwhile on
    /// a thread of its own.
    ///
    /// # Errors
    /// A program won't start, or this process is coming to its end.
    pub async fn judge(&self, work: Work) -> Result<Judged, GaveUp> {
        let asked = join_all(self.rules.iter().map(async |rule| match &rule.source {
            Source::Program(program) => program.ask(work.request()).await.map(Some),
            Source::Own(_) => Ok(None),
        }));
        let (rules, own) = (self.rules.clone(), work.clone());
        let own = platform::aside(move || judge_own(&rules, &own));
        let (asked, own) = tokio::join!(asked, own);
        let own = own.map_err(|error| GaveUp(format!("scoring: {error}")))?;
        let mut findings = Vec::with_capacity(own.len());
        for (program, own) in asked.into_iter().zip(own) {
            findings.push(match (&work.text, program?) {
                (Ok(_), Some(verdict)) => Finding::Verdict(verdict),
                _ => own,
            });
        }
        Ok(self.judged(findings))
    }

    /// [`Scorer::judge`] for many completions, in their order.
    ///
    /// # Errors
    /// See [`Scorer::judge`].
    pub async fn judge_many(&self, work: Vec<Work>) -> Result<Vec<Judged>, GaveUp> {
        if self.has_programs() {
            let all = stream::iter(work).map(|work| self.judge(work));
            return all.buffered(AT_ONCE).try_collect().await;
        }
        let scorer = self.clone();
        platform::aside(move || scorer.judge_all(&work))
            .await
            .map_err(|error| GaveUp(format!("scoring: {error}")))
    }

    /// [`Scorer::judge`] for many completions where no reward is a program: on this thread.
    fn judge_all(&self, work: &[Work]) -> Vec<Judged> {
        work.iter()
            .map(|work| self.judged(judge_own(&self.rules, work)))
            .collect()
    }

    fn judged(&self, findings: Vec<Finding>) -> Judged {
        let mut reasons = Vec::new();
        let rewards = self.rules.iter().zip(findings).map(|(rule, finding)| {
            let (value, share) = match finding {
                Finding::Share(share) => (None, Some(share)),
                Finding::Verdict(Verdict::Scored(value)) if value.is_finite() => {
                    (Some(value), None)
                }
                Finding::Verdict(Verdict::Scored(value)) => {
                    reasons.push((rule.name.clone(), format!("its value is {value}")));
                    (None, None)
                }
                Finding::Verdict(Verdict::NotJudged(reason)) => {
                    reasons.push((rule.name.clone(), reason));
                    (None, None)
                }
            };
            RewardValue {
                name: rule.name.clone(),
                value,
                share,
            }
        });
        let rewards = rewards.collect();
        Judged { rewards, reasons }
    }

    /// The weighted sum, and whether it counts. A reward of weight 0 takes no part in it, nor in
    /// whether the completion counts as judged; one that waits for the group counts as 0.
    pub fn total(&self, rewards: &[RewardValue]) -> Total {
        let mut total = Total {
            judged: true,
            ..Total::default()
        };
        for (at, (rule, reward)) in self.rules.iter().zip(rewards).enumerate() {
            match reward.value {
                Some(value) => total.reward += rule.weight * value,
                None if reward.share.is_some() || rule.weight == 0.0 => {}
                None => total.judged &= rule.not_judged == NotJudged::Zero,
            }
            total.correct |= at == self.eval && reward.value.is_some_and(|value| value >= 1.0);
        }
        total
    }

    /// Gives the values that depend on the whole group, in the order of its completions; true when
    /// there were any to give. A function of what was found of each alone, so a group that comes out
    /// of the journal gets the same.
    pub fn finish(&self, group: &mut [&mut Vec<RewardValue>]) -> bool {
        let mut changed = false;
        for (at, rule) in self.rules.iter().enumerate() {
            let Source::Own(reward) = &rule.source else {
                continue;
            };
            let share = |rewards: &Vec<RewardValue>| rewards.get(at).and_then(|r| r.share);
            let shares: Vec<Share> = group.iter().filter_map(|rewards| share(rewards)).collect();
            let mut values = reward.finish(&shares).into_iter();
            for rewards in group.iter_mut() {
                if share(rewards).is_some()
                    && let Some(reward) = rewards.get_mut(at)
                {
                    (reward.value, reward.share) = (values.next(), None);
                    changed = true;
                }
            }
        }
        changed
    }

    /// [`Scorer::finish`] for a round's groups; the second is what changed.
    pub fn finish_round(
        &self,
        groups: Vec<Vec<Arc<Scored>>>,
    ) -> (Vec<Vec<Arc<Scored>>>, Vec<Arc<Scored>>) {
        let waits = |scored: &Arc<Scored>| scored.rewards.iter().any(|r| r.share.is_some());
        let mut all = Vec::new();
        let finish = |group: Vec<Arc<Scored>>| {
            if !group.iter().any(waits) {
                return group;
            }
            let mut own: Vec<Scored> = group.iter().map(|scored| Scored::clone(scored)).collect();
            let mut rewards: Vec<_> = own.iter_mut().map(|scored| &mut scored.rewards).collect();
            self.finish(&mut rewards);
            let group: Vec<Arc<Scored>> = own
                .into_iter()
                .map(|scored| {
                    let total = self.total(&scored.rewards);
                    Arc::new(scored.with(total))
                })
                .collect();
            all.extend(group.iter().cloned());
            group
        };
        (groups.into_iter().map(finish).collect(), all)
    }

    /// Verdicts on completions that workers sent, given to `done` as they come; the time that the
    /// work on text took is added to `busy`, in nanoseconds.
    ///
    /// # Errors
    /// See [`Scorer::judge`].
    pub async fn score(
        &self,
        tokenizer: Arc<Tokenizer>,
        waiting: Vec<Unscored>,
        busy: &Arc<AtomicU64>,
        done: impl Fn(Vec<Scored>),
    ) -> Result<(), GaveUp> {
        let (scorer, busy) = (self.clone(), busy.clone());
        let programs = self.has_programs();
        let (scored, rest) = platform::aside(move || {
            let _clock = Clock(Instant::now(), busy);
            let work: Vec<Work> = waiting.iter().map(|one| one.work(&tokenizer)).collect();
            if programs {
                return (Vec::new(), waiting.into_iter().zip(work).collect());
            }
            let judged = scorer.judge_all(&work);
            let all = waiting.into_iter().zip(work).zip(judged);
            let scored = all.map(|((one, work), judged)| scorer.scored(one, work, judged));
            (scored.collect(), Vec::new())
        })
        .await
        .map_err(|error| GaveUp(format!("scoring: {error}")))?;
        if !scored.is_empty() {
            done(scored);
        }
        let rest = rest.into_iter().map(async |(one, work): (Unscored, Work)| {
            let judged = self.judge(work.clone()).await?;
            done(vec![self.scored(one, work, judged)]);
            Ok(())
        });
        join_all(rest).await.into_iter().collect()
    }

    fn scored(&self, one: Unscored, work: Work, judged: Judged) -> Scored {
        for (name, reason) in &judged.reasons {
            let (group, index) = (one.completion.group_id, one.completion.sample_index);
            tracing::debug!(reward = %name, group, index, "not judged: {reason}");
        }
        let total = self.total(&judged.rewards);
        Scored {
            completion: one.completion,
            worker: one.worker,
            text: work.text.unwrap_or_default(),
            reward: 0.0,
            judged: false,
            correct: false,
            rewards: judged.rewards,
        }
        .with(total)
    }
}

/// Adds the time until it is dropped.
struct Clock(Instant, Arc<AtomicU64>);

impl Drop for Clock {
    fn drop(&mut self) {
        let spent = self.0.elapsed().as_nanos() as u64;
        self.1.fetch_add(spent, Ordering::Relaxed);
    }
}

fn judge_own(rules: &[Rule], work: &Work) -> Vec<Finding> {
    let known = work.text.as_ref().map(|text| {
        Known::new(Completion {
            text,
            tokens: work.tokens.borrow(),
            gold: &work.gold,
            prompt: &work.prompt,
            truncated: work.truncated,
        })
    });
    rules
        .iter()
        .map(|rule| match (&rule.source, &known) {
            (Source::Own(reward), Ok(known)) => reward.score(known),
            (_, Err(reason)) => Finding::Verdict(Verdict::NotJudged((*reason).clone())),
            (Source::Program(_), Ok(_)) => {
                Finding::Verdict(Verdict::NotJudged("its program was not asked".to_owned()))
            }
        })
        .collect()
}

/// A completion as it came from a worker.
#[derive(Clone, Debug)]
pub struct Unscored {
    /// Who sampled it.
    pub worker: Arc<str>,
    /// The completion.
    pub completion: v1::Completion,
    /// The problem's answer.
    pub gold: String,
    /// The prompt's whole text.
    pub prompt: String,
}

impl Unscored {
    fn work(&self, tokenizer: &Tokenizer) -> Work {
        let text = tokenizer.decode(&self.completion.tokens, true);
        Work {
            text: text.map_err(|error| error.to_string()),
            tokens: TokensOf::Ids(self.completion.tokens.clone()),
            gold: self.gold.clone(),
            prompt: self.prompt.clone(),
            truncated: self.completion.finish_reason() == v1::FinishReason::Length,
        }
    }
}

impl Scored {
    fn with(self, total: Total) -> Self {
        let Total {
            reward,
            judged,
            correct,
        } = total;
        Self {
            reward,
            judged,
            correct,
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
