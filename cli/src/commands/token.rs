//! `tina token`: a cluster's secret, and the tokens of single roles.

use std::path::PathBuf;

use tina_proto::auth::{
    MIN_SECRET, Role, TOKEN_VARIABLE, new_secret, read_token, role_of_token, role_token,
};

use crate::Failure;

/// Print a new secret for a cluster, or the token of one role that follows from a secret
///
/// Whoever has the secret may do everything; whoever has a role's token only what is for that role.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A new secret; keep it in a file that only you may read
    #[arg(long, conflicts_with_all = ["role", "token_file"], required_unless_present = "role")]
    new: bool,
    /// worker, learner, reader or operator
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
    /// File with the secret; else the environment variable TINA_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let token = match (args.new, args.role) {
        (false, Some(role)) => derived(args, role)?,
        _ => new_secret()?,
    };
    println!("{token}");
    Ok(())
}

fn derived(args: &Args, role: Role) -> Result<String, Failure> {
    let secret = read_token(args.token_file.as_deref())?.ok_or_else(|| {
        format!("no secret: name its file by --token-file, or set {TOKEN_VARIABLE}")
    })?;
    if let Some(own) = role_of_token(&secret) {
        return Err(format!(
            "this is the token of the role {own}: others follow from the secret alone"
        )
        .into());
    }
    if secret.len() < MIN_SECRET {
        return Err(format!(
            "the secret has {} characters: whoever gets a token of it could guess it. Take one of \
             {MIN_SECRET} or more (`tina token --new`)",
            secret.len()
        )
        .into());
    }
    Ok(role_token(&secret, role))
}
