//! What goes between rank 0 and another rank, made and checked. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use tina_model::Distribution;
use tina_proto::v1::{
    AdapterChunk, GradientByNccl, GradientChunk, NcclGroup, PassDone, PassRange, PassSums,
    PolicyVersion, RankCompletion, RankJob, RankPart, RankPass, SamplingParams,
    rank_command::Command,
};

use crate::{
    batch::{LOGPROB_CEILING, Limits, distribution},
    loss::LossStats,
    pass::{Outcome, Part, Pass, Scored},
    share::Job,
    tree::Node,
};

/// Passes of a step, and nodes of a job, at most.
const MOST_PASSES: usize = 1 << 20;
const MOST_NODES: usize = 1 << 10;

pub(super) fn range(node: Node) -> PassRange {
    PassRange {
        start: node.start as u32,
        end: node.end as u32,
    }
}

fn node(range: PassRange) -> Node {
    Node {
        start: range.start as usize,
        end: range.end as usize,
    }
}

/// The head of a job; `adapter_bytes`: 0 where the rank holds the adapter; `nccl`: the rank's place in
/// a group that gradients may come by.
pub(super) fn job_message(
    id: u64,
    job: &Job<'_>,
    adapter_bytes: u64,
    nccl: Option<NcclGroup>,
) -> RankJob {
    RankJob {
        job: id,
        adapter: Some(job.adapter.version.clone()),
        adapter_bytes,
        dropout_seed: job.dropout_seed,
        nodes: job.nodes.iter().copied().map(range).collect(),
        passes: job.passes.len() as u32,
        nccl,
    }
}

/// A job's passes.
pub(super) fn pass_messages(id: u64, job: &Job<'_>) -> Vec<RankPass> {
    let indices = job.nodes.iter().flat_map(|node| node.passes());
    let passes = indices.filter_map(|index| Some((index, job.passes.get(index)?)));
    passes
        .map(|(index, pass)| pass_message(id, index, pass))
        .collect()
}

fn pass_message(job: u64, index: usize, pass: &Pass<'_>) -> RankPass {
    let Distribution {
        temperature,
        top_p,
        top_k,
        min_p,
    } = pass.distribution;
    let completion = |one: &Scored<'_>| RankCompletion {
        tokens: one.tokens.to_vec(),
        logprobs: one.sampled.to_vec(),
        advantage: one.advantage,
        token_weight: one.weight,
    };
    let part = |part: &Part<'_>| RankPart {
        key: part.key,
        prompt_tokens: part.prompt.to_vec(),
        completions: part.completions.iter().map(completion).collect(),
    };
    RankPass {
        job,
        pass: index as u32,
        params: Some(SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            ..SamplingParams::default()
        }),
        parts: pass.parts.iter().map(part).collect(),
        start_logprobs: pass.start.clone().unwrap_or_default(),
        base_logprobs: pass.base.clone().unwrap_or_default(),
    }
}

fn read_pass(message: RankPass, limits: &Limits) -> Result<Pass<'static>, String> {
    let params = message
        .params
        .ok_or("its sampling parameters are missing")?;
    let distribution = distribution(&params)?;
    let (vocab, longest) = (limits.vocab_size, limits.max_sequence_tokens);
    let known = |tokens: &[u32]| tokens.iter().all(|token| (*token as usize) < vocab);
    let mut parts = Vec::with_capacity(message.parts.len());
    for part in message.parts {
        let prompt = part.prompt_tokens;
        if prompt.is_empty() || !known(&prompt) {
            return Err(format!("a prompt is empty, or not of {vocab} tokens"));
        }
        let mut completions = Vec::with_capacity(part.completions.len());
        for one in part.completions {
            let tokens = one.tokens.len();
            if tokens == 0 || prompt.len() + tokens > longest || !known(&one.tokens) {
                return Err(format!(
                    "a completion of {tokens} tokens after a prompt of {}: 1 token and {longest} \
                     in all, of a vocabulary of {vocab}, are taken",
                    prompt.len()
                ));
            }
            let sampled = |p: &f32| p.is_finite() && *p <= LOGPROB_CEILING;
            if one.logprobs.len() != tokens || !one.logprobs.iter().all(sampled) {
                return Err("log-probs that are not one a token and finite".to_owned());
            }
            if !one.advantage.is_finite() || !one.token_weight.is_finite() {
                return Err("an advantage or weight that is not finite".to_owned());
            }
            completions.push(Scored {
                tokens: Cow::Owned(one.tokens),
                sampled: Cow::Owned(one.logprobs),
                advantage: one.advantage,
                weight: one.token_weight,
            });
        }
        if completions.is_empty() {
            return Err("a prompt without completions".to_owned());
        }
        parts.push(Part {
            key: part.key,
            prompt: Cow::Owned(prompt),
            completions,
        });
    }
    let mut pass = Pass {
        parts,
        distribution,
        base: None,
        start: None,
    };
    let targets = pass.targets();
    if targets == 0 {
        return Err("nothing to compute".to_owned());
    }
    pass.start = log_probs(message.start_logprobs, targets)?;
    pass.base = log_probs(message.base_logprobs, targets)?;
    Ok(pass)
}

/// One a target, or none at all. A token that can't be drawn has minus infinity.
fn log_probs(values: Vec<f32>, targets: usize) -> Result<Option<Vec<f32>>, String> {
    if values.is_empty() {
        return Ok(None);
    }
    // No comparison holds of what is no number.
    if values.len() != targets || !values.iter().all(|p| *p <= LOGPROB_CEILING) {
        let found = values.len();
        return Err(format!(
            "{found} log-probs for {targets} targets, or one that is none"
        ));
    }
    Ok(Some(values))
}

/// A job as it arrives at a rank.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) job: u64,
    pub(super) adapter: PolicyVersion,
    pub(super) dropout_seed: Option<u64>,
    pub(super) nodes: Vec<Node>,
    /// Passes of the whole gradient.
    pub(super) passes: usize,
    /// Those that came, of the nodes.
    pub(super) received: BTreeMap<usize, Pass<'static>>,
    /// The adapter's file as far as it came.
    pub(super) file: Vec<u8>,
    adapter_bytes: usize,
    /// By which gradients may go back.
    pub(super) nccl: Option<NcclGroup>,
}

impl Order {
    /// `held`: the digest of the adapter that the rank has; `limit`: bytes that one may have.
    pub(super) fn begin(job: RankJob, held: Option<&[u8]>, limit: u64) -> Result<Self, String> {
        let adapter = job.adapter.unwrap_or_default();
        adapter.checked_digest().map_err(|e| e.to_string())?;
        let bytes = job.adapter_bytes;
        if bytes > limit {
            return Err(format!("an adapter of {bytes} bytes; {limit} are taken"));
        }
        if bytes == 0 && held != Some(&adapter.digest[..]) {
            return Err(format!("adapter {} was never sent", adapter.short()));
        }
        let passes = job.passes as usize;
        let (count, most) = (job.nodes.len(), passes.min(MOST_NODES));
        if passes > MOST_PASSES || count == 0 || count > most {
            return Err(format!("{count} nodes of {passes} passes"));
        }
        let mut nodes: Vec<Node> = job.nodes.into_iter().map(node).collect();
        nodes.sort_unstable();
        let root = Node::root(passes);
        let strange = |node: &Node| root.is_none_or(|root| !node.is_below(root));
        if nodes.iter().any(strange) || nodes.windows(2).any(|two| two[0].end > two[1].start) {
            return Err(format!(
                "nodes that are none of {passes} passes, or overlap"
            ));
        }
        Ok(Self {
            job: job.job,
            adapter,
            dropout_seed: job.dropout_seed,
            nodes,
            passes,
            received: BTreeMap::new(),
            file: Vec::new(),
            adapter_bytes: usize::try_from(bytes).map_err(|error| error.to_string())?,
            nccl: job.nccl,
        })
    }

    pub(super) fn take_chunk(&mut self, chunk: &AdapterChunk) -> Result<(), String> {
        let (held, data) = (self.file.len(), chunk.data.len());
        if data == 0 || chunk.offset != held as u64 || held + data > self.adapter_bytes {
            return Err(format!(
                "{data} bytes of an adapter at {}; {held} of {} are there",
                chunk.offset, self.adapter_bytes
            ));
        }
        self.file.extend_from_slice(&chunk.data);
        if self.file.len() == self.adapter_bytes {
            let found = PolicyVersion::of_bytes(self.adapter.step, &self.file);
            if found != self.adapter {
                return Err(format!(
                    "adapter {} came as {}",
                    self.adapter.short(),
                    found.short()
                ));
            }
        }
        Ok(())
    }

    pub(super) fn take_pass(&mut self, pass: RankPass, limits: &Limits) -> Result<(), String> {
        let index = pass.pass as usize;
        let bad = |problem: String| format!("pass {index}: {problem}");
        let asked = self.nodes.iter().any(|node| node.passes().contains(&index));
        if pass.job != self.job || !asked || self.received.contains_key(&index) {
            return Err(bad("it is of no node of the job, or came twice".to_owned()));
        }
        self.received
            .insert(index, read_pass(pass, limits).map_err(bad)?);
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        let asked: usize = self.nodes.iter().map(|node| node.passes().len()).sum();
        self.file.len() == self.adapter_bytes && self.received.len() == asked
    }
}

/// A rank's commands as they come, up to a job that is complete.
#[derive(Debug, Default)]
pub(super) struct Orders {
    open: Option<Order>,
}

impl Orders {
    /// The job, if this was the last of it. `held` and `adapter_limit`: see [`Order::begin`].
    pub(super) fn take(
        &mut self,
        command: Command,
        held: Option<&[u8]>,
        limits: &Limits,
        adapter_limit: u64,
    ) -> Result<Option<Order>, String> {
        let outside = || "a part of a job came outside of one".to_owned();
        match (command, &mut self.open) {
            (Command::Job(job), open @ None) => {
                *open = Some(Order::begin(job, held, adapter_limit)?);
            }
            (Command::Adapter(chunk), Some(order)) => order.take_chunk(&chunk)?,
            (Command::Pass(pass), Some(order)) => order.take_pass(pass, limits)?,
            (Command::Adapter(_) | Command::Pass(_), None) => return Err(outside()),
            (Command::Job(_), Some(_)) => {
                return Err("a job came before the last one was complete".to_owned());
            }
            (Command::Welcome(_) | Command::Stop(_), _) => {
                return Err("it has no place among jobs".to_owned());
            }
        }
        Ok(self.open.take_if(|order| order.is_complete()))
    }
}

/// What a rank says of a pass.
pub(super) fn done_message(job: u64, pass: usize, outcome: Outcome) -> PassDone {
    let stats = outcome.stats;
    PassDone {
        job,
        pass: pass as u32,
        sums: Some(PassSums {
            loss: stats.loss,
            tokens: stats.tokens,
            kl: stats.kl,
            ratio: stats.ratio,
            ratio_squared: stats.ratio_squared,
            ratio_max: stats.ratio_max,
            clipped: stats.clipped,
            corrected: stats.corrected,
            diff: stats.diff,
            diff_max: stats.diff_max,
            entropy: outcome.entropy,
            rows: outcome.rows,
        }),
        logprobs: outcome.new,
        base_logprobs: outcome.base.unwrap_or_default(),
    }
}

/// A node's sum, complete.
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) node: Node,
    pub(super) values: Vec<f32>,
    pub(super) outcomes: Vec<Outcome>,
}

/// What rank 0 awaits of another rank.
#[derive(Debug)]
pub(super) struct Awaited {
    job: u64,
    parameters: usize,
    nodes: Vec<Node>,
    passes: BTreeMap<usize, AwaitedPass>,
    /// Of which a part has come.
    open: Option<(Node, Vec<f32>)>,
}

#[derive(Debug)]
struct AwaitedPass {
    targets: usize,
    completions: usize,
    needs_base: bool,
    outcome: Option<Outcome>,
}

impl Awaited {
    pub(super) fn new(id: u64, job: &Job<'_>) -> Self {
        let pass = |index: usize| {
            let pass = job.passes.get(index)?;
            let awaited = AwaitedPass {
                targets: pass.targets(),
                completions: pass.completions().count(),
                needs_base: job.needs_base && pass.base.is_none(),
                outcome: None,
            };
            Some((index, awaited))
        };
        let indices = job.nodes.iter().flat_map(|node| node.passes());
        Self {
            job: id,
            parameters: job.parameters,
            nodes: job.nodes.to_vec(),
            passes: indices.filter_map(pass).collect(),
            open: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The completions of the pass.
    pub(super) fn pass_done(&mut self, done: PassDone) -> Result<usize, String> {
        let index = done.pass as usize;
        let bad = |problem: &str| format!("pass {index}: {problem}");
        let pass = self.passes.get_mut(&index).filter(|_| done.job == self.job);
        let pass = pass.ok_or_else(|| bad("nobody asked for it"))?;
        if pass.outcome.is_some() {
            return Err(bad("it came twice"));
        }
        let sums = done.sums.unwrap_or_default();
        let new = log_probs(done.logprobs, pass.targets)?;
        let base = log_probs(done.base_logprobs, pass.targets)?;
        if sums.tokens != pass.targets as u64 || base.is_some() != pass.needs_base {
            return Err(bad("sums or log-probs of another pass"));
        }
        pass.outcome = Some(Outcome {
            stats: LossStats {
                loss: sums.loss,
                tokens: sums.tokens,
                kl: sums.kl,
                ratio: sums.ratio,
                ratio_squared: sums.ratio_squared,
                ratio_max: sums.ratio_max,
                clipped: sums.clipped,
                corrected: sums.corrected,
                diff: sums.diff,
                diff_max: sums.diff_max,
            },
            entropy: sums.entropy,
            rows: sums.rows,
            new: new.ok_or_else(|| bad("it has no log-probs"))?,
            base,
            // Of another clock: they are no part of this rank's time.
            seconds_forward: 0.0,
            seconds_backward: 0.0,
        });
        Ok(pass.completions)
    }

    /// Bytes of the gradient that is announced.
    pub(super) fn announced(&self, announced: &GradientByNccl) -> Result<u64, String> {
        let node = node(announced.node.unwrap_or_default());
        let passes = node.passes().map(|pass| self.passes.get(&pass));
        let here = |pass: Option<&AwaitedPass>| pass.is_some_and(|pass| pass.outcome.is_some());
        let asked = announced.job == self.job && self.nodes.contains(&node);
        if !asked || self.open.is_some() || !passes.into_iter().all(here) {
            return Err("a gradient that nobody asked for is announced".to_owned());
        }
        Ok(4 * self.parameters as u64)
    }

    /// The node's sum, if this was the last of it.
    pub(super) fn chunk(&mut self, chunk: &GradientChunk) -> Result<Option<Sum>, String> {
        let node = node(chunk.node.unwrap_or_default());
        if chunk.job != self.job || !self.nodes.contains(&node) {
            return Err("a gradient that nobody asked for".to_owned());
        }
        let (open, mut values) = match self.open.take() {
            Some(open) => open,
            None => (node, Vec::with_capacity(self.parameters)),
        };
        let (floats, rest) = chunk.data.as_chunks::<4>();
        let room = self.parameters - values.len();
        if open != node || floats.is_empty() || !rest.is_empty() || floats.len() > room {
            return Err(format!(
                "{} bytes of a gradient of {} values, of which {} are there",
                chunk.data.len(),
                self.parameters,
                values.len()
            ));
        }
        values.extend(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        if values.len() < self.parameters {
            self.open = Some((node, values));
            return Ok(None);
        }
        let mut outcomes = Vec::with_capacity(node.passes().len());
        for index in node.passes() {
            let outcome = self.passes.remove(&index).and_then(|pass| pass.outcome);
            outcomes.push(outcome.ok_or_else(|| format!("a gradient without pass {index}"))?);
        }
        self.nodes.retain(|other| *other != node);
        Ok(Some(Sum {
            node,
            values,
            outcomes,
        }))
    }
}

#[cfg(test)]
mod tests;
