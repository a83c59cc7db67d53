//! How a command finds the coordinator and is let in.

use std::path::{Path, PathBuf};

use tina_coordinator::config::RunConfig;
use tina_proto::{
    auth::{Role, read_token, token_for},
    client::{ClientIdentity, ClientOptions},
    door::ServerTls,
    tls::{CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE},
};

use crate::Failure;

/// Arguments of every command that dials a coordinator.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Credentials {
    /// File with the cluster's secret or this role's token; else the environment variable TINA_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority that signed the coordinator's; makes the call TLS.
    #[arg(long, value_name = "FILE", env = CA_VARIABLE)]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate (PEM) of this role, for a coordinator that asks for one (mutual TLS).
    #[arg(long, value_name = "FILE", env = CERT_VARIABLE, requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", env = KEY_VARIABLE, requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

impl Credentials {
    /// The way to the coordinator at `url` for who dials in this role. Of the cluster's secret only the
    /// role's token is shown.
    pub(crate) fn client_options(&self, url: &str, role: Role) -> Result<ClientOptions, Failure> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(ClientIdentity {
                cert_pem: read_pem(cert)?,
                key_pem: read_pem(key)?,
            }),
            _ => None,
        };
        let token = read_token(self.token_file.as_deref())?;
        Ok(ClientOptions {
            url: url.to_owned(),
            token: token.map(|token| token_for(role, &token)),
            ca_pem: self.ca.as_deref().map(read_pem).transpose()?,
            identity,
        })
    }
}

/// Arguments of a role that joins a run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Join {
    /// Address of the coordinator, e.g. http://127.0.0.1:7461
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Name of this process, unique in the run [default: of host and process]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// End when this process, which started this one, is gone
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) exit_with_parent: Option<u32>,
}

impl Join {
    /// The way to the coordinator.
    pub(crate) fn client_options(&self, role: Role) -> Result<ClientOptions, Failure> {
        self.credentials.client_options(&self.coordinator, role)
    }

    /// What the coordinator calls this process of that role.
    pub(crate) fn id(&self, role: Role) -> String {
        self.id
            .clone()
            .unwrap_or_else(|| crate::commands::default_id(role.as_str()))
    }
}

/// The coordinator of the run that keeps its folder at `run_dir`: the address that it wrote down
/// when it began to listen, and what its config says of tokens and certificates.
pub(crate) fn of_run(
    run_dir: &Path,
    given: &Credentials,
    role: Role,
) -> Result<ClientOptions, Failure> {
    let path = run_dir.join("config.toml");
    if !path.exists() {
        return Err(format!(
            "{}: not a run's folder (it has no config.toml); name a folder like runs/NAME, or the \
             coordinator by --coordinator URL",
            run_dir.display()
        )
        .into());
    }
    let config = RunConfig::load(&path, &[])?;
    let (cert, key) = match (&given.cert, &given.key) {
        (None, None) => config.client_files(role).unzip(),
        (cert, key) => (cert.clone(), key.clone()),
    };
    let cluster = config.cluster;
    let url =
        std::fs::read_to_string(run_dir.join(tina_coordinator::ADDRESS_FILE)).map_err(|_| {
            format!(
                "{}: no coordinator works on this run now; `tina up {} --resume` goes on with it",
                run_dir.display(),
                path.display()
            )
        })?;
    let ca = cluster.tls_ca.or(cluster.tls_cert).map(PathBuf::from);
    let credentials = Credentials {
        token_file: given
            .token_file
            .clone()
            .or(cluster.token_file.map(PathBuf::from)),
        ca: given.ca.clone().or(ca),
        cert,
        key,
    };
    credentials.client_options(url.trim(), role)
}

/// What a role that others dial shows and asks to be shown.
pub(crate) fn server_tls(
    cert: Option<&Path>,
    key: Option<&Path>,
    client_ca: Option<&Path>,
) -> Result<Option<ServerTls>, Failure> {
    let (Some(cert), Some(key)) = (cert, key) else {
        return Ok(None);
    };
    Ok(Some(ServerTls {
        cert_pem: read_pem(cert)?,
        key_pem: read_pem(key)?,
        client_ca_pem: client_ca.map(read_pem).transpose()?,
    }))
}

fn read_pem(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| format!("{}: can't be read: {error}", path.display()).into())
}
