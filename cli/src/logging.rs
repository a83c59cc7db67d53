//! Logs through `tracing`, level by TINA_LOG (as `info` or `tina_learner=debug,warn`). A log that can't
//! be written to (a full disk) is left be: whoever logs doesn't depend on it.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::{
    EnvFilter, Layer as _, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

const VARIABLE: &str = "TINA_LOG";

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default))
}

/// To standard error; `default` is the level without TINA_LOG.
pub(crate) fn to_stderr(default: &str) {
    let layer = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(filter(default));
    tracing_subscriber::registry().with(layer).init();
}

/// To a run's log, and what is a warning or worse to standard error too.
pub(crate) fn to_run_log() -> RunLog {
    let log = RunLog(Arc::new(Mutex::new(Sink::Waiting(Vec::new()))));
    let file_layer = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(log.clone())
        .with_ansi(false)
        .with_filter(filter("info"));
    let stderr_layer = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_filter(EnvFilter::new("warn"));
    tracing_subscriber::registry()
        .with(file_layer)
        .with(stderr_layer)
        .init();
    log
}

/// The log of a process that makes its run's folder itself: lines wait in memory until there is
/// one.
#[derive(Clone)]
pub(crate) struct RunLog(Arc<Mutex<Sink>>);

enum Sink {
    Waiting(Vec<u8>),
    Open(File),
}

impl RunLog {
    /// From now on into this file; what waited comes first.
    pub(crate) fn open(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut sink = self.lock();
        if let Sink::Waiting(lines) = &*sink {
            file.write_all(lines)?;
        }
        *sink = Sink::Open(file);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.lock() {
            Sink::Waiting(lines) => lines.write(bytes),
            Sink::Open(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RunLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_the_file_and_then_go_into_it() {
        let path = std::env::temp_dir().join(format!("tina-log-{}", std::process::id()));
        let mut log = RunLog(Arc::new(Mutex::new(Sink::Waiting(Vec::new()))));
        log.write_all(b"before\n").expect("kept");
        log.open(&path).expect("opened");
        log.clone().write_all(b"after\n").expect("written");
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(text, "before\nafter\n");
    }
}
