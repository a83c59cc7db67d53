//! A run's status as a page for people, and as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tina_proto::v1;

use crate::words;

/// Everything that a person may want to know, a few lines.
pub(crate) fn page(status: &v1::RunStatus) -> String {
    let mut text = String::new();
    let progress = match status.phase_total {
        0 => String::new(),
        total => format!(" {}/{total}", status.phase_done),
    };
    let _ = writeln!(
        text,
        "{}: {}{progress}, step {}/{}, policy {}",
        status.run_id,
        words::phase(status),
        status.step,
        status.steps,
        words::version(status.version.as_ref()),
    );
    let remaining = match status.remaining_seconds {
        left if left > 0.0 => format!(", {} left", words::clock(left)),
        _ => String::new(),
    };
    let _ = writeln!(
        text,
        "{} so far{remaining}, {}, {} tokens sampled, {} trained on",
        words::clock(status.elapsed_seconds),
        words::dollars(status.cost_usd),
        status.tokens_sampled,
        status.tokens_trained,
    );
    if !status.error.is_empty() {
        let _ = writeln!(text, "failed: {}", status.error);
    } else if !status.message.is_empty() {
        let _ = writeln!(text, "{}", status.message);
    }
    for worker in &status.workers {
        let device = worker.device.clone().unwrap_or_default();
        let _ = writeln!(
            text,
            "worker {} ({}): {}, {} {}, {}/{} slots, {}{:.0} tok/s, policy {}, heard {:.1} s ago",
            worker.worker_id,
            worker.address,
            worker.state,
            device.device,
            device.name,
            worker.slots_used,
            worker.slots,
            kv_share(worker),
            worker.tokens_per_second,
            words::version(worker.version.as_ref()),
            worker.seconds_since_heartbeat,
        );
    }
    if let Some(learner) = &status.learner {
        let device = learner.device.clone().unwrap_or_default();
        let _ = writeln!(
            text,
            "learner {} ({}): {} {}/{}, {} {}, policy {}, {} of {} parameters trained, heard {:.1} s ago",
            learner.learner_id,
            learner.address,
            learner.phase,
            learner.done,
            learner.total,
            device.device,
            device.name,
            words::version(learner.version.as_ref()),
            learner.trainable_parameters,
            learner.model_parameters,
            learner.seconds_since_heartbeat,
        );
    }
    if let Some(queues) = &status.queues {
        let _ = writeln!(
            text,
            "queues: {} groups waiting, {} samples in flight, {} groups complete",
            queues.groups_waiting, queues.samples_in_flight, queues.groups_complete
        );
    }
    let _ = writeln!(
        text,
        "waits: learner {} for batches, rollouts {} for the learner; coordinator's own work {:.2} s",
        words::clock(status.learner_wait_seconds),
        words::clock(status.rollout_wait_seconds),
        status.coordinator_seconds,
    );
    let rewards: Vec<f64> = status
        .tail
        .iter()
        .map(|record| record.reward_mean)
        .collect();
    if let (Some(first), Some(last)) = (status.tail.first(), status.tail.last()) {
        let _ = writeln!(
            text,
            "reward {} {:.3} (step {}) to {:.3} (step {})",
            words::curve(&rewards),
            first.reward_mean,
            first.step,
            last.reward_mean,
            last.step
        );
        let _ = writeln!(text, "{}", words::step(last, status.steps, 0.0));
        if let Some(metrics) = &last.learner {
            let _ = writeln!(text, "{}", words::log_prob_difference(metrics));
        }
    }
    for eval in &status.evals {
        let _ = writeln!(text, "{}", words::evaluation(eval));
    }
    text
}

/// The message as JSON, under the names of `proto/tina/v1/status.proto`; digests are hexadecimal.
pub(crate) fn to_json(status: &v1::RunStatus) -> Value {
    json!({
        "run_id": status.run_id,
        "run_dir": status.run_dir,
        "phase": words::phase(status),
        "step": status.step,
        "steps": status.steps,
        "version": version(status.version.as_ref()),
        "workers": status.workers.iter().map(worker).collect::<Vec<_>>(),
        "learner": status.learner.as_ref().map(learner),
        "queues": status.queues.as_ref().map(|queues| json!({
            "groups_waiting": queues.groups_waiting,
            "samples_in_flight": queues.samples_in_flight,
            "groups_complete": queues.groups_complete,
        })),
        "tail": status.tail.iter().map(step).collect::<Vec<_>>(),
        "learner_wait_seconds": status.learner_wait_seconds,
        "rollout_wait_seconds": status.rollout_wait_seconds,
        "elapsed_seconds": status.elapsed_seconds,
        "remaining_seconds": status.remaining_seconds,
        "cost_usd": status.cost_usd,
        "tokens_sampled": status.tokens_sampled,
        "tokens_trained": status.tokens_trained,
        "evals": status.evals.iter().map(evaluation).collect::<Vec<_>>(),
        "error": status.error,
        "phase_done": status.phase_done,
        "phase_total": status.phase_total,
        "message": status.message,
        "coordinator_seconds": status.coordinator_seconds,
    })
}

/// How full its memory of keys and values is, where that has a limit.
fn kv_share(worker: &v1::WorkerStatus) -> String {
    match worker.kv_limit_bytes {
        0 => String::new(),
        limit => {
            let share = 100.0 * worker.kv_bytes as f64 / limit as f64;
            format!("KV cache {share:.0} % full, ")
        }
    }
}

fn version(version: Option<&v1::PolicyVersion>) -> Value {
    version.map_or(
        Value::Null,
        |version| json!({ "step": version.step, "digest": words::hex(&version.digest) }),
    )
}

fn device(device: Option<&v1::DeviceInfo>) -> Value {
    device.map_or(Value::Null, |device| {
        json!({
            "device": device.device,
            "name": device.name,
            "numerics": device.numerics,
            "threads": device.threads,
        })
    })
}

fn worker(worker: &v1::WorkerStatus) -> Value {
    json!({
        "worker_id": worker.worker_id,
        "address": worker.address,
        "device": device(worker.device.as_ref()),
        "slots": worker.slots,
        "slots_used": worker.slots_used,
        "kv_bytes": worker.kv_bytes,
        "kv_limit_bytes": worker.kv_limit_bytes,
        "tokens_per_second": worker.tokens_per_second,
        "tokens_total": worker.tokens_total,
        "version": version(worker.version.as_ref()),
        "seconds_since_heartbeat": worker.seconds_since_heartbeat,
        "state": worker.state,
        "probe_diff_max": worker.probe_diff_max,
    })
}

fn learner(learner: &v1::LearnerStatus) -> Value {
    json!({
        "learner_id": learner.learner_id,
        "address": learner.address,
        "device": device(learner.device.as_ref()),
        "phase": learner.phase,
        "version": version(learner.version.as_ref()),
        "seconds_since_heartbeat": learner.seconds_since_heartbeat,
        "done": learner.done,
        "total": learner.total,
        "trainable_parameters": learner.trainable_parameters,
        "model_parameters": learner.model_parameters,
    })
}

fn evaluation(eval: &v1::EvalRecord) -> Value {
    json!({
        "step": eval.step,
        "problems": eval.problems,
        "samples": eval.samples,
        "accuracy": eval.accuracy,
        "accuracy_low": eval.accuracy_low,
        "accuracy_high": eval.accuracy_high,
        "pass_at_k": eval.pass_at_k.iter().map(|pass| json!({
            "k": pass.k, "value": pass.value, "low": pass.low, "high": pass.high,
        })).collect::<Vec<_>>(),
        "not_judged": eval.not_judged,
        "tokens": eval.tokens,
        "completion_tokens_mean": eval.completion_tokens_mean,
        "seconds": eval.seconds,
        "truncated_share": eval.truncated_share,
    })
}

fn step(step: &v1::StepRecord) -> Value {
    let rewards = step.rewards.iter().map(|reward| {
        json!({ "name": reward.name, "mean": reward.mean, "not_judged": reward.not_judged })
    });
    json!({
        "step": step.step,
        "reward_mean": step.reward_mean,
        "reward_std": step.reward_std,
        "rewards": rewards.collect::<Vec<_>>(),
        "groups_without_signal": step.groups_without_signal,
        "completion_tokens_mean": step.completion_tokens_mean,
        "truncated_share": step.truncated_share,
        "tokens_sampled": step.tokens_sampled,
        "seconds_sample": step.seconds_sample,
        "seconds_score": step.seconds_score,
        "seconds_learn": step.seconds_learn,
        "seconds_sync": step.seconds_sync,
        "seconds_coordinator": step.seconds_coordinator,
        "seconds_total": step.seconds_total,
        "tokens_per_second": step.tokens_per_second,
        "cost_usd": step.cost_usd,
        "learner": step.learner.as_ref().map(metrics),
        "version": version(step.version.as_ref()),
    })
}

fn metrics(metrics: &v1::StepMetrics) -> Value {
    // Where nothing was compared, there is no difference to tell.
    let compared = |value: f64| (metrics.tokens_trained > 0).then_some(value);
    json!({
        "loss": metrics.loss,
        "kl": metrics.kl,
        "entropy": compared(metrics.entropy),
        "grad_norm": metrics.grad_norm,
        "lr": metrics.lr,
        "ratio_mean": compared(metrics.ratio_mean),
        "ratio_max": compared(metrics.ratio_max),
        "clip_fraction": compared(metrics.clip_fraction),
        "effective_sample_share": compared(metrics.effective_sample_share),
        "corrected_fraction": compared(metrics.corrected_fraction),
        "staleness_mean": metrics.staleness_mean,
        "staleness_max": metrics.staleness_max,
        "skipped": metrics.skipped,
        "logprob_diff_max": compared(metrics.logprob_diff_max),
        "logprob_diff_mean": compared(metrics.logprob_diff_mean),
        "tokens_trained": metrics.tokens_trained,
        "tokens_forwarded": metrics.tokens_forwarded,
        "completions_trained": metrics.completions_trained,
        "seconds_forward": metrics.seconds_forward,
        "seconds_backward": metrics.seconds_backward,
        "seconds_optimizer": metrics.seconds_optimizer,
        "seconds_publish": metrics.seconds_publish,
        "seconds_checkpoint": metrics.seconds_checkpoint,
        "seconds_total": metrics.seconds_total,
        "peak_rss_bytes": metrics.peak_rss_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_and_json_say_where_the_run_stands() {
        let status = v1::RunStatus {
            run_id: "mine".into(),
            phase: v1::Phase::Sampling.into(),
            step: 3,
            steps: 30,
            version: Some(v1::PolicyVersion {
                step: 3,
                digest: vec![0xab; 32],
            }),
            workers: vec![v1::WorkerStatus {
                worker_id: "w0".into(),
                state: "ready".into(),
                slots: 64,
                slots_used: 12,
                ..Default::default()
            }],
            phase_done: 5,
            phase_total: 64,
            ..Default::default()
        };
        let page = page(&status);
        assert!(
            page.starts_with("mine: sampling 5/64, step 3/30, policy 3·abababab\n"),
            "{page}"
        );
        assert!(
            page.contains("worker w0 (): ready,") && page.contains("12/64 slots"),
            "{page}"
        );
        let json = to_json(&status);
        assert_eq!(json["version"]["digest"], "ab".repeat(32));
        assert_eq!(json["workers"][0]["slots_used"], 12);
        assert_eq!(json["learner"], Value::Null);
    }

    #[test]
    fn a_step_that_compared_nothing_claims_no_difference() {
        let mut learned = v1::StepMetrics::default();
        assert_eq!(metrics(&learned)["logprob_diff_max"], Value::Null);
        learned.tokens_trained = 7;
        assert_eq!(metrics(&learned)["logprob_diff_max"], 0.0);
    }
}
