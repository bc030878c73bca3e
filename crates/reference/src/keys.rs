//! Key and value state, kept from step to step.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use firstdiff_model::{Counts, EntryCount};
use firstdiff_tensor::{Real, Tensor};

use crate::execute::StepInput;

/// Whom a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyLabel {
    /// Sequence of the row that wrote it.
    pub sequence: i64,
    /// Its position there.
    pub position: u32,
}

impl KeyLabel {
    /// A slot that holds no key: no row sees it, because rows have lower positions.
    pub const EMPTY: KeyLabel = KeyLabel { sequence: i64::MIN, position: u32::MAX };
}

/// The key axes that a step declares: whose key each entry of caches, scores and probabilities is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyAxes {
    /// That of all layers without one of their own.
    pub step: Option<Arc<[KeyLabel]>>,
    /// Those of single layers.
    pub layers: BTreeMap<usize, Arc<[KeyLabel]>>,
}

impl KeyAxes {
    /// The axis of a layer; `None` where nothing is declared.
    pub fn of(&self, layer: Option<usize>) -> Option<&Arc<[KeyLabel]>> {
        layer.and_then(|layer| self.layers.get(&layer)).or(self.step.as_ref())
    }
}

/// A sequence that begins with the first keys of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The sequence that begins.
    pub sequence: i64,
    /// The one whose keys it shares.
    pub parent: i64,
    /// How many.
    pub length: u32,
}

/// Labels of stored keys, oldest first. Steps that only append share one list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    all: Arc<Vec<KeyLabel>>,
    len: usize,
}

impl Deref for Labels {
    type Target = [KeyLabel];

    fn deref(&self) -> &[KeyLabel] {
        &self.all[..self.len]
    }
}

impl From<Vec<KeyLabel>> for Labels {
    fn from(labels: Vec<KeyLabel>) -> Labels {
        Labels { len: labels.len(), all: Arc::new(labels) }
    }
}

/// A key axis that is not simply what was stored, and where its keys are stored.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// Whom its entries belong to.
    pub labels: Arc<[KeyLabel]>,
    /// Of each entry, its place among the stored keys; `None` for empty slots and for keys that no step wrote.
    pub places: Arc<[Option<usize>]>,
}

/// The keys stored when a step attends.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepKeys {
    /// How many of the earlier ones are kept.
    pub kept: usize,
    /// Whom those stored belong to; those that were written again since are empty slots.
    pub labels: Labels,
    /// Whom they were written for.
    pub written: Labels,
    axis: Option<Axis>,
    layers: BTreeMap<usize, Axis>,
}

impl StepKeys {
    /// The axis of a layer; without one, its keys are those stored.
    pub fn axis(&self, layer: Option<usize>) -> Option<&Axis> {
        layer.and_then(|layer| self.layers.get(&layer)).or(self.axis.as_ref())
    }

    /// Whom the keys belong to that a layer reads.
    pub fn read_by(&self, layer: Option<usize>) -> &[KeyLabel] {
        self.axis(layer).map_or(&self.labels, |axis| &axis.labels)
    }

    /// The same keys with other labels, as an edit of what a layer reads leaves them.
    pub fn relabelled(&self, layer: Option<usize>, labels: Vec<KeyLabel>) -> StepKeys {
        let mut keys = self.clone();
        match self.axis(layer) {
            None => {
                keys.labels = labels.clone().into();
                keys.written = labels.into();
            }
            Some(axis) => {
                keys.axis = Some(Axis { labels: labels.into(), places: axis.places.clone() });
                keys.layers.clear();
            }
        }
        keys
    }
}

/// The stored keys, as steps follow one another.
#[derive(Default)]
struct Log {
    labels: Vec<KeyLabel>,
    written: Vec<KeyLabel>,
    /// Where the keys of each sequence lie, by position. Sequences that forked share places.
    places: HashMap<i64, BTreeMap<u32, usize>>,
    forked: bool,
}

impl Log {
    fn push(&mut self, label: KeyLabel) {
        self.places.entry(label.sequence).or_default().insert(label.position, self.labels.len());
        self.labels.push(label);
        self.written.push(label);
    }

    fn place(&self, label: &KeyLabel) -> Option<usize> {
        self.places.get(&label.sequence)?.get(&label.position).copied()
    }

    /// Whether a sequence has passed a position.
    fn has_passed(&self, first: &KeyLabel) -> bool {
        let last = self.places.get(&first.sequence).and_then(|of| of.last_key_value());
        last.is_some_and(|(last, _)| *last >= first.position)
    }

    /// Drops what a sequence has from a position on: cut off where it was written last and nobody shares it, else its
    /// places become empty slots.
    fn rewind(&mut self, first: KeyLabel) {
        let passed = |l: &KeyLabel| l.sequence == first.sequence && l.position >= first.position;
        if let Some(of) = self.places.get_mut(&first.sequence) {
            of.split_off(&first.position);
        }
        if self.forked {
            return;
        }
        while self.written.last().is_some_and(passed) {
            self.written.pop();
            self.labels.pop();
        }
        self.labels.iter_mut().filter(|l| passed(l)).for_each(|l| *l = KeyLabel::EMPTY);
    }

    fn fork(&mut self, forks: &[Fork]) {
        // All parents are read before any child is written: beams change places.
        let shared = |fork: &Fork| {
            let of = self.places.get(&fork.parent);
            of.map(|of| of.range(..fork.length).map(|(p, place)| (*p, *place)).collect()).unwrap_or_default()
        };
        let children: Vec<(i64, BTreeMap<u32, usize>)> =
            forks.iter().map(|f| (f.sequence, shared(f))).collect();
        self.places.extend(children);
        self.forked = true;
    }

    fn axis(&self, labels: Arc<[KeyLabel]>) -> Axis {
        Axis { places: labels.iter().map(|label| self.place(label)).collect(), labels }
    }

    /// The keys of the step's sequences, one sequence after the other.
    fn of_sequences(&self, step: &StepInput) -> Axis {
        let labels = firstdiff_trace::in_order(&step.sequence).into_iter().flat_map(|sequence| {
            let of = self.places.get(&sequence).into_iter().flat_map(|of| of.keys());
            of.map(move |&position| KeyLabel { sequence, position })
        });
        self.axis(labels.collect())
    }
}

/// The keys of every step, after those of `stored`. A step that goes back to a position its sequence
/// has passed already (a rewound or reused cache) replaces the rows from there on.
pub(crate) fn step_keys(stored: &[KeyLabel], steps: &[StepInput]) -> Vec<StepKeys> {
    let mut log = Log::default();
    stored.iter().for_each(|label| log.push(*label));
    let mut out: Vec<StepKeys> = Vec::with_capacity(steps.len());
    // The first step whose list is one that still grows.
    let mut open = 0;
    let seal = |log: &Log, steps: &mut [StepKeys]| {
        let labels = Arc::new(log.labels.clone());
        let same = log.labels == log.written;
        let written = if same { labels.clone() } else { Arc::new(log.written.clone()) };
        for step in steps {
            (step.labels.all, step.written.all) = (labels.clone(), written.clone());
        }
    };
    for step in steps {
        let child = |sequence: &i64| step.forks.iter().any(|f| f.sequence == *sequence);
        let back: Vec<KeyLabel> =
            step.first_rows().filter(|first| log.has_passed(first) && !child(&first.sequence)).collect();
        if !back.is_empty() {
            seal(&log, &mut out[open..]);
            open = out.len();
            back.into_iter().for_each(|first| log.rewind(first));
        }
        if !step.forks.is_empty() {
            log.fork(&step.forks);
        }
        let kept = log.labels.len();
        step.labels().for_each(|label| log.push(label));
        let declared = |labels: &Arc<[KeyLabel]>| log.axis(labels.clone());
        let axis = step.keys.step.as_ref().map(declared);
        let axis = axis.or_else(|| log.forked.then(|| log.of_sequences(step)));
        let layers = step.keys.layers.iter().map(|(layer, labels)| (*layer, declared(labels))).collect();
        let len = log.labels.len();
        let unsealed = Labels { all: Arc::default(), len };
        out.push(StepKeys { kept, labels: unsealed.clone(), written: unsealed, axis, layers });
    }
    seal(&log, &mut out[open..]);
    out
}

/// Whom the keys belong to that a layer reads in the last of these steps.
pub fn stored_keys(steps: &[StepInput], layer: Option<usize>) -> Vec<KeyLabel> {
    step_keys(&[], steps).pop().map(|k| k.read_by(layer).to_vec()).unwrap_or_default()
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
        let all = entries(&self.written, ratio);
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
        Counts { tokens: step.token_ids.len(), keys: keys.read_by(None).len(), entries }
    };
    step_keys(&[], steps).iter().zip(steps).map(count).collect()
}

/// How many keys are visible to each step of a trace, from the first step on.
pub fn visible_keys(steps: &[StepInput]) -> Vec<usize> {
    step_keys(&[], steps).iter().map(|k| k.read_by(None).len()).collect()
}

/// What one cache operation has stored so far, `[K, Hkv, D]`, once exactly and once for each lane.
#[derive(Clone, Debug, Default)]
struct Stored<T> {
    exact: Vec<T>,
    lanes: Vec<Vec<T>>,
    /// Rows that no step wrote, as a recorded cache has them.
    given: HashMap<KeyLabel, Vec<T>>,
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
        self.store(op, exact, lanes);
        let stored = &self.stored[op];
        let tensor = |data: &Vec<T>| {
            Tensor::new([data.len() / (heads * dim).max(1), heads, dim], data.clone())
                .unwrap_or_else(|_| Tensor::zeros([0, heads, dim]))
        };
        (tensor(&stored.exact), stored.lanes.iter().map(tensor).collect())
    }

    /// Appends rows to the cache of operation `op`. `lanes` is empty where every lane has the same rows.
    pub(crate) fn store(&mut self, op: usize, exact: &[T], lanes: &[Arc<Tensor<T>>]) {
        let stored = &mut self.stored[op];
        if stored.lanes.is_empty() && !lanes.is_empty() {
            stored.lanes = vec![stored.exact.clone(); lanes.len()];
        }
        for (i, lane) in stored.lanes.iter_mut().enumerate() {
            lane.extend_from_slice(lanes.get(i).map_or(exact, |t| t.data()));
        }
        stored.exact.extend_from_slice(exact);
    }

    /// Corrects the rows stored from place `first` on in the cache of operation `op`, in every lane, as far as a recorded
    /// cache with this key axis has them.
    pub(crate) fn replace_along(&mut self, op: usize, axis: &Axis, recorded: &Tensor<T>, first: usize) {
        let width = recorded.row_len();
        if recorded.rows() != axis.labels.len() {
            return;
        }
        for (i, place) in axis.places.iter().enumerate() {
            let Some(place) = place.filter(|place| *place >= first) else { continue };
            let stored = &mut self.stored[op];
            for data in std::iter::once(&mut stored.exact).chain(&mut stored.lanes) {
                if let Some(row) = data.get_mut(place * width..(place + 1) * width) {
                    row.copy_from_slice(recorded.row(i));
                }
            }
        }
    }

    /// What a layer with this key axis reads from the cache of operation `op`. Empty slots, and keys that are not
    /// known, are zero.
    pub(crate) fn along(
        &self,
        op: usize,
        axis: &Axis,
        (heads, dim): (usize, usize),
    ) -> (Tensor<T>, Vec<Tensor<T>>) {
        let (stored, width) = (&self.stored[op], heads * dim);
        let gather = |data: &Vec<T>| {
            let mut out = Tensor::zeros([axis.labels.len(), heads, dim]);
            let rows =
                out.data_mut().chunks_mut(width.max(1)).zip(axis.places.iter().zip(axis.labels.iter()));
            for (out, (place, label)) in rows {
                let row = match place {
                    Some(place) => data.get(place * width..(place + 1) * width),
                    None => stored.given.get(label).map(Vec::as_slice),
                };
                if let Some(row) = row {
                    out.copy_from_slice(row);
                }
            }
            out
        };
        (gather(&stored.exact), stored.lanes.iter().map(gather).collect())
    }

    /// Takes the rows of keys that no step wrote from a recorded cache.
    pub(crate) fn give(&mut self, op: usize, axis: &Axis, recorded: &Tensor<T>) {
        if recorded.rows() != axis.labels.len() {
            return;
        }
        for (i, label) in axis.labels.iter().enumerate() {
            if axis.places[i].is_none() && *label != KeyLabel::EMPTY {
                self.stored[op].given.insert(*label, recorded.row(i).to_vec());
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sequence: &[i64], positions: &[u32]) -> StepInput {
        let (token_ids, positions) = (vec![0; sequence.len()], positions.to_vec());
        StepInput { token_ids, positions, sequence: sequence.to_vec(), ..StepInput::default() }
    }

    fn key(sequence: i64, position: u32) -> KeyLabel {
        KeyLabel { sequence, position }
    }

    #[test]
    fn keys_are_listed_as_they_are_written_and_cut_where_a_sequence_goes_back() {
        let keys = step_keys(&[], &[rows(&[0; 3], &[0, 1, 2]), rows(&[0], &[3]), rows(&[0; 2], &[2, 3])]);
        assert_eq!(
            keys.iter().map(|k| (k.kept, k.labels.len())).collect::<Vec<_>>(),
            [(0, 3), (3, 4), (2, 4)]
        );
        assert_eq!(keys[1].labels[3], key(0, 3));
        assert_eq!(keys[2].labels[..], [key(0, 0), key(0, 1), key(0, 2), key(0, 3)]);
    }

    #[test]
    fn what_another_sequence_has_written_since_stays_when_one_goes_back() {
        let keys = step_keys(&[], &[rows(&[0, 0, 1], &[0, 1, 0]), rows(&[0], &[1])]);
        assert_eq!(keys[1].labels[..], [key(0, 0), KeyLabel::EMPTY, key(1, 0), key(0, 1)]);
        assert_eq!(keys[1].written[1], key(0, 1), "compressed entries count what was written");
        assert_eq!((keys[0].labels[1], keys[1].kept), (key(0, 1), 3));
    }

    #[test]
    fn sequences_that_fork_share_keys_and_beams_change_places() {
        let swap = |child, parent| Fork { sequence: child, parent, length: 2 };
        let mut second = rows(&[0, 1], &[2, 2]);
        second.forks = vec![swap(0, 1), swap(1, 0)];
        let keys = step_keys(&[], &[rows(&[0, 0, 1, 1], &[0, 1, 0, 1]), second]);
        let axis = keys[1].axis(Some(0)).unwrap();
        assert_eq!(axis.labels[..], [key(0, 0), key(0, 1), key(0, 2), key(1, 0), key(1, 1), key(1, 2)]);
        assert_eq!(axis.places[..], [Some(2), Some(3), Some(4), Some(0), Some(1), Some(5)]);
        assert!(keys[0].axis(None).is_none());
    }

    #[test]
    fn a_declared_axis_is_read_from_the_places_of_its_keys() {
        let mut step = rows(&[0; 2], &[5, 6]);
        let labels = [key(0, 6), KeyLabel::EMPTY, key(0, 4), key(0, 5)];
        step.keys.layers.insert(1, labels.into());
        let keys = step_keys(&[], &[step]).pop().unwrap();
        assert!(keys.axis(Some(0)).is_none());
        let axis = keys.axis(Some(1)).unwrap().clone();
        assert_eq!(axis.places[..], [Some(1), None, None, Some(0)]);

        let mut cache = KeyValues::<f64>::new(1);
        cache.append(0, &[50.0, 60.0], &[], (1, 1));
        assert_eq!(cache.along(0, &axis, (1, 1)).0.data(), [60.0, 0.0, 0.0, 50.0]);
        cache.give(0, &axis, &Tensor::new([4, 1, 1], vec![9.0, 9.0, 40.0, 9.0]).unwrap());
        assert_eq!(cache.along(0, &axis, (1, 1)).0.data(), [60.0, 0.0, 40.0, 50.0], "the rest is not given");
    }
}
