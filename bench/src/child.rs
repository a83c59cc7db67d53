//! A program that measures something, run as a process of its own.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::{
    cluster::tail,
    error::{BenchError, Result},
    processes::{Usage, Watch},
};

/// The exit status of a peer's script when the peer is not installed.
const NOT_INSTALLED: i32 = 3;

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// What errors call it.
    pub(crate) what: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) envs: Vec<(&'static str, OsString)>,
    pub(crate) limit: Duration,
}

/// How it ended well.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It did its work, and printed this.
    Done { output: String, usage: Usage },
    /// There is no such program here, or it lacks what it needs: why.
    Absent(String),
}

impl Program {
    /// Runs it to its end; its output goes under `folder` meanwhile.
    pub(crate) async fn run(&self, folder: &Path) -> Result<Ending> {
        let (output, errors) = (folder.join("output.txt"), folder.join("errors.txt"));
        let create = |path: &Path| File::create(path).map_err(BenchError::file(path));
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(create(&output)?)
            .stderr(create(&errors)?)
            .kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Ending::Absent(format!(
                    "no {} here",
                    self.program.display()
                )));
            }
            Err(source) => {
                return Err(BenchError::Spawn {
                    program: self.program.clone(),
                    source,
                });
            }
        };
        let watch = Watch::start(child.id().unwrap_or_default());
        let Ok(waited) = timeout(self.limit, child.wait()).await else {
            return Err(BenchError::Late {
                what: self.what,
                seconds: self.limit.as_secs(),
                tail: tail(&errors),
            });
        };
        let status = waited.map_err(BenchError::file(&output))?;
        if status.code() == Some(NOT_INSTALLED) {
            return Ok(Ending::Absent(tail(&errors)));
        }
        if !status.success() {
            return Err(BenchError::Ended {
                what: self.what,
                status: status.to_string(),
                tail: tail(&errors),
            });
        }
        let usage = watch.usage();
        watch.end();
        let output = fs::read_to_string(&output).map_err(BenchError::file(&output))?;
        Ok(Ending::Done { output, usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(program: &str, script: &str) -> Result<Ending> {
        let folder = tempfile::tempdir().unwrap();
        let program = Program {
            what: "a script",
            program: program.into(),
            args: vec!["-c".into(), script.into()],
            envs: vec![("GREETING", "hello".into())],
            limit: Duration::from_millis(500),
        };
        program.run(folder.path()).await
    }

    #[tokio::test]
    async fn what_a_program_prints_comes_back() {
        let ending = run("sh", "echo $GREETING").await.unwrap();
        assert!(matches!(ending, Ending::Done { output, .. } if output == "hello\n"));
    }

    #[tokio::test]
    async fn a_peer_that_is_not_there_is_told_from_one_that_fails() {
        let missing = run("tina-no-such-program", "").await.unwrap();
        assert!(matches!(missing, Ending::Absent(why) if why.contains("tina-no-such-program")));
        let incomplete = run("sh", "echo no torch >&2; exit 3").await.unwrap();
        assert!(matches!(incomplete, Ending::Absent(why) if why == "no torch"));
        let failed = run("sh", "echo oh >&2; exit 1").await.unwrap_err();
        assert!(failed.to_string().contains("oh"), "{failed}");
        let late = run("sh", "sleep 30").await.unwrap_err();
        assert!(matches!(late, BenchError::Late { .. }), "{late}");
    }
}
