//! Which recorded values belong to which operations, in which shape.

use std::collections::BTreeMap;

use firstdiff_model::{Axis, Counts, Program};
use firstdiff_reference::{StepInput, counts};
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::{Step, Trace, tap};

use crate::Error;
use crate::replay::input;
use crate::tokens::late::Undo;

/// How a recorded tensor is brought to the axes of its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Axis order to apply, where the engine wrote the axes in another one.
    pub permute: Option<Vec<usize>>,
    /// The stored shape with merged axes split, before the permutation.
    pub grouped: Vec<usize>,
}

/// The recorded values of a trace, placed on a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alignment {
    /// For each step, for each operation, how its recorded value is read.
    pub placements: Vec<Vec<Option<Placement>>>,
    /// Recorded names that no operation has.
    pub unknown: Vec<String>,
    /// Taps whose axes were given in another order.
    pub permuted: Vec<String>,
    /// Operations over the vocabulary that were recorded with more columns: tokens, and columns.
    pub padded: BTreeMap<usize, [usize; 2]>,
    /// The place of the logits, and what a sampler had done to them when they were recorded.
    pub late: Option<(usize, Undo)>,
}

impl Alignment {
    pub fn new(trace: &Trace, program: &Program) -> Result<Alignment, Error> {
        let layers = program.ops.iter().filter_map(|op| tap::split(&op.tap).0).max().map_or(0, |l| l + 1);
        let last_cache = program.ops.iter().rposition(|op| op.kind.state().is_some()).unwrap_or(0);
        let mut alignment = Alignment::default();
        let inputs: Vec<StepInput> = trace.steps.iter().map(input).collect();
        for (step, counts) in trace.steps.iter().zip(counts(&inputs, &program.ratios())) {
            for name in step.taps().keys() {
                if tap::split(name).0.is_some_and(|layer| layer >= layers) {
                    return Err(Error::Layer { file: step.path().into(), tap: name.clone(), layers });
                }
                let pattern = tap::pattern(name);
                if program.find(name).is_none() && !alignment.unknown.contains(&pattern) {
                    alignment.unknown.push(pattern);
                }
            }
            let mut placed = Vec::with_capacity(program.ops.len());
            for (index, op) in program.ops.iter().enumerate() {
                let Some(info) = step.taps().get(&op.tap) else {
                    placed.push(None);
                    continue;
                };
                if !info.dtype.is_float() && op.kind.discrete().is_none() {
                    return Err(Error::WholeNumbers { file: step.path().into(), tap: op.tap.clone() });
                }
                let fewer_rows = index > last_cache;
                let shape = match padded(&op.tap, &info.shape, &counts.extents(&op.axes)) {
                    Some((shape, columns)) => {
                        alignment.padded.insert(index, columns);
                        shape
                    }
                    None => info.shape.clone(),
                };
                let Some(placement) = place(&shape, &op.axes, &counts, fewer_rows) else {
                    return Err(Error::Shape {
                        file: step.path().into(),
                        tap: op.tap.clone(),
                        found: info.shape.clone(),
                        expected: counts.extents(&op.axes),
                    });
                };
                let pattern = tap::pattern(&op.tap);
                if placement.permute.is_some() && !alignment.permuted.contains(&pattern) {
                    alignment.permuted.push(pattern);
                }
                placed.push(Some(placement));
            }
            alignment.placements.push(placed);
        }
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
        let Some(placement) = &self.placements[step][op] else { return Ok(None) };
        let Some(mut tensor) = file.read::<T>(name)? else { return Ok(None) };
        if let Some(&[tokens, columns]) = self.padded.get(&op) {
            tensor = without_padding(tensor, tokens, columns);
        }
        let shape = tensor.shape().to_vec();
        let tensor = tensor.reshape(placement.grouped.clone()).map_err(|_| Error::Shape {
            file: file.path().into(),
            tap: name.into(),
            found: shape,
            expected: placement.grouped.clone(),
        })?;
        let mut tensor = match &placement.permute {
            Some(order) => tensor.permute(order),
            None => tensor,
        };
        if let Some((_, undo)) = self.late.as_ref().filter(|(logits, _)| *logits == op) {
            undo.undo(step, file, &mut tensor);
        }
        Ok(Some(tensor))
    }
}

/// The shape of logits without the columns that lie beyond the vocabulary, with how many tokens and columns there are:
/// engines make the output matrix a round number of rows.
fn padded(tap: &str, found: &[usize], expected: &[usize]) -> Option<(Vec<usize>, [usize; 2])> {
    let (&columns, &tokens) = (found.last()?, expected.last()?);
    if !matches!(tap, "logits" | "logits_raw") || columns <= tokens || tokens < 2 {
        return None;
    }
    // All rows flattened into one axis are no padding.
    if columns.is_multiple_of(tokens)
        && found.iter().filter(|&&d| d != 1).count() < 2
        && expected.first() != Some(&1)
    {
        return None;
    }
    let mut shape = found.to_vec();
    *shape.last_mut()? = tokens;
    Some((shape, [tokens, columns]))
}

/// The columns of the vocabulary alone.
fn without_padding<T: Real>(tensor: Tensor<T>, tokens: usize, columns: usize) -> Tensor<T> {
    let mut shape = tensor.shape().to_vec();
    match shape.last_mut() {
        Some(last) if *last == columns && columns > tokens => *last = tokens,
        _ => return tensor,
    }
    let data = tensor.data().chunks_exact(columns).flat_map(|row| row[..tokens].iter().copied()).collect();
    Tensor::new(shape, data).unwrap_or(tensor)
}

/// Finds how `found` holds the axes: as they are, with adjacent ones merged or extents of 1 added,
/// with only the last rows or keys, or in another order.
fn place(found: &[usize], axes: &[Axis], counts: &Counts, fewer_rows: bool) -> Option<Placement> {
    let squeezed: Vec<usize> = found.iter().copied().filter(|&d| d != 1).collect();
    let fits = |shape: &[usize]| {
        let mut wanted = shape.iter().copied().filter(|&d| d != 1).peekable();
        // Each stored extent must be a product of consecutive wanted ones.
        for &have in &squeezed {
            let mut product = 1usize;
            while product < have {
                product = product.checked_mul(wanted.next()?)?;
            }
            if product != have {
                return None;
            }
        }
        wanted.peek().is_none().then(|| shape.to_vec())
    };
    let full = counts.extents(axes);
    if full.contains(&0) {
        // Nothing was computed, whatever shape nothing was written in.
        return found.contains(&0).then_some(Placement { permute: None, grouped: full });
    }
    if let Some(grouped) = fits(&full) {
        return Some(Placement { permute: None, grouped });
    }
    let count: usize = found.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // Only the last rows, or only the last keys: the element count tells how many.
    let partial = |axis: usize| {
        let others: usize = full.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, n)| n).product();
        let fewer = count.checked_div(others)?;
        let mut shape = full.clone();
        if !(1..shape[axis]).contains(&fewer) {
            return None;
        }
        shape[axis] = fewer;
        fits(&shape).map(|grouped| Placement { permute: None, grouped })
    };
    let keys = |axis: &Axis| matches!(axis, Axis::Keys | Axis::Candidates(_));
    if let Some(axis) = axes.iter().position(keys) {
        if let Some(placement) = partial(axis) {
            return Some(placement);
        }
    } else if let (true, Some(axis)) = (fewer_rows, axes.iter().position(|a| *a == Axis::Tokens))
        && let Some(placement) = partial(axis)
    {
        return Some(placement);
    }
    permutations(full.len()).into_iter().find_map(|order| {
        let stored: Vec<usize> = order.iter().map(|&a| full[a]).collect();
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(i, &a)| back[a] = i);
        fits(&stored).map(|grouped| Placement { permute: Some(back), grouped })
    })
}

/// All orders of `n` axes but the plain one; programs have at most three.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    match n {
        2 => vec![vec![1, 0]],
        3 => vec![vec![1, 0, 2], vec![0, 2, 1], vec![1, 2, 0], vec![2, 0, 1], vec![2, 1, 0]],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERIES: [Axis; 3] = [Axis::Tokens, Axis::Heads(4), Axis::Channels(8)];
    const SCORES: [Axis; 3] = [Axis::Heads(4), Axis::Tokens, Axis::Keys];

    fn permute(found: &[usize], axes: &[Axis]) -> Option<Option<Vec<usize>>> {
        place(found, axes, &counts(), true).map(|p| p.permute)
    }

    /// Five tokens, seven keys, and of entries of two tokens three, of which one is new.
    fn counts() -> Counts {
        let entries = vec![firstdiff_model::EntryCount { ratio: 2, all: 3, new: 1 }];
        Counts { tokens: 5, keys: 7, entries }
    }

    #[test]
    fn the_same_axes_in_another_grouping_are_taken_silently() {
        for found in [&[5, 4, 8][..], &[5, 32], &[1, 5, 4, 8], &[20, 8]] {
            assert_eq!(permute(found, &QUERIES), Some(None), "{found:?}");
        }
    }

    #[test]
    fn another_order_of_axes_is_found() {
        assert_eq!(permute(&[4, 5, 8], &QUERIES), Some(Some(vec![1, 0, 2])));
        assert_eq!(permute(&[5, 4, 7], &SCORES), Some(Some(vec![1, 0, 2])));
    }

    #[test]
    fn the_last_rows_or_keys_alone_are_accepted() {
        assert_eq!(place(&[2, 32], &QUERIES, &counts(), true).unwrap().grouped, [2, 4, 8]);
        assert_eq!(place(&[2, 32], &QUERIES, &counts(), false), None);
        assert_eq!(place(&[4, 5, 6], &SCORES, &counts(), false).unwrap().grouped, [4, 5, 6]);
    }

    #[test]
    fn candidates_are_keys_and_entries_of_which_the_last_may_stand_alone() {
        let axes = [Axis::Heads(4), Axis::Tokens, Axis::Candidates(2)];
        for columns in [10, 8, 4] {
            let found = place(&[4, 5, columns], &axes, &counts(), false).unwrap();
            assert_eq!(found.grouped, [4, 5, columns]);
        }
        assert_eq!(place(&[4, 5, 11], &axes, &counts(), false), None);
        let entries = [Axis::NewEntries(3), Axis::Channels(8)];
        assert_eq!(place(&[0, 8], &entries, &counts(), false).unwrap().grouped, [0, 8], "none is complete");
    }

    #[test]
    fn columns_beyond_the_vocabulary_are_padding() {
        assert_eq!(padded("logits", &[5, 128], &[5, 96]), Some((vec![5, 96], [96, 128])));
        assert_eq!(padded("logits", &[128], &[5, 96]), Some((vec![96], [96, 128])));
        assert_eq!(padded("logits", &[5, 96], &[5, 96]), None);
        assert_eq!(padded("logits", &[480], &[5, 96]), None, "all rows in one axis");
        assert_eq!(padded("final_norm", &[5, 128], &[5, 96]), None);
        let logits = Tensor::<f64>::new([2, 3], vec![1.0, 2.0, 9.0, 3.0, 4.0, 9.0]).unwrap();
        assert_eq!(without_padding(logits, 2, 3).data(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn other_shapes_are_refused() {
        for found in [&[5, 33][..], &[6, 32], &[5, 4, 4, 4], &[0], &[]] {
            assert_eq!(permute(found, &QUERIES), None, "{found:?}");
        }
    }
}
