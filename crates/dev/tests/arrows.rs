//! The architecture, kept: arrows between crates point one way.

use std::collections::{BTreeMap, BTreeSet};

/// What each crate may use of ours. A crate that is not listed fails the test.
const ARROWS: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("trace", &["tensor"]),
    ("checkpoint", &["tensor"]),
    ("model", &["checkpoint", "tensor"]),
    ("reference", &["model", "trace", "checkpoint", "tensor"]),
    ("engine", &["model", "trace", "checkpoint", "tensor"]),
    ("compare", &["reference", "model", "trace", "checkpoint", "tensor"]),
    ("diagnose", &["compare", "reference", "model", "trace", "tensor"]),
    ("report", &["diagnose", "compare"]),
    (
        "firstdiff",
        &["report", "diagnose", "compare", "engine", "reference", "model", "trace", "checkpoint", "tensor"],
    ),
    (
        "dev",
        &["report", "diagnose", "compare", "engine", "reference", "model", "trace", "checkpoint", "tensor"],
    ),
];

#[test]
fn crates_use_only_what_lies_before_them() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = cargo_metadata::MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let short = |name: &str| name.strip_prefix("firstdiff-").unwrap_or(name).to_string();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    assert_eq!(metadata.packages.len(), ARROWS.len(), "every crate is listed above");
    for package in &metadata.packages {
        let name = short(&package.name);
        let allowed =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no place in the order"));
        // Tests may hold a crate against the reference.
        let shipped = |d: &&cargo_metadata::Dependency| d.kind != cargo_metadata::DependencyKind::Development;
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()).filter(shipped) {
            let used = short(&dependency.name);
            assert!(allowed.contains(used.as_str()), "{name} may not use {used}");
        }
    }
}
