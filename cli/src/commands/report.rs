//! `tina run report`: one page about a run.

use std::path::{Path, PathBuf};

use tina_coordinator::{JOURNAL_FILE, report};

use crate::Failure;

/// Where all runs are, as `run.dir` has it by default.
const RUNS: &str = "runs";

/// Write one page about a run: rewards, length, turns, evaluations, cost, waits (Markdown, SVG)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the run, e.g. runs/quickstart, or its name under runs/
    run: PathBuf,
    /// Folder to write report.md and its plots to [default: report/ in the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print every number of the report as one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let written = report::write(&folder(&args.run), args.out.as_deref())?;
    if args.json {
        println!("{}", serde_json::to_string(&written.report)?);
    } else {
        println!("{}", written.page.display());
        for line in &written.summary {
            println!("{line}");
        }
    }
    Ok(())
}

/// The folder that is named: itself, or the run of this name where runs are kept.
fn folder(run: &Path) -> PathBuf {
    let kept = Path::new(RUNS).join(run);
    if !run.join(JOURNAL_FILE).exists() && kept.join(JOURNAL_FILE).exists() {
        kept
    } else {
        run.to_owned()
    }
}
