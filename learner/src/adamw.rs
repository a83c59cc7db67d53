//! AdamW with decoupled weight decay, and clipping by the global gradient norm: the arithmetic of
//! torch.optim.AdamW and torch.nn.utils.clip_grad_norm_, in f32 on any device.

use candle_core::{Device, Result, Tensor};

/// Added to the norm when gradients are scaled down, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// AdamW's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a parameter that each update takes away, times the learning rate.
    pub weight_decay: f64,
}

/// The optimiser's state: two moments a parameter, in the parameters' order, and the number of
/// updates done.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    updates: u64,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

impl AdamW {
    /// Fresh state for `parameters`: moments of zero.
    pub fn new(config: AdamWConfig, parameters: &[Tensor]) -> Result<Self> {
        let zeros = parameters
            .iter()
            .map(Tensor::zeros_like)
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            config,
            updates: 0,
            first: zeros.clone(),
            second: zeros,
        })
    }

    /// State as [`AdamW::updates`], [`AdamW::first_moments`] and [`AdamW::second_moments`] gave it.
    pub fn restore(
        config: AdamWConfig,
        updates: u64,
        first: Vec<Tensor>,
        second: Vec<Tensor>,
    ) -> Self {
        Self {
            config,
            updates,
            first,
            second,
        }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Running means of the gradients.
    pub fn first_moments(&self) -> &[Tensor] {
        &self.first
    }

    /// Running means of the squared gradients.
    pub fn second_moments(&self) -> &[Tensor] {
        &self.second
    }

    /// One update: `gradients` (same order and shapes as `parameters`) are multiplied by
    /// `gradient_scale` first. Returns the new parameters.
    pub fn update(
        &mut self,
        parameters: &[Tensor],
        gradients: &[Tensor],
        gradient_scale: f64,
        lr: f64,
    ) -> Result<Vec<Tensor>> {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        self.updates += 1;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = (1.0 - beta2.powf(self.updates as f64)).sqrt();
        let mut updated = Vec::with_capacity(parameters.len());
        for (index, (parameter, gradient)) in parameters.iter().zip(gradients).enumerate() {
            let gradient = gradient.affine(gradient_scale, 0.0)?;
            let first =
                (self.first[index].affine(beta1, 0.0)? + gradient.affine(1.0 - beta1, 0.0)?)?;
            let second = (self.second[index].affine(beta2, 0.0)?
                + gradient.sqr()?.affine(1.0 - beta2, 0.0)?)?;
            let root = second.sqrt()?.affine(1.0 / correction2, eps)?;
            let step = (&first / root)?.affine(lr / correction1, 0.0)?;
            updated.push((parameter.affine(1.0 - lr * weight_decay, 0.0)? - step)?.detach());
            self.first[index] = first.detach();
            self.second[index] = second.detach();
        }
        Ok(updated)
    }
}

/// The 2-norm over all `gradients` (f32). Reduced in one fixed order, so the same gradients give
/// the same norm every time.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    let Some(first) = gradients.first() else {
        return Ok(0.0);
    };
    if matches!(first.device(), Device::Cpu) {
        let mut squares = 0.0f64;
        for gradient in gradients {
            for value in gradient.flatten_all()?.to_vec1::<f32>()? {
                squares += f64::from(value).powi(2);
            }
        }
        return Ok(squares.sqrt());
    }
    // One number a tensor, and one copy to the host for them all.
    let squares = gradients
        .iter()
        .map(|gradient| gradient.sqr()?.sum_all())
        .collect::<Result<Vec<_>>>()?;
    let squares: f64 = Tensor::stack(&squares, 0)?
        .to_vec1::<f32>()?
        .into_iter()
        .map(f64::from)
        .sum();
    Ok(squares.sqrt())
}

/// What gradients of this norm are multiplied by, so that their norm is at most `max_norm`
/// (0: never clipped).
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 {
        (max_norm / (norm + CLIP_EPSILON)).min(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    fn tensors(flat: &[f32]) -> Vec<Tensor> {
        vec![
            Tensor::from_slice(&flat[..4], 4, &Device::Cpu).unwrap(),
            Tensor::from_slice(&flat[4..], (2, 1), &Device::Cpu).unwrap(),
        ]
    }

    fn flat(tensors: &[Tensor]) -> Vec<f32> {
        tensors
            .iter()
            .flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect()
    }

    /// Gradients, learning rate; then norm before clipping to 1 and parameters after the update,
    /// recorded from torch 2.15 (AdamW, clip_grad_norm_).
    #[allow(clippy::type_complexity)]
    const TORCH: [([f32; 6], f64, f64, [f32; 6]); 3] = [
        (
            [0.1, -2.0, 0.0, 1e-3, 3.0, -0.5],
            1e-2,
            3.641_428_5,
            [
                0.489_500_02,
                -0.239_75,
                1.4985,
                -0.009_999_636,
                1.988,
                -2.987,
            ],
        ),
        (
            [-0.3, 0.5, 0.2, 1e-3, 1.0, 4.0],
            5e-3,
            4.168_933,
            [
                0.491_516_53,
                -0.237_122_34,
                1.494_076,
                -0.014_973_935,
                1.982_702_9,
                -2.988_677_3,
            ],
        ),
        (
            [0.05, 0.05, -0.7, 0.0, 0.1, -0.2],
            2.5e-3,
            0.738_241_14,
            [
                0.491_264_16,
                -0.236_230_6,
                1.495_161_3,
                -0.016_919_564,
                1.980_345_7,
                -2.988_821_7,
            ],
        ),
    ];

    #[test]
    fn updates_and_clipping_are_those_of_torch() {
        let mut parameters = tensors(&[0.5, -0.25, 1.5, 0.0, 2.0, -3.0]);
        let mut optimiser = AdamW::new(CONFIG, &parameters).unwrap();
        for (gradients, lr, norm, expected) in TORCH {
            let gradients = tensors(&gradients);
            let actual_norm = global_norm(&gradients).unwrap();
            assert!((actual_norm - norm).abs() < 1e-6, "{actual_norm} != {norm}");
            let scale = clip_scale(actual_norm, 1.0);
            parameters = optimiser
                .update(&parameters, &gradients, scale, lr)
                .unwrap();
            for (actual, expected) in flat(&parameters).iter().zip(expected) {
                assert!((actual - expected).abs() < 5e-7, "{actual} != {expected}");
            }
        }
        assert_eq!(optimiser.updates(), 3);
    }

    #[test]
    fn restored_state_goes_on_to_the_same_bits() {
        let start = tensors(&[0.5, -0.25, 1.5, 0.0, 2.0, -3.0]);
        let mut straight = AdamW::new(CONFIG, &start).unwrap();
        let gradients = tensors(&TORCH[0].0);
        let middle = straight.update(&start, &gradients, 0.3, 1e-2).unwrap();
        let mut restored = AdamW::restore(
            CONFIG,
            straight.updates(),
            straight.first_moments().to_vec(),
            straight.second_moments().to_vec(),
        );
        let gradients = tensors(&TORCH[1].0);
        let expected = straight.update(&middle, &gradients, 1.0, 1e-2).unwrap();
        let actual = restored.update(&middle, &gradients, 1.0, 1e-2).unwrap();
        assert_eq!(flat(&actual), flat(&expected));
    }

    #[test]
    fn gradients_within_the_limit_or_without_one_are_left_alone() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(100.0, 0.0), 1.0);
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(global_norm(&[]).unwrap(), 0.0);
    }
}
