//! The learning rate of every step: linear warm-up, then a cosine down to a floor.

use std::f64::consts::PI;

/// Warm-up, then a cosine from `lr` to `lr * min_lr_ratio`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate, reached at step index `warmup_steps`.
    pub lr: f64,
    /// The floor, as a share of `lr`.
    pub min_lr_ratio: f64,
    /// Steps before the rate reaches `lr`.
    pub warmup_steps: u64,
    /// Step index at which the cosine reaches the floor, warm-up included; 0: the rate stays at
    /// `lr` after the warm-up.
    pub schedule_steps: u64,
}

impl Schedule {
    /// The learning rate of the step with index `step` (0 is the first: it turns version 0 into
    /// version 1).
    ///
    /// In the warm-up it is `lr * (step + 1) / (warmup_steps + 1)`, so the first step moves too.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        if self.schedule_steps == 0 {
            return self.lr;
        }
        let span = self.schedule_steps.saturating_sub(self.warmup_steps);
        let progress = if span == 0 {
            1.0
        } else {
            ((step - self.warmup_steps) as f64 / span as f64).min(1.0)
        };
        let cosine = 0.5 * (1.0 + (PI * progress).cos());
        self.lr * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-15, "{actual} != {expected}");
    }

    const SCHEDULE: Schedule = Schedule {
        lr: 1e-3,
        min_lr_ratio: 0.1,
        warmup_steps: 4,
        schedule_steps: 14,
    };

    #[test]
    fn the_warm_up_is_linear_and_loses_no_step() {
        close(SCHEDULE.lr(0), 2e-4);
        close(SCHEDULE.lr(1), 4e-4);
        close(SCHEDULE.lr(3), 8e-4);
        close(SCHEDULE.lr(4), 1e-3);
    }

    #[test]
    fn the_cosine_falls_to_the_floor_and_stays_there() {
        close(SCHEDULE.lr(9), 1e-3 * 0.55);
        // a fifth of the way: cos(pi / 5) = (1 + sqrt 5) / 4
        let cosine = 0.5 * (1.0 + (1.0 + 5f64.sqrt()) / 4.0);
        close(SCHEDULE.lr(6), 1e-3 * (0.1 + 0.9 * cosine));
        close(SCHEDULE.lr(14), 1e-4);
        close(SCHEDULE.lr(1_000_000), 1e-4);
    }

    /// Open-RS2 of the paper: 1500 steps, a tenth of them warm-up, stopped at 850. Values of
    /// `transformers`' `cosine_with_min_lr`.
    #[test]
    fn the_papers_schedule() {
        let paper = Schedule {
            lr: 1e-6,
            min_lr_ratio: 0.1,
            warmup_steps: 150,
            schedule_steps: 1500,
        };
        for (step, expected) in [(150, 1e-6), (450, 8.947e-7), (850, 5.238e-7), (1500, 1e-7)] {
            assert!(
                (paper.lr(step) - expected).abs() < 1e-10,
                "{step}: {}",
                paper.lr(step)
            );
        }
    }

    #[test]
    fn without_schedule_steps_the_rate_stays_after_the_warm_up() {
        let constant = Schedule {
            schedule_steps: 0,
            ..SCHEDULE
        };
        close(constant.lr(0), 2e-4);
        close(constant.lr(1_000), 1e-3);
    }

    #[test]
    fn a_schedule_no_longer_than_its_warm_up_goes_straight_to_the_floor() {
        let short = Schedule {
            schedule_steps: 3,
            ..SCHEDULE
        };
        close(short.lr(3), 8e-4);
        close(short.lr(4), 1e-4);
    }
}
