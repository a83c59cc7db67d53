//! Where a curve of a run turned: the paper's phase transition (Tina, arXiv 2504.15777).
//!
//! The paper sees the format reward rise to a peak and collapse, and the completion length fall to
//! a trough and rebound, at about the same step, while the accuracy reward has no such turning
//! point; its best checkpoints are near that step. It gives no rule for what counts as a turn. Ours:
//!
//! 1. The curve (a value a step) is smoothed by a centred mean over w steps, w the odd number
//!    nearest below a twentieth of the run, and at least 3. Where the window isn't whole, at the
//!    two ends, nothing is looked for. Values that are no finite numbers are left out before.
//! 2. A movement of the smoothed curve counts when it is at least
//!    `d = max(7 s / sqrt(w), 0.05 m)`: 7 standard errors of a smoothed value (with which fewer than
//!    one in 1,000 curves of mere noise turns, at any length), and a twentieth of m, the largest
//!    absolute smoothed value. s is the noise of a single step, from von Neumann's
//!    mean square successive difference: `s^2 = sum (x[t+1] - x[t])^2 / (2 (n - 1))`, which a slow
//!    trend hardly touches.
//! 3. The peak is the last of the largest smoothed values. The curve turned there when it rose to
//!    it by d or more from the lowest value before, and fell from it by d or more to the lowest
//!    value after. A trough is the peak of the negated curve.
//!
//! Everything else is "no turn seen", with what was seen instead.

use serde::Serialize;

/// Fewer values than this say nothing of a turn.
pub const FEWEST: usize = 20;

/// Which way a curve turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Up, then down.
    Peak,
    /// Down, then up.
    Trough,
}

/// What became of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Turn {
    /// It turned.
    Seen {
        /// The step of the peak (or trough).
        step: u64,
        /// The smoothed value there.
        value: f64,
        /// The smoothed value furthest from it before.
        before: f64,
        /// The smoothed value furthest from it after.
        after: f64,
        /// The first step after it at which the curve had moved back by as much as counts.
        back_by: u64,
    },
    /// It moved towards a peak (or trough), and has not come back by as much as counts.
    NotBack {
        /// The smoothed value furthest from the end's before.
        before: f64,
        /// The largest (or least) smoothed value so far.
        value: f64,
    },
    /// It moved away from where it began, the other way.
    OtherWay {
        /// The smoothed value at the beginning.
        value: f64,
        /// The smoothed value furthest from it after.
        after: f64,
    },
    /// It did not move by as much as counts.
    Flat {
        /// What would have counted.
        threshold: f64,
    },
    /// There are fewer than [`FEWEST`] values.
    TooShort,
}

impl Turn {
    /// The step of the turn, if there was one.
    pub fn step(&self) -> Option<u64> {
        match self {
            Self::Seen { step, .. } => Some(*step),
            _ => None,
        }
    }
}

/// The window of the smoothing over `count` values: odd, at least 3.
pub fn window(count: usize) -> usize {
    let window = (count / 20).max(3);
    if window.is_multiple_of(2) {
        window - 1
    } else {
        window
    }
}

/// Centred means over `window` values (odd); at the ends over those that there are. What is no
/// finite number takes no part in a mean; a mean of nothing is NaN.
pub fn smoothed(values: &[f64], window: usize) -> Vec<f64> {
    let half = window / 2;
    (0..values.len())
        .map(|at| {
            let near = &values[at.saturating_sub(half)..(at + half + 1).min(values.len())];
            let finite = near.iter().filter(|value| value.is_finite());
            let (sum, count) = finite.fold((0.0, 0u32), |(sum, count), v| (sum + v, count + 1));
            sum / f64::from(count)
        })
        .collect()
}

/// Looks for a turn in a curve of (step, value), steps ascending, by this module's rule.
pub fn find(curve: &[(u64, f64)], shape: Shape) -> Turn {
    let sign = match shape {
        Shape::Peak => 1.0,
        Shape::Trough => -1.0,
    };
    let finite = curve.iter().filter(|(_, value)| value.is_finite());
    let (steps, values): (Vec<u64>, Vec<f64>) = finite.map(|&(s, v)| (s, sign * v)).unzip();
    if values.len() < FEWEST {
        return Turn::TooShort;
    }
    let window = window(values.len());
    let whole = window / 2..values.len() - window / 2;
    let smooth = &smoothed(&values, window)[whole.clone()];
    let steps = &steps[whole];

    let jumps = values.windows(2).map(|pair| (pair[1] - pair[0]).powi(2));
    let noise = (jumps.sum::<f64>() / (2.0 * (values.len() - 1) as f64)).sqrt();
    let most = smooth
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    // Below the last digits of a sum of equal values nothing counts.
    let threshold = (7.0 * noise / (window as f64).sqrt())
        .max(0.05 * most)
        .max(f64::MIN_POSITIVE);

    let lowest = |part: &[f64]| part.iter().copied().fold(f64::INFINITY, f64::min);
    let top = smooth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let Some(at) = smooth.iter().rposition(|value| *value >= top) else {
        return Turn::TooShort;
    };
    let (before, after) = (lowest(&smooth[..=at]), lowest(&smooth[at..]));
    match (top - before >= threshold, top - after >= threshold) {
        (true, true) => {
            let gone = |value: &f64| top - value >= threshold;
            let back = smooth[at..].iter().position(gone).unwrap_or(0);
            Turn::Seen {
                step: steps[at],
                value: sign * top,
                before: sign * before,
                after: sign * after,
                back_by: steps[at + back],
            }
        }
        (true, false) => Turn::NotBack {
            before: sign * before,
            value: sign * top,
        },
        (false, true) => Turn::OtherWay {
            value: sign * top,
            after: sign * after,
        },
        (false, false) => Turn::Flat { threshold },
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// `count` steps of `shape(t)`, t from 0 to 1, with uniform noise of `noise` on either side.
    fn curve(count: u64, noise: f64, seed: u64, shape: impl Fn(f64) -> f64) -> Vec<(u64, f64)> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|at| {
                let t = at as f64 / (count - 1) as f64;
                (at + 1, shape(t) + noise * (2.0 * rng.random::<f64>() - 1.0))
            })
            .collect()
    }

    /// 0 to 1 between `from` and `to`.
    fn ramp(t: f64, from: f64, to: f64) -> f64 {
        ((t - from) / (to - from)).clamp(0.0, 1.0)
    }

    #[test]
    fn a_format_reward_that_collapses_and_a_length_that_rebounds_turn_at_the_same_step() {
        for seed in 0..50 {
            let format = curve(1000, 0.1, seed, |t| {
                0.2 + 0.7 * ramp(t, 0.0, 0.4) - 0.5 * ramp(t, 0.4, 0.55)
            });
            let Turn::Seen {
                step,
                value,
                before,
                after,
                back_by,
            } = find(&format, Shape::Peak)
            else {
                panic!("no turn: seed {seed}");
            };
            assert!((380..=410).contains(&step), "{step}");
            assert!((value - 0.88).abs() < 0.05 && before < 0.3 && after < 0.45);
            assert!((step..=440).contains(&back_by), "{back_by}");

            let length = curve(1000, 300.0, seed, |t| {
                3000.0 - 1200.0 * ramp(t, 0.0, 0.4) + 800.0 * ramp(t, 0.4, 0.8)
            });
            let turn = find(&length, Shape::Trough);
            let Turn::Seen {
                step,
                value,
                before,
                after,
                ..
            } = turn
            else {
                panic!("no trough: {turn:?}, seed {seed}");
            };
            assert!((350..=450).contains(&step), "{step}");
            assert!(value < 2000.0 && before > 2700.0 && after > 2400.0);
        }
    }

    #[test]
    fn noise_alone_is_no_turn() {
        for seed in 0..200 {
            for count in [20, 60, 150, 600] {
                let flat = curve(count, 0.3, seed, |_| 0.5);
                for shape in [Shape::Peak, Shape::Trough] {
                    let turn = find(&flat, shape);
                    assert_eq!(turn.step(), None, "{count} steps, seed {seed}: {turn:?}");
                }
            }
        }
    }

    #[test]
    fn what_only_rises_or_only_falls_has_no_peak() {
        let rising = curve(200, 0.05, 1, |t| t);
        assert!(matches!(find(&rising, Shape::Peak), Turn::NotBack { .. }));
        assert!(matches!(
            find(&rising, Shape::Trough),
            Turn::OtherWay { .. }
        ));
        let falling = curve(200, 0.05, 2, |t| 1.0 - t);
        assert!(matches!(find(&falling, Shape::Peak), Turn::OtherWay { .. }));
        assert!(matches!(
            find(&falling, Shape::Trough),
            Turn::NotBack { .. }
        ));
        // Full marks from a fifth of the run on.
        let full = curve(200, 0.0, 3, |t| ramp(t, 0.0, 0.2));
        assert!(matches!(find(&full, Shape::Peak), Turn::NotBack { .. }));
        let flat: Vec<_> = (1..=50).map(|step| (step, 0.0)).collect();
        assert!(matches!(find(&flat, Shape::Peak), Turn::Flat { .. }));
    }

    #[test]
    fn after_a_plateau_the_turn_is_where_it_ends() {
        let plateau = curve(400, 0.0, 0, |t| ramp(t, 0.0, 0.2) - ramp(t, 0.7, 0.8));
        let turn = find(&plateau, Shape::Peak);
        let step = turn.step().unwrap();
        assert!((265..=281).contains(&step), "{turn:?}");
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let mut curve = curve(300, 0.0, 0, |t| 1.0 - (2.0 * t - 1.0).abs());
        for at in (0..300).step_by(7) {
            curve[at].1 = if at % 2 == 0 { f64::NAN } else { f64::INFINITY };
        }
        let step = find(&curve, Shape::Peak).step().unwrap();
        assert!((145..=156).contains(&step), "{step}");
        let none = vec![(1, f64::NAN); 100];
        assert_eq!(find(&none, Shape::Peak), Turn::TooShort);
        assert_eq!(find(&curve[..19], Shape::Peak), Turn::TooShort);
        assert_eq!(find(&[], Shape::Trough), Turn::TooShort);
    }

    #[test]
    fn smoothing_is_a_centred_mean() {
        assert_eq!(
            smoothed(&[0.0, 3.0, f64::NAN, 6.0], 3),
            [1.5, 1.5, 4.5, 6.0]
        );
        assert!(smoothed(&[f64::NAN], 3)[0].is_nan());
        assert_eq!([0, 20, 79, 80, 100, 1000].map(window), [3, 3, 3, 3, 5, 49]);
    }
}
