//! docs/HYPOTHESES.md is what the hypotheses say.

#[test]
fn the_page_of_hypotheses_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/HYPOTHESES.md");
    let page = std::fs::read_to_string(path).unwrap();
    let generated = firstdiff_report::hypotheses_page(firstdiff_diagnose::HYPOTHESES);
    assert!(page == generated, "docs/HYPOTHESES.md is stale: run `cargo dev docs`");
}
