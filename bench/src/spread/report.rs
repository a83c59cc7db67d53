//! The table.

use serde::Serialize;

use super::Load;
use crate::{
    stats::percentile,
    table::{Table, figure},
};

/// What one worker said of one adapter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// From the announcement to the acknowledgement, in seconds.
    pub(super) after: f32,
    /// Of it, what reading, packing and the probe took.
    pub(super) ready: f32,
    /// The engine's pause.
    pub(super) pause: f32,
    /// Relays between the worker and the coordinator.
    pub(super) depth: u32,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    fan_out: u32,
    load: Load,
    adapters: u32,
    taken_p50_s: f32,
    taken_p99_s: f32,
    /// Until the last worker of a round has it: the median round.
    all_p50_s: f32,
    /// Without what follows on the last byte.
    fetched_p50_s: f32,
    fetched_p99_s: f32,
    ready_p50_s: f32,
    pause_p50_ms: f32,
    pause_p99_ms: f32,
    pause_max_ms: f32,
    /// Bytes that the coordinator sent for an adapter, in MB.
    uploaded_mb: f64,
    depth: u32,
    /// Share of the processors that others had.
    others: f64,
}

impl Line {
    pub(super) fn new(
        fan_out: u32,
        load: Load,
        rounds: &[Vec<Taken>],
        uploaded: u64,
        others: f64,
    ) -> Self {
        let of = |part: fn(&Taken) -> f32, share: f64| {
            let mut all: Vec<f32> = rounds.iter().flatten().map(part).collect();
            all.sort_by(f32::total_cmp);
            percentile(&all, share)
        };
        let mut last: Vec<f32> = rounds
            .iter()
            .map(|round| round.iter().map(|taken| taken.after).fold(0.0, f32::max))
            .collect();
        last.sort_by(f32::total_cmp);
        let adapters = rounds.len() as u32;
        Self {
            fan_out,
            load,
            adapters,
            taken_p50_s: of(|t| t.after, 0.5),
            taken_p99_s: of(|t| t.after, 0.99),
            all_p50_s: percentile(&last, 0.5),
            fetched_p50_s: of(|t| t.after - t.ready, 0.5),
            fetched_p99_s: of(|t| t.after - t.ready, 0.99),
            ready_p50_s: of(|t| t.ready, 0.5),
            pause_p50_ms: of(|t| t.pause * 1e3, 0.5),
            pause_p99_ms: of(|t| t.pause * 1e3, 0.99),
            pause_max_ms: of(|t| t.pause * 1e3, 1.0),
            uploaded_mb: uploaded as f64 / 1e6 / f64::from(adapters.max(1)),
            depth: rounds.iter().flatten().map(|t| t.depth).max().unwrap_or(0),
            others,
        }
    }
}

pub(super) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "relays, engines",
        "taken in p50 s",
        "p99 s",
        "all, p50 s",
        "fetched p50 s",
        "p99 s",
        "made ready p50 s",
        "pause p50 ms",
        "p99 ms",
        "max ms",
        "uploaded MB",
        "hops",
        "others %",
    ]);
    for line in lines {
        let relays = match line.fan_out {
            0 => "none".to_owned(),
            fan_out => format!("fan-out {fan_out}"),
        };
        let engines = match line.load {
            Load::Idle => "idle",
            Load::Busy => "busy",
        };
        let wide = |value: f32| figure(f64::from(value));
        table.row(
            &format!("{relays}, {engines}"),
            [
                wide(line.taken_p50_s),
                wide(line.taken_p99_s),
                wide(line.all_p50_s),
                wide(line.fetched_p50_s),
                wide(line.fetched_p99_s),
                wide(line.ready_p50_s),
                wide(line.pause_p50_ms),
                wide(line.pause_p99_ms),
                wide(line.pause_max_ms),
                figure(line.uploaded_mb),
                line.depth.to_string(),
                figure(line.others * 100.0),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_slowest_worker_of_the_median_round() {
        let taken = |after: f32| Taken {
            after,
            ready: 0.1,
            pause: 0.001,
            depth: 1,
        };
        let rounds = [
            vec![taken(1.0), taken(3.0)],
            vec![taken(1.0), taken(5.0)],
            vec![taken(2.0), taken(4.0)],
        ];
        let line = Line::new(2, Load::Idle, &rounds, 3_000_000, 0.0);
        assert_eq!((line.all_p50_s, line.taken_p99_s), (4.0, 5.0));
        assert_eq!((line.uploaded_mb, line.adapters), (1.0, 3));
        assert!((line.fetched_p50_s - 1.9).abs() < 1e-6);
    }
}
