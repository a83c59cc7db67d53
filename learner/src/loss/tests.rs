//! What holds of every loss, and what the losses' own tests share.

use super::*;

/// The weight of a token in a batch of completions of these lengths, all of group 0, with a limit of
/// 10 tokens; the completion asked for has `tokens`.
fn weight(aggregation: Aggregation, lengths: &[usize], tokens: usize) -> f64 {
    let mut normaliser = Normaliser::new(lengths.len(), 10);
    lengths
        .iter()
        .for_each(|length| normaliser.count(0, *length));
    normaliser.token_weight(aggregation, 0, tokens)
}

pub(super) fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 1e-6, "{actual} != {expected}");
}

fn terms<'a>(advantage: f64, weight: f64, sampled: &'a [f32], new: &'a [f32]) -> Terms<'a> {
    Terms {
        advantage,
        weight,
        sampled,
        start: sampled,
        new,
        base: None,
    }
}

/// Loss, slope and clipped tokens of a batch of one completion with one token, whose log-prob was 0.
pub(super) fn single(recipe: &Recipe, advantage: f64, ratio: f64) -> (f64, f64, u64) {
    let mut stats = LossStats::default();
    let new = [ratio.ln() as f32];
    let weight = weight(recipe.aggregation, &[1], 1);
    let gradient = Loss::of(recipe).completion(&terms(advantage, weight, &[0.0], &new), &mut stats);
    (stats.loss, f64::from(gradient[0]), stats.clipped)
}

/// Loss, slopes and clipped tokens of a batch of one completion, by how far its log-probs moved.
pub(super) fn completion(recipe: &Recipe, advantage: f64, diffs: &[f32]) -> (f64, Vec<f64>, u64) {
    let mut stats = LossStats::default();
    let sampled = vec![0.0; diffs.len()];
    let weight = weight(recipe.aggregation, &[diffs.len()], diffs.len());
    let terms = terms(advantage, weight, &sampled, diffs);
    let gradient = Loss::of(recipe).completion(&terms, &mut stats);
    (
        stats.loss,
        gradient.into_iter().map(f64::from).collect(),
        stats.clipped,
    )
}

/// Loss, and a token's slope of each completion, of one group: advantage, length, and how far each
/// log-prob moved from -1. The limit is 10 tokens.
pub(super) fn batch(recipe: &Recipe, completions: &[(f64, usize, f64)]) -> (f64, Vec<f64>) {
    let lengths: Vec<usize> = completions.iter().map(|(_, length, _)| *length).collect();
    let mut stats = LossStats::default();
    let slopes = completions.iter().map(|&(advantage, length, moved)| {
        let sampled = vec![-1.0f32; length];
        let new = vec![(-1.0 + moved) as f32; length];
        let weight = weight(recipe.aggregation, &lengths, length);
        let terms = terms(advantage, weight, &sampled, &new);
        let gradient = Loss::of(recipe).completion(&terms, &mut stats);
        assert!(gradient.iter().all(|slope| *slope == gradient[0]));
        f64::from(gradient[0])
    });
    let slopes = slopes.collect();
    (stats.loss, slopes)
}

const SAMPLED: [f32; 5] = [-0.3, -1.7, -0.9, -2.5, -0.05];
const START: [f32; 5] = [-0.28, -1.9, -0.8, -2.2, -0.3];
const NEW: [f32; 5] = [-0.25, -2.1, -0.85, -2.1, -0.4];
const BASE: [f32; 5] = [-0.2, -1.1, -1.4, -2.0, -0.3];

/// Every loss with every estimate and correction. CISPO's weight has no gradient, so its loss is
/// differenced with the weight held.
#[test]
fn the_gradient_is_the_finite_difference_of_the_loss() {
    let corrections = [
        None,
        Some(Importance {
            level: importance::Level::Token,
            cap: 1.2,
            mode: importance::Mode::Truncate,
        }),
        Some(Importance {
            level: importance::Level::Sequence,
            cap: 3.0,
            mode: importance::Mode::Mask,
        }),
    ];
    for name in Name::ALL {
        for (importance, advantage) in corrections.into_iter().zip([0.8, -1.3, 0.8]) {
            for estimator in [Estimator::K1, Estimator::K2, Estimator::K3] {
                let mut loss = Loss::of(&name.recipe());
                loss.importance = importance;
                (loss.kl.beta, loss.kl.estimator) = (0.1, estimator);
                let mut normaliser = Normaliser::new(3, 10);
                for (group, length) in [(0, 5), (0, 2), (1, 9)] {
                    normaliser.count(group, length);
                }
                let weight = normaliser.token_weight(loss.aggregation, 0, 5);
                let value = |loss: &Loss, new: &[f32]| {
                    let mut stats = LossStats::default();
                    let terms = Terms {
                        start: &START,
                        base: Some(&BASE),
                        ..terms(advantage, weight, &SAMPLED, new)
                    };
                    let gradient = loss.completion(&terms, &mut stats);
                    (stats.loss, gradient)
                };
                let (_, gradient) = value(&loss, &NEW);
                if loss.policy == Policy::WeightClip {
                    check_weighted(
                        &loss,
                        importance.map_or(&SAMPLED, |_| &START),
                        &gradient,
                        advantage,
                        weight,
                    );
                    continue;
                }
                for token in 0..NEW.len() {
                    let (mut above, mut below) = (NEW, NEW);
                    let h = if name == Name::Gspo { 1e-5 } else { 1e-3 };
                    above[token] += h;
                    below[token] -= h;
                    // What f32 made of the step, not what was asked for.
                    let step = f64::from(above[token]) - f64::from(below[token]);
                    let numeric = (value(&loss, &above).0 - value(&loss, &below).0) / step;
                    let found = f64::from(gradient[token]);
                    assert!(
                        (found - numeric).abs() < 2e-6 * (1.0 + numeric.abs()),
                        "{name} {estimator} {importance:?}: {found} != {numeric}"
                    );
                }
            }
        }
    }
}

/// CISPO's slope is its weight times that of the log-prob.
fn check_weighted(loss: &Loss, old: &[f32; 5], gradient: &[f32], advantage: f64, weight: f64) {
    let corrections = loss.importance.map_or(vec![1.0; 5], |importance| {
        importance.weights(&differences(&START, &SAMPLED)).0
    });
    for token in 0..5 {
        let ratio = f64::from(NEW[token] - old[token])
            .exp()
            .min(1.0 + loss.clip.high);
        let kl = loss
            .kl
            .estimator
            .of(f64::from(BASE[token]), f64::from(NEW[token]));
        let expected = weight * (-corrections[token] * ratio * advantage + loss.kl.beta * kl.slope);
        close(f64::from(gradient[token]), expected);
    }
}

/// AReaL's objective: the clip is around the policy at the start of the step, and the distance from
/// there to the sampler is a constant weight.
#[test]
fn the_decoupled_objective_in_closed_form() {
    let mut loss = Loss::of(&Name::Grpo.recipe());
    loss.importance = Some(Importance {
        level: importance::Level::Token,
        cap: 5.0,
        mode: importance::Mode::Truncate,
    });
    let mut stats = LossStats::default();
    let terms = Terms {
        advantage: 2.0,
        weight: weight(loss.aggregation, &[2], 2),
        sampled: &[-2.0, -1.0],
        start: &[-1.0, -1.5],
        new: &[-0.9, -1.5],
        base: None,
    };
    let gradient = loss.completion(&terms, &mut stats);
    let (w, r) = ([1f64.exp(), (-0.5f64).exp()], [0.1f64.exp(), 1.0]);
    close(stats.loss, -(w[0] * r[0] + w[1] * r[1]) * 2.0 / 2.0);
    close(f64::from(gradient[0]), -w[0] * r[0]);
    close(f64::from(gradient[1]), -w[1]);
    assert_eq!(
        stats.clipped, 0,
        "by the sampler's log-probs the first would be"
    );
    // Raw ratios are of the sampler, whatever is clipped.
    close(stats.ratio, 1.1f64.exp() + (-0.5f64).exp());
    // At the start of the step the ratio is 1, and the gradient is the weight's alone.
    let terms = Terms {
        new: terms.start,
        ..terms
    };
    let gradient = loss.completion(&terms, &mut LossStats::default());
    close(f64::from(gradient[0]), -w[0]);
}

#[test]
fn statistics_are_taken_before_clipping() {
    let mut stats = LossStats::default();
    let (sampled, new) = ([-1.0f32, -1.0, -1.0], [-1.0f32, -0.5, -2.0]);
    let recipe = Name::Grpo.recipe();
    let weight = weight(recipe.aggregation, &[3], 3);
    Loss::of(&recipe).completion(&terms(1.0, weight, &sampled, &new), &mut stats);
    assert_eq!((stats.tokens, stats.clipped), (3, 1));
    let ratios = [1.0, 0.5f64.exp(), (-1f64).exp()];
    let sum: f64 = ratios.iter().sum();
    let squares: f64 = ratios.iter().map(|ratio| ratio * ratio).sum();
    close(stats.ratio, sum);
    close(stats.ratio_max, ratios[1]);
    close(stats.effective_share(), sum * sum / (3.0 * squares));
    close(stats.diff, 1.5);
    close(stats.diff_max, 1.0);
}

#[test]
fn a_token_that_can_no_longer_be_drawn_gives_no_gradient() {
    for name in Name::ALL {
        let mut loss = Loss::of(&name.recipe());
        loss.kl.beta = 0.1;
        for (advantage, corrected) in [(1.0, false), (-1.0, false), (1.0, true)] {
            loss.importance = corrected.then_some(Importance {
                level: importance::Level::Token,
                cap: 2.0,
                mode: importance::Mode::Truncate,
            });
            let mut stats = LossStats::default();
            let weight = weight(loss.aggregation, &[1], 1);
            let terms = Terms {
                start: &[f32::NEG_INFINITY],
                base: Some(&[-1.0]),
                ..terms(advantage, weight, &[-1.0], &[f32::NEG_INFINITY])
            };
            let gradient = loss.completion(&terms, &mut stats);
            assert!(gradient[0].abs() < 1e-20, "{name}: {gradient:?}");
            assert!(stats.loss.is_finite() && stats.kl == 0.0, "{name}");
            assert_eq!(stats.diff_max, DIFF_CEILING);
        }
    }
}

#[test]
fn losses_are_named_as_in_the_config() {
    for name in Name::ALL {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    assert!("ppo".parse::<Name>().unwrap_err().contains("dr_grpo"));
}

/// GSPO's one term counts with the mean of its tokens' weights, and all tokens share its gradient.
#[test]
fn the_term_of_a_completion_takes_the_mean_weight_of_its_tokens() {
    let mut loss = Loss::of(&Name::Gspo.recipe());
    loss.importance = Some(Importance {
        level: importance::Level::Token,
        cap: 2.0,
        mode: importance::Mode::Truncate,
    });
    let weight = weight(loss.aggregation, &[2], 2);
    let start = [-2.0, (1.5f64.ln() - 2.0) as f32];
    let value = |new: &[f32; 2]| {
        let mut stats = LossStats::default();
        let terms = Terms {
            start: &start,
            ..terms(1.0, weight, &[-2.0, -2.0], new)
        };
        let gradient = loss.completion(&terms, &mut stats);
        (stats.loss, gradient)
    };
    let (at_start, gradient) = value(&start);
    close(at_start, -1.25);
    for token in 0..2 {
        close(f64::from(gradient[token]), -1.25 / 2.0);
        let (mut above, mut below) = (start, start);
        above[token] += 1e-4;
        below[token] -= 1e-4;
        let step = f64::from(above[token]) - f64::from(below[token]);
        let numeric = (value(&above).0 - value(&below).0) / step;
        close(f64::from(gradient[token]), numeric);
    }
}

/// Outside of top-k at the step's start, and inside again after an update.
#[test]
fn a_token_that_came_back_within_the_step_has_no_infinite_ratio() {
    for name in Name::ALL {
        for advantage in [1.0, -1.0] {
            for mode in [importance::Mode::Truncate, importance::Mode::Mask] {
                let mut loss = Loss::of(&name.recipe());
                loss.importance = Some(Importance {
                    level: importance::Level::Token,
                    cap: 2.0,
                    mode,
                });
                let weight = weight(loss.aggregation, &[1], 1);
                let mut stats = LossStats::default();
                let terms = Terms {
                    start: &[f32::NEG_INFINITY],
                    ..terms(advantage, weight, &[-1.0], &[-1.0])
                };
                let gradient = loss.completion(&terms, &mut stats);
                assert!(gradient[0].abs() < 1e-20, "{name} {mode:?}: {gradient:?}");
                assert!(stats.loss.is_finite(), "{name} {mode:?}");
            }
        }
    }
}
