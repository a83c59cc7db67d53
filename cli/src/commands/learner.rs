//! `tina learner`: turns a coordinator's groups into new adapters.

use std::path::PathBuf;

use tina_learner::{LearnerOptions, ranks::DoorOptions};
use tina_proto::auth::Role;

use crate::{
    Failure,
    connection::{Join, server_tls},
    shutdown,
};

/// Join a run as its learner, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    join: Join,
    /// Folder for checkpoints [default: the run's folder, where this machine has it]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where to listen for other ranks, in a run with learner.ranks above 1; port 0: any free one.
    /// Beyond loopback a token (or --ranks-client-ca) and TLS are demanded.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    ranks_listen: String,
    /// Certificate chain (PEM) that other ranks are shown; makes their calls TLS
    #[arg(long, value_name = "FILE", requires = "ranks_key")]
    ranks_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "ranks_cert")]
    ranks_key: Option<PathBuf>,
    /// Authority (PEM) of the certificates that other ranks have to show (mutual TLS)
    #[arg(long, value_name = "FILE", requires = "ranks_cert")]
    ranks_client_ca: Option<PathBuf>,
    /// Listen for other ranks beyond loopback without TLS, on a network that you trust
    #[arg(long)]
    ranks_insecure: bool,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let join = &args.join;
    let mut options =
        LearnerOptions::new(join.client_options(Role::Learner)?, join.id(Role::Learner));
    options.device.clone_from(&join.device);
    options.state_dir.clone_from(&args.state_dir);
    options.door = DoorOptions {
        listen: args.ranks_listen.clone(),
        tls: server_tls(
            args.ranks_cert.as_deref(),
            args.ranks_key.as_deref(),
            args.ranks_client_ca.as_deref(),
        )?,
        insecure: args.ranks_insecure,
    };
    Ok(tina_learner::run(options, shutdown::requested(join.exit_with_parent)).await?)
}
