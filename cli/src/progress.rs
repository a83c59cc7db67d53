//! What a person sees of a run while it goes on: a progress bar on a terminal, and a line per step
//! and evaluation.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tina_proto::v1;

use crate::words;

/// Turns reports of a run's status into lines and a bar.
pub(crate) struct Progress {
    /// None: nothing is shown.
    bar: Option<ProgressBar>,
    last_step: u64,
    evals: BTreeSet<u64>,
    message: String,
    /// Of an evaluation by itself: what its adapters are called, once that is known.
    names: Option<Arc<OnceLock<Vec<String>>>>,
}

impl Progress {
    /// `quiet`: shows nothing. Without a terminal there are lines and no bar. `steps`: how many the
    /// run has, 0 where that is not known yet.
    pub(crate) fn new(quiet: bool, steps: u64) -> Self {
        let bar = (!quiet).then(|| {
            if !std::io::stderr().is_terminal() {
                return ProgressBar::hidden();
            }
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}");
            let bar = ProgressBar::new(steps.max(1));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self {
            bar,
            last_step: 0,
            evals: BTreeSet::new(),
            message: String::new(),
            names: None,
        }
    }

    /// Of an evaluation by itself, whose adapters have these names.
    pub(crate) fn of_evaluation(quiet: bool, names: Arc<OnceLock<Vec<String>>>) -> Self {
        Self {
            names: Some(names),
            ..Self::new(quiet, 1)
        }
    }

    fn evaluation(&self, eval: &v1::EvalRecord) -> String {
        let name = || self.names.as_ref()?.get()?.get(eval.step as usize);
        match name() {
            Some(name) => words::evaluation_of(name, "problems", eval),
            None => words::evaluation(eval),
        }
    }

    /// Steps and evaluations that `status` has stand there already (of a run that is resumed or
    /// watched): they are not told again.
    pub(crate) fn skip(&mut self, status: &v1::RunStatus) {
        self.last_step = status.step;
        self.evals.extend(status.evals.iter().map(|eval| eval.step));
    }

    /// Prints what is new.
    pub(crate) fn update(&mut self, status: &v1::RunStatus) {
        let Some(bar) = &self.bar else { return };
        let mut lines: Vec<(u64, String)> = Vec::new();
        for eval in &status.evals {
            if self.evals.insert(eval.step) {
                lines.push((2 * eval.step + 1, self.evaluation(eval)));
            }
        }
        for record in &status.tail {
            if record.step > self.last_step {
                self.last_step = record.step;
                let newest = record.step == status.step;
                let left = if newest {
                    status.remaining_seconds
                } else {
                    0.0
                };
                lines.push((2 * record.step, words::step(record, status.steps, left)));
            }
        }
        lines.sort();
        // Without a bar, what is waited for is told where nothing else is for long.
        let waits = matches!(status.phase(), v1::Phase::Starting | v1::Phase::Paused);
        let new_message = status.message != self.message && !status.message.is_empty();
        if bar.is_hidden() && waits && new_message {
            lines.push((u64::MAX, status.message.clone()));
        }
        self.message.clone_from(&status.message);
        bar.suspend(|| lines.iter().for_each(|(_, line)| println!("{line}")));

        let (position, length) = match &self.names {
            None => (status.step, status.steps),
            Some(_) => (status.phase_done.into(), status.phase_total.into()),
        };
        bar.set_length(length);
        bar.set_position(position);
        bar.set_message(self.now(status));
    }

    /// What goes on now, in one line.
    fn now(&self, status: &v1::RunStatus) -> String {
        let mut text = words::phase(status).to_owned();
        if status.phase_total > 0 {
            text += &format!(" {}/{}", status.phase_done, status.phase_total);
        }
        let rate: f64 = status
            .workers
            .iter()
            .map(|worker| worker.tokens_per_second)
            .sum();
        if rate > 0.0 {
            text += &format!("  {rate:.0} tok/s");
        }
        if status.remaining_seconds > 0.0 {
            text += &format!("  {} left", words::clock(status.remaining_seconds));
        }
        text += &format!("  {}", words::dollars(status.cost_usd));
        if !status.message.is_empty() {
            text += &format!("  {}", status.message);
        }
        text
    }

    /// A line of its own, above the bar.
    pub(crate) fn say(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.suspend(|| println!("{line}"));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
