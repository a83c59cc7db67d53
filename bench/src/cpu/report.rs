//! The table: ours, the best peer, and the least that it takes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    contest::{Held, OURS, Row, Turns, Unit},
    machine::Machine,
};
use crate::table::{Table, figure};

/// A share of the processors that others may have before a figure is marked.
const LOUD: f64 = 0.05;

/// A row of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) ours: Option<f64>,
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: Option<String>,
    /// Above 1: ours is better.
    pub(crate) ratio: Option<f64>,
    /// The figure at the machine's peak, in the type that it is fastest in.
    pub(crate) floor: Option<f64>,
    /// The figure at the machine's peak in f32.
    pub(crate) floor_f32: Option<f64>,
    /// Of the floor's speed, what ours reaches.
    pub(crate) floor_share: Option<f64>,
    pub(crate) ours_peak_mib: Option<f64>,
    pub(crate) peer_peak_mib: Option<f64>,
    /// The largest share of the processors that others had beside a side of this row.
    pub(crate) foreign_cpu_share: Option<f64>,
}

/// Every row of a contest.
pub(crate) fn lines(held: &Held, machine: &Machine) -> Vec<Line> {
    let line = |row: &Row| {
        let ours = held.ours().and_then(|side| side.median(row.key));
        let best = held.best_peer(row);
        let peak = machine.best_peak().1;
        let at = |peak| {
            let seconds = row.least?.seconds(peak);
            row.unit.at(seconds)
        };
        let floor = at(&peak);
        let shown: Vec<&Turns> = held
            .ours()
            .into_iter()
            .chain(best.map(|(side, _)| side))
            .collect();
        Line {
            name: row.name.clone(),
            ours,
            peer: best.map(|(_, value)| value),
            peer_name: best.map(|(side, _)| side.name.clone()),
            ratio: ours
                .zip(best)
                .and_then(|(ours, (_, peer))| row.unit.ratio(ours, peer)),
            floor,
            floor_f32: at(&machine.f32_peak()),
            // As a ratio: the floor against ours, the other way round.
            floor_share: ours
                .zip(floor)
                .and_then(|(ours, floor)| row.unit.ratio(ours, floor)),
            ours_peak_mib: held.ours().and_then(memory),
            peer_peak_mib: best.and_then(|(side, _)| memory(side)),
            foreign_cpu_share: shown
                .iter()
                .filter(|side| !side.turns.is_empty())
                .map(|side| side.foreign())
                .reduce(f64::max),
        }
    };
    held.rows.iter().map(line).collect()
}

fn memory(side: &Turns) -> Option<f64> {
    let peak = side.peak_mib();
    (peak > 0.0).then_some(peak)
}

/// Whether a side was measured beside too much other work.
pub(crate) fn is_loud(held: &[Held]) -> bool {
    let sides = held.iter().flat_map(|held| &held.sides);
    sides
        .filter(|side| !side.turns.is_empty())
        .any(|side| side.foreign() > LOUD)
}

fn load(share: f64) -> String {
    let mark = if share > LOUD { "!" } else { "" };
    format!("{:.1}{mark}", 100.0 * share)
}

fn cell(value: Option<f64>) -> String {
    value.map(figure).unwrap_or_default()
}

/// All that was measured, for a person.
pub(crate) fn print(machine: &Machine, all: &[Held]) {
    let bf16 = machine.bf16_gflops.map_or_else(
        || "no products of bf16".to_owned(),
        |gflops| format!("{gflops:.0} GFLOP/s bf16"),
    );
    println!(
        "\n{}, {} processors: {:.0} GFLOP/s f32 ({}), {bf16}, {:.1} GB/s read; others had {} %",
        machine.processor,
        machine.processors,
        machine.f32_gflops,
        machine.f32_instructions,
        machine.read_gbytes,
        load(machine.foreign_cpu_share),
    );
    let kind = machine.best_peak().0;
    let floor = format!("floor ({kind})");
    let mut table = Table::new([
        "", OURS, "peer", "", "ratio", &floor, "share", "MiB", "peer's", "others %",
    ]);
    for line in all.iter().flat_map(|held| lines(held, machine)) {
        let share = line
            .floor_share
            .map(|share| format!("{:.0} %", 100.0 * share));
        table.row(
            &line.name,
            [
                cell(line.ours),
                cell(line.peer),
                line.peer_name.unwrap_or_default(),
                line.ratio
                    .map(|ratio| format!("{ratio:.2} x"))
                    .unwrap_or_default(),
                cell(line.floor),
                share.unwrap_or_default(),
                cell(line.ours_peak_mib),
                cell(line.peer_peak_mib),
                line.foreign_cpu_share.map(load).unwrap_or_default(),
            ],
        );
    }
    print!("{table}");
    print_sides(all);
}

/// Who was skipped, and why: once for each reason.
fn absent(all: &[Held]) -> BTreeSet<(&str, &str)> {
    let sides = all.iter().flat_map(|held| &held.sides);
    let with = sides.filter_map(|side| Some((side.name.as_str(), side.absent.as_deref()?)));
    with.collect()
}

/// Every side, with its smallest and largest figure.
fn print_sides(all: &[Held]) {
    let mut table = Table::new(["\nevery side", "median", "least", "most", "MiB", "others %"]);
    for held in all {
        for row in held.rows.iter().filter(|row| row.unit != Unit::Count) {
            for side in &held.sides {
                let Some(median) = side.median(row.key) else {
                    continue;
                };
                let least = side.values(row.key).fold(f64::INFINITY, f64::min);
                let most = side.values(row.key).fold(f64::NEG_INFINITY, f64::max);
                table.row(
                    &format!("{}: {}", row.name.trim_start(), side.name),
                    [
                        figure(median),
                        figure(least),
                        figure(most),
                        cell(memory(side)),
                        load(side.foreign()),
                    ],
                );
            }
        }
    }
    print!("{table}");
    for (side, why) in absent(all) {
        println!("{side}: absent: skipped ({why})");
    }
    if is_loud(all) {
        println!("! others had more than 5 % of the processors beside it: no figure to quote");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpu::contest::tests::held, floor::arithmetic};

    fn machine() -> Machine {
        Machine {
            processor: String::new(),
            processors: 2,
            f32_instructions: "AVX-512",
            f32_gflops: 200.0,
            bf16_gflops: Some(400.0),
            read_gbytes: 40.0,
            foreign_cpu_share: 0.0,
        }
    }

    #[test]
    fn a_line_sets_ours_beside_the_best_peer_and_the_floor() {
        let mut held = held(
            Unit::Seconds,
            &[(OURS, &[4.0]), ("slow", &[9.0]), ("fast", &[6.0])],
        );
        held.rows[0].least = Some(arithmetic(800.0));
        held.sides[2].turns[0].foreign_cpu_share = 0.04;
        held.sides[0].turns[0].peak_mib = 100.0;
        let line = &lines(&held, &machine())[0];
        assert_eq!((line.ours, line.peer), (Some(4.0), Some(6.0)));
        assert_eq!(line.peer_name.as_deref(), Some("fast"));
        assert_eq!(line.ratio, Some(1.5));
        // 2 s at the peak of bf16, of which ours reaches half.
        assert_eq!((line.floor, line.floor_f32), (Some(2.0), Some(4.0)));
        assert_eq!(line.floor_share, Some(0.5));
        assert_eq!(
            (line.ours_peak_mib, line.peer_peak_mib),
            (Some(100.0), None)
        );
        assert_eq!(line.foreign_cpu_share, Some(0.04));
    }

    #[test]
    fn a_rate_reaches_its_share_of_the_floors_rate() {
        let mut held = held(Unit::TokensPerSecond(1000.0), &[(OURS, &[250.0])]);
        held.rows[0].least = Some(arithmetic(800.0));
        let line = &lines(&held, &machine())[0];
        assert_eq!(line.floor, Some(500.0));
        assert_eq!(line.floor_share, Some(0.5));
        assert_eq!((line.peer, line.ratio), (None, None));
        held.sides[0].turns.clear();
        assert_eq!(lines(&held, &machine())[0].foreign_cpu_share, None);
    }

    #[test]
    fn who_was_skipped_is_told_once_for_each_reason() {
        let mut first = held(Unit::Seconds, &[(OURS, &[4.0]), ("a", &[]), ("b", &[])]);
        first.sides[1].absent = Some("not here".to_owned());
        let mut second = first.clone();
        second.sides[2].absent = Some("failed".to_owned());
        let both = [first, second];
        let told: Vec<_> = absent(&both).into_iter().collect();
        assert_eq!(told, [("a", "not here"), ("b", "failed")]);
    }

    #[test]
    fn figures_beside_other_work_are_marked() {
        let mut held = held(Unit::Seconds, &[(OURS, &[4.0])]);
        assert!(!is_loud(std::slice::from_ref(&held)));
        held.sides[0].turns[0].foreign_cpu_share = 0.2;
        assert!(is_loud(&[held]));
        assert_eq!(
            (load(0.2), load(0.05)),
            ("20.0!".to_owned(), "5.0".to_owned())
        );
    }
}
