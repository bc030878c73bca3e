//! Masks, softmaxes and keys other than the model's, for several hypotheses.

use std::collections::BTreeMap;

use firstdiff_model::OpKind;
use firstdiff_reference::KeyLabel;
use firstdiff_tensor::Tensor;

use crate::{At, Edit, Scene};

/// A score that no exponential survives.
const MASKED: f64 = -1e30;

/// A row and a key, by their places in the step and in the cache.
pub(super) struct Pair<'a> {
    pub row: usize,
    pub key: usize,
    pub rows: &'a [KeyLabel],
    pub keys: &'a [KeyLabel],
    /// The window that the model has here.
    pub window: Option<usize>,
}

impl Pair<'_> {
    /// Positions of row and key.
    pub fn positions(&self) -> (u32, u32) {
        (self.rows[self.row].position, self.keys[self.key].position)
    }

    /// Whether the model lets the row see the key.
    pub fn seen(&self) -> bool {
        let (row, key) = self.positions();
        let same = self.rows[self.row].sequence == self.keys[self.key].sequence;
        same && key <= row && self.window.is_none_or(|w| ((row - key) as usize) < w)
    }

    /// How many keys were stored before this step.
    pub fn kept(&self) -> usize {
        self.keys.len().saturating_sub(self.rows.len())
    }
}

/// Whether a mask or a softmax is in the segment.
pub(super) fn here(scene: &Scene) -> bool {
    scene.find(|k| matches!(k, OpKind::AttnProbs(_))).is_some()
}

fn windows(scene: &Scene) -> BTreeMap<usize, Option<usize>> {
    let ops = scene.program().ops.iter().enumerate();
    ops.filter_map(|(i, op)| match &op.kind {
        OpKind::AttnProbs(p) => Some((i, p.window)),
        _ => None,
    })
    .collect()
}

/// Masks that let a row see the keys that `f` says.
pub(super) fn seeing(
    scene: &Scene,
    detail: impl Into<String>,
    f: impl Fn(&At, &Pair) -> bool + Send + Sync + 'static,
) -> Vec<Edit> {
    if !here(scene) {
        return vec![];
    }
    let windows = windows(scene);
    let edit = Edit::new(detail)
        .ops(|op| {
            if let OpKind::AttnProbs(probs) = &mut op.kind {
                probs.window = None;
            }
        })
        // All is visible, and what should not be has a score that nothing is left of.
        .positions(|at, positions| {
            if matches!(at.op().kind, OpKind::AttnProbs(_)) {
                positions.fill(u32::MAX);
            }
        })
        .input(move |at, _, scores| {
            let window = *windows.get(&at.site.index)?;
            let (rows, keys) = labels(at, scores);
            let mut out = scores.clone();
            let (n, width) = (rows.len(), keys.len());
            for (i, s) in out.data_mut().iter_mut().enumerate() {
                let pair = Pair { row: i / width % n, key: i % width, rows: &rows, keys: &keys, window };
                if !f(at, &pair) {
                    *s = MASKED;
                }
            }
            Some(out)
        });
    vec![edit]
}

/// The rows and keys of scores `[H, T, K]`.
fn labels(at: &At, scores: &Tensor<f64>) -> (Vec<KeyLabel>, Vec<KeyLabel>) {
    let step = at.rows();
    let label = |row: usize| KeyLabel { sequence: step.sequence[row], position: step.positions[row] };
    let mut keys = at.keys();
    let [.., n, width] = *scores.shape() else { return (vec![], keys) };
    let rows = step.held(n).into_iter().map(label).collect();
    keys.drain(..keys.len().saturating_sub(width));
    (rows, keys)
}

/// One row of scores of a head, and which of its keys are visible.
pub(super) struct Line<'a> {
    pub scores: &'a [f64],
    pub seen: &'a [bool],
}

impl Line<'_> {
    /// The largest visible score in a range of keys; negative infinity where none is visible.
    pub fn max(&self, keys: std::ops::Range<usize>) -> f64 {
        keys.filter(|&k| self.seen[k]).map(|k| self.scores[k]).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The sum of visible keys' `exp(score - max)` in a range.
    pub fn sum(&self, keys: std::ops::Range<usize>, max: f64) -> f64 {
        keys.filter(|&k| self.seen[k]).map(|k| (self.scores[k] - max).exp()).sum()
    }
}

/// Another softmax: `f` gets a line of scores, with a function for the same row's line in other heads and the
/// number of its own head, and gives the weights of the values.
pub(super) fn softmax(
    scene: &Scene,
    detail: impl Into<String>,
    f: impl Fn(&At, &Lines, usize, usize) -> Vec<f64> + Send + Sync + 'static,
) -> Vec<Edit> {
    if !here(scene) {
        return vec![];
    }
    vec![Edit::new(detail).output(move |at, inputs, value| {
        let OpKind::AttnProbs(probs) = &at.op().kind else { return None };
        let scores = *inputs.first()?;
        let (rows, keys) = labels(at, scores);
        let (n, width) = (rows.len(), keys.len());
        let mut seen = Vec::with_capacity(n * width);
        for row in 0..n {
            for key in 0..width {
                seen.push(Pair { row, key, rows: &rows, keys: &keys, window: probs.window }.seen());
            }
        }
        let lines = Lines { scores, seen, rows: n, keys: width };
        let mut out = value.clone();
        for (i, out) in out.data_mut().chunks_mut(width.max(1)).enumerate() {
            let weights = f(at, &lines, i / n, i % n);
            (weights.len() == width).then(|| out.copy_from_slice(&weights))?;
        }
        Some(out)
    })]
}

/// All scores of a step.
pub(super) struct Lines<'a> {
    scores: &'a Tensor<f64>,
    seen: Vec<bool>,
    pub rows: usize,
    pub keys: usize,
}

impl Lines<'_> {
    pub fn heads(&self) -> usize {
        self.scores.rows()
    }

    pub fn line(&self, head: usize, row: usize) -> Line<'_> {
        let start = (head * self.rows + row) * self.keys;
        Line {
            scores: &self.scores.data()[start..start + self.keys],
            seen: &self.seen[row * self.keys..][..self.keys],
        }
    }
}

/// Attention over more keys than are stored. `f` gives the rows to add to a layer's cache, for keys (0) or
/// values (1), with whom they belong to; as many for both.
pub(super) fn more_keys(
    scene: &Scene,
    detail: impl Into<String>,
    f: impl Fn(&At, usize, &Tensor<f64>) -> Option<Vec<f64>> + Send + Sync + 'static,
    labels: impl Fn(&At) -> Vec<KeyLabel> + Send + Sync + 'static,
) -> Vec<Edit> {
    if !here(scene) || scene.find(|k| matches!(k, OpKind::AttnScores(_))).is_none() {
        return vec![];
    }
    vec![
        Edit::new(detail)
            .input(move |at, number, value| {
                let which = match at.op().kind {
                    OpKind::AttnScores(_) => 0,
                    OpKind::AttnHeads(_) => 1,
                    _ => return None,
                };
                (number == 1).then_some(())?;
                let more = f(at, which, value)?;
                let mut shape = value.shape().to_vec();
                shape[0] += more.len() / value.row_len().max(1);
                let mut data = value.data().to_vec();
                data.extend(more);
                Tensor::new(shape, data).ok()
            })
            .keys(move |at, keys| {
                if matches!(at.op().kind, OpKind::AttnProbs(_)) {
                    keys.extend(labels(at));
                }
            }),
    ]
}

/// Powers of two that a tile or a split may hold.
pub(super) const TILES: [usize; 7] = [4, 8, 16, 32, 64, 128, 256];
