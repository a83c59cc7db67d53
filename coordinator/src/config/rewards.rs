//! `[[reward]]`: the keys that each kind takes, what they default to, and what can't be.

use tina_reward::{AnswerJudge, Compat, FormatRule, Reward, TagRule};

use super::{
    NotJudged, RewardCompat, RewardJudge, RewardKind, RewardRule, RewardSection, RunConfig,
    schema::{Reader, Section as _},
};

/// Keys that every kind takes.
const COMMON: [&str; 4] = ["kind", "name", "weight", "not_judged"];
/// Processes of one external reward.
const MAX_SLOTS: u32 = 256;

impl RewardKind {
    /// The keys of its own.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Accuracy => &["judge", "after", "compat"],
            Self::Format => &["rule", "language"],
            Self::TagCount => &["rule"],
            Self::ReasoningSteps => &["steps", "compat"],
            Self::Length => &["judge", "compat"],
            Self::Cosine => &[
                "judge",
                "max_len",
                "min_wrong",
                "max_wrong",
                "min_correct",
                "max_correct",
                "compat",
            ],
            Self::RepetitionPenalty => &["ngram", "max_penalty", "compat"],
            Self::L1Exact => &["judge", "target", "target_pattern", "alpha", "compat"],
            Self::L1Max => &[
                "judge",
                "target",
                "target_pattern",
                "alpha",
                "delta",
                "compat",
            ],
            Self::SoftOverlong => &["max_len", "cache"],
            Self::Boxed | Self::Numeric => &[],
            Self::Regex => &["pattern"],
            Self::External => &["command", "slots", "timeout_s"],
        }
    }

    /// The keys that must be written.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Regex => &["pattern"],
            Self::External => &["command"],
            _ => &[],
        }
    }

    /// True when 1 is said of right answers and of no others.
    fn says_what_is_right(self) -> bool {
        matches!(self, Self::Accuracy | Self::Boxed | Self::Numeric)
    }
}

impl RewardSection {
    /// `accuracy` by this judge.
    pub(crate) fn accuracy(name: &str, judge: RewardJudge) -> Self {
        Self {
            kind: RewardKind::Accuracy,
            name: Some(name.to_owned()),
            weight: 1.0,
            not_judged: NotJudged::Skip,
            compat: None,
            judge: Some(judge),
            after: None,
            rule: None,
            language: None,
            steps: None,
            max_len: None,
            cache: None,
            min_wrong: None,
            max_wrong: None,
            min_correct: None,
            max_correct: None,
            ngram: None,
            max_penalty: None,
            target: None,
            target_pattern: None,
            alpha: None,
            delta: None,
            pattern: None,
            command: None,
            slots: None,
            timeout_s: None,
        }
    }

    /// What journal and metrics call it.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.as_str())
    }

    /// As the reward crate takes it; `None`: an external program. Lengths that are unset and follow
    /// from other sections are filled in by [`RunConfig::parse`].
    pub fn spec(&self) -> Option<tina_reward::RewardKind> {
        use tina_reward::RewardKind as Kind;
        let judge = match self.judge.unwrap_or(RewardJudge::Tina) {
            RewardJudge::Tina => AnswerJudge::Tina,
            RewardJudge::Default => AnswerJudge::Default,
            RewardJudge::Evaluation => AnswerJudge::Evaluation,
            RewardJudge::Boxed => AnswerJudge::Boxed,
            RewardJudge::Numeric => AnswerJudge::Numeric,
        };
        let compat = self.compat.map(|compat| match compat {
            RewardCompat::Tina => Compat::Tina,
            RewardCompat::OpenR1 => Compat::OpenR1,
            RewardCompat::OpenR1Base => Compat::OpenR1Base,
            RewardCompat::Trl => Compat::Trl,
        });
        let max_len = self.max_len.unwrap_or(1000);
        let l1 = |max| Kind::L1 {
            max,
            judge,
            target: self.target,
            target_pattern: self.target_pattern.clone(),
            alpha: self.alpha.unwrap_or(0.0003),
            delta: self.delta.unwrap_or(0.5),
            compat,
        };
        Some(match self.kind {
            RewardKind::Accuracy => Kind::Accuracy {
                judge,
                after: self.after.clone().unwrap_or_default(),
                compat,
            },
            RewardKind::Format => Kind::Format {
                rule: match self.rule.unwrap_or(RewardRule::Tina) {
                    RewardRule::Tina => FormatRule::Tina,
                    RewardRule::OpenR1 => FormatRule::OpenR1,
                    RewardRule::OpenR1Base => FormatRule::OpenR1Base,
                    RewardRule::Think => FormatRule::Think,
                    RewardRule::Code => FormatRule::Code,
                },
                language: self.language.clone().unwrap_or_else(|| "python".into()),
            },
            RewardKind::TagCount => Kind::TagCount {
                rule: match self.rule {
                    Some(RewardRule::OpenR1) => TagRule::OpenR1,
                    _ => TagRule::Tina,
                },
            },
            RewardKind::ReasoningSteps => Kind::ReasoningSteps {
                steps: self.steps.unwrap_or(3),
                compat,
            },
            RewardKind::Length => Kind::Length { judge, compat },
            RewardKind::Cosine => Kind::Cosine {
                judge,
                max_len,
                min_wrong: self.min_wrong,
                max_wrong: self.max_wrong,
                min_correct: self.min_correct,
                max_correct: self.max_correct,
                compat,
            },
            RewardKind::RepetitionPenalty => Kind::RepetitionPenalty {
                ngram: self.ngram.unwrap_or(3),
                max_penalty: self.max_penalty.unwrap_or(-1.0),
                compat,
            },
            RewardKind::L1Exact => l1(false),
            RewardKind::L1Max => l1(true),
            RewardKind::SoftOverlong => Kind::SoftOverlong {
                max_len,
                cache: self.cache.unwrap_or(max_len / 4),
            },
            RewardKind::Boxed => Kind::Boxed,
            RewardKind::Numeric => Kind::Numeric,
            RewardKind::Regex => Kind::Regex {
                pattern: self.pattern.clone().unwrap_or_default(),
            },
            RewardKind::External => return None,
        })
    }
}

impl RunConfig {
    /// Fills in what follows from other keys.
    pub(super) fn resolve_rewards(&mut self) {
        for reward in &mut self.reward {
            reward
                .name
                .get_or_insert_with(|| reward.kind.as_str().to_owned());
            let in_tokens = matches!(reward.compat, None | Some(RewardCompat::Trl));
            if reward.kind == RewardKind::SoftOverlong
                || (reward.kind == RewardKind::Cosine && in_tokens)
            {
                let limit = u64::from(self.sampling.max_tokens);
                reward.max_len.get_or_insert(limit);
            }
        }
        let right = |reward: &&RewardSection| reward.kind.says_what_is_right();
        let judge = self.reward.iter().find(right).or(self.reward.first());
        if let Some(name) = judge.and_then(|reward| reward.name.clone()) {
            self.eval.reward.get_or_insert(name);
        }
    }

    /// Index of the reward that says what is right in an evaluation.
    pub fn eval_reward(&self) -> usize {
        let wanted = self.eval.reward.as_deref();
        self.reward
            .iter()
            .position(|reward| Some(reward.name()) == wanted)
            .unwrap_or(0)
    }
}

/// Complains about everything impossible in `[[reward]]`, and in `eval.reward`.
pub(super) fn check(config: &RunConfig, reader: &mut Reader) {
    let rewards = &config.reward;
    if rewards.is_empty() {
        reader.complain_at(
            "reward",
            "missing: without a reward nothing is learnt; add [[reward]] with kind = \"accuracy\", \
             \"numeric\", \"boxed\", ..."
                .to_owned(),
        );
        return;
    }
    for (at, reward) in rewards.iter().enumerate() {
        let names = || rewards.iter().map(RewardSection::name);
        if names().filter(|name| *name == reward.name()).count() > 1 {
            let message = format!(
                "two rewards are called {:?}: give them names",
                reward.name()
            );
            reader.complain_at(&format!("reward.{at}.name"), message);
        }
        check_one(&format!("reward.{at}"), reward, reader);
    }
    if rewards.iter().all(|reward| reward.weight == 0.0) {
        reader.complain_at(
            "reward.0.weight",
            "all weights are 0: nothing is learnt".to_owned(),
        );
    }
    let Some(name) = &config.eval.reward else {
        return;
    };
    match rewards.iter().find(|reward| reward.name() == name) {
        None => {
            let names: Vec<&str> = rewards.iter().map(RewardSection::name).collect();
            let message = format!(
                "no reward is called {name:?}; there are {}",
                names.join(", ")
            );
            reader.complain_at("eval.reward", message);
        }
        Some(reward) => {
            let made = reward.spec().and_then(|spec| Reward::new(&spec).ok());
            if made.is_some_and(|reward| reward.is_relative()) {
                let message = format!(
                    "{name:?} compares the completions of a group, and says nothing of one alone; \
                     name another reward, or add one of kind \"accuracy\" with weight = 0"
                );
                reader.complain_at("eval.reward", message);
            }
        }
    }
}

fn check_one(path: &str, reward: &RewardSection, reader: &mut Reader) {
    let (kind, own) = (reward.kind.as_str(), reward.kind.keys());
    let mut foreign = false;
    let written: Vec<&str> = reward.entries().into_iter().map(|(key, _)| key).collect();
    for key in &written {
        if !COMMON.contains(key) && !own.contains(key) {
            let takes = match own {
                [] => "none of its own".to_owned(),
                own => own.join(", "),
            };
            let message = format!("kind {kind:?} takes no `{key}`; it takes {takes}");
            reader.complain_at(&format!("{path}.{key}"), message);
            foreign = true;
        }
    }
    for key in reward.kind.required() {
        if !written.contains(key) {
            let message = format!("missing; kind {kind:?} needs it");
            reader.complain_at(&format!("{path}.{key}"), message);
            return;
        }
    }
    if foreign {
        return;
    }
    let mut demand = |key: &str, fine: bool, message: &str| {
        if !fine {
            reader.complain_at(&format!("{path}.{key}"), message.to_owned());
        }
    };
    match reward.kind {
        RewardKind::TagCount => demand(
            "rule",
            matches!(
                reward.rule,
                None | Some(RewardRule::Tina | RewardRule::OpenR1)
            ),
            "must be \"tina\" or \"open-r1\" for kind \"tag_count\"",
        ),
        RewardKind::Format => demand(
            "language",
            reward.language.is_none() || reward.rule == Some(RewardRule::Code),
            "is for rule \"code\"",
        ),
        RewardKind::Accuracy => demand(
            "after",
            reward
                .after
                .as_ref()
                .is_none_or(|all| all.iter().all(|end| !end.is_empty())),
            "must not hold an empty text",
        ),
        RewardKind::External => {
            demand(
                "command",
                reward
                    .command
                    .as_ref()
                    .is_some_and(|words| words.first().is_some_and(|word| !word.is_empty())),
                "must name a program, e.g. [\"python3\", \"examples/rewards/length.py\"]",
            );
            demand(
                "slots",
                reward.slots.is_none_or(|n| (1..=MAX_SLOTS).contains(&n)),
                &format!("must be between 1 and {MAX_SLOTS}"),
            );
            demand(
                "timeout_s",
                reward.timeout_s.is_none_or(|s| s > 0.0 && s <= 86_400.0),
                "must be above 0, and 86400 (a day) at most",
            );
        }
        _ => {}
    }
    if let Some(Err(error)) = reward.spec().map(|spec| Reward::new(&spec)) {
        let key = match error.key() {
            "pattern" if reward.target_pattern.is_some() => "target_pattern",
            key => key,
        };
        reader.complain_at(&format!("{path}.{key}"), error.to_string());
    }
}
