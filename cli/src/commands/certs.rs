//! `tina certs`: an authority and certificates for a cluster beyond one machine.

use std::path::PathBuf;

use tina_coordinator::certs::{CertsOptions, make_certificates};

use crate::Failure;

/// Make certificates for a cluster: an authority, the coordinator's, and one for each role
///
/// docs/security.md says which file goes where. Nothing that is there is overwritten.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// Name or IP address by which other machines dial the coordinator; may be given several times
    /// (localhost, 127.0.0.1 and ::1 always are)
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Days that they are good for
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let options = CertsOptions {
        folder: args.out.clone(),
        hosts: args.hosts.clone(),
        days: args.days,
    };
    for file in make_certificates(&options)? {
        println!("{}", file.display());
    }
    let folder = args.out.display();
    println!(
        "\nIn the config of the coordinator, [cluster]:\n\
         tls_cert = \"{folder}/coordinator.pem\"\n\
         tls_key = \"{folder}/coordinator.key\"\n\
         tls_ca = \"{folder}/ca.pem\"\n\
         tls_client_ca = \"{folder}/ca.pem\"   # mutual TLS\n\
         To a machine with workers: ca.pem, worker.pem, worker.key. {folder}/ca.key makes further \
         certificates: keep it off the cluster."
    );
    Ok(())
}
