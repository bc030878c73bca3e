use anyhow::Result;
use clap::{Args as ClapArgs, CommandFactory as _};

use crate::args::Args;
use crate::exit::Exit;
use crate::out;

/// Print a completion script for a shell.
#[derive(Debug, ClapArgs)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

pub fn run(c: &Completions) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(c.shell, &mut Args::command(), "firstdiff", &mut script);
    out::raw(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Agrees)
}
