//! `cargo dev demo`: makes the files bundled with `firstdiff demo`.

use std::process::Command;

use anyhow::Result;

use crate::{python, workspace};

pub fn run() -> Result<()> {
    let script = workspace::root().join("crates/dev/python/make_demo.py");
    let out = workspace::root().join("crates/cli/demo");
    workspace::run("make the demo", Command::new(python::interpreter()?).arg(script).arg(out))
}
