//! Whose journal it is: the part of a config that decides what a run computes.

use toml::{Table, Value};

use crate::config::RunConfig;

/// Sections that say where and how, not what.
const FREE_SECTIONS: [&str; 3] = ["rollout", "cluster", "cost"];

/// Keys that may change between two starts of one run. `run.steps` may too: where the schedule
/// follows from it, `learner.schedule_steps` tells.
const FREE_KEYS: [(&str, &str); 15] = [
    ("run", "name"),
    ("run", "dir"),
    ("run", "steps"),
    ("run", "keep_every"),
    ("run", "keep_last"),
    ("learner", "device"),
    ("learner", "micro_batch_tokens"),
    ("learner", "memory_mb"),
    ("learner", "checkpoint_every"),
    ("learner", "ranks"),
    ("learner", "rank_devices"),
    ("learner", "ranks_listen"),
    ("learner", "rank_timeout_s"),
    ("learner", "rank_transport"),
    // What was sampled ahead and is too old for a lower one is sampled again.
    ("algorithm", "max_staleness"),
];

/// The config's keys that must stay, as TOML.
pub(super) fn of(config: &RunConfig) -> String {
    let mut table: Table = config.to_toml().parse().unwrap_or_default();
    for section in FREE_SECTIONS {
        table.remove(section);
    }
    for (section, key) in FREE_KEYS {
        if let Some(Value::Table(section)) = table.get_mut(section) {
            section.remove(key);
        }
    }
    table.to_string()
}

/// `key: was A, is B` for every key in which two fingerprints differ.
pub(super) fn differences(was: &str, is: &str) -> Vec<String> {
    if was == is {
        return Vec::new();
    }
    let parse = |text: &str| text.parse::<Table>().map(Value::Table);
    match (parse(was), parse(is)) {
        (Ok(was), Ok(is)) => {
            let mut out = Vec::new();
            compare("", Some(&was), Some(&is), &mut out);
            out
        }
        _ => vec!["its config can't be read".into()],
    }
}

fn compare(path: &str, was: Option<&Value>, is: Option<&Value>, out: &mut Vec<String>) {
    if was == is {
        return;
    }
    let join = |key: &str| {
        if path.is_empty() {
            key.into()
        } else {
            format!("{path}.{key}")
        }
    };
    match (was, is) {
        (Some(Value::Table(a)), Some(Value::Table(b))) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                compare(&join(key), a.get(key), b.get(key), out);
            }
        }
        _ => {
            let show = |value: Option<&Value>| value.map_or("unset".into(), Value::to_string);
            out.push(format!("  {path}: was {}, is {}", show(was), show(is)));
        }
    }
}
