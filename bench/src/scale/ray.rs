//! The peer: the same hand-off between Ray actors (`bench/peers/hand_off_ray.py`).

use std::path::PathBuf;

use super::{LIMIT, Options, WARM_UP, measured, report::Load, side::Measured};
use crate::{child::Program, error::Result, host::Scratch};

/// How it is run.
#[derive(Clone, Debug)]
pub(super) struct Ray {
    pub(super) python: PathBuf,
    pub(super) script: PathBuf,
}

impl Ray {
    /// One run. [`crate::error::BenchError::Absent`] where it is not installed.
    pub(super) async fn run(
        &self,
        options: &Options,
        scratch: &Scratch,
        workers: u32,
        load: Load,
    ) -> Result<Measured> {
        let batch = u64::from(options.prompts) * u64::from(options.completions);
        let args = [
            ("--workers", u64::from(workers)),
            ("--slots", u64::from(options.slots)),
            ("--actors", u64::from(options.peer_actors)),
            ("--tokens", options.tokens),
            ("--batch", batch),
            ("--steps", options.all_steps(0)),
            ("--first-step", WARM_UP + 1),
            ("--decode-us", options.decode_us(workers, load)),
        ];
        let args = args.map(|(key, value)| [key.into(), value.to_string().into()]);
        let program = Program {
            what: "the peer's script",
            program: self.python.clone(),
            args: std::iter::once(self.script.as_os_str().into())
                .chain(args.into_iter().flatten())
                .collect(),
            envs: Vec::new(),
            limit: LIMIT,
        };
        measured(program.run(&scratch.folder("ray")?).await?)
    }
}
