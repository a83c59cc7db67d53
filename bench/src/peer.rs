//! The peer: TRL's GRPOTrainer with PEFT, on the same step (`bench/peers/grpo_step_trl.py`).

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, time::timeout};

use crate::{
    cluster::tail,
    error::{BenchError, Result},
    processes::{Usage, Watch},
};

const WHAT: &str = "the peer's script";
/// The script's exit status when the peer is not installed.
const NOT_INSTALLED: i32 = 3;
/// The allocator that torch is fastest with on a CPU. The loader finds it by this name, and goes on
/// without it where it is not installed; the script says which allocator it had.
const ALLOCATOR: &str = "libtcmalloc_minimal.so.4";
/// The longest that loading and one step may take.
const START: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_secs(300);

/// What the peer computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PeerDtype {
    /// bfloat16, its fastest
    Bf16,
    /// f32, as Tina on a CPU
    F32,
}

impl fmt::Display for PeerDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// How the peer is run.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) python: PathBuf,
    pub(crate) script: PathBuf,
    /// The model in Hugging Face layout.
    pub(crate) model: PathBuf,
    pub(crate) dtype: PeerDtype,
    /// The step's sizes, as the script's arguments.
    pub(crate) shape: Vec<(&'static str, String)>,
}

/// One of its steps, in seconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct PeerStep {
    pub(crate) seconds: f64,
    pub(crate) sample: f64,
    pub(crate) score: f64,
    pub(crate) learn: f64,
    pub(crate) tokens_sampled: u64,
}

/// What the script prints on its last line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct PeerReport {
    /// From the start of the process to the beginning of the first step.
    pub(crate) start_seconds: f64,
    pub(crate) steps: Vec<PeerStep>,
    /// Name of the allocator it had.
    pub(crate) malloc: String,
    pub(crate) versions: String,
    pub(crate) threads: u32,
}

/// A run of the peer that is done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerRun {
    #[serde(flatten)]
    pub(crate) report: PeerReport,
    pub(crate) usage: Usage,
}

impl Peer {
    /// Runs `steps` steps. `None`, with the reason on stderr: the peer is not installed.
    pub(crate) async fn run(&self, folder: &Path, steps: u64) -> Result<Option<PeerRun>> {
        let (output, errors) = (folder.join("peer.txt"), folder.join("peer-errors.txt"));
        let create = |path: &Path| File::create(path).map_err(BenchError::file(path));
        let mut command = Command::new(&self.python);
        command
            .arg(&self.script)
            .args(["--model".as_ref(), self.model.as_os_str()])
            .args(["--dtype", &self.dtype.to_string()])
            .args(["--steps", &steps.to_string()])
            .args(self.shape.iter().flat_map(|(flag, value)| [*flag, value]))
            .args(["--out".as_ref(), folder.join("trl").as_os_str()])
            .env("LD_PRELOAD", ALLOCATOR)
            .stdin(Stdio::null())
            .stdout(create(&output)?)
            .stderr(create(&errors)?)
            .kill_on_drop(true);
        let spawned = command.spawn();
        let mut child = spawned.map_err(|source| BenchError::Spawn {
            program: self.python.clone(),
            source,
        })?;
        let watch = Watch::start(child.id().unwrap_or_default());
        let limit = START + STEP * u32::try_from(steps).unwrap_or(u32::MAX);
        let Ok(waited) = timeout(limit, child.wait()).await else {
            let seconds = limit.as_secs();
            return Err(BenchError::Late {
                what: WHAT,
                seconds,
                tail: tail(&errors),
            });
        };
        let status = waited.map_err(BenchError::file(&output))?;
        if status.code() == Some(NOT_INSTALLED) {
            eprintln!("the peer is left out: {}", tail(&errors));
            return Ok(None);
        }
        if !status.success() {
            let (status, tail) = (status.to_string(), tail(&errors));
            return Err(BenchError::Ended {
                what: WHAT,
                status,
                tail,
            });
        }
        let usage = watch.usage();
        watch.end();
        let text = fs::read_to_string(&output).map_err(BenchError::file(&output))?;
        let mut report: PeerReport = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        if report.steps.len() < 2 {
            let (found, expected) = (report.steps.len(), steps as usize);
            return Err(BenchError::Steps {
                what: WHAT,
                found,
                expected,
            });
        }
        // As with ours: the first step warms up.
        report.steps.remove(0);
        Ok(Some(PeerRun { report, usage }))
    }
}
