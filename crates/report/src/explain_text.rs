//! What is known about causes, for people.

use std::fmt::Write as _;

use firstdiff_diagnose::Hypothesis;

/// All causes, a line each.
pub fn explain_list(hypotheses: &[Hypothesis]) -> String {
    let width = hypotheses.iter().map(|h| h.id.len()).max().unwrap_or(0);
    let mut out = String::new();
    for h in hypotheses {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:<width$}  {}", h.id, h.title());
    }
    out
}

/// docs/HYPOTHESES.md: all that `explain` prints, in one page.
pub fn hypotheses_page(hypotheses: &[Hypothesis]) -> String {
    let mut out = String::from(
        "# Hypotheses\n\nCauses that `firstdiff check` can name; `firstdiff explain ID` prints one. \
         Generated from `crates/diagnose/src/hypotheses/` by `cargo dev docs`.\n",
    );
    for h in hypotheses {
        let _ = write!(out, "\n## {}\n\n", h.id);
        let mut text = h.text();
        if let Some((title, rest)) = text.split_once('\n') {
            text = format!("**{}**\n{rest}", title.trim_start_matches("# "));
        }
        for line in text.lines() {
            // One level down: the page has a title of its own.
            let hash = if line.starts_with("## ") { "#" } else { "" };
            let _ = writeln!(out, "{hash}{line}");
        }
    }
    out
}
