//! The cases in `cases/`: one engine with one fault each, and what firstdiff must say of it.
//!
//! `cargo dev cases` writes them, `cargo dev docs` writes docs/CONFUSION.md from them, and the tests below hold the
//! hypotheses to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use firstdiff_checkpoint::Checkpoint;
use firstdiff_compare::{Check, CheckOptions, check_with_evidence};
use firstdiff_diagnose::{HYPOTHESES, Options, diagnose};
use firstdiff_model::Model;
use firstdiff_reference::{PER_SECOND, Work};
use firstdiff_trace::Trace;

use crate::{python, workspace};

/// As in `firstdiff check`.
const LANES: usize = 9;

/// As in `firstdiff check`: ten seconds.
const BUDGET: Work = 10 * PER_SECOND;

/// Write the cases again, from the torch engine.
#[derive(Args)]
pub struct Cases {
    /// Only classes whose name contains one of these
    words: Vec<String>,
}

pub fn run(c: &Cases) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let mut make = Command::new(python::interpreter()?);
    let scripts = workspace::root().join("crates/dev/python");
    make.arg(scripts.join("cases")).env("PYTHONPATH", &scripts);
    make.arg("--firstdiff").arg(workspace::target().join("release/firstdiff")).args(&c.words);
    workspace::run("cases", make.env("OMP_NUM_THREADS", "1"))
}

/// One case.
pub struct Case {
    /// Its class, which is its folder's name.
    pub id: String,
    folder: PathBuf,
    facts: BTreeMap<String, String>,
}

impl Case {
    fn fact(&self, key: &str) -> Result<&str> {
        let value = self.facts.get(key).map(String::as_str);
        value.with_context(|| format!("{}/case.md has no line '| {key} | … |'", self.folder.display()))
    }

    /// What firstdiff says of it, with up to `listed` hypotheses beside the cause.
    pub fn check(&self, listed: usize) -> Result<Check> {
        let at = |e: &dyn std::fmt::Display| anyhow!("{}: {e}", self.folder.display());
        let path = folder().join("models").join(self.fact("model")?);
        let model = Model::new(Checkpoint::open(&path).map_err(|e| at(&e))?).map_err(|e| at(&e))?;
        let trace = Trace::open(&self.folder.join("trace")).map_err(|e| at(&e))?;
        let options = CheckOptions { lanes: LANES, ..CheckOptions::default() };
        let (mut check, evidence) = check_with_evidence(&trace, &model, &options).map_err(|e| at(&e))?;
        let options = Options { memory: 64 << 20, lanes: LANES, listed, budget: BUDGET };
        diagnose(&mut check, &evidence, options).map_err(|e| at(&e))?;
        Ok(check)
    }
}

fn folder() -> PathBuf {
    workspace::root().join("cases")
}

/// All cases, by name.
pub fn all() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder()).context("cannot list cases/")? {
        let folder = entry?.path();
        let Some(id) = folder.file_name().and_then(|n| n.to_str()).filter(|n| *n != "models") else {
            continue;
        };
        let page = folder.join("case.md");
        let text =
            std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        let facts = text.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.splitn(2, " | ");
            Some((cells.next()?.to_string(), cells.next()?.trim_end_matches('|').trim().to_string()))
        });
        cases.push(Case { id: id.to_string(), facts: facts.collect(), folder: folder.clone() });
    }
    cases.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(cases)
}

/// docs/CONFUSION.md: every case under every hypothesis.
pub fn confusion() -> Result<String> {
    let mut rows = String::new();
    let mut matrix = String::new();
    let order: Vec<&str> = HYPOTHESES.iter().map(|h| h.id).collect();
    let mut cases = all()?;
    cases.sort_by_key(|c| order.iter().position(|id| *id == c.id));
    for (number, case) in cases.iter().enumerate() {
        let check = case.check(usize::MAX)?;
        let Some(f) = check.findings.first() else { return Err(anyhow!("{}: nothing is found", case.id)) };
        let mut cells = vec!['.'; order.len()];
        let mut set = |id: &str, mark: char| {
            if let Some(i) = order.iter().position(|o| *o == id) {
                cells[i] = mark;
            }
        };
        for r in &f.rejected {
            set(&r.id, digit(r.residual));
        }
        let (mut named, mut equal, mut left) = ("-".to_string(), String::new(), String::new());
        if let Some(cause) = &f.cause {
            cause.equal.iter().for_each(|e| set(&e.id, '='));
            set(&cause.id, '#');
            named = if cause.id == case.id { "itself".into() } else { cause.id.clone() };
            equal = cause.equal.iter().map(|e| e.id.as_str()).collect::<Vec<_>>().join(", ");
            left = format!("{:.2}", cause.residual);
        }
        let nearest = f.rejected.first().map_or(String::new(), |r| format!("{} {:.0}", r.id, r.residual));
        writeln!(
            rows,
            "| {} | {} | {} | {named} | {left} | {equal} | {nearest} |",
            number + 1,
            case.id,
            f.tap
        )?;
        writeln!(matrix, "{:>3} {}", number + 1, cells.into_iter().collect::<String>())?;
    }
    Ok(format!(
        "# Every case under every hypothesis\n\n\
         Written by `cargo dev docs` from the traces in `cases/`, which come from an engine in torch that shares nothing with \
         the hypotheses. *Left* and the last column are errors in noise floors: under the cause (2 are allowed), and under the \
         nearest hypothesis that does not explain the case. Equal ones predict the same from what the case records.\n\n\
         | | case | first wrong | named | left | equal | nearest other |\n|---|---|---|---|---|---|---|\n{rows}\n\
         ## Matrix\n\n\
         Rows are cases, columns are hypotheses in the same order. `#` is named, `=` predicts the same, a digit is the power of \
         ten of the noise floors left under that hypothesis (9: no fit), `.` proposes nothing there or changes nothing.\n\n\
         ```text\n{matrix}```\n"
    ))
}

/// The power of ten.
fn digit(residual: f64) -> char {
    let power = residual.max(1.0).log10().floor().clamp(0.0, 9.0) as u32;
    char::from_digit(power, 10).unwrap_or('9')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_hypothesis_has_a_case_and_every_case_a_hypothesis() {
        let cases: BTreeSet<String> = all().unwrap().into_iter().map(|c| c.id).collect();
        let hypotheses: BTreeSet<String> = HYPOTHESES.iter().map(|h| h.id.to_string()).collect();
        let lacking: Vec<_> = hypotheses.difference(&cases).collect();
        assert!(lacking.is_empty(), "run `cargo dev cases`; no case in cases/: {lacking:?}");
        let orphans: Vec<_> = cases.difference(&hypotheses).collect();
        assert!(orphans.is_empty(), "no hypothesis in crates/diagnose: {orphans:?}");
    }

    #[test]
    fn every_case_is_found_where_it_is_and_named() {
        let mut wrong = Vec::new();
        for case in all().unwrap() {
            let check = case.check(3).unwrap();
            let Some(f) = check.findings.first() else {
                wrong.push(format!("{}: nothing found", case.id));
                continue;
            };
            let (tap, step) = (case.fact("tap").unwrap(), case.fact("step").unwrap());
            if f.tap != tap || f.step.to_string() != step {
                wrong.push(format!(
                    "{}: found at step {} {}, not at step {step} {tap}",
                    case.id, f.step, f.tap
                ));
            }
            let cause = case.fact("cause").unwrap();
            let names: Vec<&str> = f
                .cause
                .iter()
                .flat_map(|c| std::iter::once(c.id.as_str()).chain(c.equal.iter().map(|e| e.id.as_str())))
                .collect();
            if !names.contains(&cause) {
                let near = f.rejected.first().map(|r| format!("{} {:.1}", r.id, r.residual));
                wrong.push(format!("{}: named {names:?}, nearest {near:?}", case.id));
            }
        }
        assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    }
}
