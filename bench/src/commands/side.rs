//! `tina-bench side`: our own side of a contest of `tina-bench cpu`, or the simulated roles of
//! `tina-bench cluster`, which start it as a process.

use clap::Subcommand;

use crate::{
    cpu::{
        decode::{self, Sampling},
        own::OwnArgs,
        parity::{self, Parity},
        train::{self, Training},
    },
    error::Result,
    scale::{self, Roles},
};

/// One measurement of ours, printed as a line of JSON
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    Cluster {
        #[command(flatten)]
        roles: Roles,
    },
    Decode {
        #[command(flatten)]
        sampling: Sampling,
        #[command(flatten)]
        own: OwnArgs,
    },
    Train {
        #[command(flatten)]
        training: Training,
        #[command(flatten)]
        own: OwnArgs,
    },
    Parity {
        #[command(flatten)]
        parity: Parity,
        #[command(flatten)]
        own: OwnArgs,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.kind {
        Kind::Cluster { roles } => scale::play(roles),
        Kind::Decode { sampling, own } => decode::measure(own, *sampling),
        Kind::Train { training, own } => train::measure(own, *training),
        Kind::Parity { parity, own } => parity::measure(own, parity),
    }
}
