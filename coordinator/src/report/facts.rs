//! What the run's kept config says of it. Read key by key, not as a config of this program: the
//! report of a run that an older program made must not fail over a key that has gone.

use serde::Serialize;
use toml::{Table, Value};

/// What a reward looks at, as far as the report tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What evaluation counts as right (`eval.reward`).
    Accuracy,
    /// The form of a completion alone.
    Format,
    /// Something else.
    Other,
}

/// One `[[reward]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RewardFacts {
    /// Its name in journal and metrics.
    pub name: String,
    /// Its kind, as the config has it.
    pub kind: String,
    /// Its weight in the sum.
    pub weight: f64,
    /// What it looks at.
    pub role: Role,
}

/// The config, as far as a report tells of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// `run.name`.
    pub name: Option<String>,
    /// `run.steps`.
    pub steps: Option<u64>,
    /// `cost.usd_per_hour`; 0: no price is given.
    pub usd_per_hour: f64,
    /// All rewards, in order.
    pub rewards: Vec<RewardFacts>,
    /// Keys worth telling and their values, in order.
    pub settings: Vec<(String, String)>,
}

/// Keys that a report tells, where the config has them.
const TOLD: [&str; 23] = [
    "model.source",
    "model.dtype",
    "data.source",
    "data.sources",
    "data.held_out",
    "run.seed",
    "lora.rank",
    "lora.alpha",
    "lora.dropout",
    "sampling.temperature",
    "sampling.max_tokens",
    "algorithm.loss",
    "algorithm.prompts_per_step",
    "algorithm.completions_per_prompt",
    "algorithm.kl_beta",
    "algorithm.iterations",
    "learner.device",
    "learner.lr",
    "learner.warmup_steps",
    "eval.problems",
    "eval.samples",
    "eval.temperature",
    "eval.max_tokens",
];

impl Facts {
    /// From the text of a kept `config.toml`.
    ///
    /// # Errors
    /// It is no TOML.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let root: Table = text.parse()?;
        let eval_reward = key(&root, "eval.reward").and_then(Value::as_str);
        let rewards = root.get("reward").and_then(Value::as_array);
        let rewards: Vec<RewardFacts> = rewards
            .into_iter()
            .flatten()
            .filter_map(Value::as_table)
            .enumerate()
            .map(|(at, table)| {
                let text = |name| table.get(name).and_then(Value::as_str);
                let kind = text("kind").unwrap_or("unknown");
                let name = text("name").unwrap_or(kind);
                let counts = eval_reward.map_or(at == 0, |reward| reward == name);
                RewardFacts {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    weight: table.get("weight").and_then(number).unwrap_or(1.0),
                    role: role(kind, counts),
                }
            })
            .collect();
        let settings = TOLD.iter().filter_map(|name| {
            let value = key(&root, name)?;
            Some(((*name).to_owned(), told(value)?))
        });
        Ok(Self {
            name: key(&root, "run.name")
                .and_then(Value::as_str)
                .map(str::to_owned),
            steps: key(&root, "run.steps")
                .and_then(Value::as_integer)
                .and_then(|steps| steps.try_into().ok()),
            usd_per_hour: key(&root, "cost.usd_per_hour")
                .and_then(number)
                .unwrap_or(0.0),
            rewards,
            settings: settings.collect(),
        })
    }

    /// The value of a told key.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| &**value)
    }
}

fn key<'a>(root: &'a Table, path: &str) -> Option<&'a Value> {
    let (section, name) = path.split_once('.')?;
    root.get(section)?.get(name)
}

fn number(value: &Value) -> Option<f64> {
    value
        .as_float()
        .or_else(|| value.as_integer().map(|whole| whole as f64))
}

/// A value as a line tells it; of several sources each one's own; `None` of nothing.
fn told(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(without_folders(text)),
        Value::Array(items) => {
            let sources = items.iter().filter_map(|item| item.get("source")?.as_str());
            let sources: Vec<String> = sources.map(without_folders).collect();
            (!sources.is_empty()).then(|| sources.join(", "))
        }
        other => Some(other.to_string()),
    }
}

/// The form alone: the paper's format reward and its relatives, also where evaluation counts by it
/// (a run without an accuracy reward).
fn role(kind: &str, counts: bool) -> Role {
    match kind {
        "format" | "tag_count" => Role::Format,
        _ if counts => Role::Accuracy,
        "regex" => Role::Format,
        _ => Role::Other,
    }
}

/// A path's last part: where a file lay is nothing to publish.
fn without_folders(text: &str) -> String {
    let path = std::path::Path::new(text);
    match path.file_name() {
        Some(name) if path.is_absolute() => name.to_string_lossy().into_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_config_is_read_whatever_else_is_in_it() {
        let text = "[run]\nname = \"r\"\nsteps = 12\nodd = 1\n[model]\nsource = \"/a/b/m.gguf\"\n\
                    [[reward]]\nkind = \"format\"\nweight = 2\n\
                    [[reward]]\nkind = \"boxed\"\nname = \"right\"\nweight = 0.5\n\
                    [[reward]]\nkind = \"cosine\"\n\
                    [eval]\nreward = \"right\"\n[cost]\nusd_per_hour = 3\n[gone]\nx = []\n";
        let facts = Facts::parse(text).unwrap();
        assert_eq!((facts.name.as_deref(), facts.steps), (Some("r"), Some(12)));
        assert_eq!(facts.usd_per_hour, 3.0);
        assert_eq!(facts.setting("model.source"), Some("m.gguf"));
        let rewards: Vec<_> = facts
            .rewards
            .iter()
            .map(|reward| (&*reward.name, reward.weight, reward.role))
            .collect();
        assert_eq!(
            rewards,
            [
                ("format", 2.0, Role::Format),
                ("right", 0.5, Role::Accuracy),
                ("cosine", 1.0, Role::Other)
            ]
        );
        let text = "[data]\nsources = [{ source = \"/x/a.jsonl\" }, { source = \"hf:o/n\" }]\n";
        let several = Facts::parse(text).unwrap();
        assert_eq!(several.setting("data.sources"), Some("a.jsonl, hf:o/n"));
        assert_eq!(Facts::parse("[data]\nsources = []\n").unwrap().settings, []);
        let only = Facts::parse("[[reward]]\nkind = \"format\"\n").unwrap();
        assert_eq!(only.rewards[0].role, Role::Format);
        assert_eq!(Facts::parse("").unwrap(), Facts::default());
        assert!(Facts::parse("[run").is_err());
    }
}
