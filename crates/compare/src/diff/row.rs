//! From sums to metrics.

use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{TapInfo, Trace};
use serde::Serialize;

use crate::diff::Values;
use crate::diff::circumstances::Expected;
use crate::diff::sums::Sums;
use crate::measure::MAX_RATIO;

/// One tap of one step in both traces.
#[derive(Clone, Debug, Serialize)]
pub struct DiffRow {
    /// The step (of the first trace).
    pub step: usize,
    /// The tap.
    pub tap: String,
    /// Elements compared.
    pub elements: usize,
    /// Elements whose values differ.
    pub differ: usize,
    /// Elements that are NaN in both, which counts as equal.
    pub nan: usize,
    /// Euclidean norm of the difference, relative to the first trace's value; at most 1e9, which is
    /// also what elements that are finite on one side only count as.
    pub rel_l2: f64,
    /// Largest difference of an element.
    pub max_abs: f64,
    /// Cosine of the angle between the two values.
    pub cosine: f64,
    /// `rel_l2` in unit roundoffs of the coarser of the two formats.
    pub roundoffs: f64,
    /// What the rounding of both sides is expected to leave of `rel_l2` here.
    pub explained: f64,
    /// How many times larger than the largest of the taps before it in this step.
    pub growth: f64,
    /// Elements 0, 1, 2, 3-4, 5-8, … 513-1024 and more values apart, trailing zeros left out; none where
    /// the two sides store different formats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulps: Vec<u64>,
    /// The element that differs most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<WorstElement>,
}

/// The element that differs most.
#[derive(Clone, Debug, Serialize)]
pub struct WorstElement {
    /// Its place, along the axes of the first trace's tap.
    pub index: Vec<usize>,
    /// Both values; `null` in JSON where one is not finite.
    pub values: [f64; 2],
}

/// The metrics of every value, in order.
pub(crate) fn rows(a: &Trace, b: &Trace, values: &Values, expected: &Expected) -> Vec<DiffRow> {
    let mut rows = Vec::with_capacity(values.len());
    let (mut step, mut largest) = (usize::MAX, 0.0f64);
    for ((s, _, name), value) in values {
        if *s != step {
            (step, largest) = (*s, 0.0);
        }
        let (Some(p), Some(q)) = (a.steps[*s].taps().get(name), b.steps[value.other].taps().get(name)) else {
            continue;
        };
        let row = row(*s, name, &value.sums, p, q, expected);
        let growth = if largest > 0.0 { row.rel_l2 / largest } else { 0.0 };
        largest = largest.max(row.rel_l2);
        rows.push(DiffRow { growth, ..row });
    }
    rows
}

fn row(step: usize, name: &str, sums: &Sums, p: &TapInfo, q: &TapInfo, expected: &Expected) -> DiffRow {
    let rel_l2 = match () {
        () if sums.non_finite > 0 => MAX_RATIO,
        () if sums.first > 0.0 => (sums.error / sums.first).sqrt(),
        () => sums.error.sqrt(),
    };
    let rel_l2 = if rel_l2.is_finite() { rel_l2.min(MAX_RATIO) } else { MAX_RATIO };
    // |a - b|^2 = |a|^2 + |b|^2 - 2ab gives the product without a sum of its own.
    let dot = (sums.first + sums.second - sums.error) / 2.0;
    let norms = (sums.first * sums.second).sqrt();
    let cosine = if norms > 0.0 { dot / norms } else { f64::from(u8::from(sums.first == sums.second)) };
    let roundoff = format(p.dtype).unit_roundoff().max(format(q.dtype).unit_roundoff());
    let used = sums.ulps.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1);
    DiffRow {
        step,
        tap: name.to_string(),
        elements: sums.elements,
        differ: sums.differ,
        nan: sums.nan,
        rel_l2,
        max_abs: sums.worst.map_or(0.0, |w| w.difference().min(f64::MAX)),
        cosine: if cosine.is_finite() { cosine } else { 0.0 },
        roundoffs: rel_l2 / roundoff,
        explained: expected.at(name),
        growth: 0.0,
        ulps: sums.ulps[..used].to_vec(),
        worst: sums.worst.map(|w| WorstElement { index: place(w.index, &p.shape), values: [w.a, w.b] }),
    }
}

/// A flat index along the axes of `shape`.
fn place(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&extent| {
            let i = flat % extent.max(1);
            flat /= extent.max(1);
            i
        })
        .collect();
    index.reverse();
    index
}

fn format(dtype: DType) -> Float {
    match dtype {
        DType::F64 => Float::F64,
        DType::F16 => Float::F16,
        DType::BF16 => Float::BF16,
        _ => Float::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_index_is_given_along_the_axes() {
        assert_eq!(place(7, &[2, 3, 2]), [1, 0, 1]);
        assert_eq!(place(0, &[]), Vec::<usize>::new());
    }
}
