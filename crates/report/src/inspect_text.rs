//! A model looked over, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use firstdiff_compare::Inspection;

use crate::number::count;

/// What is suspicious, then what the numerics rest on.
pub fn inspect_text(inspection: &Inspection) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, inspection);
    out
}

fn write(out: &mut String, i: &Inspection) -> std::fmt::Result {
    let suspicions = i.suspicions();
    if i.sound {
        writeln!(out, "sound: every tensor is used and none looks wrong")?;
    } else {
        writeln!(out, "suspicious: {} of {} tensors", suspicions.len(), i.tensors.len())?;
        for line in &suspicions {
            writeln!(out, "  {line}")?;
        }
    }
    let mut storages: BTreeMap<&str, usize> = BTreeMap::new();
    i.tensors.iter().for_each(|t| *storages.entry(t.storage).or_default() += 1);
    let storages: Vec<String> = storages.iter().map(|(name, n)| format!("{n} {name}")).collect();
    writeln!(out)?;
    writeln!(out, "family        {} ({})", i.family, i.members)?;
    writeln!(out, "parameters    {}", count(i.parameters))?;
    writeln!(out, "tensors       {}: {}", i.tensors.len(), storages.join(", "))?;
    writeln!(out, "operations    {}", count(i.operations))?;
    writeln!(out, "fingerprint   {}", i.fingerprint)?;
    for (id, origins) in &i.stop_ids {
        writeln!(out, "stop id       {id} ({})", origins.join("; "))?;
    }
    for t in i.tensors.iter().filter(|t| t.usage == "folded" || t.usage == "ignored") {
        writeln!(out, "{:<13} {}", t.usage, t.name)?;
    }
    writeln!(out)?;
    writeln!(out, "settings that change the numerics:")?;
    let width =
        |f: &dyn Fn(&firstdiff_compare::Setting) -> usize| i.settings.iter().map(f).max().unwrap_or(0);
    let (keys, values) = (width(&|s| s.key.len()), width(&|s| s.value.len()));
    for s in &i.settings {
        writeln!(out, "  {:<keys$}  {:<values$}  {}", s.key, s.value, s.origin)?;
    }
    Ok(())
}
