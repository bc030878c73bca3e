//! `cargo dev docs`: pages that are generated.

use anyhow::{Context as _, Result};
use firstdiff_diagnose::HYPOTHESES;

use crate::{cases, workspace};

pub fn run() -> Result<()> {
    write("HYPOTHESES.md", &firstdiff_report::hypotheses_page(HYPOTHESES))?;
    write("CONFUSION.md", &cases::confusion()?)
}

fn write(name: &str, page: &str) -> Result<()> {
    let path = workspace::root().join("docs").join(name);
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
