//! Key and value state, kept from step to step.

use std::sync::Arc;

use firstdiff_tensor::{Real, Tensor};

use crate::execute::StepInput;

/// Whom a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLabel {
    /// Sequence of the row that wrote it.
    pub sequence: i64,
    /// Its position there.
    pub position: u32,
}

/// The keys stored when a step attends: how many of the earlier ones are kept, and all labels.
#[derive(Clone, Debug)]
pub(crate) struct StepKeys {
    pub kept: usize,
    pub labels: Vec<KeyLabel>,
}

/// The keys of every step, after those of `stored`. A step that goes back to a position its sequence
/// has passed already (a rewound or reused cache) replaces the rows from there on.
pub(crate) fn step_keys(stored: &[KeyLabel], steps: &[StepInput]) -> Vec<StepKeys> {
    let mut labels = stored.to_vec();
    let mut out = Vec::with_capacity(steps.len());
    for step in steps {
        if let (Some(&sequence), Some(&position)) = (step.sequence.first(), step.positions.first()) {
            let passed = |l: &&KeyLabel| l.sequence == sequence && l.position >= position;
            let dropped = labels.iter().rev().take_while(passed).count();
            labels.truncate(labels.len() - dropped);
        }
        let kept = labels.len();
        labels.extend(step.labels());
        out.push(StepKeys { kept, labels: labels.clone() });
    }
    out
}

/// How many keys are visible to each step of a trace, from the first step on.
pub fn visible_keys(steps: &[StepInput]) -> Vec<usize> {
    step_keys(&[], steps).iter().map(|k| k.labels.len()).collect()
}

/// What one cache operation has stored so far, `[K, Hkv, D]`, once exactly and once for each lane.
#[derive(Clone, Debug, Default)]
struct Stored<T> {
    exact: Vec<T>,
    lanes: Vec<Vec<T>>,
}

/// The caches of a program: the state that decoding carries from one step to the next.
#[derive(Clone, Debug)]
pub struct KeyValues<T> {
    pub(crate) labels: Vec<KeyLabel>,
    stored: Vec<Stored<T>>,
}

impl<T: Real> KeyValues<T> {
    /// Empty caches for a program of `ops` operations.
    pub fn new(ops: usize) -> KeyValues<T> {
        KeyValues { labels: vec![], stored: (0..ops).map(|_| Stored::default()).collect() }
    }

    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Keeps only the first `rows` rows in the cache of operation `op`.
    pub(crate) fn truncate(&mut self, op: usize, rows: usize, width: usize) {
        let stored = &mut self.stored[op];
        for data in std::iter::once(&mut stored.exact).chain(&mut stored.lanes) {
            data.truncate(rows * width);
        }
    }

    /// Appends rows to the cache of operation `op` and returns all of it, `[K, heads, dim]`.
    /// `lanes` is empty where every lane has the same rows.
    pub(crate) fn append(
        &mut self,
        op: usize,
        exact: &[T],
        lanes: &[Arc<Tensor<T>>],
        (heads, dim): (usize, usize),
    ) -> (Tensor<T>, Vec<Tensor<T>>) {
        let stored = &mut self.stored[op];
        if stored.lanes.is_empty() && !lanes.is_empty() {
            stored.lanes = vec![stored.exact.clone(); lanes.len()];
        }
        for (i, lane) in stored.lanes.iter_mut().enumerate() {
            lane.extend_from_slice(lanes.get(i).map_or(exact, |t| t.data()));
        }
        stored.exact.extend_from_slice(exact);
        let tensor = |data: &Vec<T>| {
            Tensor::new([data.len() / (heads * dim).max(1), heads, dim], data.clone())
                .unwrap_or_else(|_| Tensor::zeros([0, heads, dim]))
        };
        (tensor(&stored.exact), stored.lanes.iter().map(tensor).collect())
    }

    /// Corrects the rows stored last in the cache of operation `op`, in every lane.
    pub(crate) fn replace_last(&mut self, op: usize, rows: &[T]) {
        let stored = &mut self.stored[op];
        for data in std::iter::once(&mut stored.exact).chain(&mut stored.lanes) {
            let start = data.len().saturating_sub(rows.len());
            data.truncate(start);
            data.extend_from_slice(rows);
        }
    }
}
