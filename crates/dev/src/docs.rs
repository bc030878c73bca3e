//! `cargo dev docs`: pages that are generated.

use anyhow::{Context as _, Result};
use firstdiff_diagnose::HYPOTHESES;

use crate::workspace;

pub fn run() -> Result<()> {
    let path = workspace::root().join("docs/HYPOTHESES.md");
    let page = firstdiff_report::hypotheses_page(HYPOTHESES);
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
