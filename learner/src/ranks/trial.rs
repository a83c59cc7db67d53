//! Messages tried out without a network: for tests that break them.

use std::borrow::Cow;

use tina_model::Distribution;
use tina_proto::v1::{PolicyVersion, RankCommand, RankMessage, rank_message::Message};

use super::wire::{Awaited, Orders};
use crate::{
    batch::Limits,
    pass::{Part, Pass, Scored},
    share::{AdapterFile, Job},
    tree::Node,
};

/// How many jobs a rank would compute of these commands, up to the first that it refuses.
pub fn try_commands(commands: impl IntoIterator<Item = RankCommand>, limits: &Limits) -> usize {
    let mut orders = Orders::default();
    let mut jobs = 0;
    for command in commands {
        let Some(command) = command.command else {
            break;
        };
        match orders.take(command, Some(&[0; 32]), limits, 1 << 20) {
            Ok(order) => jobs += usize::from(order.is_some()),
            Err(_) => break,
        }
    }
    jobs
}

/// How many sums rank 0 would take of these messages, up to the first that it refuses, where it has
/// given out, as job 1, two passes of one token each, whose gradient has 4 values.
pub fn try_messages(messages: impl IntoIterator<Item = RankMessage>) -> usize {
    let pass = Pass {
        parts: vec![Part {
            key: 0,
            prompt: Cow::Borrowed(&[1]),
            completions: vec![Scored {
                tokens: Cow::Borrowed(&[2]),
                sampled: Cow::Borrowed(&[-1.0]),
                advantage: 1.0,
                weight: 1.0,
            }],
        }],
        distribution: Distribution::FULL,
        base: None,
        start: None,
    };
    let bytes: std::sync::Arc<[u8]> = Vec::new().into();
    let mut awaited = Awaited::new(
        1,
        &Job {
            adapter: &AdapterFile {
                version: PolicyVersion::of_bytes(0, &bytes),
                bytes,
            },
            dropout_seed: None,
            nodes: &[Node { start: 0, end: 1 }, Node { start: 1, end: 2 }],
            passes: &[pass.clone(), pass],
            needs_base: false,
            parameters: 4,
        },
    );
    let mut sums = 0;
    for message in messages {
        let taken = match message.message {
            Some(Message::PassDone(done)) => awaited.pass_done(done).map(|_| false),
            Some(Message::Gradient(chunk)) => awaited.chunk(&chunk).map(|sum| sum.is_some()),
            Some(Message::ByNccl(announced)) => awaited.announced(&announced).map(|_| false),
            _ => break,
        };
        match taken {
            Ok(sum) => sums += usize::from(sum),
            Err(_) => break,
        }
    }
    sums
}
