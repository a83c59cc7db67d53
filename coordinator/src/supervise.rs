//! The processes of this machine: started, watched, restarted with back-off, ended.
//!
//! [`RestartPolicy`] decides and is pure; [`Supervisor`] does. A child ends by itself when the
//! coordinator is gone (`--exit-with-parent`), so a coordinator that is killed leaves nothing behind.

use std::{
    fs::OpenOptions,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tina_proto::{
    adapters::NCCL_INTERFACE_VARIABLE,
    auth::TOKEN_VARIABLE,
    tls::{CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE},
    v1::RunStatus,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// A process that dies before this age died quickly.
const QUICK: Duration = Duration::from_secs(10);
/// Quick deaths in a row after which the run is stopped.
const QUICK_DEATHS: u32 = 3;
/// Deaths without a step or an evaluation done after which the run is stopped, however long the
/// process lived each time.
const VAIN_DEATHS: u32 = 5;
/// Pause before the first restart; it doubles with every quick death.
const BACK_OFF: Duration = Duration::from_millis(500);
/// How long a process that was told to stop may take, before SIGTERM, and again before SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of a log that a person is shown.
const LOG_LINES: usize = 15;

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after a pause.
    Restart(Duration),
    /// It won't live: stop the run.
    GiveUp,
}

/// When a process that died is started again.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestartPolicy {
    quick_deaths: u32,
    vain_deaths: u32,
    done: u64,
}

impl RestartPolicy {
    /// A process died after it lived so long, when the run had `done` so many steps and evaluations.
    pub fn died(&mut self, lived: Duration, done: u64) -> Verdict {
        if done != self.done {
            (self.done, self.vain_deaths) = (done, 0);
        }
        self.vain_deaths += 1;
        if self.vain_deaths >= VAIN_DEATHS {
            return Verdict::GiveUp;
        }
        if lived >= QUICK {
            self.quick_deaths = 0;
            return Verdict::Restart(BACK_OFF);
        }
        self.quick_deaths += 1;
        if self.quick_deaths >= QUICK_DEATHS {
            Verdict::GiveUp
        } else {
            Verdict::Restart(BACK_OFF * 2u32.pow(self.quick_deaths - 1))
        }
    }
}

/// One process to run.
#[derive(Clone)]
pub struct Role {
    /// What a person calls it, and its log.
    pub name: String,
    /// The program.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its role's token; goes by environment, never by argument.
    pub token: Option<String>,
    /// Its log.
    pub log: PathBuf,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role")
            .field("name", &self.name)
            .field("exe", &self.exe)
            .field("args", &self.args)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("log", &self.log)
            .finish()
    }
}

/// A process died for good; the text says how, with the end of its log.
#[derive(Clone, Debug)]
pub struct GaveUp(pub String);

/// Keeps processes running until told otherwise.
#[derive(Debug)]
pub struct Supervisor {
    tasks: Vec<JoinHandle<()>>,
    /// No restarts any more.
    ending: CancellationToken,
    /// No grace any more.
    now: CancellationToken,
}

impl Supervisor {
    /// Starts the processes; `deaths` hears of one that won't live. `status` tells how far the run
    /// is.
    pub fn start(
        roles: Vec<Role>,
        deaths: &mpsc::UnboundedSender<GaveUp>,
        status: &watch::Receiver<Arc<RunStatus>>,
    ) -> Self {
        let (ending, now) = (CancellationToken::new(), CancellationToken::new());
        let tasks = roles
            .into_iter()
            .map(|role| {
                tokio::spawn(keep_running(
                    role,
                    deaths.clone(),
                    status.clone(),
                    ending.clone(),
                    now.clone(),
                ))
            })
            .collect();
        Self { tasks, ending, now }
    }

    /// Processes that end from now on stay ended.
    pub fn expect_end(&self) {
        self.ending.cancel();
    }

    /// Waits for all processes; they were told to stop over their streams. Those that don't in time
    /// get SIGTERM, then SIGKILL. `at_once` leaves out the waiting.
    pub async fn end(self, at_once: bool) {
        self.ending.cancel();
        if at_once {
            self.now.cancel();
        }
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

async fn keep_running(
    role: Role,
    deaths: mpsc::UnboundedSender<GaveUp>,
    status: watch::Receiver<Arc<RunStatus>>,
    ending: CancellationToken,
    now: CancellationToken,
) {
    let mut policy = RestartPolicy::default();
    while !ending.is_cancelled() {
        let started = Instant::now();
        let end = match spawn(&role) {
            Ok(mut child) => {
                tokio::select! {
                    biased;
                    status = child.wait() => match status {
                        Ok(status) => status.to_string(),
                        Err(error) => format!("can't be waited for: {error}"),
                    },
                    () = ending.cancelled() => return end(&mut child, &now).await,
                }
            }
            Err(error) => format!("{} can't be started: {error}", role.exe.display()),
        };
        if ending.is_cancelled() {
            return;
        }
        let lived = started.elapsed();
        let note = format!(
            "{} ended after {:.1} s: {end}",
            role.name,
            lived.as_secs_f64()
        );
        tracing::warn!("{note}");
        append(&role.log, &note);
        let done = done(&status.borrow());
        match policy.died(lived, done) {
            Verdict::Restart(pause) => {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = ending.cancelled() => return,
                }
            }
            Verdict::GiveUp => {
                let how_often = if policy.vain_deaths >= VAIN_DEATHS {
                    format!("{VAIN_DEATHS} times without a step done in between")
                } else {
                    let seconds = QUICK.as_secs();
                    format!("{QUICK_DEATHS} times in a row within {seconds} s of its start")
                };
                let text = format!(
                    "{} died {how_often} ({end}); the end of {}:\n{}",
                    role.name,
                    role.log.display(),
                    last_lines(&role.log)
                );
                let _ = deaths.send(GaveUp(text));
                return;
            }
        }
    }
}

/// Steps and evaluations done.
fn done(status: &RunStatus) -> u64 {
    status.step + status.evals.len() as u64
}

fn spawn(role: &Role) -> std::io::Result<Child> {
    if let Some(folder) = role.log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&role.log)?;
    let mut command = Command::new(&role.exe);
    command
        .args(&role.args)
        .args(["--exit-with-parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C at the terminal is the coordinator's to hear: it ends the others in order.
        .process_group(0)
        .kill_on_drop(true);
    match &role.token {
        Some(token) => command.env(TOKEN_VARIABLE, token),
        None => command.env_remove(TOKEN_VARIABLE),
    };
    // Those of whoever started the coordinator are not this role's.
    for variable in [CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE] {
        command.env_remove(variable);
    }
    if std::env::var_os(NCCL_INTERFACE_VARIABLE).is_none() {
        command.env(NCCL_INTERFACE_VARIABLE, "lo");
    }
    command.spawn()
}

async fn end(child: &mut Child, now: &CancellationToken) {
    tokio::select! {
        outcome = timeout(GRACE, child.wait()) => if outcome.is_ok() { return },
        () = now.cancelled() => {}
    }
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid
        && kill_process(pid, Signal::TERM).is_ok()
        && timeout(
            if now.is_cancelled() {
                GRACE / 10
            } else {
                GRACE
            },
            child.wait(),
        )
        .await
        .is_ok()
    {
        return;
    }
    if let Err(error) = child.kill().await {
        tracing::warn!("a process can't be killed: {error}");
    }
}

fn append(log: &Path, line: &str) {
    // The log is a help to a person; the run doesn't depend on it.
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(log) {
        let _ = writeln!(file, "[supervisor] {line}");
    }
}

/// The last lines of a log, read from its end.
pub(crate) fn last_lines(log: &Path) -> String {
    const TAIL: u64 = 8 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quick_deaths_in_a_row_are_the_end_and_a_long_life_starts_over() {
        let mut policy = RestartPolicy::default();
        let quick = Duration::from_secs(1);
        assert_eq!(policy.died(quick, 0), Verdict::Restart(BACK_OFF));
        assert_eq!(policy.died(quick, 0), Verdict::Restart(2 * BACK_OFF));
        assert_eq!(policy.died(QUICK, 0), Verdict::Restart(BACK_OFF));
        // A step is done; that the process dies so quickly is no better for it.
        assert_eq!(policy.died(quick, 1), Verdict::Restart(BACK_OFF));
        assert_eq!(policy.died(quick, 1), Verdict::Restart(2 * BACK_OFF));
        assert_eq!(policy.died(quick, 1), Verdict::GiveUp);
    }

    #[test]
    fn slow_deaths_are_the_end_when_no_step_is_done_between_them() {
        let mut policy = RestartPolicy::default();
        for step in 0..10 {
            for _ in 1..VAIN_DEATHS {
                assert_eq!(policy.died(2 * QUICK, step), Verdict::Restart(BACK_OFF));
            }
        }
        assert_eq!(policy.died(2 * QUICK, 9), Verdict::GiveUp);
    }

    /// Of a run in which nothing is done.
    fn no_step() -> watch::Receiver<Arc<RunStatus>> {
        watch::channel(Arc::default()).1
    }

    fn shell(folder: &Path, script: &str) -> Role {
        Role {
            name: "role".into(),
            exe: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            token: Some("secret".into()),
            log: folder.join("logs/role.log"),
        }
    }

    #[tokio::test]
    async fn a_process_that_won_t_live_is_reported_with_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let (deaths, mut heard) = mpsc::unbounded_channel();
        let role = shell(folder.path(), "echo token=$TINA_TOKEN >&2; exit 7");
        assert!(!format!("{role:?}").contains("secret"));
        let supervisor = Supervisor::start(vec![role], &deaths, &no_step());
        let GaveUp(text) = timeout(Duration::from_secs(20), heard.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(
            text.contains("exit status: 7") && text.contains("token=secret"),
            "{text}"
        );
        supervisor.end(false).await;
    }

    #[tokio::test]
    async fn a_process_that_ignores_its_orders_is_killed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (deaths, _heard) = mpsc::unbounded_channel();
        let role = shell(
            folder.path(),
            "trap '' TERM; echo ready; while :; do sleep 0.1; done",
        );
        let log = role.log.clone();
        let supervisor = Supervisor::start(vec![role], &deaths, &no_step());
        while !std::fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("ready")
        {
            sleep(Duration::from_millis(20)).await;
        }
        let began = Instant::now();
        supervisor.end(true).await;
        assert!(began.elapsed() < GRACE);
    }
}
