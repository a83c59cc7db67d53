//! The parts of a config that go over the wire.

use tina_proto::v1;

use super::{AdapterTransport, RunConfig};

impl RunConfig {
    /// What workers and learner are told of the run.
    ///
    /// `run_dir`: absolute path of the run's folder. `max_sequence_tokens`: the longest prompt of
    /// the run and the longest completion together.
    pub fn run_spec(
        &self,
        run_id: &str,
        run_dir: &str,
        probe_tokens: Vec<u32>,
        max_sequence_tokens: u32,
    ) -> v1::RunSpec {
        let (lora, algorithm, learner) = (&self.lora, &self.algorithm, &self.learner);
        let schedule_steps = learner.schedule_steps.unwrap_or(self.run.steps);
        v1::RunSpec {
            run_id: run_id.to_owned(),
            seed: self.run.seed,
            model: Some(v1::ModelSpec {
                source: self.model.source.clone(),
                dtype: self.model.dtype.as_str().to_owned(),
            }),
            lora: Some(v1::LoraSpec {
                rank: lora.rank,
                alpha: lora.alpha as f32,
                dropout: lora.dropout as f32,
                rslora: lora.rslora,
                target_modules: lora.target_modules.clone(),
            }),
            algorithm: Some(v1::AlgorithmSpec {
                loss: algorithm.loss.as_str().to_owned(),
                clip_low: algorithm.clip_low,
                clip_high: algorithm.clip_high,
                kl_beta: algorithm.kl_beta,
                iterations: algorithm.iterations,
                mask_truncated: algorithm.mask_truncated,
                advantage: algorithm
                    .advantage
                    .map_or(String::new(), |advantage| advantage.as_str().to_owned()),
                max_completion_tokens: self.sampling.max_tokens,
                kl_estimator: algorithm.kl_estimator.as_str().to_owned(),
                kl_in: algorithm.kl_in.as_str().to_owned(),
                importance: algorithm.importance.as_str().to_owned(),
                importance_cap: algorithm.importance_cap,
                importance_mode: algorithm.importance_mode.as_str().to_owned(),
            }),
            learner: Some(v1::LearnerSpec {
                lr: learner.lr,
                min_lr_ratio: learner.min_lr_ratio,
                warmup_steps: learner.warmup_steps.unwrap_or(schedule_steps / 10),
                schedule_steps,
                beta1: learner.beta1,
                beta2: learner.beta2,
                eps: learner.eps,
                weight_decay: learner.weight_decay,
                max_grad_norm: learner.max_grad_norm,
                micro_batch_tokens: learner.micro_batch_tokens,
                checkpoint_every: learner.checkpoint_every,
                memory_bytes: learner.memory_mb.map(|mb| u64::from(mb) * 1_000_000),
                ranks: learner.ranks,
                rank_timeout_s: learner.rank_timeout_s,
                ranks_by_nccl: learner.rank_transport == AdapterTransport::Nccl,
            }),
            probe_tokens,
            max_sequence_tokens,
            run_dir: run_dir.to_owned(),
            adapter_transport: self.cluster.adapter_transport.as_str().to_owned(),
            adapter_swap: self.adapter_swap().as_str().to_owned(),
            adapter_fan_out: if self.cluster.adapter_relay {
                self.cluster.adapter_fan_out
            } else {
                0
            },
        }
    }

    /// How training samples; `model_stop_ids` are the stop tokens that the model itself has.
    pub fn sampling_params(&self, model_stop_ids: &[u32]) -> v1::SamplingParams {
        let sampling = &self.sampling;
        let mut stop_token_ids = model_stop_ids.to_vec();
        stop_token_ids.extend(&sampling.stop_token_ids);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        v1::SamplingParams {
            temperature: sampling.temperature as f32,
            top_p: sampling.top_p as f32,
            top_k: sampling.top_k,
            min_p: sampling.min_p as f32,
            max_tokens: sampling.max_tokens,
            stop_token_ids,
            stop: sampling.stop.clone(),
        }
    }

    /// How evaluation samples: as training, but for temperature, top-p and token limit.
    pub fn eval_sampling_params(&self, model_stop_ids: &[u32]) -> v1::SamplingParams {
        v1::SamplingParams {
            temperature: self.eval.temperature as f32,
            top_p: self.eval.top_p.unwrap_or(self.sampling.top_p) as f32,
            max_tokens: self.eval.max_tokens.unwrap_or(self.sampling.max_tokens),
            ..self.sampling_params(model_stop_ids)
        }
    }

    /// Problems that evaluation asks.
    pub fn eval_problems(&self) -> usize {
        self.eval.problems.unwrap_or(self.data.held_out)
    }

    /// The longest completion that the run can ask for, in tokens.
    pub fn max_completion_tokens(&self) -> u32 {
        self.sampling
            .max_tokens
            .max(self.eval.max_tokens.unwrap_or(0))
    }
}
