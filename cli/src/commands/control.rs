//! `tina control`: the few things that a person may order.

use tina_proto::{
    auth::Role,
    client::{call, connect, control_client, reason},
    v1::ControlRequest,
};

use super::status::Target;
use crate::Failure;

/// Pause, resume or stop a run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do
    order: Order,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Order {
    /// Hand out no more prompts after this step
    Pause,
    /// Go on
    Resume,
    /// Finish this step, save, end the run
    Stop,
}

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let options = args.target.client_options(Role::Operator)?;
    let mut client = control_client(connect(&options).await?, options.interceptor()?);
    let request = call(ControlRequest {});
    let reply = match args.order {
        Order::Pause => client.pause(request).await,
        Order::Resume => client.resume(request).await,
        Order::Stop => client.stop(request).await,
    };
    let reply = reply.map_err(|status| reason(&status))?;
    println!("{}", reply.into_inner().message);
    Ok(())
}
