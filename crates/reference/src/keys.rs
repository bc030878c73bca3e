//! Key and value state, kept from step to step.

use std::collections::HashMap;
use std::sync::Arc;

use firstdiff_model::{Counts, EntryCount};
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

/// Whom the keys belong to that the last of these steps attends over, oldest first.
pub fn stored_keys(steps: &[StepInput]) -> Vec<KeyLabel> {
    step_keys(&[], steps).pop().map(|k| k.labels).unwrap_or_default()
}

/// A compressed entry: a whole block of a sequence's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Whose.
    pub sequence: i64,
    /// Position of the block's first token.
    pub start: u32,
    /// The block's keys, by their places among those stored.
    pub rows: Vec<usize>,
    /// Those of the block before; empty for the first one.
    pub before: Vec<usize>,
}

impl Entry {
    /// Whether the block is complete at this row, and of its sequence.
    pub fn is_seen_by(&self, row: &KeyLabel, ratio: usize) -> bool {
        self.sequence == row.sequence && u64::from(self.start) + ratio as u64 <= u64::from(row.position) + 1
    }

    /// The place of the key that completes the block.
    fn last(&self) -> usize {
        self.rows.last().copied().unwrap_or_default()
    }
}

/// The compressed entries that the stored keys make, in the order in which their blocks were completed.
pub(crate) fn entries(labels: &[KeyLabel], ratio: usize) -> Vec<Entry> {
    let mut places: HashMap<(i64, u32), usize> = HashMap::with_capacity(labels.len());
    let mut out = Vec::new();
    for (place, label) in labels.iter().enumerate() {
        places.insert((label.sequence, label.position), place);
        let after = label.position as usize + 1;
        if !after.is_multiple_of(ratio) {
            continue;
        }
        let block = |end: usize| -> Vec<usize> {
            let Some(start) = end.checked_sub(ratio) else { return vec![] };
            let place = |p: usize| places.get(&(label.sequence, p as u32)).copied();
            (start..end).map(place).collect::<Option<_>>().unwrap_or_default()
        };
        let (rows, before) = (block(after), block(after - ratio));
        if !rows.is_empty() {
            out.push(Entry { sequence: label.sequence, start: (after - ratio) as u32, rows, before });
        }
    }
    out
}

impl StepKeys {
    /// All entries in this step, and how many of them there were before it.
    pub fn entries(&self, ratio: usize) -> (Vec<Entry>, usize) {
        let all = entries(&self.labels, ratio);
        let before = all.iter().take_while(|entry| entry.last() < self.kept).count();
        (all, before)
    }

    /// Rows that an operation with state keeps from earlier steps.
    pub fn kept_rows(&self, ratio: Option<usize>) -> usize {
        ratio.map_or(self.kept, |ratio| self.entries(ratio).1)
    }
}

/// What varies from step to step, of each step of a trace, from the first one on.
pub fn counts(steps: &[StepInput], ratios: &[usize]) -> Vec<Counts> {
    let count = |(keys, step): (&StepKeys, &StepInput)| {
        let entry = |&ratio: &usize| {
            let (all, before) = keys.entries(ratio);
            EntryCount { ratio, all: all.len(), new: all.len() - before }
        };
        let entries = ratios.iter().map(entry).collect();
        Counts { tokens: step.token_ids.len(), keys: keys.labels.len(), entries }
    };
    step_keys(&[], steps).iter().zip(steps).map(count).collect()
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
