//! Which recorded values belong to which operations, in which shape.

use std::collections::{BTreeSet, HashMap, HashSet};

use firstdiff_model::{Axis, Counts, OpKind, Program, Value};
use firstdiff_reference::{KeyLabel, StepInput, counts};
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::declared::{Layout, Rank, RopeOrder};
use firstdiff_trace::{Step, TapInfo, Trace, tap};

use crate::Error;
use crate::history::{Incomplete, incomplete};
use crate::order_of_keys::out_of_order;
use crate::place_axes::{Placement, Wanted, place};
use crate::reach::{Known, Reach};
use crate::steps::{self, inputs};
use crate::tokens::late::Undo;
use crate::unmodelled::unmodelled;

/// Where the recorded value of an operation lies in a step, and how it is brought to the operation's axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// The recorded tap, where it has another name than the operation's.
    name: Option<String>,
    /// Of a fused projection: its first column, and how many.
    columns: Option<(usize, usize)>,
    placement: Placement,
}

/// The recorded values of a trace, placed on a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alignment {
    /// For each step, for each operation, how its recorded value is read.
    pub placements: Vec<Vec<Option<Recorded>>>,
    /// Recorded names that no operation has.
    pub unknown: Vec<String>,
    /// Taps whose axes were given in another order.
    pub permuted: Vec<String>,
    /// The place of the logits, and what a sampler had done to them when they were recorded.
    pub late: Option<(usize, Undo)>,
    /// The input rows of the steps, with the keys that they read.
    pub steps: Vec<StepInput>,
    /// What can be compared.
    pub reach: Reach,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// Products that a fused one holds, in its order, by their taps without layers.
const FUSED: [(&str, &[&str]); 2] =
    [("qkv_proj", &["q_proj", "k_proj", "v_proj"]), ("gate_up_proj", &["gate_proj", "up_proj"])];

impl Recorded {
    /// Rows of the first axis.
    pub fn rows(&self) -> usize {
        self.placement.shape.first().copied().unwrap_or(1)
    }
}

impl Alignment {
    pub fn new(trace: &Trace, program: &Program) -> Result<Alignment, Error> {
        let layers = program.ops.iter().filter_map(|op| tap::split(&op.tap).0).max().map_or(0, |l| l + 1);
        let mut steps = inputs(trace);
        let incomplete = incomplete(&steps);
        steps::imply_axes(trace, program, &incomplete, &mut steps);
        let compressed = !program.ratios().is_empty();
        let names: HashSet<&str> = program.ops.iter().map(|op| op.tap.as_str()).collect();
        // The reader of the trace has checked what it declares.
        let layout = trace.manifest.layout().unwrap_or_default();
        let partial = layout.rank.filter(Rank::is_partial).map(part_of_a_run);
        let places = Places::new(program, layout);
        let mut parts: Vec<(String, usize)> = Vec::new();
        let mut alignment = Alignment::default();
        let (mut unknown, mut permuted, mut beyond) = (HashSet::new(), HashSet::new(), BTreeSet::new());
        for (number, (step, counts)) in trace.steps.iter().zip(counts(&steps, &program.ratios())).enumerate()
        {
            let file = || step.path().to_path_buf();
            if compressed && (!step.keys.is_empty() || !step.forks.is_empty()) {
                return Err(Error::KeyAxes { file: file() });
            }
            for name in step.taps().keys() {
                let (layer, rest) = tap::split(name);
                if layer.is_some_and(|layer| layer >= layers) {
                    return Err(Error::Layer { file: file(), tap: name.clone(), layers });
                }
                let pattern = tap::pattern(name);
                if !names.contains(name.as_str())
                    && !places.is_read(layer, rest)
                    && unknown.insert(pattern.clone())
                {
                    alignment.unknown.push(pattern);
                }
            }
            let mut placed = Vec::with_capacity(program.ops.len());
            for (index, op) in program.ops.iter().enumerate() {
                let Some((name, columns, info)) = places.find(index, &op.tap, step) else {
                    placed.push(None);
                    continue;
                };
                let tap = name.as_deref().unwrap_or(&op.tap);
                if !info.dtype.is_float() && op.kind.discrete().is_none() {
                    return Err(Error::WholeNumbers { file: file(), tap: tap.into() });
                }
                let input = &steps[number];
                let wanted = places.wanted(index, op, input, &counts, columns.as_ref());
                if partial.is_some() && places.is_added_up(op) {
                    parts.push((tap::pattern(tap), number));
                    placed.push(None);
                    continue;
                }
                let Some(mut placement) = place(&info.shape, &wanted) else {
                    if partial.is_some() {
                        parts.push((tap::pattern(tap), number));
                        placed.push(None);
                        continue;
                    }
                    return Err(steps::misfit(step, input, tap, info, &op.axes, &wanted));
                };
                placement.neighbours = places.neighbours(index, op);
                steps::check_rows(step, input, tap, &placement, &op.axes)?;
                if placement.permute.is_some() && permuted.insert(tap::pattern(tap)) {
                    alignment.permuted.push(tap::pattern(tap));
                }
                beyond.extend(placement.beyond);
                let columns = columns.map(|c| (c.first, c.count));
                placed.push(Some(Recorded { name, columns, placement }));
            }
            alignment.placements.push(placed);
        }
        if let (Some(&most), Some(&fewest)) = (beyond.last(), beyond.first()) {
            let how_many = if most == fewest { most.to_string() } else { format!("{fewest} to {most}") };
            alignment
                .notes
                .push(format!("{how_many} columns of the logits beyond the vocabulary are not compared"));
        }
        let unordered = out_of_order(trace, program, &alignment, &steps)?;
        let declared = |step: usize, layer| trace.steps[step].keys.of(layer).is_some();
        let recorded = |op: usize, step: usize| alignment.placements[step][op].is_some();
        alignment.reach = Reach::new(&Known {
            program,
            steps: &steps,
            incomplete: &incomplete,
            declared: &declared,
            recorded: &recorded,
            unordered: &unordered,
            unmodelled: &unmodelled(trace),
        });
        for (tap, step) in parts {
            alignment.reach.leave(&tap, step, partial.as_deref().unwrap_or_default());
        }
        alignment.steps = steps;
        Ok(alignment)
    }

    /// Whether any step has a value of an operation.
    pub fn is_recorded(&self, op: usize) -> bool {
        self.placements.iter().any(|step| step[op].is_some())
    }

    /// Reads a recorded value in its operation's axes.
    pub fn read<T: Real>(
        &self,
        step: usize,
        op: usize,
        name: &str,
        file: &Step,
    ) -> Result<Option<Tensor<T>>, Error> {
        let Some(recorded) = &self.placements[step][op] else { return Ok(None) };
        let name = recorded.name.as_deref().unwrap_or(name);
        let Some(tensor) = file.read::<T>(name)? else { return Ok(None) };
        let found = tensor.shape().to_vec();
        let tensor = match recorded.columns {
            None => Some(tensor),
            Some((first, count)) => columns(tensor, first, count),
        };
        let misread = |expected: &[usize]| Error::Shape {
            file: file.path().into(),
            tap: name.into(),
            found: found.clone(),
            expected: expected.to_vec(),
        };
        let placement = &recorded.placement;
        let tensor = tensor.ok_or_else(|| misread(&placement.grouped))?;
        let mut tensor = placement.apply(tensor).ok_or_else(|| misread(&placement.grouped))?;
        if let Some((_, undo)) = self.late.as_ref().filter(|(logits, _)| *logits == op) {
            undo.undo(step, file, &mut tensor);
        }
        Ok(Some(tensor))
    }
}

/// Some columns of the last axis.
fn columns<T: Real>(tensor: Tensor<T>, first: usize, count: usize) -> Option<Tensor<T>> {
    let last = tensor.shape().len().checked_sub(1)?;
    if first + count > tensor.shape()[last] {
        return None;
    }
    Some(tensor.select(last, &(first..first + count).collect::<Vec<_>>()))
}

/// Columns of a fused product.
#[derive(Clone, Copy, Debug)]
struct Columns {
    first: usize,
    count: usize,
    of: usize,
}

/// Where else than under its own name the value of an operation may be recorded.
struct Places<'a> {
    program: &'a Program,
    last_cache: usize,
    /// By operation.
    elsewhere: HashMap<usize, (String, Option<Columns>)>,
    /// Taps of layers that are read so.
    read: HashSet<String>,
    layout: Layout,
    /// The head size of what a later operation takes for heads.
    heads: Vec<Option<(usize, usize)>>,
}

impl<'a> Places<'a> {
    fn new(program: &'a Program, layout: Layout) -> Places<'a> {
        let mut elsewhere = HashMap::new();
        let find: HashMap<&str, usize> =
            program.ops.iter().enumerate().map(|(i, op)| (op.tap.as_str(), i)).collect();
        let width = |op: usize| match program.ops[op].axes.as_slice() {
            [Axis::Tokens, Axis::Channels(n)] => Some(*n),
            _ => None,
        };
        for (index, op) in program.ops.iter().enumerate() {
            let (Some(layer), rest) = tap::split(&op.tap) else { continue };
            let at = |name: &str| tap::in_layer(layer, name);
            if rest == "experts_out" && !find.contains_key(at("mlp_out").as_str()) {
                elsewhere.insert(index, (at("mlp_out"), None));
            }
            for (fused, parts) in FUSED {
                let of: Option<Vec<(usize, usize)>> = parts
                    .iter()
                    .map(|part| find.get(at(part).as_str()).and_then(|&op| Some((op, width(op)?))))
                    .collect();
                let (Some(of), false) = (of, find.contains_key(at(fused).as_str())) else { continue };
                let mut first = 0;
                let total = of.iter().map(|p| p.1).sum();
                for (part, count) in of {
                    if part == index {
                        elsewhere.insert(index, (at(fused), Some(Columns { first, count, of: total })));
                    }
                    first += count;
                }
            }
        }
        let heads = (0..program.ops.len()).map(|op| heads(program, op)).collect();
        let read = elsewhere.values().map(|(name, _)| name.clone()).collect();
        let last_cache = program.ops.iter().rposition(|op| op.kind.state().is_some()).unwrap_or(0);
        Places { program, last_cache, elsewhere, read, layout, heads }
    }

    /// Whether a tap that no operation has is read as the value of one.
    fn is_read(&self, layer: Option<usize>, rest: &str) -> bool {
        layer.is_some_and(|layer| self.read.contains(&tap::in_layer(layer, rest)))
    }

    /// The recorded value of an operation: its name where that is another, its columns, its shape.
    fn find<'s>(
        &self,
        op: usize,
        name: &str,
        step: &'s Step,
    ) -> Option<(Option<String>, Option<Columns>, &'s TapInfo)> {
        if let Some(info) = step.taps().get(name) {
            return Some((None, None, info));
        }
        let (name, columns) = self.elsewhere.get(&op)?;
        let info = step.taps().get(name)?;
        Some((Some(name.clone()), *columns, info))
    }

    /// The shape that the recorded value should have.
    fn wanted(
        &self,
        index: usize,
        op: &firstdiff_model::Op,
        step: &StepInput,
        counts: &Counts,
        columns: Option<&Columns>,
    ) -> Wanted {
        let axis = step.keys.of(tap::split(&op.tap).0);
        let counts = Counts { keys: axis.map_or(counts.keys, |axis| axis.len()), ..counts.clone() };
        let mut extents = counts.extents(&op.axes);
        let whole = columns.map(|c| c.of);
        let whole_run = !self.layout.rank.is_some_and(|rank| rank.is_partial());
        if let (Some(last), Some(whole)) = (extents.last_mut(), whole) {
            *last = whole;
        }
        Wanted {
            axes: op.axes.clone(),
            extents,
            columns: columns.map(|c| c.count),
            heads: self.heads[index].filter(|_| columns.is_none()),
            // Part of the heads or channels is not part of the keys or rows.
            fewer_rows: index > self.last_cache && (whole_run || tap::split(&op.tap).0.is_none()),
            fewer_keys: axis.is_none() && whole_run,
            sequences: firstdiff_trace::in_order(&step.sequence).len(),
            padded: is_vocabulary(self.program, index),
            letters: self.letters(&op.tap),
        }
    }

    /// The order of axes that the trace declares for a tap.
    fn letters(&self, tap: &str) -> Option<String> {
        let pattern = tap::pattern(tap);
        let of = |(glob, _): &(&String, &String)| tap::matches(glob, tap) || **glob == pattern;
        self.layout.axes.iter().find(of).map(|(_, letters)| letters.clone())
    }

    /// The head size, where the channels that rotate together lie side by side.
    fn neighbours(&self, index: usize, op: &firstdiff_model::Op) -> Option<usize> {
        const ROTATED: [&str; 7] = ["q_proj", "k_proj", "q_norm", "k_norm", "q_rope", "k_rope", "k_cache"];
        let named = ROTATED.contains(&tap::split(&op.tap).1);
        if self.layout.rope_order == RopeOrder::Halves || !named {
            return None;
        }
        match *op.axes.as_slice() {
            [.., Axis::Heads(_), Axis::Channels(dim)] => Some(dim),
            _ => self.heads[index].map(|(_, dim)| dim),
        }
    }

    /// Whether ranks hold partial sums of a value until they are added up.
    fn is_added_up(&self, op: &firstdiff_model::Op) -> bool {
        ["attn_out", "mlp_out", "experts_out", "shared_out"].contains(&tap::split(&op.tap).1)
    }
}

/// Why what a rank holds a part of is not compared.
fn part_of_a_run(rank: Rank) -> String {
    let share = rank.tensor.filter(|s| s.of > 1).or(rank.expert);
    let (rank, of) = share.map_or((0, 1), |s| (s.rank, s.of));
    format!("rank {rank} of {of} holds a part of it, and the parts of a run are not joined yet")
}

/// The heads and their size into which the next operation divides an operation's channels.
fn heads(program: &Program, op: usize) -> Option<(usize, usize)> {
    let &[Axis::Tokens, Axis::Channels(width)] = program.ops[op].axes.as_slice() else { return None };
    let reader = program.ops.iter().find(|r| r.inputs.first() == Some(&Value(op)))?;
    match *reader.axes.as_slice() {
        [.., Axis::Heads(heads), Axis::Channels(dim)] if heads * dim == width => Some((heads, dim)),
        _ => None,
    }
}

/// Whether the channels of an operation are tokens: engines pad them.
fn is_vocabulary(program: &Program, op: usize) -> bool {
    let last = program.ops.len() - 1;
    let before = program.ops[last].inputs.first().map(|v| v.0);
    let capped = matches!(program.ops[last].kind, OpKind::SoftCap(_));
    op == last || capped && before == Some(op)
}

/// Whose key an entry is.
pub(crate) fn label(key: &Option<firstdiff_trace::Key>) -> KeyLabel {
    key.map_or(KeyLabel::EMPTY, |k| KeyLabel { sequence: k.sequence, position: k.position })
}

/// What incomplete sequences a step has, by whether it has one sequence alone.
pub(crate) fn only<'i>(step: &StepInput, incomplete: &'i [Incomplete]) -> Option<&'i Incomplete> {
    let first = step.sequence.first()?;
    step.sequence
        .iter()
        .all(|q| q == first)
        .then(|| incomplete.iter().find(|i| i.sequence == *first))
        .flatten()
}
