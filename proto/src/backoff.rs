//! Jittered exponential back-off, pure: the caller sleeps, the seed comes from outside.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The span and growth of the waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffOptions {
    /// Ceiling of the first wait.
    pub initial: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// Growth of the ceiling from one wait to the next.
    pub factor: f64,
}

impl Default for BackoffOptions {
    /// 200 ms, doubling up to 10 s.
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(10),
            factor: 2.0,
        }
    }
}

/// Waits drawn evenly from the upper half below a growing ceiling, so that many processes which
/// lost the same server don't come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    options: BackoffOptions,
    ceiling: Duration,
    rng: ChaCha8Rng,
}

impl Backoff {
    /// The same options and seed give the same waits.
    pub fn new(options: BackoffOptions, seed: u64) -> Self {
        let ceiling = options.initial.min(options.max);
        Self {
            options,
            ceiling,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// A seed that differs from process to process and from name to name.
    pub fn seed_for(name: &str) -> u64 {
        let mut text = name.as_bytes().to_vec();
        text.extend(crate::platform::process_id().to_le_bytes());
        let [a, b, c, d, e, f, g, h, ..] = crate::version::sha256(&text);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// The next wait: in `[ceiling / 2, ceiling)`; the ceiling then grows.
    pub fn next_wait(&mut self) -> Duration {
        let share: f64 = self.rng.random();
        let wait = self.ceiling.mul_f64(0.5 + share / 2.0);
        let grown = self.ceiling.as_secs_f64() * self.options.factor.max(1.0);
        self.ceiling = Duration::try_from_secs_f64(grown)
            .unwrap_or(self.options.max)
            .min(self.options.max);
        wait
    }

    /// All is well again: the next wait is a first one.
    pub fn reset(&mut self) {
        self.ceiling = self.options.initial.min(self.options.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(seed: u64, count: usize) -> Vec<Duration> {
        let mut backoff = Backoff::new(BackoffOptions::default(), seed);
        (0..count).map(|_| backoff.next_wait()).collect()
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_stay_in_the_upper_half() {
        let mut ceiling = Duration::from_millis(200);
        for wait in waits(7, 40) {
            assert!(
                wait >= ceiling / 2 && wait <= ceiling,
                "{wait:?} under {ceiling:?}"
            );
            ceiling = (ceiling * 2).min(Duration::from_secs(10));
        }
    }

    #[test]
    fn the_seed_alone_decides_the_waits() {
        assert_eq!(waits(1, 10), waits(1, 10));
        assert_ne!(waits(1, 10), waits(2, 10));
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(BackoffOptions::default(), 3);
        for _ in 0..8 {
            backoff.next_wait();
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(200));
    }

    #[test]
    fn absurd_options_still_give_bounded_waits() {
        let max = Duration::from_secs(1);
        let options = BackoffOptions {
            initial: Duration::from_secs(9),
            max,
            factor: f64::MAX,
        };
        let mut backoff = Backoff::new(options, 0);
        assert!((0..5).all(|_| backoff.next_wait() <= max));
    }
}
