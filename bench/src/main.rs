//! `tina-bench`: how fast Tina is, in figures that anyone can take again. See `bench/README.md`.
//!
//! - `commands`: the benchmarks, a file each.
//! - `cpu`: this machine's CPU figures beside the peers', and beside the least that they take.
//! - `cluster`: a real run of `tina up`, watched over its status service.
//! - `scale`: a real coordinator under many simulated workers.
//! - `spread`: a new adapter on its way to many workers.
//! - `peer`: TRL's trainer on the same step.
//! - `child`: a program that measures, as a process of its own. `host`: what surrounds this one.
//! - `processes`: a process with all its descendants: their memory, their end.
//! - `agreement`: a device against the CPU. `gpu`: what a GPU holds.
//! - `roles`: the worker's engine and the learner's trainer in this process.
//! - `floor`: how many operations a step needs at least (pure).
//! - `shapes`: models of a known shape with random weights.
//! - `stats`, `table`: medians, and what a person reads.

mod agreement;
mod child;
mod cluster;
mod commands;
mod cpu;
mod error;
mod floor;
mod gpu;
mod host;
mod peer;
mod processes;
mod roles;
mod scale;
mod shapes;
mod spread;
mod stats;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    adapters, cluster as cluster_command, cpu as cpu_command, policy, side, step, verify,
};

/// Benchmarks of Tina, and side-by-side runs against peers
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Cpu(cpu_command::Args),
    Cluster(cluster_command::Args),
    Step(step::Args),
    Policy(policy::Args),
    Verify(verify::Args),
    Adapters(adapters::Args),
    #[command(hide = true)]
    Side(side::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Cpu(args) => cpu_command::run(&args),
        Command::Cluster(args) => cluster_command::run(&args),
        Command::Step(args) => step::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Adapters(args) => adapters::run(&args),
        Command::Side(args) => side::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
