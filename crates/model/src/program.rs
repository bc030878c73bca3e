//! Programs and how they are written down.

use std::collections::{BTreeMap, BTreeSet};

use crate::ops::OpKind;

/// The output of an operation, by its place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub usize);

/// What an axis of a tap counts. Extents that vary from step to step have no number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Tokens of the step.
    Tokens,
    /// Keys visible to the step, oldest first.
    Keys,
    /// Attention heads (query or key/value heads).
    Heads(usize),
    /// Channels: hidden, head or vocabulary dimensions.
    Channels(usize),
    /// Things chosen for each token, such as experts.
    Choices(usize),
    /// Compressed entries so far, of so many tokens each.
    Entries(usize),
    /// Compressed entries that the step completes.
    NewEntries(usize),
    /// What attention chooses from: keys, then compressed entries of so many tokens each.
    Candidates(usize),
}

/// How many there are, in a step, of what varies from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens of the step.
    pub tokens: usize,
    /// Keys stored.
    pub keys: usize,
    /// Compressed entries.
    pub entries: Vec<EntryCount>,
}

/// Compressed entries in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryCount {
    /// Tokens of each.
    pub ratio: usize,
    /// Those so far.
    pub all: usize,
    /// Those that the step completes.
    pub new: usize,
}

impl Counts {
    /// The extents of `axes`.
    pub fn extents(&self, axes: &[Axis]) -> Vec<usize> {
        let entries = |ratio: usize| {
            let none = EntryCount { ratio, all: 0, new: 0 };
            self.entries.iter().find(|e| e.ratio == ratio).copied().unwrap_or(none)
        };
        let extent = |axis: &Axis| match *axis {
            Axis::Tokens => self.tokens,
            Axis::Keys => self.keys,
            Axis::Heads(n) | Axis::Channels(n) | Axis::Choices(n) => n,
            Axis::Entries(ratio) => entries(ratio).all,
            Axis::NewEntries(ratio) => entries(ratio).new,
            Axis::Candidates(ratio) => self.keys + entries(ratio).all,
        };
        axes.iter().map(extent).collect()
    }
}

/// The extents of `axes` in a step of so many tokens, with so many keys visible.
pub fn extents(axes: &[Axis], tokens: usize, keys: usize) -> Vec<usize> {
    Counts { tokens, keys, entries: vec![] }.extents(axes)
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// The tap name of the output.
    pub tap: String,
    /// What is computed.
    pub kind: OpKind,
    /// Outputs of earlier operations, in the order the kind defines.
    pub inputs: Vec<Value>,
    /// Axes of the output.
    pub axes: Vec<Axis>,
    /// Computed and held in f32 at least, and its weights never rounded, whatever format activations
    /// are stored in.
    pub wide: bool,
}

/// A forward pass: operations in the order they are executed.
#[derive(Clone, Debug)]
pub struct Program {
    /// The operations.
    pub ops: Vec<Op>,
    /// Number of token ids.
    pub vocab: usize,
}

/// A weight that a program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// Shape, as torch has it.
    pub shape: Vec<usize>,
    /// Taps of the operations that read it.
    pub used_by: Vec<String>,
}

impl Program {
    /// The operation whose output has this tap name.
    pub fn find(&self, tap: &str) -> Option<Value> {
        self.ops.iter().position(|op| op.tap == tap).map(Value)
    }

    /// The hidden state that the logits are computed from: what comes before the output matrix.
    pub fn before_logits(&self) -> Option<Value> {
        let mut op = self.ops.last()?;
        while let (false, Some(&input)) = (matches!(op.kind, OpKind::Linear(_)), op.inputs.first()) {
            op = self.op(input);
        }
        op.inputs.first().copied()
    }

    /// The operation that computes `value`.
    pub fn op(&self, value: Value) -> &Op {
        &self.ops[value.0]
    }

    /// Every weight the program reads, by name.
    pub fn weights(&self) -> BTreeMap<&str, WeightUse> {
        let mut uses: BTreeMap<&str, WeightUse> = BTreeMap::new();
        for op in &self.ops {
            for (name, shape) in op.kind.weights() {
                let entry = uses.entry(name).or_insert_with(|| WeightUse { shape, used_by: vec![] });
                entry.used_by.push(op.tap.clone());
            }
        }
        uses
    }

    /// Weights that are never rounded to the format of activations, by name.
    pub fn wide_weights(&self) -> BTreeSet<&str> {
        let wide = |op: &&Op| op.wide || op.kind.has_wide_weights();
        self.ops.iter().filter(wide).flat_map(|op| op.kind.weights()).map(|(name, _)| name).collect()
    }

    /// The sizes of blocks that compressed entries are made of.
    pub fn ratios(&self) -> Vec<usize> {
        let ratios: BTreeSet<usize> =
            self.ops.iter().filter_map(|op| op.kind.state()).filter_map(|state| state.ratio).collect();
        ratios.into_iter().collect()
    }

    /// For each operation, the last of `ops`, given in their order, that reads its output (itself where none does).
    pub fn last_uses(&self, ops: &[usize]) -> Vec<usize> {
        let mut last: Vec<usize> = (0..self.ops.len()).collect();
        for &op in ops {
            for input in &self.ops[op].inputs {
                last[input.0] = op;
            }
        }
        last
    }
}

/// Writes a program down, operation by operation.
#[derive(Debug, Default)]
pub struct Builder {
    ops: Vec<Op>,
    layer: Option<usize>,
}

impl Builder {
    /// A program without operations.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Taps pushed from now on belong to `layer`, or to none.
    pub fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Adds an operation; `tap` is without the layer's prefix.
    pub fn push(&mut self, tap: &str, kind: impl Into<OpKind>, inputs: &[Value]) -> Value {
        let tap = match self.layer {
            Some(layer) => format!("layers.{layer}.{tap}"),
            None => tap.to_string(),
        };
        let kind = kind.into();
        // An operation that gathers by a choice has one value for each thing chosen.
        let like = inputs.get(usize::from(matches!(kind, OpKind::RouterWeights(_))));
        let axes = kind.axes(like.map(|v| self.ops[v.0].axes.as_slice()).unwrap_or_default());
        self.ops.push(Op { tap, kind, inputs: inputs.to_vec(), axes, wide: false });
        Value(self.ops.len() - 1)
    }

    /// What was pushed last is computed and held in f32 at least.
    pub fn widen(&mut self) {
        if let Some(op) = self.ops.last_mut() {
            op.wide = true;
        }
    }

    /// What was pushed last counts candidates of attention where its kind says keys.
    pub fn of_candidates(&mut self, ratio: usize) {
        let axes = self.ops.last_mut().into_iter().flat_map(|op| &mut op.axes);
        axes.filter(|axis| **axis == Axis::Keys).for_each(|axis| *axis = Axis::Candidates(ratio));
    }

    /// The program.
    pub fn finish(self, vocab: usize) -> Program {
        Program { ops: self.ops, vocab }
    }
}
