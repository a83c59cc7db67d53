//! What a token is sampled from: temperature and truncation over one row of logits.
//!
//! The worker samples and the learner recomputes log-probs by the functions here, so on a CPU both
//! get the same bits, truncation included. Order: temperature, min-p, top-k, top-p; the kept tokens'
//! probabilities are renormalised.

use std::cell::RefCell;

use half::bf16;

use crate::{
    error::{ModelError, Result},
    kernels::{
        elementwise::scaled_to_bf16,
        math::{self, CHUNK, ExpSum},
        team,
    },
};

/// A sampling distribution over the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Logits are divided by it; 0 is greedy (argmax, the lowest id among equals).
    pub temperature: f32,
    /// The smallest set of likeliest tokens whose probability reaches it is kept; 1: all.
    pub top_p: f32,
    /// The likeliest `top_k` tokens are kept; 0: all.
    pub top_k: u32,
    /// Tokens at least `min_p` times as likely as the likeliest are kept; 0: all.
    pub min_p: f32,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Natural log of its probability under the distribution it was drawn from.
    pub logprob: f32,
}

/// Logits that are looked at together when ids are collected.
const SCANNED: usize = 128;

/// A token's log-prob, and the entropy of the distribution, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenLogProb {
    /// Natural log of the token's probability.
    pub logprob: f32,
    /// Entropy of the whole distribution.
    pub entropy: f32,
}

/// Memory that rows are worked out in; one a thread.
#[derive(Debug, Default)]
pub struct Scratch {
    exps: Vec<f32>,
    sums: Vec<f64>,
    kept: Vec<u32>,
}

/// What a row comes to: exponentials in the scratch, and their sum over the kept tokens.
struct Row {
    all: ExpSum,
    /// Sum over the kept tokens; `None`: all are kept.
    kept: Option<f64>,
    inverse_temperature: f32,
}

impl Row {
    fn total(&self) -> f64 {
        self.kept.unwrap_or(self.all.sum)
    }

    /// ln p = x/T − max − ln Σ exp(x/T − max).
    fn logprob(&self, logit: f32) -> f32 {
        logit.mul_add(self.inverse_temperature, -self.all.max) - self.total().ln() as f32
    }
}

impl Distribution {
    /// Temperature 1, every token kept: the model's own distribution.
    pub const FULL: Self = Self {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
    };

    /// Whether something can be sampled from it.
    ///
    /// # Errors
    /// Names the parameter that cannot be.
    pub fn check(&self) -> Result<()> {
        let Self {
            temperature,
            top_p,
            min_p,
            ..
        } = self;
        let problem = if !(temperature.is_finite() && *temperature >= 0.0) {
            format!("temperature {temperature}: a number of 0 or more is possible")
        } else if !(*top_p > 0.0 && *top_p <= 1.0) {
            format!("top_p {top_p}: above 0 and up to 1 is possible")
        } else if !(0.0..1.0).contains(min_p) {
            format!("min_p {min_p}: 0 up to below 1 is possible")
        } else {
            return Ok(());
        };
        Err(ModelError::OutOfRange(problem))
    }

    /// Whether tokens may be cut off.
    pub fn truncates(&self) -> bool {
        self.top_p < 1.0 || self.top_k > 0 || self.min_p > 0.0
    }

    /// The distribution that log-probs are taken of: greedy choices are scored under
    /// [`Distribution::FULL`].
    pub fn scored(&self) -> Self {
        if self.temperature > 0.0 {
            *self
        } else {
            Self::FULL
        }
    }

    /// Draws by inverse CDF, in the order of ids, with `uniform` in [0, 1).
    pub fn sample(&self, logits: &[f32], uniform: f64, scratch: &mut Scratch) -> Sampled {
        if self.temperature <= 0.0 {
            let token = argmax(logits);
            let logprob = self.log_prob(logits, token, scratch).logprob;
            return Sampled { token, logprob };
        }
        let row = self.row(logits, None, scratch);
        let goal = uniform * row.total();
        let token = if row.kept.is_some() {
            let mut sum = 0f64;
            let found = scratch.kept.iter().find(|id| {
                sum += f64::from(scratch.exps[**id as usize]);
                sum > goal
            });
            found
                .or(scratch.kept.last())
                .copied()
                .unwrap_or_else(|| argmax(logits))
        } else {
            walk(&scratch.exps, &scratch.sums, goal).unwrap_or_else(|| argmax(logits))
        };
        Sampled {
            token,
            logprob: row.logprob(logits[token as usize]),
        }
    }

    /// The log-prob of `token`; a token that truncation cuts off counts as kept (on a GPU rounding
    /// can move the border by a token between worker and learner).
    pub fn log_prob(&self, logits: &[f32], token: u32, scratch: &mut Scratch) -> TokenLogProb {
        let row = self.scored().row(logits, Some(token), scratch);
        let total = row.total();
        // H = ln Z − Σ p (x − max), over the kept tokens.
        let weighted = match row.kept {
            None => row.all.weighted,
            Some(_) => {
                let term = |id: &u32| {
                    let d = logits[*id as usize].mul_add(row.inverse_temperature, -row.all.max);
                    f64::from(scratch.exps[*id as usize]) * f64::from(d)
                };
                scratch.kept.iter().map(term).sum()
            }
        };
        TokenLogProb {
            logprob: row.logprob(logits[token as usize]),
            entropy: (total.ln() - weighted / total) as f32,
        }
    }

    /// The gradient of `d * log_prob(token)` with respect to the logits, in place of the logits:
    /// `d / T * (1[i = token] − p_i)` for kept tokens, 0 for the others.
    pub fn log_prob_gradient(&self, logits: &mut [f32], token: u32, d: f32, scratch: &mut Scratch) {
        let row = self.scored().row(logits, Some(token), scratch);
        let factor = d * row.inverse_temperature;
        let share = -(f64::from(factor) / row.total()) as f32;
        if row.kept.is_some() {
            logits.fill(0.0);
            for id in &scratch.kept {
                logits[*id as usize] = share * scratch.exps[*id as usize];
            }
        } else {
            math::scale(share, &scratch.exps, logits);
        }
        logits[token as usize] += factor;
    }

    fn row(&self, logits: &[f32], include: Option<u32>, scratch: &mut Scratch) -> Row {
        let n = logits.len();
        scratch.exps.resize(n, 0.0);
        scratch.sums.resize(n.div_ceil(CHUNK), 0.0);
        let inverse_temperature = 1.0 / self.temperature;
        let all = math::exp_sum(
            logits,
            inverse_temperature,
            &mut scratch.exps,
            &mut scratch.sums,
        );
        let kept = self
            .truncates()
            .then(|| self.truncate(logits, all, include, scratch));
        Row {
            all,
            kept,
            inverse_temperature,
        }
    }

    /// The probabilities of the row that `scratch` was used for last, in bf16; 0 for tokens that
    /// are cut off.
    pub(crate) fn probabilities(&self, scratch: &Scratch, out: &mut [bf16]) {
        let sum = |ids: &[u32]| -> f64 {
            ids.iter()
                .map(|id| f64::from(scratch.exps[*id as usize]))
                .sum()
        };
        if self.scored().truncates() {
            let share = (1.0 / sum(&scratch.kept)) as f32;
            out.fill(bf16::ZERO);
            for id in &scratch.kept {
                out[*id as usize] = bf16::from_f32(scratch.exps[*id as usize] * share);
            }
        } else {
            let total: f64 = scratch.sums.iter().sum();
            scaled_to_bf16(&scratch.exps, (1.0 / total) as f32, out);
        }
    }

    /// A bound on scaled logits that no kept token is below. A vocabulary is far too long to sort, and
    /// what is among the first `top_k`, or reaches `top_p`, is mostly within a few nats of the
    /// likeliest.
    fn bound(&self, logits: &[f32], all: ExpSum, scratch: &Scratch) -> f32 {
        // Sums in another order differ by less than what is added here.
        let goal = (f64::from(self.top_p) + 1e-4) * all.sum;
        let enough = |bound: &f32| {
            let inverse_temperature = 1.0 / self.temperature;
            let within = math::within(logits, inverse_temperature, *bound, &scratch.exps);
            if self.top_k > 0 {
                within.count >= self.top_k as usize
            } else {
                within.sum >= goal
            }
        };
        // Min-p is a bound itself.
        let applies = self.min_p == 0.0 && (self.top_k > 0 || self.top_p < 1.0);
        let nats = [2.0, 4.0, 8.0, 12.0, 16.0, 24.0];
        let mut bounds = nats.into_iter().map(|nats| all.max - nats);
        applies
            .then(|| bounds.find(enough))
            .flatten()
            .unwrap_or(f32::NEG_INFINITY)
    }

    /// Fills `scratch.kept` with the kept ids, ascending, and returns the sum of their exps.
    fn truncate(
        &self,
        logits: &[f32],
        all: ExpSum,
        include: Option<u32>,
        scratch: &mut Scratch,
    ) -> f64 {
        let bound = self.bound(logits, all, scratch);
        let Scratch { exps, kept, .. } = scratch;
        kept.clear();
        // The likeliest token's exp is 1, so min-p is a bound on exps themselves.
        let inverse_temperature = 1.0 / self.temperature;
        let within = |x: f32| x * inverse_temperature >= bound;
        for (block, xs) in logits.chunks(SCANNED).enumerate() {
            if !within(math::largest(xs)) {
                continue;
            }
            let first = block * SCANNED;
            let likely = (first..).zip(xs).filter(|(_, x)| within(**x));
            let ids = likely.map(|(id, _)| id as u32);
            kept.extend(ids.filter(|id| exps[*id as usize] >= self.min_p));
        }
        // Likeliest first; among equals, the lower id. Logits, not exps: those can tie at 0.
        let order = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        };
        let k = self.top_k as usize;
        if k > 0 && k < kept.len() {
            kept.select_nth_unstable_by(k - 1, order);
            kept.truncate(k);
        }
        if self.top_p < 1.0 {
            kept.sort_unstable_by(order);
            let of = if self.min_p > 0.0 || self.top_k > 0 {
                kept.iter().map(|id| f64::from(exps[*id as usize])).sum()
            } else {
                all.sum
            };
            let goal = f64::from(self.top_p) * of;
            let mut sum = 0f64;
            let reached = kept.iter().position(|id| {
                sum += f64::from(exps[*id as usize]);
                sum >= goal
            });
            kept.truncate(reached.map_or(kept.len(), |at| at + 1));
        }
        if let Some(token) = include.filter(|t| !kept.contains(t)) {
            kept.push(token);
        }
        kept.sort_unstable();
        kept.iter().map(|id| f64::from(exps[*id as usize])).sum()
    }
}

/// Runs `f` on every item, on all threads, each with a scratch of its own.
pub fn each_row<T: Send>(items: &mut [T], f: impl Fn(&mut T, &mut Scratch) + Sync) {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    team::for_each_chunk(items, 1, |_, items| {
        SCRATCH.with_borrow_mut(|scratch| items.iter_mut().for_each(|item| f(item, scratch)));
    });
}

/// The id of the largest logit, the lowest among equals.
fn argmax(logits: &[f32]) -> u32 {
    let max = math::largest(logits);
    logits.iter().position(|x| *x == max).unwrap_or(0) as u32
}

/// The first id at which the running sum of `exps` passes `goal`; `sums` are those of the chunks.
fn walk(exps: &[f32], sums: &[f64], goal: f64) -> Option<u32> {
    let mut before = 0f64;
    let mut last = None;
    for (chunk, sum) in sums.iter().enumerate() {
        if before + sum > goal {
            let mut within = before;
            let start = chunk * CHUNK;
            for (i, e) in exps[start..].iter().take(CHUNK).enumerate() {
                within += f64::from(*e);
                if *e > 0.0 {
                    last = Some((start + i) as u32);
                }
                if within > goal {
                    return last;
                }
            }
            // f32 and f64 sums of the chunk differ by rounding: its last possible token.
            return last;
        }
        before += sum;
    }
    exps.iter().rposition(|e| *e > 0.0).map(|i| i as u32)
}

#[cfg(test)]
mod tests;
