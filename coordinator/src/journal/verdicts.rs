//! Verdicts as the journal keeps them: `{"name": value}` in the config's order. Null: not judged;
//! `{"length": ..., "value": ...}`: waits for its group.

use serde_json::{Map, Value, json};
use tina_reward::Share;

use crate::scheduler::types::RewardValue;

pub(super) fn to_json(rewards: &[RewardValue]) -> String {
    let value = |reward: &RewardValue| match (reward.share, reward.value) {
        (Some(Share { length, value }), _) => json!({ "length": length, "value": value }),
        (None, value) => value.map_or(Value::Null, Value::from),
    };
    let rewards = rewards
        .iter()
        .map(|reward| (reward.name.to_string(), value(reward)));
    Value::Object(rewards.collect()).to_string()
}

pub(super) fn from_json(text: &str) -> Vec<RewardValue> {
    let rewards: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    rewards
        .iter()
        .map(|(name, value)| RewardValue {
            name: name.as_str().into(),
            value: value.as_f64(),
            share: share(value),
        })
        .collect()
}

fn share(value: &Value) -> Option<Share> {
    Some(Share {
        length: value.get("length")?.as_u64()?,
        value: value.get("value")?.as_f64()?,
    })
}
