//! `cargo dev docs`: pages that are generated.

use anyhow::{Context as _, Result};
use firstdiff_diagnose::HYPOTHESES;

use crate::{cases, workspace};

/// The list of taps, as the recorders read it.
const TAPS: &str = "recorders/python/src/firstdiff/taps.json";

pub fn run() -> Result<()> {
    let path = workspace::root().join(TAPS);
    std::fs::write(&path, firstdiff_trace::taps::json())
        .with_context(|| format!("cannot write {}", path.display()))?;
    write("HYPOTHESES.md", &firstdiff_report::hypotheses_page(HYPOTHESES))?;
    write("CONFUSION.md", &cases::confusion()?)
}

fn write(name: &str, page: &str) -> Result<()> {
    let path = workspace::root().join("docs").join(name);
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
