//! `tina learner-rank`: computes parts of a learner's gradients.

use std::path::PathBuf;

use tina_learner::ranks::{ADDRESS_FILE, Rank0, RankOptions};

use tina_proto::auth::Role;

use crate::{Failure, connection::Credentials, shutdown};

/// Join a learner as one of its ranks (learner.ranks), from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address at which the learner listens for ranks, e.g. http://10.0.0.1:7462
    #[arg(long, value_name = "URL", required_unless_present = "run")]
    learner: Option<String>,
    /// Folder of the run, where a learner on this machine has written its address
    #[arg(long, value_name = "DIR", conflicts_with = "learner")]
    run: Option<PathBuf>,
    /// cpu or cuda:N; the learner's own kind
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Name of this process, unique among the learner's ranks [default: of host and process]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// End when this process, which started this one, is gone
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<u32>,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let rank0 = match (&args.learner, &args.run) {
        (Some(url), _) => Rank0::At(url.clone()),
        (None, Some(run)) => Rank0::In(run.join(ADDRESS_FILE)),
        (None, None) => return Err("give --learner URL, or --run DIR".into()),
    };
    let id = args.id.clone();
    let id = id.unwrap_or_else(|| super::default_id("learner-rank"));
    let mut options = RankOptions::new(
        rank0,
        args.credentials.client_options("", Role::Learner)?,
        id,
    );
    options.device.clone_from(&args.device);
    let shutdown = shutdown::requested(args.exit_with_parent);
    Ok(tina_learner::ranks::run(options, shutdown).await?)
}
