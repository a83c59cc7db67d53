//! `tina rollout-worker`: samples completions for a coordinator.

use std::{net::SocketAddr, path::PathBuf};

use tina_proto::auth::Role;

use tina_rollout_worker::{RelayOptions, WorkerOptions};

use crate::{
    Failure,
    connection::{Join, server_tls},
    shutdown,
};

/// Join a run as a rollout worker, from any machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    join: Join,
    /// Sequences to decode at a time [default: as the run's config says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
    #[command(flatten)]
    relay: RelayArgs,
}

/// Where adapters are handed on to other workers, in a run with cluster.adapter_relay
#[derive(Debug, clap::Args)]
struct RelayArgs {
    /// Address to listen on for other workers; beyond loopback it takes --relay-cert and
    /// --relay-key, and a token or --relay-client-ca [default: any free port of 127.0.0.1]
    #[arg(long, value_name = "IP:PORT")]
    relay_listen: Option<SocketAddr>,
    /// Name or address that other machines reach this one by [default: the IP of --relay-listen]
    #[arg(long, value_name = "HOST", requires = "relay_listen")]
    relay_host: Option<String>,
    /// Certificate chain (PEM) for other workers, signed by the authority of the coordinator's
    #[arg(long, value_name = "FILE", requires = "relay_key")]
    relay_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "relay_cert")]
    relay_key: Option<PathBuf>,
    /// Authority (PEM) of the certificates that other workers have to show (mutual TLS)
    #[arg(long, value_name = "FILE", requires = "relay_cert")]
    relay_client_ca: Option<PathBuf>,
}

impl RelayArgs {
    fn options(&self) -> Result<RelayOptions, Failure> {
        let default = RelayOptions::default();
        Ok(RelayOptions {
            listen: self.relay_listen.unwrap_or(default.listen),
            host: self.relay_host.clone(),
            tls: server_tls(
                self.relay_cert.as_deref(),
                self.relay_key.as_deref(),
                self.relay_client_ca.as_deref(),
            )?,
        })
    }
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let join = &args.join;
    let mut options = WorkerOptions::new(join.client_options(Role::Worker)?, join.id(Role::Worker));
    options.device.clone_from(&join.device);
    options.slots = args.slots;
    options.relay = args.relay.options()?;
    Ok(tina_rollout_worker::run(options, shutdown::requested(join.exit_with_parent)).await?)
}
