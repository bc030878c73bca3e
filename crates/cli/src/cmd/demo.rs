use anyhow::Result;
use clap::Args as ClapArgs;

use crate::exit::Exit;

/// Check a broken engine's trace of a tiny bundled model.
#[derive(Debug, ClapArgs)]
pub struct Demo {}

pub fn run(_c: &Demo) -> Result<Exit> {
    anyhow::bail!("not yet")
}
