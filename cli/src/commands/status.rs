//! `tina status`: where a run stands.

use std::path::PathBuf;

use tina_proto::{
    auth::Role,
    client::{ClientOptions, STREAM_OPEN_DEADLINE, call, connect, reason, status_client},
    v1,
};
use tokio::time::timeout;
use tonic::Request;

use crate::{
    Failure, connection,
    connection::Credentials,
    progress::Progress,
    status_text::{page, to_json},
};

/// Which coordinator: by its run's folder, or its address.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Folder of the run on this machine, e.g. runs/quickstart
    #[arg(value_name = "RUN_DIR", conflicts_with = "coordinator")]
    run_dir: Option<PathBuf>,
    /// Address of the coordinator [default: http://127.0.0.1:7461]
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
}

impl Target {
    pub(crate) fn client_options(&self, role: Role) -> Result<ClientOptions, Failure> {
        let url = self.coordinator.as_deref();
        match (&self.run_dir, url.unwrap_or("http://127.0.0.1:7461")) {
            (Some(run_dir), _) => connection::of_run(run_dir, &self.credentials, role),
            (None, url) => self.credentials.client_options(url, role),
        }
    }
}

/// Show where a run stands
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Go on showing, until the run ends
    #[arg(long)]
    watch: bool,
    /// As JSON, an object a line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let options = args.target.client_options(Role::Reader)?;
    let mut client = status_client(connect(&options).await?, options.interceptor()?);
    if !args.watch {
        let status = client
            .get_status(call(v1::StatusRequest {}))
            .await
            .map_err(|status| reason(&status))?
            .into_inner();
        if args.json {
            println!("{}", to_json(&status));
        } else {
            print!("{}", page(&status));
        }
        return Ok(());
    }
    // No deadline on the whole stream: it goes on as long as the run; keep-alive notices a
    // coordinator that is gone.
    let request = Request::new(v1::WatchStatusRequest { interval_ms: 1000 });
    let mut stream = timeout(STREAM_OPEN_DEADLINE, client.watch_status(request))
        .await
        .map_err(|_| "the coordinator doesn't answer")?
        .map_err(|status| reason(&status))?
        .into_inner();
    let mut progress = Progress::new(args.json, 0);
    let mut first = true;
    while let Some(status) = stream.message().await.map_err(|status| reason(&status))? {
        if args.json {
            println!("{}", to_json(&status));
        } else if std::mem::take(&mut first) {
            print!("{}", page(&status));
            progress.skip(&status);
        }
        progress.update(&status);
        if matches!(status.phase(), v1::Phase::Done | v1::Phase::Failed) {
            progress.finish();
            if !args.json {
                print!("{}", page(&status));
            }
            break;
        }
    }
    Ok(())
}
