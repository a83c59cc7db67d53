//! The table.

use clap::ValueEnum;
use serde::Serialize;

use super::side::Measured;
use crate::table::{Table, figure};

/// What workers do with a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Load {
    /// They answer at once: what the coordinator can do
    Full,
    /// They take their time, so that all together come to a given rate
    Paced,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    who: String,
    workers: u32,
    max_staleness: Option<u64>,
    load: Load,
    /// Medians of the runs.
    #[serde(flatten)]
    measured: Measured,
    /// The largest share of the processors that others had in a run.
    foreign_cpu_share: f64,
}

impl Line {
    pub(super) fn new(
        who: &str,
        workers: u32,
        max_staleness: Option<u64>,
        load: Load,
        (measured, foreign_cpu_share): (Measured, f64),
    ) -> Self {
        Self {
            who: who.to_owned(),
            workers,
            max_staleness,
            load,
            measured,
            foreign_cpu_share,
        }
    }
}

pub(super) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "",
        "workers",
        "load",
        "completions/s",
        "dispatch p50 ms",
        "p99 ms",
        "CPU us each",
        "KiB/worker",
        "peak MiB",
        "others %",
    ]);
    for line in lines {
        let name = match line.max_staleness {
            Some(n) => format!("{}, staleness {n}", line.who),
            None => line.who.clone(),
        };
        let load = match line.load {
            Load::Full => "full",
            Load::Paced => "paced",
        };
        let measured = &line.measured;
        let figures = [
            measured.completions_per_second,
            measured.dispatch_p50_ms,
            measured.dispatch_p99_ms,
            measured.cpu_us_per_completion,
            measured.kib_per_worker,
            measured.peak_mib,
            100.0 * line.foreign_cpu_share,
        ];
        let cells = [line.workers.to_string(), load.to_owned()];
        table.row(&name, cells.into_iter().chain(figures.map(figure)));
    }
    table
}
