//! Which source each prompt of a run is drawn from, where sources have weights.

use std::cmp::Ordering;

/// Draws after which the pattern of sources begins anew; shares are exact to one in so many.
const PERIOD: usize = 10_000;

/// A fixed pattern of sources, spread as evenly as can be, so that any stretch of it has its sources
/// in their shares. What is drawn at a position follows from the position alone.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    /// For each position of the pattern: its source, and how often that was drawn before.
    pattern: Vec<(u32, u32)>,
    /// How often the pattern has each source.
    counts: Vec<u64>,
}

impl Mixture {
    /// A pattern with shares by `weights`, each above 0; every source is in it at least once.
    pub(super) fn new(weights: &[f64]) -> Self {
        let counts = apportion(weights);
        let mut places: Vec<(u64, u32, u32)> = Vec::with_capacity(PERIOD);
        for (source, &count) in counts.iter().enumerate() {
            places.extend((0..count).map(|nth| (2 * nth + 1, source as u32, nth as u32)));
        }
        // The nth of a source stands at (2 nth + 1) / (2 count) of the pattern.
        places.sort_by(|a, b| {
            let at = |place: &(u64, u32, u32), other: u32| place.0 * counts[other as usize];
            at(a, b.1).cmp(&at(b, a.1)).then(a.1.cmp(&b.1))
        });
        Self {
            pattern: places
                .into_iter()
                .map(|(_, source, nth)| (source, nth))
                .collect(),
            counts,
        }
    }

    /// The source that is drawn at a position of the run, and how often it was drawn before.
    pub(super) fn draw(&self, position: u64) -> (usize, u64) {
        let period = self.pattern.len().max(1) as u64;
        let (source, nth) = self.pattern[(position % period) as usize];
        let source = source as usize;
        let before = (position / period).saturating_mul(self.counts[source]);
        (source, before.saturating_add(u64::from(nth)))
    }
}

/// How many of [`PERIOD`] each gets, by largest remainder, one at least.
fn apportion(weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights
        .iter()
        .map(|weight| weight / sum * PERIOD as f64)
        .collect();
    let mut counts: Vec<u64> = exact
        .iter()
        .map(|share| (share.floor() as u64).max(1))
        .collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| {
        let order = exact[b].fract().partial_cmp(&exact[a].fract());
        order.unwrap_or(Ordering::Equal).then(a.cmp(&b))
    });
    let given: u64 = counts.iter().sum();
    let left = (PERIOD as u64).saturating_sub(given) as usize;
    for &source in by_remainder.iter().cycle().take(left) {
        counts[source] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_in_every_stretch() {
        let weights = [0.7, 0.2, 0.1];
        let mixture = Mixture::new(&weights);
        let mut drawn = [0u64; 3];
        for position in 0..25_000u64 {
            let (source, nth) = mixture.draw(position);
            assert_eq!(nth, drawn[source], "position {position}");
            drawn[source] += 1;
            for (count, weight) in drawn.iter().zip(weights) {
                let expected = weight * (position + 1) as f64;
                assert!(
                    (*count as f64 - expected).abs() <= 2.0,
                    "{position}: {drawn:?}"
                );
            }
        }
        assert_eq!(drawn, [17_500, 5_000, 2_500]);
    }

    #[test]
    fn odd_weights_are_kept_to_one_in_ten_thousand() {
        let counts = |weights: &[f64]| Mixture::new(weights).counts;
        assert_eq!(counts(&[1.0]), [10_000]);
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [3_334, 3_333, 3_333]);
        assert_eq!(counts(&[5.0, 3.0]), [6_250, 3_750]);
        assert_eq!(counts(&[1e9, 1e-9]), [10_000, 1], "never none at all");
        let many = vec![1.0; 20_000];
        assert!(counts(&many).iter().all(|&count| count == 1));
    }
}
