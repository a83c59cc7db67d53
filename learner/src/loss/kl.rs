//! Estimates of the KL divergence to the base model, from one sample each (Schulman, "Approximating
//! KL Divergence", 2020). With `d = log base - log new` of a token that the policy sampled:
//!
//! | | value | derivative in log new | |
//! |---|---|---|---|
//! | k1 | `-d` | `1` | unbiased, of high variance; in a loss its gradient is 0 on average |
//! | k2 | `d² / 2` | `-d` | biased a little; in a loss its gradient is the divergence's own |
//! | k3 | `exp(d) - d - 1` | `1 - exp(d)` | unbiased, never negative (GRPO, arXiv 2402.03300, eq. 4) |

use std::{fmt, str::FromStr};

use super::Term;

/// Which estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// See the module's page.
    K1,
    /// See the module's page.
    K2,
    /// See the module's page.
    K3,
}

impl FromStr for Estimator {
    type Err = String;

    /// The config's names; empty is k3.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "k1" => Ok(Self::K1),
            "k2" => Ok(Self::K2),
            "k3" | "" => Ok(Self::K3),
            other => Err(format!(
                "unknown estimate \"{other}\": \"k1\", \"k2\" or \"k3\""
            )),
        }
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K1 => "k1",
            Self::K2 => "k2",
            Self::K3 => "k3",
        })
    }
}

impl Estimator {
    /// The estimate of one token and its derivative in the new log-prob; 0 of a token that one of
    /// the two can't draw.
    pub(crate) fn of(self, base: f64, new: f64) -> Term {
        let d = base - new;
        if !d.is_finite() {
            return Term::ZERO;
        }
        let (value, slope) = match self {
            Self::K1 => (-d, 1.0),
            Self::K2 => (d * d / 2.0, -d),
            Self::K3 => (d.exp_m1() - d, -d.exp_m1()),
        };
        Term { value, slope }
    }

    /// The estimate of one completion, by the log-probs that were recorded at sampling: what is
    /// taken off its reward where the KL is no part of the loss (PPO's way: arXiv 2009.01325,
    /// section 3.4).
    pub(crate) fn of_completion(self, base: &[f32], sampled: &[f32]) -> f64 {
        let pairs = base.iter().zip(sampled);
        pairs
            .map(|(base, sampled)| self.of(f64::from(*base), f64::from(*sampled)).value)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_in_closed_form() {
        for (estimator, value, slope) in [
            (Estimator::K1, -0.5, 1.0),
            (Estimator::K2, 0.125, -0.5),
            (Estimator::K3, 0.5f64.exp() - 1.5, 1.0 - 0.5f64.exp()),
        ] {
            let term = estimator.of(-0.5, -1.0);
            assert!((term.value - value).abs() < 1e-12 && (term.slope - slope).abs() < 1e-12);
            let numeric = (estimator.of(-0.5, -1.0 + 1e-6).value
                - estimator.of(-0.5, -1.0 - 1e-6).value)
                / 2e-6;
            assert!((numeric - slope).abs() < 1e-6, "{estimator}: {numeric}");
            assert_eq!(estimator.to_string().parse(), Ok(estimator));
            assert_eq!(estimator.of(-0.5, f64::NEG_INFINITY).slope, 0.0);
        }
        assert_eq!(
            Estimator::K1.of_completion(&[-0.5, -2.0], &[-1.0, -1.0]),
            0.5
        );
    }

    /// Over a whole distribution, k1 and k3 average to the divergence.
    #[test]
    fn k1_and_k3_are_unbiased() {
        let (policy, base) = ([0.7f64, 0.2, 0.1], [0.4f64, 0.4, 0.2]);
        let pairs = || policy.iter().zip(&base);
        let divergence: f64 = pairs().map(|(p, b)| p * (p / b).ln()).sum();
        for estimator in [Estimator::K1, Estimator::K3] {
            let mean: f64 = pairs()
                .map(|(p, b)| p * estimator.of(b.ln(), p.ln()).value)
                .sum();
            assert!((mean - divergence).abs() < 1e-12, "{estimator}");
        }
    }
}
