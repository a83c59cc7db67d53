//! The whole step on a tiny random model.

use candle_core::{Device, Tensor};

use super::*;
use crate::{
    batch::{Group, Sample},
    checkpoint::CheckpointStore,
    loss::Aggregation,
    schedule::Schedule,
    testing::{batch, decoder, lively, log_probs, settings},
};

fn trainer(settings: TrainSettings) -> Trainer {
    Trainer::init(decoder(), settings).unwrap()
}

/// The batch that `trainer`'s adapter would have sampled.
fn batch_for(trainer: &Trainer) -> Batch {
    batch(&trainer.decoder, &trainer.adapter, &trainer.version)
}

fn no_penalties(batch: &Batch) -> Vec<Vec<f64>> {
    let of = |group: &Group| vec![0.0; group.samples.len()];
    batch.groups.iter().map(of).collect()
}

/// Loss, gradient (flat) and rows computed.
fn evaluate(
    decoder: &Decoder,
    settings: &TrainSettings,
    adapter: &Adapter,
    batch: &Batch,
    dropout: Option<Dropout>,
) -> (f64, Vec<f32>, u64) {
    let mut cost = Cost::default();
    let pass = Work::new(batch, settings, &no_penalties(batch))
        .gradient(
            decoder,
            settings,
            adapter,
            dropout,
            None,
            &Progress::default(),
            &mut cost,
        )
        .unwrap();
    let gradients = pass.gradients.unwrap_or_default();
    let flat = gradients
        .iter()
        .flat_map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    (pass.stats.loss, flat.collect(), cost.rows_forwarded)
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// `adapter` moved by `step` along `direction` (flat, in the order of its parameters).
fn moved(adapter: &Adapter, direction: &[f32], step: f64) -> Adapter {
    let mut rest = direction;
    let tensors = adapter.parameters().into_iter().map(|t| {
        let (own, after) = rest.split_at(t.elem_count());
        rest = after;
        let by: Vec<f32> = own.iter().map(|d| (f64::from(*d) * step) as f32).collect();
        (&t + Tensor::from_vec(by, t.dims(), &Device::Cpu).unwrap()).unwrap()
    });
    let tensors = tensors.collect();
    adapter.with_parameters(tensors).unwrap()
}

#[test]
fn the_gradient_is_the_finite_difference_of_the_steps_loss() {
    let decoder = decoder();
    for aggregation in [
        Aggregation::SequenceMean,
        Aggregation::TokenMean,
        Aggregation::Constant,
    ] {
        let mut settings = settings();
        settings.loss.aggregation = aggregation;
        settings.loss.kl.beta = 0.1;
        settings.micro_batch_tokens = 20;
        let fresh = trainer(settings.clone());
        let sampler = lively(&fresh.adapter);
        let batch = batch(&decoder, &sampler, &fresh.version);
        // Somewhat away from the sampler, so that ratios differ from 1 but none is at the clip's edge.
        let n: usize = sampler.parameters().iter().map(Tensor::elem_count).sum();
        let drift: Vec<f32> = (0..n).map(|i| ((i * 7) as f32).cos()).collect();
        let adapter = moved(&sampler, &drift, 2e-3);
        let loss = |direction: &[f32], step: f64| {
            let moved = moved(&adapter, direction, step);
            evaluate(&decoder, &settings, &moved, &batch, None).0
        };
        let (_, gradient, _) = evaluate(&decoder, &settings, &adapter, &batch, None);
        let size = norm(&gradient);
        assert!(size > 1e-3, "a gradient of nothing proves nothing");

        // Along the gradient itself: every parameter takes part.
        let along: Vec<f32> = gradient
            .iter()
            .map(|g| (f64::from(*g) / size) as f32)
            .collect();
        let h = 2e-3;
        let numeric = (loss(&along, h) - loss(&along, -h)) / (2.0 * h);
        assert!((numeric / size - 1.0).abs() < 0.01, "{numeric} != {size}");

        // And single parameters: the steepest of A and of B, first layer and last.
        let mut start = 0;
        for (index, tensor) in adapter.parameters().iter().enumerate() {
            let own = start..start + tensor.elem_count();
            start = own.end;
            if index % 9 != 0 {
                continue;
            }
            let steepest = own.max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
            let at = steepest.unwrap();
            let mut single = vec![0.0; gradient.len()];
            single[at] = 1.0;
            let h = 1e-2;
            let numeric = (loss(&single, h) - loss(&single, -h)) / (2.0 * h);
            let exact = f64::from(gradient[at]);
            let close = (numeric - exact).abs() < 0.03 * exact.abs() + 2e-5;
            assert!(close, "parameter {index}: {numeric} != {exact}");
        }
    }
}

#[test]
fn micro_batches_of_any_budget_give_the_gradient_of_one_big_batch() {
    let decoder = decoder();
    let mut settings = settings();
    settings.loss.kl.beta = 0.05;
    let fresh = trainer(settings.clone());
    let adapter = lively(&fresh.adapter);
    let batch = batch(&decoder, &fresh.adapter, &fresh.version);
    let (loss, gradient, rows) = evaluate(&decoder, &settings, &adapter, &batch, None);
    for budget in [1, 9, 16, 25, 40] {
        for memory in [None, Some(0)] {
            let cut = TrainSettings {
                micro_batch_tokens: budget,
                memory,
                ..settings.clone()
            };
            let (cut_loss, cut_gradient, cut_rows) =
                evaluate(&decoder, &cut, &adapter, &batch, None);
            assert!(cut_rows >= rows);
            assert!((cut_loss - loss).abs() < 1e-9, "{cut_loss} != {loss}");
            let far = distance(&cut_gradient, &gradient) / norm(&gradient);
            assert!(far < 1e-6, "budget {budget}: {far}");
        }
    }
}

#[test]
fn a_step_makes_the_rewarded_completion_likelier_and_the_other_less() {
    let mut trainer = trainer(settings());
    let (prompt, good, bad) = ([1u32, 2, 3], [10u32, 11, 12], [20u32, 21]);
    let all = |trainer: &Trainer, tokens: &[u32]| {
        log_probs(
            &trainer.decoder,
            Some(&trainer.adapter),
            &prompt,
            tokens,
            &Distribution::FULL,
        )
    };
    let before = (all(&trainer, &good), all(&trainer, &bad));
    let sample = |index, tokens: &[u32], logprobs: &[f32], reward| Sample {
        index,
        tokens: tokens.to_vec(),
        logprobs: logprobs.to_vec(),
        reward: Some(reward),
        truncated: false,
        staleness: (0, 0),
    };
    let group = Group {
        id: 1,
        prompt: prompt.to_vec(),
        distribution: Distribution::FULL,
        samples: vec![
            sample(0, &good, &before.0, 1.0),
            sample(1, &bad, &before.1, 0.0),
        ],
    };
    let batch = Batch {
        version: trainer.version.clone(),
        groups: vec![group],
    };
    let result = trainer.step(&batch, &Progress::default()).unwrap();
    let after = (all(&trainer, &good), all(&trainer, &bad));
    assert!(after.0.iter().sum::<f32>() > before.0.iter().sum::<f32>() + 0.01);
    assert!(after.1.iter().sum::<f32>() < before.1.iter().sum::<f32>() - 0.01);
    assert_eq!(result.version.unwrap().step, 1);
}

#[test]
fn what_was_sampled_and_what_is_computed_agree_to_the_last_bit() {
    let mut trainer = trainer(settings());
    for _ in 0..2 {
        let batch = batch_for(&trainer);
        let metrics = trainer
            .step(&batch, &Progress::default())
            .unwrap()
            .metrics
            .unwrap();
        assert_eq!(
            (metrics.logprob_diff_max, metrics.logprob_diff_mean),
            (0.0, 0.0)
        );
        assert_eq!(
            (metrics.ratio_mean, metrics.ratio_max, metrics.clip_fraction),
            (1.0, 1.0, 0.0)
        );
        assert!(metrics.entropy > 0.0 && metrics.grad_norm > 0.0);
        assert_eq!(metrics.lr, 1e-2);
    }
}

#[test]
fn a_run_that_was_cut_and_restored_ends_in_the_same_bytes() {
    let mut settings = settings();
    settings.iterations = 2;
    settings.lora.dropout = 0.1;
    settings.loss.kl.beta = 0.02;
    settings.schedule = Schedule {
        warmup_steps: 2,
        schedule_steps: 6,
        ..settings.schedule
    };
    let mut straight = trainer(settings.clone());
    let mut cut = trainer(settings.clone());
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(folder.path(), "run");
    let mut versions = Vec::new();
    for _ in 0..4 {
        let batch = batch_for(&straight);
        straight.step(&batch, &Progress::default()).unwrap();
        versions.push(straight.version.clone());

        let batch = batch_for(&cut);
        cut.step(&batch, &Progress::default()).unwrap();
        store
            .save(&cut.checkpoint("run", "model").unwrap())
            .unwrap();
        let (version, result) = (cut.version.clone(), cut.result.clone());
        drop(cut);
        let checkpoint = store.newest(&version).unwrap().unwrap();
        cut = Trainer::restore(decoder(), settings.clone(), checkpoint).unwrap();
        assert_eq!(cut.result, result);
    }
    assert_eq!(cut.bytes, straight.bytes);
    assert_eq!(cut.version, *versions.last().unwrap());
    assert_eq!(cut.parent, Some(versions[2].clone()));
    assert_eq!(cut.optimiser.updates(), 8);
}

#[test]
fn the_seed_alone_names_the_first_adapter() {
    let first = trainer(settings()).version;
    assert_eq!(first, trainer(settings()).version);
    assert_ne!(
        first,
        trainer(TrainSettings {
            seed: 18,
            ..settings()
        })
        .version
    );
}

#[test]
fn a_group_without_signal_costs_no_pass_but_counts() {
    let decoder = decoder();
    let mut with = settings();
    let fresh = trainer(with.clone());
    let adapter = lively(&fresh.adapter);
    let mut batch = batch(&decoder, &adapter, &fresh.version);
    batch.groups.truncate(2);
    let (_, _, rows_of_both) = evaluate(&decoder, &with, &adapter, &batch, None);
    batch.groups[1]
        .samples
        .iter_mut()
        .for_each(|sample| sample.reward = Some(1.0));
    let (_, skipped, rows) = evaluate(&decoder, &with, &adapter, &batch, None);
    assert!(rows < rows_of_both);

    // A KL weight too small to matter makes the pass necessary, and changes nothing.
    with.loss.kl.beta = 1e-300;
    let (_, computed, rows) = evaluate(&decoder, &with, &adapter, &batch, None);
    assert_eq!(rows, 2 * rows_of_both);
    assert!(distance(&skipped, &computed) / norm(&computed) < 1e-6);

    // Alone, the first group's gradient is twice as large.
    with.loss.kl.beta = 0.0;
    batch.groups.truncate(1);
    let (_, alone, _) = evaluate(&decoder, &with, &adapter, &batch, None);
    assert!((norm(&alone) / norm(&skipped) - 2.0).abs() < 1e-5);
}

#[test]
fn the_base_is_computed_only_where_kl_has_a_weight_and_once_a_batch() {
    let mut rows = Vec::new();
    for (kl_beta, iterations) in [(0.0, 1), (0.04, 1), (0.04, 3)] {
        let mut settings = settings();
        settings.loss.kl.beta = kl_beta;
        settings.iterations = iterations;
        let mut trainer = trainer(settings);
        let batch = batch_for(&trainer);
        let metrics = trainer
            .step(&batch, &Progress::default())
            .unwrap()
            .metrics
            .unwrap();
        // The first iteration's adapter is fresh: it still is the base.
        assert_eq!(metrics.kl == 0.0, iterations == 1);
        rows.push(metrics.tokens_forwarded);
    }
    assert_eq!(rows[1], 2 * rows[0]);
    assert_eq!(rows[2], 4 * rows[0]);
}

#[test]
fn masked_and_unjudged_completions_are_as_if_they_were_not_there() {
    let decoder = decoder();
    let fresh = trainer(settings());
    let adapter = lively(&fresh.adapter);
    let full = batch(&decoder, &adapter, &fresh.version);

    let mut unjudged = full.clone();
    let mut without = full.clone();
    for (a, b) in unjudged.groups.iter_mut().zip(&mut without.groups) {
        a.samples[2].reward = None;
        b.samples.remove(2);
    }
    let of = |settings: &TrainSettings, batch: &Batch| {
        evaluate(&decoder, settings, &adapter, batch, None)
    };
    let settings = settings();
    let (a, b) = (of(&settings, &unjudged), of(&settings, &without));
    assert_eq!(a.1, b.1);
    assert_eq!(a.2, b.2);

    // A truncated completion keeps its say in the group's statistics, and nothing else.
    let mut truncated = full.clone();
    truncated
        .groups
        .iter_mut()
        .for_each(|group| group.samples[1].truncated = true);
    let masked = TrainSettings {
        mask_truncated: true,
        ..settings.clone()
    };
    assert_eq!(of(&settings, &truncated).1, of(&settings, &full).1);
    let masked = Work::new(&truncated, &masked, &no_penalties(&truncated));
    assert_eq!(
        masked.completions(),
        Work::new(&full, &settings, &no_penalties(&full)).completions() - 3
    );
}

#[test]
fn a_batch_without_any_signal_still_makes_a_step() {
    let mut trainer = trainer(settings());
    let mut batch = batch_for(&trainer);
    batch
        .groups
        .iter_mut()
        .flat_map(|g| &mut g.samples)
        .for_each(|s| s.reward = Some(0.5));
    let metrics = trainer
        .step(&batch, &Progress::default())
        .unwrap()
        .metrics
        .unwrap();
    assert_eq!(
        (metrics.grad_norm, metrics.loss, metrics.tokens_forwarded),
        (0.0, 0.0, 0)
    );
    assert_eq!((trainer.version.step, trainer.optimiser.updates()), (1, 1));
}

#[test]
fn a_step_that_is_called_off_changes_nothing() {
    let mut trainer = trainer(settings());
    let batch = batch_for(&trainer);
    let progress = Progress::default();
    progress.cancel();
    let before = trainer.version.clone();
    let error = trainer.step(&batch, &progress).unwrap_err();
    assert!(matches!(error, TrainError::Cancelled));
    assert_eq!(
        (trainer.version.clone(), trainer.optimiser.updates()),
        (before, 0)
    );
    let progress = Progress::default();
    trainer.step(&batch, &progress).unwrap();
    let (done, total) = progress.done_of_total();
    assert!(done == total && total > 0);
}

#[test]
fn dropout_changes_the_gradient_but_not_with_the_cut() {
    let decoder = decoder();
    let settings = settings();
    let fresh = trainer(settings.clone());
    let adapter = lively(&fresh.adapter);
    let batch = batch(&decoder, &adapter, &fresh.version);
    let dropout = Some(Dropout { p: 0.3, seed: 9 });
    let (_, plain, _) = evaluate(&decoder, &settings, &adapter, &batch, None);
    let (_, dropped, _) = evaluate(&decoder, &settings, &adapter, &batch, dropout);
    assert!(distance(&plain, &dropped) > 0.01 * norm(&plain));
    // Whole groups in passes of their own.
    let cut = TrainSettings {
        micro_batch_tokens: 24,
        ..settings
    };
    let (_, cut, _) = evaluate(&decoder, &cut, &adapter, &batch, dropout);
    assert!(distance(&cut, &dropped) < 1e-6 * norm(&dropped));
}

#[test]
fn a_divergence_in_the_reward_changes_advantages_and_adds_no_term() {
    let decoder = decoder();
    let mut with = settings();
    (with.loss.kl.beta, with.loss.kl.in_reward) = (0.3, true);
    let fresh = trainer(with.clone());
    let adapter = lively(&fresh.adapter);
    let batch = batch(&decoder, &adapter, &fresh.version);
    let mut cost = Cost::default();
    let progress = Progress::default();
    let found = penalties(&batch, &decoder, &with, &progress, &mut cost).unwrap();
    assert!(cost.rows_forwarded > 0);
    assert_eq!(progress.done_of_total(), (12, 12));
    // By hand: the base's log-probs of each completion alone.
    for (group, penalties) in batch.groups.iter().zip(&found) {
        for (sample, penalty) in group.samples.iter().zip(penalties) {
            let whole = [&group.prompt[..], &sample.tokens].concat();
            let base = decoder
                .sequence_log_probs(&whole, None, &group.distribution)
                .unwrap();
            let base = &base[group.prompt.len() - 1..];
            let k3: f64 = base
                .iter()
                .zip(&sample.logprobs)
                .map(|(base, sampled)| {
                    let d = f64::from(*base) - f64::from(*sampled);
                    d.exp() - d - 1.0
                })
                .sum();
            assert!((penalty - 0.3 * k3).abs() < 1e-6, "{penalty} != {k3}");
        }
    }
    let mut penalised = batch.clone();
    for (group, penalties) in penalised.groups.iter_mut().zip(&found) {
        for (sample, penalty) in group.samples.iter_mut().zip(penalties) {
            sample.reward = sample.reward.map(|reward| reward - penalty);
        }
    }
    let samples = batch.groups.iter().flat_map(|group| &group.samples);
    let tokens: usize = samples.map(|sample| sample.tokens.len()).sum();
    let mean = found.iter().flatten().sum::<f64>() / 0.3 / tokens as f64;

    let mut plain = trainer(settings());
    let mut own = trainer(with);
    (plain.adapter, own.adapter) = (adapter.clone(), adapter);
    plain.step(&penalised, &Progress::default()).unwrap();
    let result = own.step(&batch, &Progress::default()).unwrap();
    assert_eq!(own.bytes, plain.bytes);
    // What it is all about is told, though the loss has no term of it.
    let told = result.metrics.unwrap().kl;
    assert!(
        mean > 0.0 && (told - mean).abs() < 1e-12,
        "{told} != {mean}"
    );
}

/// With more than one update, the clip stays around the policy at the start of the step.
#[test]
fn corrected_steps_weigh_by_the_distance_from_the_sampler_at_their_start() {
    let decoder = decoder();
    let mut corrected = settings();
    corrected.loss.importance = Some(crate::loss::Importance {
        level: crate::loss::importance::Level::Token,
        cap: 1.0,
        mode: crate::loss::importance::Mode::Truncate,
    });
    corrected.iterations = 2;
    let mut trainer = trainer(corrected);
    let sampler = lively(&trainer.adapter);
    let batch = batch(&decoder, &sampler, &trainer.version);
    // The learner has moved on since: some tokens' weights are cut at 1, others are below.
    let metrics = trainer
        .step(&batch, &Progress::default())
        .unwrap()
        .metrics
        .unwrap();
    assert!(
        (0.05..0.95).contains(&metrics.corrected_fraction),
        "{metrics:?}"
    );
    assert!((0.0..1.0).contains(&metrics.effective_sample_share));
}

#[test]
fn a_step_without_a_finite_gradient_leaves_the_adapter_and_the_third_in_a_row_ends_the_run() {
    let mut trainer = trainer(settings());
    let sound = batch_for(&trainer);
    let broken = |trainer: &Trainer| {
        let mut batch = sound.clone();
        batch.version = trainer.version.clone();
        // A ratio beyond f32: the token's slope is infinite.
        batch.groups[0].samples[0].logprobs.fill(-1e30);
        batch.groups[0].samples[0].reward = Some(-9.0);
        batch
    };
    let before = trainer.version.clone();
    let metrics = trainer
        .step(&broken(&trainer), &Progress::default())
        .unwrap()
        .metrics
        .unwrap();
    assert!(metrics.skipped);
    assert!(metrics.loss.is_finite() && metrics.grad_norm.is_finite());
    assert_eq!(trainer.version.step, before.step + 1);
    assert_eq!(trainer.version.digest, before.digest);
    // A sound step in between: they are counted anew.
    let mut good = sound.clone();
    good.version = trainer.version.clone();
    let metrics = trainer.step(&good, &Progress::default()).unwrap();
    assert!(!metrics.metrics.unwrap().skipped);
    assert_ne!(trainer.version.digest, before.digest);
    for _ in 0..2 {
        trainer
            .step(&broken(&trainer), &Progress::default())
            .unwrap();
    }
    let error = trainer
        .step(&broken(&trainer), &Progress::default())
        .unwrap_err();
    assert!(error.to_string().contains("in a row"), "{error}");
}
