//! How a stored shape holds the axes of an operation.

use firstdiff_model::Axis;
use firstdiff_tensor::{Real, Tensor};

/// How a recorded tensor is brought to the axes of its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The stored shape with merged axes split, before the permutation.
    pub grouped: Vec<usize>,
    /// Axis order to apply, where the engine wrote the axes in another one.
    pub permute: Option<Vec<usize>>,
    /// The operation's shape, where that groups axes otherwise than `grouped` after the permutation.
    pub shape: Vec<usize>,
    /// Columns past the vocabulary, which are cut off.
    pub beyond: Option<usize>,
    /// The head size, where pairs of channels that rotate together lie side by side.
    pub neighbours: Option<usize>,
}

impl Placement {
    fn plain(shape: Vec<usize>) -> Placement {
        Placement { grouped: shape.clone(), permute: None, shape, beyond: None, neighbours: None }
    }

    /// Brings a stored tensor to the operation's axes; `None` where it has another number of elements.
    pub fn apply<T: Real>(&self, tensor: Tensor<T>) -> Option<Tensor<T>> {
        let mut tensor = tensor.reshape(self.grouped.clone()).ok()?;
        if let Some(order) = &self.permute {
            tensor = tensor.permute(order);
        }
        if let Some(beyond) = self.beyond {
            let last = tensor.shape().len().checked_sub(1)?;
            let kept = tensor.shape()[last].checked_sub(beyond)?;
            tensor = tensor.select(last, &(0..kept).collect::<Vec<_>>());
        }
        if let Some(dim) = self.neighbours {
            apart(&mut tensor, dim);
        }
        tensor.reshape(self.shape.clone()).ok()
    }
}

/// Brings channels 2i and 2i + 1 of each head to i and i + D/2.
fn apart<T: Real>(tensor: &mut Tensor<T>, dim: usize) {
    let mut head = Vec::with_capacity(dim);
    for channels in tensor.data_mut().chunks_exact_mut(dim.max(1)) {
        head.clear();
        head.extend_from_slice(channels);
        for i in 0..dim / 2 {
            (channels[i], channels[i + dim / 2]) = (head[2 * i], head[2 * i + 1]);
        }
    }
}

/// What a recorded tensor should hold.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The operation's axes.
    pub axes: Vec<Axis>,
    /// Their extents, as they are stored.
    pub extents: Vec<usize>,
    /// Of a fused product, how many columns are the operation's.
    pub columns: Option<usize>,
    /// Heads and their size, of channels that hold heads.
    pub heads: Option<(usize, usize)>,
    /// Whether the last rows alone may have been computed.
    pub fewer_rows: bool,
    /// Whether the last keys alone may be there.
    pub fewer_keys: bool,
    /// Sequences in the step.
    pub sequences: usize,
    /// Whether there may be more columns than the model has.
    pub padded: bool,
    /// The order of axes that the trace declares, by letters of `T H D K C`.
    pub letters: Option<String>,
}

impl Wanted {
    /// The axis of tokens, where these are of one sequence: they are never split.
    fn unsplit(&self) -> Option<usize> {
        self.axes.iter().position(|axis| *axis == Axis::Tokens).filter(|_| self.sequences < 2)
    }
}

/// Finds how `found` holds the axes: as they are, in another grouping, with only the last rows or keys, or in another
/// order.
pub(crate) fn place(found: &[usize], wanted: &Wanted) -> Option<Placement> {
    let full = &wanted.extents;
    if full.contains(&0) {
        // Nothing was computed, whatever shape nothing was written in.
        return found.contains(&0).then(|| Placement::plain(full.clone()));
    }
    if found.contains(&0) {
        return None;
    }
    if let Some(letters) = &wanted.letters {
        return declared(found, wanted, letters);
    }
    let plain = |shape: &[usize]| {
        regroups(found, shape, wanted.unsplit()).then(|| {
            let mut shape = shape.to_vec();
            if let (Some(last), Some(columns)) = (shape.last_mut(), wanted.columns) {
                *last = columns;
            }
            Placement::plain(shape)
        })
    };
    if let Some(placement) = plain(full) {
        return Some(placement);
    }
    let count: usize = found.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // Only the last rows, or only the last keys: the element count tells how many.
    let partial = |axis: usize| {
        let others: usize = full.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, n)| n).product();
        let fewer = count.checked_div(others).filter(|fewer| fewer * others == count)?;
        let mut shape = full.clone();
        if !(1..shape[axis]).contains(&fewer) {
            return None;
        }
        shape[axis] = fewer;
        plain(&shape)
    };
    let keys = wanted.axes.iter().position(|axis| matches!(axis, Axis::Keys | Axis::Candidates(_)));
    let tokens = wanted.axes.iter().position(|axis| *axis == Axis::Tokens);
    match (keys, tokens) {
        (Some(axis), _) if wanted.fewer_keys => {
            if let Some(placement) = partial(axis) {
                return Some(placement);
            }
        }
        (_, Some(axis)) if wanted.fewer_rows => {
            if let Some(placement) = partial(axis) {
                return Some(placement);
            }
        }
        _ => {}
    }
    if let Some(placement) = beyond(found, wanted) {
        return Some(placement);
    }
    reordered(found, wanted)
}

/// In the order of axes that the trace declares.
fn declared(found: &[usize], wanted: &Wanted, letters: &str) -> Option<Placement> {
    let mut axes: Vec<(char, usize)> = Vec::new();
    for (axis, &extent) in wanted.axes.iter().zip(&wanted.extents) {
        match (axis, wanted.heads) {
            (Axis::Tokens, _) => axes.push(('T', extent)),
            (Axis::Keys | Axis::Candidates(_), _) => axes.push(('K', extent)),
            (Axis::Heads(_), _) => axes.push(('H', extent)),
            (Axis::Channels(_), Some((heads, dim))) if letters.contains('H') => {
                axes.extend([('H', heads), ('D', dim)]);
            }
            (Axis::Channels(_), _) => axes.push((if letters.contains('C') { 'C' } else { 'D' }, extent)),
            _ => return None,
        }
    }
    let order: Option<Vec<usize>> =
        letters.chars().map(|l| axes.iter().position(|(axis, _)| *axis == l)).collect();
    let order = order.filter(|order| order.len() == axes.len())?;
    // Fewer rows or keys than all: told by the number of elements.
    let count: usize = found.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let total: usize = axes.iter().map(|(_, n)| n).product();
    let mut shape = wanted.extents.clone();
    let fewer = [('K', wanted.fewer_keys), ('T', wanted.fewer_rows)].into_iter().find(|(_, may)| *may);
    if let (Some((letter, _)), true) = (fewer, count < total) {
        let axis = axes.iter().position(|(axis, _)| *axis == letter)?;
        let held =
            count.checked_div(total / axes[axis].1).filter(|held| held * (total / axes[axis].1) == count)?;
        axes[axis].1 = held;
        let place = wanted.axes.iter().position(|a| match letter {
            'T' => *a == Axis::Tokens,
            _ => matches!(a, Axis::Keys | Axis::Candidates(_)),
        })?;
        shape[place] = held;
    }
    let stored: Vec<usize> = order.iter().map(|&axis| axes[axis].1).collect();
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &axis)| back[axis] = i);
    regroups(found, &stored, None).then(|| Placement {
        grouped: stored,
        permute: (!back.is_sorted()).then_some(back),
        shape,
        beyond: None,
        neighbours: None,
    })
}

/// More columns than the vocabulary has: `[.., rows, V + n]`.
fn beyond(found: &[usize], wanted: &Wanted) -> Option<Placement> {
    let (&[tokens, columns], true) = (wanted.extents.as_slice(), wanted.padded) else { return None };
    let (&last, before) = found.split_last()?;
    let rows: usize = before.iter().product();
    let fits = last > columns && (rows == tokens || wanted.fewer_rows && (1..tokens).contains(&rows));
    fits.then(|| Placement {
        grouped: vec![rows, last],
        permute: None,
        shape: vec![rows, columns],
        beyond: Some(last - columns),
        neighbours: None,
    })
}

/// The same axes in another order, of the operation's own or with its heads apart.
fn reordered(found: &[usize], wanted: &Wanted) -> Option<Placement> {
    if wanted.columns.is_some() {
        return None;
    }
    let try_orders = |full: &[usize]| {
        permutations(full.len()).into_iter().find_map(|order| {
            let stored: Vec<usize> = order.iter().map(|&a| full[a]).collect();
            let mut back = vec![0; order.len()];
            order.iter().enumerate().for_each(|(i, &a)| back[a] = i);
            let placement = || Placement {
                grouped: stored.clone(),
                permute: Some(back),
                shape: wanted.extents.clone(),
                beyond: None,
                neighbours: None,
            };
            let tokens = wanted.unsplit().and_then(|tokens| order.iter().position(|axis| *axis == tokens));
            regroups(found, &stored, tokens).then(placement)
        })
    };
    let apart = wanted.heads.map(|(heads, dim)| vec![wanted.extents[0], heads, dim]);
    try_orders(&wanted.extents).or_else(|| apart.and_then(|full| try_orders(&full)))
}

/// Whether two shapes hold the same axes in the same order, adjacent ones merged or split: each extent of one is a product
/// of consecutive extents of the other. `tokens`: the axis that is not split, because that would be a batch.
fn regroups(found: &[usize], wanted: &[usize], tokens: Option<usize>) -> bool {
    let mut a = found.iter().copied().filter(|&d| d != 1).peekable();
    let mut b = wanted.iter().copied().enumerate().filter(|&(_, d)| d != 1).peekable();
    loop {
        let (Some(mut left), Some((axis, mut right))) = (a.next(), b.next()) else {
            return a.peek().is_none() && b.peek().is_none() && same_count(found, wanted);
        };
        let (mut of_left, mut of_right) = (1, 1);
        while left != right {
            if left < right {
                let Some(next) = a.next().and_then(|d| left.checked_mul(d)) else { return false };
                (left, of_left) = (next, of_left + 1);
            } else {
                let Some(next) = b.next().and_then(|(_, d)| right.checked_mul(d)) else { return false };
                (right, of_right) = (next, of_right + 1);
            }
        }
        if of_left > 1 && (of_right > 1 || tokens == Some(axis)) {
            return false;
        }
    }
}

fn same_count(a: &[usize], b: &[usize]) -> bool {
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    count(a).is_some() && count(a) == count(b)
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
    use firstdiff_model::Counts;

    use super::*;

    const QUERIES: [Axis; 3] = [Axis::Tokens, Axis::Heads(4), Axis::Channels(8)];
    const PROJECTED: [Axis; 2] = [Axis::Tokens, Axis::Channels(32)];
    const SCORES: [Axis; 3] = [Axis::Heads(4), Axis::Tokens, Axis::Keys];

    /// Five tokens, seven keys, and of entries of two tokens three, of which one is new.
    fn wanted(axes: &[Axis], fewer_rows: bool) -> Wanted {
        let entries = vec![firstdiff_model::EntryCount { ratio: 2, all: 3, new: 1 }];
        Wanted {
            axes: axes.to_vec(),
            extents: Counts { tokens: 5, keys: 7, entries }.extents(axes),
            columns: None,
            heads: (axes == PROJECTED).then_some((4, 8)),
            fewer_rows,
            fewer_keys: true,
            sequences: 1,
            padded: false,
            letters: None,
        }
    }

    fn permute(found: &[usize], axes: &[Axis]) -> Option<Option<Vec<usize>>> {
        place(found, &wanted(axes, true)).map(|p| p.permute)
    }

    #[test]
    fn the_same_axes_in_another_grouping_are_taken_silently() {
        for found in [&[5, 4, 8][..], &[5, 32], &[1, 5, 4, 8], &[20, 8], &[5, 4, 2, 4], &[5, 1, 4, 8]] {
            assert_eq!(permute(found, &QUERIES), Some(None), "{found:?}");
            if found != [20, 8] {
                assert_eq!(permute(found, &PROJECTED), Some(None), "{found:?}");
            }
        }
        assert_eq!(place(&[5, 4, 8], &wanted(&PROJECTED, true)).unwrap().shape, [5, 32]);
    }

    #[test]
    fn another_order_of_axes_is_found() {
        assert_eq!(permute(&[4, 5, 8], &QUERIES), Some(Some(vec![1, 0, 2])));
        assert_eq!(permute(&[5, 4, 7], &SCORES), Some(Some(vec![1, 0, 2])));
        assert_eq!(permute(&[32, 5], &PROJECTED), Some(Some(vec![1, 0])));
        let heads_first = place(&[4, 5, 8], &wanted(&PROJECTED, true)).unwrap();
        assert_eq!(
            (heads_first.permute.as_deref(), heads_first.shape.as_slice()),
            (Some(&[1, 0, 2][..]), &[5, 32][..])
        );
        let x = Tensor::new([4, 5, 8], (0..160).map(f64::from).collect()).unwrap();
        assert_eq!(heads_first.apply(x.clone()).unwrap().data()[8..10], [x.data()[40], x.data()[41]]);
    }

    #[test]
    fn the_last_rows_or_keys_alone_are_accepted() {
        assert_eq!(place(&[2, 32], &wanted(&QUERIES, true)).unwrap().grouped, [2, 4, 8]);
        assert_eq!(place(&[2, 32], &wanted(&QUERIES, false)), None);
        assert_eq!(place(&[4, 5, 6], &wanted(&SCORES, false)).unwrap().grouped, [4, 5, 6]);
        let declared = Wanted { fewer_keys: false, ..wanted(&SCORES, false) };
        assert_eq!(place(&[4, 5, 6], &declared), None, "a declared axis has all its keys");
    }

    #[test]
    fn candidates_are_keys_and_entries_of_which_the_last_may_stand_alone() {
        let axes = [Axis::Heads(4), Axis::Tokens, Axis::Candidates(2)];
        for columns in [10, 8, 4] {
            let found = place(&[4, 5, columns], &wanted(&axes, false)).unwrap();
            assert_eq!(found.grouped, [4, 5, columns]);
        }
        assert_eq!(place(&[4, 5, 11], &wanted(&axes, false)), None);
        let entries = [Axis::NewEntries(3), Axis::Channels(8)];
        let none = Wanted { extents: vec![0, 8], ..wanted(&entries, false) };
        assert_eq!(place(&[0, 8], &none).unwrap().grouped, [0, 8], "none is complete");
    }

    #[test]
    fn columns_past_the_vocabulary_are_cut_off() {
        let padded = Wanted { padded: true, ..wanted(&PROJECTED, true) };
        let p = place(&[5, 40], &padded).unwrap();
        assert_eq!((p.beyond, p.shape.as_slice()), (Some(8), &[5, 32][..]));
        assert_eq!(place(&[1, 40], &padded).unwrap().shape, [1, 32], "of the last row");
        assert_eq!(place(&[5, 40], &wanted(&PROJECTED, true)), None);
        let x = Tensor::new([1, 40], (0..40).map(f64::from).collect()).unwrap();
        assert_eq!(place(&[1, 40], &padded).unwrap().apply(x).unwrap().data()[31], 31.0);
    }

    #[test]
    fn tokens_of_one_sequence_are_not_split_into_a_batch() {
        let two = Wanted { extents: vec![6, 32], sequences: 2, ..wanted(&PROJECTED, true) };
        assert!(place(&[2, 3, 32], &two).is_some());
        assert_eq!(place(&[2, 3, 32], &Wanted { sequences: 1, ..two }), None);
    }

    #[test]
    fn a_declared_order_of_axes_is_taken_at_its_word() {
        let square = Wanted { extents: vec![4, 4, 8], letters: Some("HTD".into()), ..wanted(&QUERIES, true) };
        assert_eq!(place(&[4, 4, 8], &square).unwrap().permute, Some(vec![1, 0, 2]), "extents do not tell");
        let same = Wanted { letters: Some("THD".into()), ..square.clone() };
        assert_eq!(place(&[4, 32], &same).unwrap().permute, None);
        let projected = Wanted { letters: Some("HTD".into()), ..wanted(&PROJECTED, true) };
        let p = place(&[4, 5, 8], &projected).unwrap();
        assert_eq!((p.permute, p.shape), (Some(vec![1, 0, 2]), vec![5, 32]));
        let last = Wanted { letters: Some("THK".into()), ..wanted(&SCORES, true) };
        assert_eq!(place(&[5, 4, 3], &last).unwrap().shape, [4, 5, 3], "the last three keys");
        assert_eq!(place(&[4, 5, 8], &Wanted { letters: Some("KTD".into()), ..square }), None);
    }

    #[test]
    fn neighbouring_pairs_are_brought_apart() {
        let mut x = Tensor::new([1, 2, 4], (0..8).map(f64::from).collect()).unwrap();
        apart(&mut x, 4);
        assert_eq!(x.data(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn other_shapes_are_refused() {
        for found in [&[5, 33][..], &[6, 32], &[5, 4, 4, 4], &[0], &[], &[10, 2, 8], &[usize::MAX, 2]] {
            assert_eq!(permute(found, &QUERIES), None, "{found:?}");
        }
    }
}
