//! The list of taps, docs/TRACE.md and the recorders' copy are one.

use std::collections::BTreeSet;
use std::path::Path;

use firstdiff_trace::taps::{self, TAPS};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

#[test]
fn the_recorders_have_the_list() {
    assert!(
        read("recorders/python/src/firstdiff/taps.json") == taps::json(),
        "recorders/python/src/firstdiff/taps.json is not the list in crates/trace/src/taps.rs: run `cargo dev docs`"
    );
}

#[test]
fn every_tap_is_explained_and_nothing_else_is() {
    let page = read("docs/TRACE.md");
    let (_, section) = page.split_once("\n## Taps\n").unwrap();
    let (section, _) = section.split_once("\n### Shapes accepted\n").unwrap();
    let code = |text: &str| -> BTreeSet<String> {
        let spans = text.split('`').skip(1).step_by(2);
        spans.map(|span| span.trim_start_matches("layers.N.").to_string()).collect()
    };
    let listed: BTreeSet<String> = TAPS.iter().map(|tap| tap.name.to_string()).collect();
    let explained = code(&page);
    let missing: Vec<&String> = listed.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/TRACE.md does not explain {missing:?}");
    // First columns of the tables name taps alone.
    let first = section.lines().filter(|l| l.starts_with("| `")).filter_map(|l| l.split('|').nth(1));
    let named: BTreeSet<String> = first.flat_map(code).collect();
    let unknown: Vec<&String> = named.difference(&listed).collect();
    assert!(unknown.is_empty(), "crates/trace/src/taps.rs lacks {unknown:?}");
}
