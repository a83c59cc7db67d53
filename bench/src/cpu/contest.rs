//! One thing that is measured: every side does it in a process of its own, in turns.

use std::{collections::BTreeMap, path::Path, time::Instant};

use serde::Serialize;
use serde_json::Value;

use super::step::{self, GrpoStep, TrlStep};
use crate::{
    child::{Ending, Program},
    error::{BenchError, Result},
    floor::Least,
    host::Scratch,
    processes::Others,
    stats::median,
};

/// How the sides' column of our own is called.
pub(crate) const OURS: &str = "tina";

/// What a figure counts, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Tokens a second: of this many tokens.
    TokensPerSecond(f64),
    Seconds,
    /// A count: told, not compared.
    Count,
    /// A share of 1.
    Share,
    /// A difference of log-probs.
    Nats,
}

impl Unit {
    /// How much better ours is than the other's: above 1, better. None where that says nothing.
    pub(crate) fn ratio(self, ours: f64, theirs: f64) -> Option<f64> {
        let ratio = match self {
            Self::TokensPerSecond(_) => ours / theirs,
            Self::Seconds => theirs / ours,
            Self::Count | Self::Share | Self::Nats => return None,
        };
        ratio.is_finite().then_some(ratio)
    }

    /// Whether `a` is better than `b`.
    pub(crate) fn better(self, a: f64, b: f64) -> bool {
        match self {
            Self::TokensPerSecond(_) | Self::Count | Self::Share => a > b,
            Self::Seconds | Self::Nats => a < b,
        }
    }

    /// The figure of a process that takes `seconds` for all of it.
    pub(crate) fn at(self, seconds: f64) -> Option<f64> {
        match self {
            Self::TokensPerSecond(tokens) => Some(tokens / seconds),
            Self::Seconds => Some(seconds),
            Self::Count | Self::Share | Self::Nats => None,
        }
    }
}

/// A figure that every turn of a contest tells.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Its name among a turn's values.
    pub(crate) key: &'static str,
    pub(crate) unit: Unit,
    pub(crate) least: Option<Least>,
}

/// A side of a contest.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) task: Task,
}

/// What a side runs.
#[derive(Debug)]
pub(crate) enum Task {
    /// A program whose last line is a JSON object: numbers are values, texts are notes. A value of
    /// one of the first names is known by the second.
    Program(Program, &'static [(&'static str, &'static str)]),
    Grpo(Box<GrpoStep>),
    Trl(Box<TrlStep>),
    /// Not here, and why.
    Absent(String),
}

/// A contest that is to be held.
#[derive(Debug)]
pub(crate) struct Contest {
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) sides: Vec<Side>,
}

/// What one process measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Turn {
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) notes: BTreeMap<String, String>,
    pub(crate) peak_mib: f64,
    /// Share of all processors' time that others took.
    pub(crate) foreign_cpu_share: f64,
    /// The whole process, start and end included.
    pub(crate) process_seconds: f64,
}

/// All turns of one side.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Turns {
    pub(crate) name: String,
    pub(crate) turns: Vec<Turn>,
    /// Why there are none, or not all.
    pub(crate) absent: Option<String>,
}

impl Turns {
    /// The median of a value over the turns that have it.
    pub(crate) fn median(&self, key: &str) -> Option<f64> {
        let values: Vec<f64> = self.values(key).collect();
        (!values.is_empty()).then(|| median(values))
    }

    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.turns
            .iter()
            .filter_map(move |turn| turn.values.get(key).copied())
    }

    pub(crate) fn peak_mib(&self) -> f64 {
        median(self.turns.iter().map(|turn| turn.peak_mib))
    }

    pub(crate) fn foreign(&self) -> f64 {
        median(self.turns.iter().map(|turn| turn.foreign_cpu_share))
    }
}

/// A contest that was held.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) sides: Vec<Turns>,
}

impl Held {
    pub(crate) fn side(&self, name: &str) -> Option<&Turns> {
        self.sides.iter().find(|side| side.name == name)
    }

    pub(crate) fn ours(&self) -> Option<&Turns> {
        self.side(OURS)
    }

    /// The other side that is best at a row.
    pub(crate) fn best_peer(&self, row: &Row) -> Option<(&Turns, f64)> {
        let others = self.sides.iter().filter(|side| side.name != OURS);
        let with = others.filter_map(|side| Some((side, side.median(row.key)?)));
        with.reduce(|best, other| {
            if row.unit.better(other.1, best.1) {
                other
            } else {
                best
            }
        })
    }
}

impl Contest {
    /// Holds it: in every round each side has one turn, and another one begins. A peer that fails is
    /// left out from then on; ours ends the benchmark.
    pub(crate) async fn hold(self, rounds: u32, scratch: &Scratch) -> Result<Held> {
        let mut held = Held {
            name: self.name,
            rows: self.rows,
            sides: Vec::new(),
        };
        for side in &self.sides {
            let absent = match &side.task {
                Task::Absent(why) => Some(why.clone()),
                _ => None,
            };
            held.sides.push(Turns {
                name: side.name.clone(),
                turns: Vec::new(),
                absent,
            });
        }
        for round in 0..rounds {
            for place in order(self.sides.len(), round) {
                let (side, turns) = (&self.sides[place], &mut held.sides[place]);
                if turns.absent.is_some() {
                    continue;
                }
                eprint!(
                    "{}: {}, round {} of {rounds}",
                    held.name,
                    side.name,
                    round + 1
                );
                match side.task.turn(&scratch.folder("turn")?).await {
                    Ok(Done::Turn(turn)) => {
                        eprintln!("{}", brief(&turn, &held.rows));
                        turns.turns.push(turn);
                    }
                    Ok(Done::Absent(why)) => {
                        eprintln!(": absent: skipped ({why})");
                        turns.absent = Some(why);
                    }
                    Err(error) if side.name == OURS => {
                        eprintln!();
                        return Err(error);
                    }
                    Err(error) => {
                        eprintln!(": failed: {error}");
                        turns.absent = Some(format!("failed: {error}"));
                    }
                }
            }
        }
        Ok(held)
    }
}

/// In which order `sides` have their turns in a round.
fn order(sides: usize, round: u32) -> Vec<usize> {
    (0..sides)
        .map(|place| (place + round as usize) % sides)
        .collect()
}

/// A turn's figures, for who waits.
fn brief(turn: &Turn, rows: &[Row]) -> String {
    let told = rows
        .iter()
        .filter_map(|row| Some((row.key, turn.values.get(row.key)?)));
    told.map(|(key, value)| format!(", {key} {}", crate::table::figure(*value)))
        .collect()
}

/// How a turn went.
pub(crate) enum Done {
    Turn(Turn),
    Absent(String),
}

impl Task {
    /// One turn: a fresh process.
    pub(crate) async fn turn(&self, folder: &Path) -> Result<Done> {
        let (began, others) = (Instant::now(), Others::start());
        let done = match self {
            Self::Absent(why) => Done::Absent(why.clone()),
            Self::Grpo(task) => Done::Turn(step::ours(task, folder).await?),
            Self::Trl(task) => step::theirs(task, folder).await?,
            Self::Program(program, names) => match program.run(folder).await? {
                Ending::Absent(why) => Done::Absent(why),
                Ending::Done { output, usage } => {
                    let mut turn = read(&output, names)?;
                    turn.peak_mib = turn.peak_mib.max(usage.peak_together_mib);
                    let own = turn.values.remove("peak_mib").unwrap_or(0.0);
                    turn.peak_mib = turn.peak_mib.max(own);
                    Done::Turn(turn)
                }
            },
        };
        Ok(match done {
            Done::Turn(turn) => Done::Turn(Turn {
                foreign_cpu_share: others.share(),
                process_seconds: began.elapsed().as_secs_f64(),
                ..turn
            }),
            absent => absent,
        })
    }
}

/// What a program printed on the last line that is a JSON object.
pub(crate) fn read(output: &str, names: &[(&str, &str)]) -> Result<Turn> {
    let lines = output.lines().rev();
    let last = lines.map(str::trim).find(|line| line.starts_with('{'));
    let Some(Value::Object(fields)) = last.map(serde_json::from_str).transpose()? else {
        let message = format!("a program reported nothing; it printed:\n{output}");
        return Err(BenchError::Other(message));
    };
    let mut turn = Turn::default();
    for (key, value) in fields {
        let known = names.iter().find(|(from, _)| *from == key);
        let key = known.map_or(key.clone(), |(_, to)| (*to).to_owned());
        match value {
            Value::Number(number) => {
                turn.values.insert(key, number.as_f64().unwrap_or(f64::NAN));
            }
            Value::String(text) => {
                turn.notes.insert(key, text);
            }
            _ => {}
        }
    }
    Ok(turn)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Sides with one turn a value of "x".
    pub(crate) fn held(unit: Unit, sides: &[(&str, &[f64])]) -> Held {
        let turn = |x: &f64| Turn {
            values: BTreeMap::from([("x".to_owned(), *x)]),
            ..Turn::default()
        };
        let side = |(name, values): &(&str, &[f64])| Turns {
            name: (*name).to_owned(),
            turns: values.iter().map(turn).collect(),
            absent: None,
        };
        Held {
            name: "a contest".to_owned(),
            rows: vec![Row {
                name: "x".to_owned(),
                key: "x",
                unit,
                least: None,
            }],
            sides: sides.iter().map(side).collect(),
        }
    }

    #[test]
    fn the_best_peer_is_the_fastest_by_its_median() {
        let rate = Unit::TokensPerSecond(64.0);
        let sides: &[(&str, &[f64])] = &[
            (OURS, &[500.0]),
            ("a", &[100.0, 300.0, 200.0]),
            ("b", &[250.0]),
            ("gone", &[]),
        ];
        let of_rates = held(rate, sides);
        let (best, value) = of_rates.best_peer(&of_rates.rows[0]).unwrap();
        assert_eq!((best.name.as_str(), value), ("b", 250.0));
        let of_times = held(Unit::Seconds, sides);
        let (best, value) = of_times.best_peer(&of_times.rows[0]).unwrap();
        assert_eq!((best.name.as_str(), value), ("a", 200.0));
    }

    #[test]
    fn a_ratio_above_one_is_ours_being_better() {
        assert_eq!(Unit::TokensPerSecond(1.0).ratio(300.0, 100.0), Some(3.0));
        assert_eq!(Unit::Seconds.ratio(2.0, 5.0), Some(2.5));
        assert_eq!(Unit::Nats.ratio(1e-6, 1e-3), None);
        assert_eq!(Unit::Seconds.ratio(0.0, 5.0), None);
    }

    #[test]
    fn what_takes_some_seconds_has_a_rate() {
        assert_eq!(Unit::TokensPerSecond(640.0).at(2.0), Some(320.0));
        assert_eq!(Unit::Seconds.at(2.0), Some(2.0));
        assert_eq!(Unit::Count.at(2.0), None);
    }

    #[test]
    fn each_round_begins_with_another_side() {
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(3, 1), [1, 2, 0]);
        assert_eq!(order(3, 5), [2, 0, 1]);
        assert!(order(0, 1).is_empty());
    }

    #[test]
    fn the_last_object_that_a_program_prints_is_its_report() {
        let output =
            "loading\n{\"decode\": 1}\n{\"speed_tg\": 12.5, \"malloc\": \"x\", \"l\": []}\ndone\n";
        let turn = read(output, &[("speed_tg", "decode")]).unwrap();
        assert_eq!(turn.values, BTreeMap::from([("decode".to_owned(), 12.5)]));
        assert_eq!(turn.notes["malloc"], "x");
        assert!(read("nothing", &[]).is_err());
        assert!(read("{broken", &[]).is_err());
    }
}
