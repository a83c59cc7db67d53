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
mod tests {
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 8.0)
            .collect()
    }

    fn probabilities(logits: &[f32], t: f32) -> Vec<f64> {
        let e: Vec<f64> = logits
            .iter()
            .map(|x| (f64::from(*x) / f64::from(t)).exp())
            .collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    #[test]
    fn a_parameter_that_cannot_be_is_named() {
        type Spoil = fn(&mut Distribution);
        let cases: [(&str, Spoil); 7] = [
            ("temperature", |d| d.temperature = f32::NAN),
            ("temperature", |d| d.temperature = -1.0),
            ("temperature", |d| d.temperature = f32::INFINITY),
            ("top_p", |d| d.top_p = 0.0),
            ("top_p", |d| d.top_p = 7.0),
            ("min_p", |d| d.min_p = 1.0),
            ("min_p", |d| d.min_p = f32::NAN),
        ];
        for (name, spoil) in cases {
            let mut bad = Distribution::FULL;
            spoil(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(name), "{name} is not in: {error}");
        }
        assert!(Distribution::FULL.check().is_ok());
    }

    #[test]
    fn log_probs_and_entropy_equal_f64() {
        let (x, mut scratch) = (logits(1200), Scratch::default());
        for t in [1.0, 0.7, 2.5] {
            let p = probabilities(&x, t);
            let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
            let dist = Distribution {
                temperature: t,
                ..Distribution::FULL
            };
            let got = dist.log_prob(&x, 77, &mut scratch);
            assert!((f64::from(got.logprob) - p[77].ln()).abs() < 2e-6);
            assert!((f64::from(got.entropy) - entropy).abs() < 1e-5);
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_carry_the_log_prob_that_is_recomputed() {
        let (x, mut scratch) = (logits(600), Scratch::default());
        for dist in [
            Distribution {
                temperature: 0.8,
                ..Distribution::FULL
            },
            Distribution {
                temperature: 0.8,
                top_p: 0.9,
                top_k: 40,
                min_p: 0.02,
            },
        ] {
            let mut count = vec![0u32; 600];
            let draws = 40_000;
            for i in 0..draws {
                let u = (f64::from(i) + 0.5) / f64::from(draws);
                let s = dist.sample(&x, u, &mut scratch);
                count[s.token as usize] += 1;
                if i % 997 == 0 {
                    let again = dist.log_prob(&x, s.token, &mut scratch).logprob;
                    assert_eq!(s.logprob.to_bits(), again.to_bits());
                }
            }
            for (token, n) in count.iter().enumerate().filter(|(_, n)| **n > 0) {
                let p = f64::from(dist.log_prob(&x, token as u32, &mut scratch).logprob).exp();
                assert!((f64::from(*n) / f64::from(draws) - p).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn truncation_keeps_what_each_rule_says() {
        let x: Vec<f32> = [0.4f32, 0.3, 0.15, 0.1, 0.05]
            .iter()
            .map(|p| p.ln())
            .collect();
        let kept = |dist: Distribution| {
            let mut scratch = Scratch::default();
            dist.row(&x, None, &mut scratch);
            scratch.kept
        };
        assert_eq!(
            kept(Distribution {
                top_k: 2,
                ..Distribution::FULL
            }),
            [0, 1]
        );
        assert_eq!(
            kept(Distribution {
                top_p: 0.65,
                ..Distribution::FULL
            }),
            [0, 1]
        );
        assert_eq!(
            kept(Distribution {
                top_p: 0.75,
                ..Distribution::FULL
            }),
            [0, 1, 2]
        );
        assert_eq!(
            kept(Distribution {
                min_p: 0.3,
                ..Distribution::FULL
            }),
            [0, 1, 2]
        );
    }

    #[test]
    fn truncation_of_a_long_row_keeps_what_sorting_all_of_it_would() {
        let n = 49_152;
        for sharpness in [0.1, 1.0, 3.0] {
            let x: Vec<f32> = logits(n).iter().map(|x| x * sharpness).collect();
            for (top_k, top_p) in [
                (0, 0.5),
                (0, 0.95),
                (0, 0.99995),
                (50, 1.0),
                (20, 0.8),
                (40_000, 1.0),
            ] {
                let dist = Distribution {
                    temperature: 0.7,
                    top_p,
                    top_k,
                    min_p: 0.0,
                };
                let mut scratch = Scratch::default();
                let row = dist.row(&x, None, &mut scratch);
                let mut want: Vec<u32> = (0..n as u32).collect();
                want.sort_by(|a, b| x[*b as usize].total_cmp(&x[*a as usize]).then(a.cmp(b)));
                if top_k > 0 {
                    want.truncate(top_k as usize);
                }
                if top_p < 1.0 {
                    let e = |id: &u32| f64::from(scratch.exps[*id as usize]);
                    let of = if top_k > 0 {
                        want.iter().map(e).sum()
                    } else {
                        row.all.sum
                    };
                    let mut sum = 0.0;
                    let reached = want.iter().position(|id| {
                        sum += e(id);
                        sum >= f64::from(top_p) * of
                    });
                    want.truncate(reached.map_or(n, |at| at + 1));
                }
                want.sort_unstable();
                assert_eq!(scratch.kept, want, "{sharpness} {top_k} {top_p}");
            }
        }
    }

    #[test]
    fn the_gradient_equals_finite_differences() {
        let x = logits(50);
        let mut scratch = Scratch::default();
        for dist in [
            Distribution {
                temperature: 0.9,
                ..Distribution::FULL
            },
            Distribution {
                temperature: 1.3,
                top_k: 10,
                ..Distribution::FULL
            },
        ] {
            let token = dist.sample(&x, 0.4, &mut scratch).token;
            let mut gradient = x.clone();
            dist.log_prob_gradient(&mut gradient, token, 1.5, &mut scratch);
            for i in 0..50 {
                let at = |by: f32, scratch: &mut Scratch| {
                    let mut x = x.clone();
                    x[i] += by;
                    f64::from(dist.log_prob(&x, token, scratch).logprob)
                };
                let h = 1e-2;
                let want =
                    1.5 * (at(h, &mut scratch) - at(-h, &mut scratch)) / (2.0 * f64::from(h));
                assert!((f64::from(gradient[i]) - want).abs() < 2e-4, "{i}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_scores_it_in_full() {
        let x = logits(300);
        let dist = Distribution {
            temperature: 0.0,
            ..Distribution::FULL
        };
        let mut scratch = Scratch::default();
        let got = dist.sample(&x, 0.99, &mut scratch);
        let best = (0..300).fold(0, |b, i| if x[i] > x[b] { i } else { b });
        assert_eq!(got.token as usize, best);
        let want = Distribution::FULL
            .log_prob(&x, got.token, &mut scratch)
            .logprob;
        assert_eq!(got.logprob.to_bits(), want.to_bits());
    }
}
