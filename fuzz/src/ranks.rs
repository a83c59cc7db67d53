//! Messages between a learner's ranks. An input is a sequence of messages, each behind its length.

use tina_learner::{batch::Limits, ranks::trial};
use tina_proto::v1;

use crate::wire::{messages, stream};

/// What rank 0 sends another rank.
pub mod rank_commands {
    use super::*;

    /// Checks jobs up to where they would be computed.
    pub fn run(bytes: &[u8]) {
        let limits = Limits {
            vocab_size: 32,
            max_sequence_tokens: 32,
        };
        trial::try_commands(messages::<v1::RankCommand>(bytes), &limits);
    }

    /// A job with an adapter and two passes, and one with an adapter that is held.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::rank_command::Command as C;
        let pass = |job: u64, pass: u32| {
            C::Pass(v1::RankPass {
                job,
                pass,
                params: Some(v1::SamplingParams {
                    temperature: 1.0,
                    top_p: 0.9,
                    ..Default::default()
                }),
                parts: vec![v1::RankPart {
                    key: 7,
                    prompt_tokens: vec![4, 5],
                    completions: vec![v1::RankCompletion {
                        tokens: vec![1, 2],
                        logprobs: vec![-0.5, -0.25],
                        advantage: 0.5,
                        token_weight: 0.25,
                    }],
                }],
                start_logprobs: vec![-0.5, f32::NEG_INFINITY],
                base_logprobs: Vec::new(),
            })
        };
        let job = |job: u64, adapter: v1::PolicyVersion, adapter_bytes: u64, passes: u32| {
            C::Job(v1::RankJob {
                job,
                adapter: Some(adapter),
                adapter_bytes,
                dropout_seed: Some(3),
                nodes: vec![v1::PassRange {
                    start: 0,
                    end: passes,
                }],
                passes,
                nccl: None,
            })
        };
        let file = vec![9; 40];
        let adapter = C::Adapter(v1::AdapterChunk {
            version: None,
            offset: 0,
            total: 40,
            data: file.clone(),
        });
        let sent = [
            job(1, v1::PolicyVersion::of_bytes(1, &file), 40, 2),
            adapter,
            pass(1, 0),
            pass(1, 1),
        ];
        let held = [job(2, v1::PolicyVersion::new(1, [0; 32]), 0, 1), pass(2, 0)];
        let wire = |command| v1::RankCommand {
            command: Some(command),
        };
        vec![stream(sent.map(wire)), stream(held.map(wire))]
    }
}

/// What another rank sends rank 0.
pub mod rank_messages {
    use super::*;

    /// Checks outcomes and gradients.
    pub fn run(bytes: &[u8]) {
        trial::try_messages(messages::<v1::RankMessage>(bytes));
    }

    /// Both passes of the job, each with its gradient.
    pub fn seeds() -> Vec<Vec<u8>> {
        use v1::rank_message::Message as M;
        let pass = |pass: u32| {
            M::PassDone(v1::PassDone {
                job: 1,
                pass,
                sums: Some(v1::PassSums {
                    loss: 0.5,
                    tokens: 1,
                    ratio: 1.0,
                    rows: 1,
                    ..Default::default()
                }),
                logprobs: vec![-1.0],
                base_logprobs: Vec::new(),
            })
        };
        let gradient = |pass: u32, values: &[f32]| {
            M::Gradient(v1::GradientChunk {
                job: 1,
                node: Some(v1::PassRange {
                    start: pass,
                    end: pass + 1,
                }),
                data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            })
        };
        let all = [
            pass(0),
            gradient(0, &[1.0, -2.0]),
            gradient(0, &[0.0, 0.5]),
            pass(1),
            M::ByNccl(v1::GradientByNccl {
                job: 1,
                node: Some(v1::PassRange { start: 1, end: 2 }),
                digest: vec![1; 32],
            }),
            gradient(1, &[1.0, 2.0, 3.0, f32::NAN]),
        ];
        vec![stream(all.map(|message| v1::RankMessage {
            message: Some(message),
        }))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_to_begin_from_are_taken_to_their_end() {
        let limits = Limits {
            vocab_size: 32,
            max_sequence_tokens: 32,
        };
        for seed in rank_commands::seeds() {
            assert_eq!(trial::try_commands(messages(&seed), &limits), 1);
        }
        for seed in rank_messages::seeds() {
            assert_eq!(trial::try_messages(messages(&seed)), 2);
        }
    }
}
