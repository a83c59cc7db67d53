//! Compiles `tina/v1/*.proto` with protox, a compiler in Rust: no `protoc` on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 6] = [
    "tina/v1/common.proto",
    "tina/v1/rollouts.proto",
    "tina/v1/learning.proto",
    "tina/v1/adapters.proto",
    "tina/v1/ranks.proto",
    "tina/v1/status.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=tina");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("tina_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
