//! What a message may hold, by the run's config: checked before anything is kept of it.

use tina_proto::{
    adapters::{NCCL_ID_BYTES, Reach},
    v1,
};

use crate::scheduler::types::{Purpose, RoundId};

/// Slots that a worker may offer.
const MAX_SLOTS: u32 = 1 << 16;
/// Characters of a name.
const MAX_NAME: usize = 256;
/// A log-prob may be above 0 by rounding.
const LOGPROB_SLACK: f32 = 1e-3;

/// Bounds on what workers send.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Longest completion of a step, in tokens.
    pub train_tokens: u32,
    /// Longest completion of an evaluation, in tokens.
    pub eval_tokens: u32,
    /// Groups of a step.
    pub groups: u32,
    /// Completions of a group.
    pub samples: u32,
    /// Problems of an evaluation.
    pub eval_problems: u32,
    /// Completions of a problem in an evaluation.
    pub eval_samples: u32,
    /// Log-probs of the probe.
    pub probe_logprobs: u32,
}

impl Limits {
    /// Bytes of one message of a learner: metrics, and the probe's log-probs.
    pub const LEARNER_MESSAGE_BYTES: usize = 4 << 20;
    /// Bytes of one piece of an adapter.
    pub const ADAPTER_MESSAGE_BYTES: usize = 1 << 20;

    /// Bytes of one message of a worker: the longest completion, a token of which takes at most 5
    /// bytes and its log-prob 4; and the probe's log-probs.
    pub fn worker_message_bytes(&self) -> usize {
        (256 << 10) + 16 * self.train_tokens.max(self.eval_tokens) as usize
    }

    /// # Errors
    /// What is wrong with the completion.
    pub fn check_completion(&self, completion: &v1::Completion) -> Result<(), String> {
        let (round, group) = RoundId::of_group(completion.group_id);
        let (groups, samples, longest) = match round.purpose() {
            Purpose::Train => (self.groups, self.samples, self.train_tokens),
            Purpose::Eval => (self.eval_problems, self.eval_samples, self.eval_tokens),
        };
        let (tokens, logprobs) = (&completion.tokens, &completion.logprobs);
        let last = tokens.len() as u32;
        if group >= groups || completion.sample_index >= samples {
            Err("of a sample that the run doesn't have".into())
        } else if tokens.is_empty() || tokens.len() > longest as usize {
            Err(format!(
                "of {} tokens, 1 to {longest} are possible",
                tokens.len()
            ))
        } else if logprobs.len() != tokens.len() {
            Err(format!(
                "of {} tokens with {} log-probs",
                tokens.len(),
                logprobs.len()
            ))
        } else if let Some(token) = tokens.iter().find(|token| **token >= self.vocab_size) {
            Err(format!(
                "with token {token}, the vocabulary has {}",
                self.vocab_size
            ))
        } else if let Some(p) = logprobs
            .iter()
            .find(|p| !p.is_finite() || **p > LOGPROB_SLACK)
        {
            Err(format!("with a log-prob of {p}"))
        } else if !(completion.decode_seconds.is_finite() && completion.decode_seconds >= 0.0) {
            Err(format!("that took {} s", completion.decode_seconds))
        } else if completion.finish_reason() == v1::FinishReason::Unspecified {
            Err("that doesn't say why it ended".into())
        } else {
            check_spans(&completion.versions, last)
        }
    }

    /// # Errors
    /// What is wrong with the samples named.
    pub fn check_failed(&self, failed: &v1::SampleFailed) -> Result<(), String> {
        if failed.sample_indices.len() > self.samples.max(self.eval_samples).max(1) as usize {
            return Err(format!(
                "{} failed samples of one group",
                failed.sample_indices.len()
            ));
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong with the slots offered, or with where it hands adapters on.
    pub fn check_ready(ready: &v1::WorkerReady) -> Result<(), String> {
        if !ready.relay.is_empty() {
            Reach::of(&ready.relay).map_err(|error| error.to_string())?;
        }
        if ready.slots > MAX_SLOTS {
            return Err(format!(
                "{} slots, at most {MAX_SLOTS} are taken",
                ready.slots
            ));
        }
        check_text("model digest", &ready.model_digest)?;
        check_device(ready.device.as_ref())
    }

    /// # Errors
    /// What is wrong with what a worker says of itself.
    pub fn check_worker(hello: &v1::WorkerHello) -> Result<(), String> {
        Self::check_name(&hello.worker_id)?;
        check_text("version", &hello.version)?;
        check_device(hello.device.as_ref())
    }

    /// # Errors
    /// What is wrong with what a learner says of itself.
    pub fn check_learner(hello: &v1::LearnerHello) -> Result<(), String> {
        Self::check_name(&hello.learner_id)?;
        check_text("version", &hello.version)?;
        check_device(hello.device.as_ref())
    }

    /// # Errors
    /// What is wrong with the answer to an adapter. (Log-probs that are not finite are the scheduler's to
    /// see: it compares them, and the worker stays where a person can read why it is refused.)
    pub fn check_loaded(&self, loaded: &v1::AdapterLoaded) -> Result<(), String> {
        self.check_probe_length(&loaded.probe_logprobs)?;
        check_amounts(&[("seconds", loaded.seconds), ("pause", loaded.pause_seconds)])
    }

    /// # Errors
    /// What is wrong with a heartbeat.
    pub fn check_heartbeat(beat: &v1::WorkerHeartbeat) -> Result<(), String> {
        if beat.slots > MAX_SLOTS {
            return Err(format!(
                "{} slots, at most {MAX_SLOTS} are taken",
                beat.slots
            ));
        }
        check_amounts(&[("tokens a second", beat.tokens_per_second)])
    }

    /// # Errors
    /// What is wrong with a learner's announcement.
    pub fn check_learner_ready(&self, ready: &v1::LearnerReady) -> Result<(), String> {
        check_text("model digest", &ready.model_digest)?;
        check_device(ready.device.as_ref())?;
        self.check_probe(&ready.probe_logprobs)?;
        check_nccl_id(&ready.nccl_id)?;
        // What it holds of an earlier process may be of another probe.
        let missed = ready.last_result.as_ref();
        missed.map_or(Ok(()), |result| check_metrics(result.metrics.as_ref()))
    }

    /// # Errors
    /// What is wrong with a step's result.
    pub fn check_result(&self, result: &v1::StepResult) -> Result<(), String> {
        self.check_probe(&result.probe_logprobs)?;
        check_nccl_id(&result.nccl_id)?;
        check_metrics(result.metrics.as_ref())
    }

    fn check_probe(&self, logprobs: &[f32]) -> Result<(), String> {
        self.check_probe_length(logprobs)?;
        match logprobs
            .iter()
            .find(|p| !p.is_finite() || **p > LOGPROB_SLACK)
        {
            Some(p) => Err(format!("a log-prob of the probe is {p}")),
            None => Ok(()),
        }
    }

    fn check_probe_length(&self, logprobs: &[f32]) -> Result<(), String> {
        if logprobs.len() > self.probe_logprobs as usize {
            return Err(format!(
                "{} log-probs of the probe, which has {}",
                logprobs.len(),
                self.probe_logprobs
            ));
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong with a name that a role gave itself.
    pub fn check_name(name: &str) -> Result<(), String> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(format!(
                "a name of 1 to {MAX_NAME} printable bytes is needed"
            ));
        }
        Ok(())
    }
}

/// Each span begins after the one before, in a completion of so many tokens, and is of a newer version:
/// a worker never goes back to an older adapter.
fn check_spans(spans: &[v1::VersionSpan], tokens: u32) -> Result<(), String> {
    let unknown = || "that doesn't say which policy version sampled it".to_owned();
    let starts = spans.iter().map(|span| span.start);
    let ordered = starts.is_sorted_by(|one, next| one < next);
    if spans.first().is_none_or(|first| first.start != 0)
        || !ordered
        || spans.last().is_some_and(|last| last.start >= tokens)
    {
        return Err(unknown());
    }
    let mut before: Option<u64> = None;
    for span in spans {
        let version = span.version.as_ref().ok_or_else(unknown)?;
        version.checked_digest().map_err(|_| unknown())?;
        if let Some(before) = before.filter(|before| *before >= version.step) {
            return Err(format!(
                "whose tokens go back from policy version {before} to {}",
                version.step
            ));
        }
        before = Some(version.step);
    }
    Ok(())
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_NAME {
        return Err(format!("a {what} of {} bytes", text.len()));
    }
    Ok(())
}

fn check_device(device: Option<&v1::DeviceInfo>) -> Result<(), String> {
    let Some(device) = device else { return Ok(()) };
    check_text("device", &device.device)?;
    check_text("device's name", &device.name)?;
    check_text("device's arithmetic", &device.numerics)
}

fn check_nccl_id(id: &[u8]) -> Result<(), String> {
    if id.is_empty() || id.len() == NCCL_ID_BYTES {
        Ok(())
    } else {
        Err(format!("an NCCL id of {} bytes", id.len()))
    }
}

/// Numbers that are counts or times.
fn check_amounts(amounts: &[(&str, f64)]) -> Result<(), String> {
    match amounts
        .iter()
        .find(|(_, value)| !(value.is_finite() && *value >= 0.0))
    {
        Some((what, value)) => Err(format!("its {what} is {value}")),
        None => Ok(()),
    }
}

fn check_metrics(metrics: Option<&v1::StepMetrics>) -> Result<(), String> {
    let Some(m) = metrics else { return Ok(()) };
    let signed = [("loss", m.loss), ("KL", m.kl), ("entropy", m.entropy)];
    if let Some((what, value)) = signed.iter().find(|(_, value)| !value.is_finite()) {
        return Err(format!("the step's {what} is {value}"));
    }
    check_amounts(&[
        ("gradient's norm", m.grad_norm),
        ("learning rate", m.lr),
        ("mean ratio", m.ratio_mean),
        ("largest ratio", m.ratio_max),
        ("clipped share", m.clip_fraction),
        ("largest log-prob difference", m.logprob_diff_max),
        ("mean log-prob difference", m.logprob_diff_mean),
        ("effective sample share", m.effective_sample_share),
        ("corrected share", m.corrected_fraction),
        ("mean staleness", m.staleness_mean),
        ("forward time", m.seconds_forward),
        ("backward time", m.seconds_backward),
        ("optimiser's time", m.seconds_optimizer),
        ("publishing time", m.seconds_publish),
        ("checkpointing time", m.seconds_checkpoint),
        ("time", m.seconds_total),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            vocab_size: 10,
            train_tokens: 4,
            eval_tokens: 8,
            groups: 2,
            samples: 3,
            eval_problems: 5,
            eval_samples: 1,
            probe_logprobs: 3,
        }
    }

    fn span(start: u32, step: u64) -> v1::VersionSpan {
        let version = Some(v1::PolicyVersion::new(step, [step as u8; 32]));
        v1::VersionSpan { start, version }
    }

    fn completion() -> v1::Completion {
        v1::Completion {
            group_id: RoundId::train(1).group(1),
            sample_index: 2,
            tokens: vec![1, 9],
            logprobs: vec![-0.5, 0.0],
            finish_reason: v1::FinishReason::Stop.into(),
            versions: vec![span(0, 1)],
            decode_seconds: 0.1,
        }
    }

    #[test]
    fn a_completion_beyond_the_config_is_refused_with_what_is_wrong() {
        assert_eq!(limits().check_completion(&completion()), Ok(()));
        type Spoil = fn(&mut v1::Completion);
        let cases: [(Spoil, &str); 17] = [
            (|c| c.tokens[0] = 10, "vocabulary"),
            (|c| c.tokens.clear(), "of 0 tokens"),
            (
                |c| (c.tokens, c.logprobs) = (vec![1; 5], vec![0.0; 5]),
                "of 5 tokens",
            ),
            (|c| c.logprobs.truncate(1), "1 log-probs"),
            (|c| c.logprobs[0] = f32::NAN, "NaN"),
            (|c| c.logprobs[0] = 0.5, "log-prob of 0.5"),
            (|c| c.group_id = RoundId::train(1).group(2), "doesn't have"),
            (|c| c.sample_index = 3, "doesn't have"),
            (|c| c.finish_reason = 0, "why it ended"),
            (|c| c.versions.clear(), "policy version"),
            (|c| c.versions[0].start = 1, "policy version"),
            (|c| c.versions[0].version = None, "policy version"),
            (
                |c| c.versions = vec![span(0, 1), span(2, 2)],
                "policy version",
            ),
            (
                |c| c.versions = vec![span(0, 1), span(0, 2)],
                "policy version",
            ),
            (
                |c| c.versions = vec![span(0, 2), span(1, 1)],
                "go back from policy version 2 to 1",
            ),
            (|c| c.versions = vec![span(0, 2), span(1, 2)], "go back"),
            (
                |c| {
                    c.versions[0].version = Some(v1::PolicyVersion {
                        step: 1,
                        digest: vec![0; 31],
                    })
                },
                "policy version",
            ),
        ];
        for (spoil, message) in cases {
            let mut spoilt = completion();
            spoil(&mut spoilt);
            let error = limits().check_completion(&spoilt).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let mut eval = completion();
        eval.group_id = RoundId::eval(0).group(4);
        assert!(limits().check_completion(&eval).is_err());
        eval.sample_index = 0;
        assert_eq!(limits().check_completion(&eval), Ok(()));
    }

    #[test]
    fn a_completion_of_ever_newer_versions_is_taken() {
        let mut newer = completion();
        newer.versions = vec![span(0, 1), span(1, 3)];
        assert_eq!(limits().check_completion(&newer), Ok(()));
    }

    #[test]
    fn a_learner_s_numbers_are_finite_or_it_is_told_which_is_not() {
        let result = || v1::StepResult {
            probe_logprobs: vec![-0.5; 3],
            metrics: Some(v1::StepMetrics {
                loss: -0.1,
                kl: -1e-9,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(limits().check_result(&result()), Ok(()));
        type Spoil = fn(&mut v1::StepResult);
        fn metrics(result: &mut v1::StepResult) -> &mut v1::StepMetrics {
            result.metrics.as_mut().unwrap()
        }
        let cases: [(Spoil, &str); 7] = [
            (|r| r.probe_logprobs[1] = f32::NAN, "probe is NaN"),
            (|r| r.probe_logprobs[1] = f32::NEG_INFINITY, "probe is -inf"),
            (|r| r.probe_logprobs.push(0.0), "4 log-probs"),
            (|r| r.nccl_id = vec![0; 5], "NCCL id of 5"),
            (|r| metrics(r).loss = f64::NAN, "loss is NaN"),
            (
                |r| metrics(r).grad_norm = f64::INFINITY,
                "gradient's norm is inf",
            ),
            (|r| metrics(r).seconds_total = -1.0, "time is -1"),
        ];
        for (spoil, words) in cases {
            let mut spoilt = result();
            spoil(&mut spoilt);
            let error = limits().check_result(&spoilt).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let ready = v1::LearnerReady {
            probe_logprobs: vec![f32::NAN],
            ..Default::default()
        };
        assert!(limits().check_learner_ready(&ready).is_err());
    }

    #[test]
    fn what_a_role_says_of_itself_is_of_a_size_that_people_read() {
        let device = |name: String| {
            Some(v1::DeviceInfo {
                name,
                ..Default::default()
            })
        };
        let hello = |name: String| v1::WorkerHello {
            worker_id: "w".into(),
            device: device(name),
            ..Default::default()
        };
        assert_eq!(Limits::check_worker(&hello("a GPU".into())), Ok(()));
        let error = Limits::check_worker(&hello("x".repeat(300))).unwrap_err();
        assert!(error.contains("device's name of 300 bytes"), "{error}");
        let beat = v1::WorkerHeartbeat {
            tokens_per_second: f64::NAN,
            ..Default::default()
        };
        let error = Limits::check_heartbeat(&beat).unwrap_err();
        assert!(error.contains("tokens a second is NaN"), "{error}");
        let loaded = v1::AdapterLoaded {
            probe_logprobs: vec![0.0; 4],
            ..Default::default()
        };
        assert!(limits().check_loaded(&loaded).is_err());
    }

    #[test]
    fn a_relay_s_address_without_tls_is_of_its_own_machine_or_refused() {
        let check = |relay: &str| {
            Limits::check_ready(&v1::WorkerReady {
                slots: 4,
                relay: relay.into(),
                ..Default::default()
            })
        };
        for fine in [
            "",
            "http://127.0.0.1:80",
            "http://[::1]:80",
            "https://a.example:443",
        ] {
            assert_eq!(check(fine), Ok(()));
        }
        for bad in [
            "http://10.0.0.1:80",
            "ftp://127.0.0.1:1",
            "https://a/b:1",
            "https://a",
        ] {
            assert!(check(bad).unwrap_err().contains("relay"), "{bad}");
        }
        assert!(check(&format!("https://{}:1", "a".repeat(300))).is_err());
    }
}
