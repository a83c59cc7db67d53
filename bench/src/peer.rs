//! The peer: TRL's GRPOTrainer with PEFT, on the same step (`bench/peers/grpo_step_trl.py`).

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    child::{Ending, Program},
    error::{BenchError, Result},
    processes::Usage,
};

const WHAT: &str = "the peer's script";
/// The allocator that torch is fastest with on a CPU. The loader finds it by this name, and goes on
/// without it where it is not installed; the script says which allocator it had.
pub(crate) const ALLOCATOR: &str = "libtcmalloc_minimal.so.4";
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
        let mut args: Vec<OsString> = vec![
            self.script.as_os_str().into(),
            "--model".into(),
            self.model.as_os_str().into(),
            "--dtype".into(),
            self.dtype.to_string().into(),
            "--steps".into(),
            steps.to_string().into(),
            "--out".into(),
            folder.join("trl").into(),
        ];
        let shape = self.shape.iter();
        args.extend(shape.flat_map(|(flag, value)| [OsString::from(flag), value.into()]));
        let program = Program {
            what: WHAT,
            program: self.python.clone(),
            args,
            envs: vec![("LD_PRELOAD", ALLOCATOR.into())],
            limit: START + STEP * u32::try_from(steps).unwrap_or(u32::MAX),
        };
        let (output, usage) = match program.run(folder).await? {
            Ending::Done { output, usage } => (output, usage),
            Ending::Absent(why) => {
                eprintln!("the peer is left out: {why}");
                return Ok(None);
            }
        };
        let mut report: PeerReport =
            serde_json::from_str(output.lines().last().unwrap_or_default())?;
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
