//! Values that can't be: ranges of single keys, and keys that must fit together.

use std::net::{IpAddr, SocketAddr};

use tina_model::{LoraModule, ModelSource};
use tina_proto::auth::TOKEN_VARIABLE;

use super::{RunConfig, rewards, schema::Reader};
use crate::{
    data::{Filter, PromptTemplate, Source},
    scheduler::types::RoundId,
};

/// Sequences that a worker can decode at a time.
const MAX_SLOTS: u32 = 4096;
/// Tokens of a completion; the model's positions are fewer, but not known here.
const MAX_TOKENS: u32 = 1 << 20;
/// Prompts of one round.
const MAX_PROMPTS: u32 = 1 << 20;
/// Completions of one step.
const MAX_COMPLETIONS: u64 = 1 << 24;
/// Steps that may be sampled ahead: all of their completions are held in memory.
const MAX_STALENESS: u64 = 64;
/// Stop tokens, and stop strings.
pub(crate) const MAX_STOPS: usize = 64;
/// Bytes of a stop string.
const MAX_STOP_BYTES: usize = 1024;
/// Ranks of one learner.
const MAX_RANKS: u32 = 256;
/// Time between heartbeats, in ms; workers and learner beat no faster.
const MIN_HEARTBEAT_MS: u32 = 100;
/// Workers that a worker hands an adapter on to; more are no tree.
const MAX_FAN_OUT: u32 = 64;

/// Complains to the reader about everything impossible in `config`.
pub(super) fn check(config: &RunConfig, reader: &mut Reader) {
    let mut check = |key: &str, fine: bool, message: &str| {
        if !fine {
            reader.complain_at(key, message.to_owned());
        }
    };
    let (learner, sampling, algorithm) = (&config.learner, &config.sampling, &config.algorithm);
    let one_or_more = "must be 1 or more";
    let positive = "must be above 0";
    let not_negative = "must be 0 or more";
    let share = "must be between 0 and 1";
    let is_share = |x: f64| (0.0..=1.0).contains(&x);
    let below_one = "must be 0 or more, and below 1";
    let is_below_one = |x: f64| (0.0..1.0).contains(&x);

    let name = &config.run.name;
    check(
        "run.name",
        !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || "-_.+=".contains(c)),
        "must be a folder's name: letters, digits, '-', '_', '.', not '.' first",
    );
    check(
        "run.steps",
        config.run.steps >= 1 || config.data.epochs.is_some(),
        "must be 1 or more, or data.epochs must say how long the run goes",
    );
    check("run.keep_last", config.run.keep_last >= 1, one_or_more);
    if let Err(error) = config.model.source.parse::<ModelSource>() {
        check("model.source", false, &error.to_string());
    }

    check(
        "lora.rank",
        (1..=4096).contains(&config.lora.rank),
        "must be between 1 and 4096",
    );
    check(
        "lora.alpha",
        config.lora.alpha > 0.0 && (config.lora.alpha as f32).is_finite(),
        "must be above 0, and an f32",
    );
    check("lora.dropout", is_below_one(config.lora.dropout), below_one);
    check(
        "lora.target_modules",
        !config.lora.target_modules.is_empty(),
        "must not be empty",
    );

    check(
        "sampling.temperature",
        sampling.temperature > 0.0,
        "must be above 0: greedy completions of one prompt are all the same, and nothing is learnt",
    );
    check(
        "sampling.top_p",
        sampling.top_p > 0.0 && sampling.top_p <= 1.0,
        "must be above 0, and 1 at most",
    );
    check("sampling.min_p", is_below_one(sampling.min_p), below_one);
    let tokens = 1..=MAX_TOKENS;
    let tokens_message = format!("must be between 1 and {MAX_TOKENS}");
    check(
        "sampling.max_tokens",
        tokens.contains(&sampling.max_tokens),
        &tokens_message,
    );
    check(
        "sampling.stop",
        sampling.stop.iter().all(|s| !s.is_empty()),
        "an empty stop string stops everything",
    );
    check(
        "sampling.stop",
        sampling.stop.len() <= MAX_STOPS && sampling.stop.iter().all(|s| s.len() <= MAX_STOP_BYTES),
        &format!("must be {MAX_STOPS} strings at most, of {MAX_STOP_BYTES} bytes at most"),
    );
    check(
        "sampling.stop_token_ids",
        sampling.stop_token_ids.len() <= MAX_STOPS,
        &format!("must be {MAX_STOPS} at most"),
    );

    check(
        "algorithm.prompts_per_step",
        (1..=MAX_PROMPTS).contains(&algorithm.prompts_per_step),
        &format!("must be between 1 and {MAX_PROMPTS}"),
    );
    check(
        "algorithm.completions_per_prompt",
        algorithm.completions_per_prompt >= 2,
        "must be 2 or more: an advantage is relative to the group's others",
    );
    check(
        "algorithm.completions_per_prompt",
        u64::from(algorithm.prompts_per_step) * u64::from(algorithm.completions_per_prompt)
            <= MAX_COMPLETIONS,
        &format!("times algorithm.prompts_per_step must be {MAX_COMPLETIONS} at most"),
    );
    check(
        "algorithm.clip_low",
        algorithm.clip_low.is_none_or(is_share),
        share,
    );
    check(
        "algorithm.clip_high",
        algorithm.clip_high.is_none_or(|high| high >= 0.0),
        not_negative,
    );
    check(
        "algorithm.importance_cap",
        (1.0..=1e6).contains(&algorithm.importance_cap),
        "must be between 1 and 1000000",
    );
    check("algorithm.kl_beta", algorithm.kl_beta >= 0.0, not_negative);
    check(
        "algorithm.max_staleness",
        algorithm.max_staleness <= MAX_STALENESS,
        &format!("must be {MAX_STALENESS} at most"),
    );
    check(
        "algorithm.max_resamples",
        u64::from(algorithm.prompts_per_step) * (u64::from(algorithm.max_resamples) + 1)
            < u64::from(RoundId::GROUPS),
        &format!(
            "plus 1, times algorithm.prompts_per_step, must be less than {}",
            RoundId::GROUPS
        ),
    );
    check(
        "algorithm.iterations",
        algorithm.iterations >= 1,
        one_or_more,
    );

    let up_to_one = "must be above 0, and 1 at most";
    let is_up_to_one = |x: f64| x > 0.0 && x <= 1.0;
    check("learner.lr", is_up_to_one(learner.lr), up_to_one);
    check(
        "learner.min_lr_ratio",
        is_share(learner.min_lr_ratio),
        share,
    );
    check("learner.beta1", is_below_one(learner.beta1), below_one);
    check("learner.beta2", is_below_one(learner.beta2), below_one);
    check("learner.eps", is_up_to_one(learner.eps), up_to_one);
    check(
        "learner.weight_decay",
        (0.0..=1e3).contains(&learner.weight_decay),
        "must be between 0 and 1000",
    );
    check(
        "learner.max_grad_norm",
        learner.max_grad_norm >= 0.0,
        not_negative,
    );
    check(
        "learner.micro_batch_tokens",
        learner.micro_batch_tokens >= 1,
        one_or_more,
    );
    check(
        "learner.checkpoint_every",
        learner.checkpoint_every >= 1,
        one_or_more,
    );
    check(
        "learner.ranks",
        (1..=MAX_RANKS).contains(&learner.ranks),
        &format!("must be between 1 and {MAX_RANKS}"),
    );
    check(
        "learner.rank_devices",
        learner
            .rank_devices
            .as_ref()
            .is_none_or(|devices| devices.len() < learner.ranks.max(1) as usize),
        "must be fewer than learner.ranks: the learner itself is one of these",
    );
    check(
        "learner.rank_timeout_s",
        learner.rank_timeout_s > 0.0 && learner.rank_timeout_s <= 1e9,
        positive,
    );
    check(
        "learner.schedule_steps",
        learner.schedule_steps != Some(0),
        one_or_more,
    );
    check(
        "learner.warmup_steps",
        learner.schedule_steps.is_none() || learner.warmup_steps <= learner.schedule_steps,
        "must not be more than learner.schedule_steps",
    );

    let slots = 1..=MAX_SLOTS;
    let slots_message = format!("must be between 1 and {MAX_SLOTS}");
    check(
        "rollout.slots",
        slots.contains(&config.rollout.slots),
        &slots_message,
    );
    check(
        "rollout.max_slots",
        (config.rollout.max_slots).is_none_or(|most| slots.contains(&most)),
        &slots_message,
    );
    check(
        "rollout.kv_memory_mb",
        config
            .rollout
            .kv_memory_mb
            .is_none_or(|mb| (1..1 << 32).contains(&mb)),
        "must be at least 1",
    );
    check(
        "eval.temperature",
        config.eval.temperature >= 0.0,
        not_negative,
    );
    check(
        "eval.top_p",
        config.eval.top_p.is_none_or(|p| p > 0.0 && p <= 1.0),
        "must be above 0, and 1 at most",
    );
    check("eval.samples", config.eval.samples >= 1, one_or_more);
    check(
        "eval.samples",
        config.eval.samples <= 1 || config.eval.temperature > 0.0,
        "more than 1 needs eval.temperature above 0: greedy completions of one prompt are all the \
         same",
    );
    check(
        "eval.samples",
        config.eval_problems() as u64 * u64::from(config.eval.samples) <= MAX_COMPLETIONS,
        &format!("times eval.problems must be {MAX_COMPLETIONS} at most"),
    );
    check(
        "eval.max_tokens",
        config.eval.max_tokens.is_none_or(|n| tokens.contains(&n)),
        &tokens_message,
    );
    check(
        "eval.problems",
        config.eval_problems() <= MAX_PROMPTS as usize,
        &format!("must be {MAX_PROMPTS} at most"),
    );
    check(
        "eval.problems",
        config.eval_problems() <= config.data.held_out,
        "must not be more than data.held_out: these are the problems that training never sees",
    );
    let ranks = learner.rank_devices.iter().flatten();
    let ranks = ranks.map(|device| ("learner.rank_devices".to_owned(), device));
    let devices = [("learner.device".to_owned(), &learner.device)]
        .into_iter()
        .chain(ranks)
        .chain(
            config
                .rollout
                .workers
                .iter()
                .enumerate()
                .map(|(at, worker)| (format!("rollout.workers.{at}.device"), &worker.device)),
        );
    for (key, device) in devices {
        let gpu = device
            .strip_prefix("cuda:")
            .is_some_and(|n| n.parse::<u16>().is_ok());
        check(
            &key,
            gpu || device == "cpu",
            "must be \"cpu\" or \"cuda:N\"",
        );
    }
    for (at, worker) in config.rollout.workers.iter().enumerate() {
        check(
            &format!("rollout.workers.{at}.slots"),
            worker.slots.is_none_or(|n| slots.contains(&n)),
            &slots_message,
        );
    }
    check(
        "cost.usd_per_hour",
        config.cost.usd_per_hour >= 0.0,
        not_negative,
    );
    check(
        "cluster.heartbeat_ms",
        config.cluster.heartbeat_ms >= MIN_HEARTBEAT_MS,
        &format!("must be {MIN_HEARTBEAT_MS} or more"),
    );
    let beat = f64::from(config.cluster.heartbeat_ms) / 1000.0;
    check(
        "cluster.worker_timeout_s",
        config.cluster.worker_timeout_s >= 2.0 * beat,
        "must be at least two heartbeats (cluster.heartbeat_ms)",
    );
    check(
        "cluster.sync_timeout_s",
        config.cluster.sync_timeout_s > 0.0,
        positive,
    );
    check(
        "cluster.start_timeout_s",
        config.cluster.start_timeout_s > 0.0,
        positive,
    );
    check(
        "cluster.stall_timeout_s",
        config.cluster.stall_timeout_s > 0.0,
        positive,
    );
    check(
        "cluster.progress_timeout_s",
        config.cluster.progress_timeout_s > 0.0,
        positive,
    );
    check(
        "cluster.adapter_fan_out",
        (1..=MAX_FAN_OUT).contains(&config.cluster.adapter_fan_out),
        &format!("must be between 1 and {MAX_FAN_OUT}"),
    );

    check_modules(config, reader);
    check_data(config, reader);
    rewards::check(config, reader);
    check_doors(config, reader);
}

fn check_modules(config: &RunConfig, reader: &mut Reader) {
    let modules = &config.lora.target_modules;
    for (at, module) in modules.iter().enumerate() {
        if let Err(error) = module.parse::<LoraModule>() {
            reader.complain_at("lora.target_modules", error.to_string());
        } else if modules[..at].contains(module) {
            reader.complain_at(
                "lora.target_modules",
                format!("{module:?} stands there twice"),
            );
        }
    }
}

fn check_data(config: &RunConfig, reader: &mut Reader) {
    let data = &config.data;
    let mut complain = |key: &str, message: String| reader.complain_at(key, message);
    let read = |complain: &mut dyn FnMut(&str, String), key: &str, text: &str| {
        if let Err(error) = text.parse::<Source>() {
            complain(key, error.to_string());
        }
    };
    match (&data.source, data.sources.is_empty()) {
        (None, true) => complain(
            "data.source",
            "missing; it takes text, or write a [[data.sources]] for each of several".to_owned(),
        ),
        (Some(_), false) => complain(
            "data.source",
            "there is data.sources too: write one of them".to_owned(),
        ),
        (Some(source), true) => read(&mut complain, "data.source", source),
        (None, false) => {}
    }
    if let Some(source) = &data.held_out_source {
        read(&mut complain, "data.held_out_source", source);
    }
    let mut texts = |scope: &str, templates: [Option<&String>; 2], filter: &[String]| {
        for (key, template) in ["prompt_template", "answer_template"].iter().zip(templates) {
            if let Some(Err(message)) = template.map(|text| PromptTemplate::parse(text)) {
                complain(&format!("{scope}.{key}"), message);
            }
        }
        for text in filter {
            if let Err(error) = Filter::parse(text) {
                complain(&format!("{scope}.filter"), error.to_string());
            }
        }
    };
    let templates = [&data.prompt_template, &data.answer_template];
    texts("data", templates.map(Some), &data.filter);
    for (at, source) in data.sources.iter().enumerate() {
        let filter = source.filter.as_deref().unwrap_or(&[]);
        texts(
            &format!("data.sources.{at}"),
            [&source.prompt_template, &source.answer_template].map(Option::as_ref),
            filter,
        );
    }
    let weighted = data.sources.iter().any(|source| source.weight.is_some());
    for (at, source) in data.sources.iter().enumerate() {
        let key = |name: &str| format!("data.sources.{at}.{name}");
        read(&mut complain, &key("source"), &source.source);
        match source.weight {
            None if weighted => complain(
                &key("weight"),
                "missing: give every source a weight, or none".to_owned(),
            ),
            Some(weight) if !(1e-6..=1e6).contains(&weight) => complain(
                &key("weight"),
                "must be between 0.000001 and 1000000; to leave a source out, remove it".to_owned(),
            ),
            _ => {}
        }
    }
    if data
        .epochs
        .is_some_and(|epochs| !(1e-6..=1e6).contains(&epochs))
    {
        complain(
            "data.epochs",
            "must be above 0, and 1000000 at most".to_owned(),
        );
    }
    if data.max_prompt_tokens > 0 && data.min_prompt_tokens > data.max_prompt_tokens {
        complain(
            "data.min_prompt_tokens",
            "must not be more than data.max_prompt_tokens".to_owned(),
        );
    }
}

/// Loopback is the default; beyond it a token, and TLS, are demanded.
fn check_doors(config: &RunConfig, reader: &mut Reader) {
    let cluster = &config.cluster;
    if cluster.tls_cert.is_some() != cluster.tls_key.is_some() {
        let (there, missing) = if cluster.tls_cert.is_some() {
            ("cluster.tls_cert", "cluster.tls_key")
        } else {
            ("cluster.tls_key", "cluster.tls_cert")
        };
        reader.complain_at(there, format!("needs {missing} beside it"));
    }
    let mutual = cluster.tls_client_ca.is_some();
    if mutual && cluster.tls_cert.is_none() {
        reader.complain_at(
            "cluster.tls_client_ca",
            "needs cluster.tls_cert and cluster.tls_key beside it".to_owned(),
        );
    }
    if cluster.tls_client_dir.is_some() && !mutual {
        reader.complain_at(
            "cluster.tls_client_dir",
            "needs cluster.tls_client_ca beside it".to_owned(),
        );
    }
    check_door(config, "cluster.listen", &cluster.listen, reader);
    if config.learner.ranks > 1 {
        let listen = &config.learner.ranks_listen;
        check_door(config, "learner.ranks_listen", listen, reader);
    }
}

fn check_door(config: &RunConfig, key: &str, listen: &str, reader: &mut Reader) {
    let cluster = &config.cluster;
    let mutual = cluster.tls_client_ca.is_some();
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        reader.complain_at(
            key,
            "must be an IP address and a port, e.g. 127.0.0.1:7461 or [::1]:0".to_owned(),
        );
        return;
    };
    if is_loopback(listen.ip()) {
        return;
    }
    let token = cluster.token_file.is_some() || std::env::var_os(TOKEN_VARIABLE).is_some();
    if !token && !mutual {
        reader.complain_at(
            key,
            format!(
                "{listen} can be reached from other machines, and there is no token: set \
                 cluster.token_file or {TOKEN_VARIABLE} (or cluster.tls_client_ca), or listen on \
                 127.0.0.1"
            ),
        );
    }
    if cluster.tls_cert.is_none() && !cluster.insecure {
        reader.complain_at(
            key,
            format!(
                "{listen} can be reached from other machines, and there is no TLS: set \
                 cluster.tls_cert and cluster.tls_key, or cluster.insecure = true on a network \
                 that you trust"
            ),
        );
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
