//! From wrong taps to findings: one bug is one finding.

use std::collections::BTreeSet;

use firstdiff_model::{Axis, Op, Program};
use firstdiff_trace::tap;
use serde::Serialize;

use crate::align::Alignment;
use crate::measure::{Choices, MAX_RATIO, Measured, Part, THRESHOLDS, Why};
use crate::place;
use crate::reach::Part as Compared;
use crate::replay::Judged;
use crate::structure::Structure;
use crate::ulps::Ulps;

/// Norms of an error.
#[derive(Clone, Debug, Serialize)]
pub struct Sizes {
    /// Euclidean norm relative to the exact value's.
    pub rel_l2: f64,
    /// Largest element.
    pub max_abs: f64,
    /// Cosine between engine and reference.
    pub cosine: f64,
    /// Elements that are not finite where the exact value is; the other figures leave them out.
    pub non_finite: usize,
}

/// What rounding explains.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// Euclidean norm relative to the exact value's.
    pub rel_l2: f64,
}

/// An operation that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The first step in which it is.
    pub step: usize,
    /// The first wrong tap.
    pub tap: String,
    /// The operation that computes it.
    pub op: &'static str,
    /// Layers in which it is wrong.
    pub layers: Vec<usize>,
    /// Last tap that is right, first that is wrong; `token_ids` where nothing before was recorded.
    pub segment: [String; 2],
    /// Every recorded tap that the replay started from.
    pub inputs: Vec<String>,
    /// Operations between them, the wrong tap's own last.
    pub operations: Vec<String>,
    /// Taps of the same operation that are wrong in the same layers and steps.
    pub taps: Vec<String>,
    /// Steps in which it is wrong.
    pub steps: Vec<usize>,
    /// Which heads and tokens.
    #[serde(rename = "where")]
    pub place: String,
    /// The error.
    pub error: Sizes,
    /// What rounding explains of it.
    pub noise: Floor,
    /// Error in units of the noise floor; at most 1e9.
    pub ratio: f64,
    /// The error in the unit of a cause's `residual`: 2 is the limit, and a part, a factor or an offset counts by how
    /// far it is beyond its own.
    pub residual: f64,
    /// The tests that failed, at the first place.
    pub why: Vec<Why>,
    /// What the error looks like, at the first place.
    pub structure: Vec<Structure>,
    /// How the values lie beside correctly rounded ones, where the engine stores a short format.
    pub ulps: Option<Ulps>,
    /// The common scale factor, where that is what gave it away.
    pub scale: Option<f64>,
    /// How a choice differs, where the tap is one; `error.rel_l2` is then the share of what differs.
    pub choices: Option<Choices>,
    /// The cause, once known.
    pub cause: Option<Cause>,
    /// A hypothesis that explains it and is not named all the same.
    pub unnamed: Option<Unnamed>,
    /// Hypotheses that do not explain it, the nearest first.
    pub rejected: Vec<Rejected>,
}

/// Why an operation is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Cause {
    /// The hypothesis.
    pub id: String,
    /// With the numbers of this case.
    pub detail: String,
    /// The error left under it, in noise floors, at the worst place.
    pub residual: f64,
    /// Other hypotheses that predict the same value.
    pub equal: Vec<Rejected>,
    /// The tap to record next, where it would tell the equal ones apart.
    pub separate: Option<String>,
    /// One element of the worst place.
    pub element: Option<Element>,
}

/// A hypothesis that is not the one named.
#[derive(Clone, Debug, Serialize)]
pub struct Rejected {
    /// The hypothesis.
    pub id: String,
    /// With the numbers of this case.
    pub detail: String,
    /// The error left under it, in noise floors.
    pub residual: f64,
}

/// A hypothesis that explains a finding and is not named all the same.
#[derive(Clone, Debug, Serialize)]
pub struct Unnamed {
    /// The hypothesis.
    pub explains: Rejected,
    /// Why it is not named.
    pub because: Because,
    /// Other hypotheses that explain it too.
    pub equal: Vec<Rejected>,
    /// The one that comes too near.
    pub rival: Option<Rejected>,
    /// The tap to record next, where it would tell them apart.
    pub separate: Option<String>,
}

/// Why a hypothesis that explains a finding is not named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// Another one leaves less than ten times as much.
    Rival,
    /// The error is hardly larger than what it leaves.
    Small,
    /// The budget was spent before all places of the finding were tried.
    Unverified,
}

/// Three numbers from one place.
#[derive(Clone, Debug, Serialize)]
pub struct Element {
    /// The tap.
    pub tap: String,
    /// The step.
    pub step: usize,
    /// Indices along the tap's axes.
    pub index: Vec<usize>,
    /// What the engine has.
    pub engine: f64,
    /// What the model has.
    pub exact: f64,
    /// What the model has under the hypothesis.
    pub hypothesis: f64,
}

/// Groups what is wrong, in order of execution.
pub(crate) fn findings(judged: &[Judged], program: &Program, alignment: &Alignment) -> Vec<Finding> {
    let mut wrong: Vec<&Judged> = judged.iter().filter(|j| j.measured.is_wrong()).collect();
    wrong.sort_by_key(|j| (j.step, j.op));
    let mut found: Vec<Finding> = Vec::new();
    for j in wrong {
        let op = &program.ops[j.op];
        let layer = tap::split(&op.tap).0;
        let pattern = tap::pattern(&op.tap);
        let same = found.iter_mut().find(|f| tap::pattern(&f.tap) == pattern);
        match same {
            Some(finding) => {
                finding.layers.extend(layer.filter(|l| !finding.layers.contains(l)));
                finding.layers.sort_unstable();
                if !finding.steps.contains(&j.step) {
                    finding.steps.push(j.step);
                }
            }
            None => found.push(first(j, op, program, alignment)),
        }
    }
    let mut found = merge(found);
    let layers = program.ops.iter().filter_map(|op| tap::split(&op.tap).0).max().map_or(0, |l| l + 1);
    for finding in &mut found {
        let wrong: Vec<bool> = (0..layers).map(|l| finding.layers.contains(&l)).collect();
        if let Some((period, first)) = place::period(&wrong) {
            let detail = format!("every {} layer from {first}", place::ordinal(period));
            finding.structure.push(Structure { kind: "layers", detail });
        }
    }
    found
}

/// Joins findings of one bug in the same layers and steps: queries and keys rotated alike, and values that follow from
/// the same operation of which nothing was recorded. Which of those operations is wrong the trace does not say; that
/// two of them are, one behind each value, is less likely than that one is which is behind both.
fn merge(found: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in found {
        let twin = merged.iter_mut().find(|m| {
            let alike = m.op == finding.op && !m.layers.is_empty() && siblings(&m.tap, &finding.tap);
            m.layers == finding.layers && m.steps == finding.steps && (alike || overlap(m, &finding))
        });
        match twin {
            Some(twin) => twin.taps.push(finding.tap),
            None => merged.push(finding),
        }
    }
    merged
}

/// Whether two values follow from one operation that was not recorded.
fn overlap(a: &Finding, b: &Finding) -> bool {
    let between = |f: &Finding, tap: &String| f.operations.contains(tap) && !f.taps.contains(tap);
    a.operations.iter().any(|tap| between(a, tap) && between(b, tap))
}

/// Taps computed side by side: `q_…`, `k_…`, `v_…`, or `gate_…` and `up_…`.
fn siblings(a: &str, b: &str) -> bool {
    let stem = |name: &str| {
        let (_, name) = tap::split(name);
        name.split_once('_').map(|(head, rest)| match head {
            "q" | "k" | "v" | "kv" => format!("qkv_{rest}"),
            "gate" | "up" => format!("ffn_{rest}"),
            _ => name.to_string(),
        })
    };
    stem(a).is_some() && stem(a) == stem(b)
}

fn first(j: &Judged, op: &Op, program: &Program, alignment: &Alignment) -> Finding {
    let m = &j.measured;
    let (inputs, between) = sources(j, program, alignment);
    let from = inputs.last().cloned().unwrap_or_else(|| "token_ids".into());
    let by_scale = m.ratio <= THRESHOLDS.whole && m.scale_sigmas > THRESHOLDS.sigmas;
    Finding {
        step: j.step,
        tap: op.tap.clone(),
        op: op.kind.name(),
        layers: tap::split(&op.tap).0.into_iter().collect(),
        segment: [from, op.tap.clone()],
        inputs,
        operations: between,
        taps: vec![op.tap.clone()],
        steps: vec![j.step],
        place: place(m, &|axis, of, i| number(j, alignment, axis, of, i)),
        error: Sizes { rel_l2: m.rel_l2, max_abs: m.max_abs, cosine: m.cosine, non_finite: m.non_finite },
        noise: Floor { rel_l2: m.noise_rel_l2 },
        ratio: m.ratio.min(MAX_RATIO),
        residual: (m.severity() * THRESHOLDS.whole).min(MAX_RATIO),
        why: m.why(&|axis, i| {
            let tokens = m.parts.iter().find(|p| p.axis == Axis::Tokens).map_or(0, |p| p.ratios.len());
            number(j, alignment, axis, tokens, i)
        }),
        structure: j.structure.clone(),
        ulps: j.ulps,
        scale: by_scale.then_some(1.0 + m.scale),
        choices: m.choices,
        cause: None,
        unnamed: None,
        rejected: vec![],
    }
}

/// The recorded taps that a value was replayed from, in program order, and the operations executed.
fn sources(j: &Judged, program: &Program, alignment: &Alignment) -> (Vec<String>, Vec<String>) {
    let (mut taps, mut operations) = (BTreeSet::new(), BTreeSet::from([j.op]));
    let mut pending: Vec<usize> = program.ops[j.op].inputs.iter().map(|v| v.0).collect();
    while let Some(op) = pending.pop() {
        if alignment.placements[j.step][op].is_some() {
            taps.insert(op);
        } else if operations.insert(op) {
            pending.extend(program.ops[op].inputs.iter().map(|v| v.0));
        }
    }
    let names = |ops: BTreeSet<usize>| ops.into_iter().map(|o| program.ops[o].tap.clone()).collect();
    (names(taps), names(operations))
}

/// What place `i` of `of` along an axis is called: tokens by their positions.
fn number(j: &Judged, alignment: &Alignment, axis: Axis, of: usize, i: usize) -> i64 {
    let step = &alignment.steps[j.step];
    let at = |row: usize| step.positions.get(row).map_or(i as i64, |p| i64::from(*p));
    match (axis, alignment.reach.of(j.op, j.step)) {
        (Axis::Tokens, Compared::Rows(rows)) => {
            // Of the rows that were recorded, those that were compared.
            let recorded =
                step.rows.as_ref().filter(|some| rows.len() != of && some.len() < step.token_ids.len());
            let both: Option<Vec<usize>> =
                recorded.map(|some| some.iter().filter(|r| rows.contains(r)).copied().collect());
            both.as_ref().unwrap_or(rows).get(i).map_or(i as i64, |row| at(*row))
        }
        (Axis::Tokens, _) => step.held(of).get(i).map_or(i as i64, |row| at(*row)),
        (Axis::Keys, Compared::Keys(keys)) => keys.get(i).map_or(i as i64, |key| *key as i64),
        _ => i as i64,
    }
}

/// Which tokens, keys, heads and channels are wrong, in words.
fn place(m: &Measured, number: &dyn Fn(Axis, usize, usize) -> i64) -> String {
    let mut words = Vec::new();
    if m.non_finite > 0 {
        words.push(format!("{} of {} elements are not finite", m.non_finite, m.elements));
    }
    let mut any = false;
    // Heads first, then tokens; keys and channels only where they narrow it down.
    let order = |axis: Axis| match axis {
        Axis::Heads(_) => 0,
        Axis::Tokens => 1,
        Axis::Keys | Axis::Entries(_) | Axis::NewEntries(_) | Axis::Candidates(_) => 2,
        Axis::Channels(_) | Axis::Choices(_) => 3,
    };
    let mut parts: Vec<&Part> = m.parts.iter().collect();
    parts.sort_by_key(|p| order(p.axis));
    for part in parts {
        let wrong = part.wrong();
        let count = wrong.iter().filter(|w| **w).count();
        any |= count > 0;
        let coarse = matches!(part.axis, Axis::Heads(_) | Axis::Tokens);
        if !coarse && (count == 0 || 2 * count > wrong.len()) {
            continue;
        }
        let number = |i: usize| number(part.axis, wrong.len(), i);
        words.push(place::describe(part.axis, &wrong, &number));
    }
    if any { words.join(", ") } else { "spread thinly over all of it".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_side_by_side_are_siblings_and_others_are_not() {
        assert!(siblings("layers.0.q_rope", "layers.0.k_rope"));
        assert!(siblings("layers.0.gate_proj", "layers.0.up_proj"));
        assert!(!siblings("layers.0.q_rope", "layers.0.q_proj"));
        assert!(!siblings("layers.0.v_proj", "layers.0.up_proj"));
        assert!(!siblings("logits", "logits"));
    }
}
