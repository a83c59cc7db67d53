//! Round numbers along the axes of charts.

/// A range that isn't empty.
pub(super) fn widened(low: f64, high: f64) -> (f64, f64) {
    if high > low {
        return (low, high);
    }
    let room = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
    (low - room, high + room)
}

/// Round numbers along an axis: multiples of 1, 2 or 5 times a power of ten.
pub(super) struct Ticks {
    pub(super) first: f64,
    pub(super) last: f64,
    step: f64,
}

impl Ticks {
    /// About `wanted` steps that enclose `low` to `high`.
    pub(super) fn over(low: f64, high: f64, wanted: usize) -> Self {
        let (low, high) = widened(low, high);
        let rough = (high - low) / wanted.max(2) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|digit| digit * power)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(power * 10.0);
        Self {
            first: (low / step + 1e-9).floor() * step,
            last: (high / step - 1e-9).ceil() * step,
            step,
        }
    }

    /// Each tick and its label.
    pub(super) fn all(&self) -> Vec<(f64, String)> {
        let count = ((self.last - self.first) / self.step).round() as usize;
        let most = self.first.abs().max(self.last.abs());
        let label = |value: f64| {
            if value == 0.0 {
                "0".to_owned()
            } else if !(1e-3..1e7).contains(&most) {
                format!("{:e}", round_to(value, 3))
            } else {
                let decimals = (-self.step.log10()).ceil().clamp(0.0, 6.0);
                format!("{value:.*}", decimals as usize)
            }
        };
        (0..=count.min(100))
            .map(|at| {
                let value = self.first + self.step * at as f64;
                // What is left of a difference that should be 0.
                let value = if value.abs() < self.step * 1e-6 {
                    0.0
                } else {
                    value
                };
                (value, label(value))
            })
            .collect()
    }
}

/// `value` to so many significant digits.
fn round_to(value: f64, digits: i32) -> f64 {
    format!("{value:.*e}", (digits - 1).max(0) as usize)
        .parse()
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_around_the_data() {
        let labels = |low, high, wanted| -> Vec<String> {
            let ticks = Ticks::over(low, high, wanted).all();
            ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(
            labels(0.0, 1.0, 5),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|l| if l == "0.0" { "0" } else { l })
        );
        assert_eq!(labels(1.0, 30.0, 3), ["0", "10", "20", "30"]);
        assert_eq!(labels(-0.3, 0.4, 4), ["-0.4", "-0.2", "0", "0.2", "0.4"]);
        assert_eq!(labels(0.0, 2e-6, 2), ["0", "1e-6", "2e-6"]);
        assert_eq!(labels(5.0, 5.0, 2), ["0", "5", "10"]);
    }
}
