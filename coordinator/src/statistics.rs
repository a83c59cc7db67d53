//! What k completions a problem say of a policy: pass@1, pass@k, and how sure that is. Pure
//! functions of counts; the same counts give the same numbers, to the bit.
//!
//! The unit is the problem: completions of one problem are no independent evidence of how a policy
//! does on others. A completion that could not be judged counts as wrong here; reports count it
//! apart as well.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;
/// Every bootstrap draws the same indices for so many problems: no luck is in a report.
const SEED: u64 = 0x7469_6e61;
/// Quantile 0.975 of the normal distribution: an interval of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// How one problem went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Completions.
    pub samples: u32,
    /// Right ones among them.
    pub correct: u32,
}

impl Tally {
    /// The share of right completions; 0 without any.
    pub fn share(self) -> f64 {
        if self.samples == 0 {
            0.0
        } else {
            f64::from(self.correct) / f64::from(self.samples)
        }
    }
}

/// A mean over problems with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// pass@1: the mean over problems of the share of right completions.
///
/// The interval is the smallest that holds two: the percentile bootstrap over problems, and
/// Wilson's interval with an effective number of problems. The first alone has no width where all
/// problems went alike (one problem, all right, all wrong), and is too narrow close to that; the
/// second is never so, and keeps the lower end from falling where more is right. Where the problems differ
/// and are many, the two nearly agree.
///
/// Without problems the mean is 0, the interval 0 to 1.
pub fn pass_at_1(problems: &[Tally]) -> Estimate {
    let shares: Vec<f64> = problems.iter().map(|tally| tally.share()).collect();
    estimate(&shares, fewest(problems))
}

/// pass@k: the chance that at least one of k completions is right, mean over problems, with its
/// interval as in [`pass_at_1`]. `None` where a problem has fewer than k completions, or k is 0.
pub fn pass_at_k(problems: &[Tally], k: u32) -> Option<Estimate> {
    let fewest = fewest(problems);
    if k == 0 || k > fewest {
        return None;
    }
    let chances: Vec<f64> = problems.iter().map(|tally| chance(*tally, k)).collect();
    Some(estimate(&chances, fewest / k))
}

/// The k of pass@k that are worth telling: 1, 2, 4, … up to `samples`.
pub fn powers(samples: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(1u32), |k| k.checked_mul(2)).take_while(move |k| *k <= samples)
}

/// How much better `new` is than `old` on the same problems: the mean difference of the shares,
/// with the percentile bootstrap's interval over problems.
///
/// Where no problem went differently that interval has no width; so it is widened to hold the one
/// of Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
/// Statistics in Medicine 24, 2005), which adds half an observation to each of the four outcomes of
/// a pair: here half a completion's worth.
///
/// `None` where there are no problems, or not the same number on both sides.
pub fn difference(new: &[Tally], old: &[Tally]) -> Option<Estimate> {
    if new.len() != old.len() || new.is_empty() {
        return None;
    }
    let pairs = new.iter().zip(old);
    let values: Vec<f64> = pairs.map(|(a, b)| a.share() - b.share()).collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let (low, high) = bootstrap(&values);

    let half = 0.5 / f64::from(fewest(new).min(fewest(old)).max(1));
    let padded = count + 4.0 * half;
    let center = mean * count / padded;
    let squares = values.iter().map(|x| x * x).sum::<f64>() + 2.0 * half;
    let reach = Z * ((squares / padded - center * center).max(0.0) / padded).sqrt();
    Some(Estimate {
        mean,
        low: low.min(center - reach).max(-1.0),
        high: high.max(center + reach).min(1.0),
    })
}

/// The fewest completions that any problem has.
fn fewest(problems: &[Tally]) -> u32 {
    problems
        .iter()
        .map(|tally| tally.samples)
        .min()
        .unwrap_or(0)
}

/// The chance that one of k completions, drawn without putting back from the problem's n of which c
/// are right, is right: `1 - C(n - c, k) / C(n, k)`, the unbiased estimate of Chen et al.
/// ("Evaluating Large Language Models Trained on Code", arXiv 2107.03374, equation 1), as the
/// product over i of `1 - k / i` that they give, in logarithms: small chances keep their digits.
fn chance(Tally { samples, correct }: Tally, k: u32) -> f64 {
    let wrong = samples.saturating_sub(correct);
    if wrong < k {
        return 1.0;
    }
    let none: f64 = (wrong + 1..=samples)
        .map(|i| (-f64::from(k) / f64::from(i)).ln_1p())
        .sum();
    -none.exp_m1()
}

/// The mean of values between 0 and 1, a problem each. `draws`: how many independent completions
/// (or draws of k) of a problem its value is made of.
fn estimate(values: &[f64], draws: u32) -> Estimate {
    if values.is_empty() {
        return Estimate {
            mean: 0.0,
            low: 0.0,
            high: 1.0,
        };
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (low, high) = bootstrap(values);
    let (floor, ceiling) = wilson(mean, effective(values, mean, draws));
    Estimate {
        mean,
        low: low.min(floor),
        high: high.max(ceiling),
    }
}

/// How many independent verdicts of right and wrong are worth as much as these values: so many that
/// `p (1 - p) / n` is the variance of their mean (Korn and Graubard, "Confidence intervals for
/// proportions with small expected number of positive counts estimated from survey data", Survey
/// Methodology 24, 1998). At least one a problem, at most one a completion.
fn effective(values: &[f64], mean: f64, draws: u32) -> f64 {
    let count = values.len() as f64;
    let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let verdict = mean * (1.0 - mean);
    // Alone, or all right or all wrong: nothing is known of how problems differ.
    if values.len() < 2 || verdict <= 0.0 {
        return count;
    }
    let most = count * f64::from(draws.max(1));
    (count * verdict / spread).clamp(count, most)
}

/// Wilson's score interval ("Probable inference, the law of succession, and statistical inference",
/// JASA 22, 1927) at 95 % for a share `p` of `n` verdicts.
fn wilson(p: f64, n: f64) -> (f64, f64) {
    let z2 = Z * Z / n;
    let center = (p + z2 / 2.0) / (1.0 + z2);
    let reach = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt() / (1.0 + z2);
    let low = if p <= 0.0 { 0.0 } else { center - reach };
    let high = if p >= 1.0 { 1.0 } else { center + reach };
    (low.max(0.0), high.min(1.0))
}

/// Percentiles 2.5 and 97.5 of the mean over [`RESAMPLES`] draws of as many values, with putting
/// back (Efron's percentile method).
fn bootstrap(values: &[f64]) -> (f64, f64) {
    let flat = values.windows(2).all(|pair| pair[0] == pair[1]);
    if let (true, Some(&value)) = (flat, values.first()) {
        return (value, value);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let count = values.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: f64 = (0..count).map(|_| values[rng.random_range(0..count)]).sum();
            sum / count as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    (means[tail], means[RESAMPLES - 1 - tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tallies(correct: &[u32], samples: u32) -> Vec<Tally> {
        let tally = |&correct: &u32| Tally { samples, correct };
        correct.iter().map(tally).collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn pass_at_1_is_the_mean_of_the_problems_shares() {
        let problems =
            [(4, 4), (4, 1), (2, 0)].map(|(samples, correct)| Tally { samples, correct });
        let estimate = pass_at_1(&problems);
        close(estimate.mean, 1.25 / 3.0);
        assert!(0.0 <= estimate.low && estimate.low < estimate.mean);
        assert!(estimate.mean < estimate.high && estimate.high <= 1.0);
        assert_eq!(estimate, pass_at_1(&problems));
        assert_eq!(
            pass_at_k(&problems, 2).unwrap().mean,
            (1.0 + 0.5 + 0.0) / 3.0
        );
        assert_eq!(pass_at_k(&problems, 3), None);
    }

    /// C(n, k), exactly.
    fn binomial(n: u128, k: u128) -> u128 {
        (0..k).fold(1, |product, i| product * (n - i) / (i + 1))
    }

    #[test]
    fn pass_at_k_is_the_ratio_of_binomials_and_keeps_the_digits_of_small_chances() {
        for samples in 1..=24u32 {
            for correct in 0..=samples {
                for k in 1..=samples {
                    let all = binomial(samples.into(), k.into());
                    let none = match samples - correct {
                        wrong if wrong < k => 0,
                        wrong => binomial(wrong.into(), k.into()),
                    };
                    let exact = (all - none) as f64 / all as f64;
                    let found = chance(Tally { samples, correct }, k);
                    assert!(
                        (found - exact).abs() <= 1e-13 * exact,
                        "{samples} {correct} {k}"
                    );
                }
            }
        }
        // One right of a million: k of a million, to the last digits.
        let rare = Tally {
            samples: 1_000_000,
            correct: 1,
        };
        assert!((chance(rare, 1) / 1e-6 - 1.0).abs() < 1e-15);
        let one = Tally {
            samples: 7,
            correct: 3,
        };
        close(chance(one, 1), one.share());
    }

    #[test]
    fn where_all_problems_went_alike_the_interval_is_wilsons() {
        // Closed form for all of n right: n / (n + z²) to 1.
        let z2 = Z * Z;
        for n in [1usize, 30, 500] {
            let right = pass_at_1(&tallies(&vec![1; n], 1));
            close(right.low, n as f64 / (n as f64 + z2));
            assert_eq!((right.mean, right.high), (1.0, 1.0));
            // More completions of the same problems say nothing of other problems.
            let wrong = pass_at_1(&tallies(&vec![0; n], 64));
            close(wrong.high, z2 / (n as f64 + z2));
            assert_eq!((wrong.mean, wrong.low), (0.0, 0.0));
        }
        // Every problem half right: as sure as that many completions are.
        let half = pass_at_1(&tallies(&[8; 25], 16));
        close(half.high - half.low, 2.0 * Z * (0.25 / (400.0 + z2)).sqrt());
        let nothing = pass_at_1(&[]);
        assert_eq!((nothing.mean, nothing.low, nothing.high), (0.0, 0.0, 1.0));
        let one = pass_at_1(&tallies(&[1], 2));
        close(one.high - one.low, 2.0 * Z * (0.25 / (1.0 + z2)).sqrt());
    }

    #[test]
    fn many_problems_have_the_normal_interval() {
        // 1,000 problems, 300 right: p ± z sqrt(p (1 - p) / n).
        let correct: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 < 3)).collect();
        let estimate = pass_at_1(&tallies(&correct, 1));
        let reach = Z * (0.21f64 / 1000.0).sqrt();
        assert!((estimate.low - (0.3 - reach)).abs() < 2e-3, "{estimate:?}");
        assert!((estimate.high - (0.3 + reach)).abs() < 2e-3, "{estimate:?}");
        // Problems that are always or never solved are no surer for being asked ten times.
        let ten = tallies(&correct.iter().map(|c| 10 * c).collect::<Vec<_>>(), 10);
        assert_eq!(pass_at_1(&ten), estimate);
    }

    #[test]
    fn the_lower_end_never_falls_where_more_is_right() {
        let lows: Vec<f64> = (0..=30)
            .map(|right| {
                let correct: Vec<u32> = (0..30).map(|i| u32::from(i < right)).collect();
                pass_at_1(&tallies(&correct, 1)).low
            })
            .collect();
        assert!(lows.is_sorted(), "{lows:?}");
        assert!(lows[28] < lows[29] && lows[29] < lows[30]);
    }

    #[test]
    fn a_difference_is_paired() {
        // Solved by both or by neither, but for 20 of 200 that only the new one solves.
        let old: Vec<u32> = (0..200).map(|i| i % 2).collect();
        let new: Vec<u32> = (0..200)
            .map(|i| u32::from(i % 2 == 1 || i % 20 < 2))
            .collect();
        let (new, old) = (tallies(&new, 1), tallies(&old, 1));
        let gain = difference(&new, &old).unwrap();
        close(gain.mean, 0.05);
        assert!(gain.low > 0.01 && gain.high < 0.1, "{gain:?}");
        let loss = difference(&old, &new).unwrap();
        close(loss.mean, -0.05);
        // Unpaired, either interval would hold the other's mean.
        assert!(pass_at_1(&new).low < pass_at_1(&old).mean);

        let same = difference(&old, &old).unwrap();
        assert_eq!(same.mean, 0.0);
        close(same.high, Z * (1.0f64 / 202.0).sqrt() / 202f64.sqrt());
        close(same.low, -same.high);
        assert_eq!(difference(&old[..1], &old), None);
        assert_eq!(difference(&[], &[]), None);
    }

    #[test]
    fn the_k_that_are_told_double() {
        assert_eq!(powers(1).collect::<Vec<_>>(), [1]);
        assert_eq!(powers(20).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
        assert_eq!(powers(0).count(), 0);
    }
}
