//! Which rows of one trace are which rows of the other.

use std::collections::{BTreeMap, HashMap};

use firstdiff_trace::{Step, TapInfo, Trace, tap};

use crate::Error;
use crate::tokens::{chosen, one_more_in_front};

/// Rows that follow one another in a step of both traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The step in each trace.
    pub steps: [usize; 2],
    /// The first row in each step.
    pub first: [usize; 2],
    /// Rows.
    pub rows: usize,
}

/// The rows that two traces have in common.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    /// In the order of the first trace.
    pub runs: Vec<Run>,
    /// Whether the traces are divided into steps differently, so that only whole rows can be compared.
    pub by_rows: bool,
    /// The step after which the traces chose different tokens.
    pub first_other_token: Option<usize>,
    /// Sequences that belong together by their prompts and have other numbers: in the first trace, in the second.
    pub renumbered: Vec<[i64; 2]>,
    /// Rows of each trace that are in no run.
    pub unpaired: [usize; 2],
}

/// Pairs the steps of two traces, or their rows by sequence and position where the steps differ, or where sequences
/// with one prompt have other numbers.
pub(crate) fn pair(a: &Trace, b: &Trace) -> Result<Pairing, Error> {
    let alike = |(x, y): (&Step, &Step)| x.positions == y.positions && x.sequence == y.sequence;
    let partners = partners(a, b)?;
    let renumbered: Vec<[i64; 2]> = partners.iter().map(|(x, y)| [*x, *y]).filter(|[x, y]| x != y).collect();
    let mut pairing = if renumbered.is_empty() && a.steps.iter().zip(&b.steps).all(alike) {
        by_steps(a, b)?
    } else {
        by_rows(a, b, &partners)?
    };
    pairing.renumbered = renumbered;
    let paired: usize = pairing.runs.iter().map(|run| run.rows).sum();
    pairing.unpaired = [a, b].map(|t| t.steps.iter().map(Step::rows).sum::<usize>() - paired);
    Ok(pairing)
}

/// One sequence: its tokens by position, as they went in first, and how many of them went in with its first step.
#[derive(Default)]
struct Text {
    ids: BTreeMap<i64, i64>,
    together: usize,
}

impl Text {
    fn all(trace: &Trace) -> BTreeMap<i64, Text> {
        let mut texts: BTreeMap<i64, Text> = BTreeMap::new();
        for step in &trace.steps {
            let mut begun: Vec<i64> = Vec::new();
            for ((&sequence, &position), &id) in
                step.sequence.iter().zip(&step.positions).zip(&step.token_ids)
            {
                let text = texts.entry(sequence).or_default();
                if text.ids.is_empty() {
                    begun.push(sequence);
                }
                text.ids.entry(position).or_insert(id);
                text.together += usize::from(begun.contains(&sequence));
            }
        }
        texts
    }

    /// Tokens that both have in common from the first common position on; `None` where they differ within what went in
    /// together: these are other prompts.
    fn common(&self, other: &Text) -> Option<usize> {
        let both = self.ids.iter().filter_map(|(at, id)| other.ids.get(at).map(|there| id == there));
        let n = both.clone().take_while(|same| *same).count();
        (n > 0 && n >= self.together.min(other.together).min(both.count())).then_some(n)
    }
}

/// Above so many sequences a side, sequences belong together by their numbers alone: comparing each with each takes the
/// square of their number.
const MOST: usize = 512;

/// For each sequence of the first trace, the one of the second with the same prompt. Of several, the one with the same
/// number, then the one that has most tokens in common.
fn partners(a: &Trace, b: &Trace) -> Result<BTreeMap<i64, i64>, Error> {
    let (here, there) = (Text::all(a), Text::all(b));
    let by_number = || here.keys().filter(|q| there.contains_key(*q)).map(|q| (*q, *q)).collect();
    let same = |q: &i64| here.get(q).zip(there.get(q)).is_none_or(|(x, y)| x.common(y).is_some());
    if here.keys().all(same) && here.keys().any(|q| there.contains_key(q))
        || here.len().max(there.len()) > MOST
    {
        return Ok(by_number());
    }
    let mut found: Vec<(usize, bool, i64, i64)> = Vec::new();
    for (x, text) in &here {
        found.extend(there.iter().filter_map(|(y, other)| Some((text.common(other)?, x == y, *x, *y))));
    }
    // Whatever was chosen later: the prompts decide, and of equal ones the number.
    found.sort_by_key(|&(common, numbered, x, y)| (!numbered, std::cmp::Reverse(common), x, y));
    let (mut pairs, mut taken) = (BTreeMap::new(), Vec::new());
    for (_, _, x, y) in found {
        if !pairs.contains_key(&x) && !taken.contains(&y) {
            pairs.insert(x, y);
            taken.push(y);
        }
    }
    if pairs.is_empty() && !here.is_empty() && !there.is_empty() {
        return Err(other_prompts(a, &here, &there));
    }
    Ok(pairs)
}

/// What is said where no prompt of one trace is in the other.
fn other_prompts(a: &Trace, here: &BTreeMap<i64, Text>, there: &BTreeMap<i64, Text>) -> Error {
    let ids = |texts: &BTreeMap<i64, Text>| -> Vec<i64> {
        texts.values().next().map_or_else(Vec::new, |t| t.ids.values().copied().collect())
    };
    let (x, y) = (ids(here), ids(there));
    let first = here.values().next().zip(there.values().next());
    let differ = first.and_then(|(p, q)| {
        p.ids
            .iter()
            .find_map(|(at, id)| q.ids.get(at).filter(|other| *other != id).map(|other| (*at, *id, *other)))
    });
    let step = |at: i64| a.steps.iter().position(|s| s.positions.contains(&at)).unwrap_or(0);
    if let Some(front) = one_more_in_front(&x, &y, ["the first", "the second"]) {
        return Error::Tokens { step: 0, reason: front };
    }
    match differ {
        Some((at, p, q)) => {
            let reason = format!("at position {at} one has {p} where the other has {q}");
            Error::Tokens { step: step(at), reason }
        }
        None => Error::Tokens { step: 0, reason: "no sequence and position is in both".to_string() },
    }
}

fn by_steps(a: &Trace, b: &Trace) -> Result<Pairing, Error> {
    let mut pairing = Pairing::default();
    for (s, (x, y)) in a.steps.iter().zip(&b.steps).enumerate() {
        if let Some(i) = x.token_ids.iter().zip(&y.token_ids).position(|(p, q)| p != q) {
            pairing.first_other_token = Some(fork(s, x, x.token_ids[i], y.token_ids[i])?);
            break;
        }
        pairing.runs.push(Run { steps: [s, s], first: [0, 0], rows: x.rows() });
        let mut sequences = x.sequence.clone();
        sequences.dedup();
        if sequences.iter().any(|q| chosen(x, *q).zip(chosen(y, *q)).is_some_and(|(x, y)| x != y)) {
            pairing.first_other_token = Some(s);
            break;
        }
    }
    Ok(pairing)
}

/// The step after which another token was chosen; an error where the token was part of a prompt.
fn fork(step: usize, at: &Step, a: i64, b: i64) -> Result<usize, Error> {
    match step.checked_sub(1) {
        Some(previous) if at.rows() == 1 || at.sequence.iter().any(|&q| q != 0) => Ok(previous),
        _ => Err(Error::Tokens { step, reason: format!("one has {a} where the other has {b}") }),
    }
}

fn by_rows(a: &Trace, b: &Trace, partners: &BTreeMap<i64, i64>) -> Result<Pairing, Error> {
    let mut there = HashMap::new();
    for (s, step) in b.steps.iter().enumerate() {
        for (row, (&sequence, &position)) in step.sequence.iter().zip(&step.positions).enumerate() {
            there.insert((sequence, position), (s, row));
        }
    }
    let mut pairing = Pairing { by_rows: true, ..Pairing::default() };
    // Past its first other token a sequence is another text.
    let mut forked = Vec::new();
    for (s, step) in a.steps.iter().enumerate() {
        for (row, (&sequence, &position)) in step.sequence.iter().zip(&step.positions).enumerate() {
            let partner = partners.get(&sequence).copied();
            let Some(&(t, other)) = partner.and_then(|q| there.get(&(q, position))) else { continue };
            if forked.contains(&sequence) {
                continue;
            }
            let (x, y) = (step.token_ids[row], b.steps[t].token_ids[other]);
            if x != y {
                let after = fork(s, step, x, y)?;
                pairing.first_other_token.get_or_insert(after);
                forked.push(sequence);
                continue;
            }
            match pairing.runs.last_mut() {
                Some(run)
                    if run.steps == [s, t]
                        && run.first[0] + run.rows == row
                        && run.first[1] + run.rows == other =>
                {
                    run.rows += 1;
                }
                _ => pairing.runs.push(Run { steps: [s, t], first: [row, other], rows: 1 }),
            }
        }
    }
    if pairing.runs.is_empty() {
        let reason = "no sequence and position is in both".to_string();
        return Err(Error::Tokens { step: 0, reason });
    }
    Ok(pairing)
}

/// The elements of a tap that a run of rows holds: first element in each trace, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First element in each tap.
    pub first: [usize; 2],
    /// Elements.
    pub elements: usize,
}

/// The elements that two recordings of a whole step share: all, or the last rows where one of them has
/// fewer (engines may compute logits for the last row alone). `None`: the shapes do not belong together.
pub(crate) fn whole(a: &TapInfo, b: &TapInfo) -> Option<Span> {
    let (m, n) = (a.elements(), b.elements());
    let elements = m.min(n);
    let fits = elements > 0 && m.is_multiple_of(elements) && n.is_multiple_of(elements);
    (fits || m == n).then_some(Span { first: [m - elements, n - elements], elements })
}

/// The elements of the rows of `run`; `Ok(None)` where the taps hold none of them.
pub(crate) fn rows(
    run: &Run,
    (a, tokens_a): (&TapInfo, usize),
    (b, tokens_b): (&TapInfo, usize),
) -> Result<Option<Span>, ()> {
    // A shape alone may be read in two ways: `1,3` is three rows or one. The two sides' rows have one length.
    let reading = by_row(a, tokens_a).find_map(|(rows_a, width)| {
        by_row(b, tokens_b).find(|(_, other)| *other == width).map(|(rows_b, _)| (rows_a, rows_b, width))
    });
    let Some((rows_a, rows_b, width)) = reading else { return Err(()) };
    // Taps with fewer rows than the step hold the last ones.
    let (missing_a, missing_b) = (tokens_a - rows_a, tokens_b - rows_b);
    let skip = missing_a.saturating_sub(run.first[0]).max(missing_b.saturating_sub(run.first[1]));
    if skip >= run.rows || width == 0 {
        return Ok(None);
    }
    let first = [(run.first[0] + skip - missing_a) * width, (run.first[1] + skip - missing_b) * width];
    Ok(Some(Span { first, elements: (run.rows - skip) * width }))
}

/// What rows and row length a tap may have, the likeliest first. Its outermost axis is the rows of a step
/// with `tokens` of them, or the last of these rows; one row may come without an axis for it.
fn by_row(info: &TapInfo, tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let elements = info.elements();
    let outer = info.shape.iter().copied().find(|&d| d != 1).unwrap_or(1);
    let all = (tokens == 1 || outer == tokens).then_some(tokens);
    let some = Some(outer).filter(|&d| d < tokens);
    let readings = [all, some, Some(1)].into_iter().flatten();
    readings
        .filter(move |&rows| rows > 0 && elements.is_multiple_of(rows))
        .map(move |rows| (rows, elements / rows))
}

/// Whether a tap has a key axis: its extents depend on how the tokens were divided into steps.
pub(crate) fn has_keys(name: &str) -> bool {
    matches!(tap::split(name).1, "k_cache" | "v_cache" | "attn_scores" | "attn_probs")
}

#[cfg(test)]
mod tests {
    use firstdiff_tensor::{DType, Tensor};
    use firstdiff_trace::{Manifest, Producer, Writer};

    use super::*;

    fn trace(steps: &[&[i64]]) -> (tempfile::TempDir, Trace) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let mut writer = Writer::create(&path, Manifest::new(Producer::default())).unwrap();
        let mut position = 0;
        for ids in steps {
            let positions: Vec<i64> = (position..).take(ids.len()).collect();
            position += ids.len() as i64;
            let mut step = writer.step(ids, &positions);
            step.tap("embed", &Tensor::<f32>::zeros([ids.len(), 2]), false);
            step.finish().unwrap();
        }
        writer.finish().unwrap();
        let trace = Trace::open(&path).unwrap();
        (folder, trace)
    }

    #[test]
    fn a_prompt_in_chunks_is_paired_row_by_row_with_the_whole_prompt() {
        let ((_a, a), (_b, b)) = (trace(&[&[1, 2, 3, 4, 5], &[6]]), trace(&[&[1, 2], &[3, 4], &[5], &[6]]));
        let pairing = pair(&a, &b).unwrap();
        assert!(pairing.by_rows);
        let run = |steps, first, rows| Run { steps, first, rows };
        assert_eq!(
            pairing.runs,
            [run([0, 0], [0, 0], 2), run([0, 1], [2, 0], 2), run([0, 2], [4, 0], 1), run([1, 3], [0, 0], 1)]
        );
        assert_eq!(pairing.first_other_token, None);
    }

    #[test]
    fn other_prompts_are_refused_and_other_choices_end_the_comparison() {
        let (_a, a) = trace(&[&[1, 2, 3], &[4], &[5]]);
        let (_b, b) = trace(&[&[1, 2, 3], &[4], &[6]]);
        let pairing = pair(&a, &b).unwrap();
        assert_eq!((pairing.runs.len(), pairing.first_other_token), (2, Some(1)));
        let (_c, c) = trace(&[&[1, 9, 3], &[4]]);
        assert!(matches!(pair(&a, &c), Err(Error::Tokens { step: 0, .. })));
        let (_d, d) = trace(&[&[1, 2], &[3], &[4], &[7]]);
        let pairing = pair(&a, &d).unwrap();
        assert_eq!((pairing.runs.len(), pairing.first_other_token), (3, Some(1)));
    }

    /// One step of several prompts, then one of a token each.
    fn batch(prompts: &[(i64, &[i64])], then: &[i64]) -> (tempfile::TempDir, Trace) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let mut writer = Writer::create(&path, Manifest::new(Producer::default())).unwrap();
        let rows = |of: fn(&(i64, &[i64])) -> Vec<i64>| prompts.iter().flat_map(of).collect::<Vec<i64>>();
        let numbers =
            |of: Vec<i64>| Tensor::<f32>::new([of.len()], of.iter().map(|&q| q as f32).collect()).unwrap();
        let positions = rows(|(_, ids)| (0..ids.len() as i64).collect());
        let mut step = writer.step(&rows(|(_, ids)| ids.to_vec()), &positions);
        step.choice("sequence", &numbers(rows(|(q, ids)| vec![*q; ids.len()])));
        step.finish().unwrap();
        let mut step = writer.step(then, &rows(|(_, ids)| vec![ids.len() as i64]));
        step.choice("sequence", &numbers(rows(|(q, _)| vec![*q])));
        step.finish().unwrap();
        writer.finish().unwrap();
        (folder, Trace::open(&path).unwrap())
    }

    #[test]
    fn sequences_of_a_batch_belong_together_by_their_prompts() {
        let (_a, a) = batch(&[(0, &[1, 5, 6]), (1, &[1, 7])], &[8, 9]);
        let (_b, b) = batch(&[(0, &[1, 7]), (1, &[1, 5, 6])], &[9, 4]);
        let pairing = pair(&a, &b).unwrap();
        assert_eq!(pairing.renumbered, [[0, 1], [1, 0]]);
        let run = |steps, first, rows| Run { steps, first, rows };
        assert_eq!(pairing.runs, [run([0, 0], [0, 2], 3), run([0, 0], [3, 0], 2), run([1, 1], [1, 0], 1)]);
        assert_eq!((pairing.first_other_token, pairing.unpaired), (Some(0), [1, 1]));
        let same = pair(&a, &a).unwrap();
        assert!(same.renumbered.is_empty() && !same.by_rows && same.unpaired == [0, 0]);
    }

    #[test]
    fn one_token_more_at_the_front_is_named_as_such() {
        let ((_a, a), (_b, b)) = (trace(&[&[5, 6, 7], &[8]]), trace(&[&[1, 5, 6, 7], &[8]]));
        let error = pair(&a, &b).unwrap_err().to_string();
        assert!(error.contains("the second has one token more at the front, 1: a BOS?"), "{error}");
    }

    #[test]
    fn a_trace_that_goes_on_leaves_rows_without_a_partner() {
        let ((_a, a), (_b, b)) = (trace(&[&[1, 2, 3], &[4]]), trace(&[&[1, 2], &[3], &[4], &[5], &[6]]));
        let pairing = pair(&a, &b).unwrap();
        assert_eq!((pairing.first_other_token, pairing.unpaired), (None, [0, 2]));
        let (_c, empty) = trace(&[]);
        assert_eq!(pair(&a, &empty).unwrap().runs, []);
    }

    fn info(shape: &[usize]) -> TapInfo {
        TapInfo::new(DType::F32, shape)
    }

    #[test]
    fn only_the_last_rows_are_compared_where_one_side_has_no_more() {
        assert_eq!(whole(&info(&[5, 3]), &info(&[1, 3])), Some(Span { first: [12, 0], elements: 3 }));
        assert_eq!(whole(&info(&[5, 3]), &info(&[4, 2])), None);
        let run = Run { steps: [0, 1], first: [2, 0], rows: 3 };
        let span = rows(&run, (&info(&[5, 3]), 5), (&info(&[1, 3]), 3));
        assert_eq!(span, Ok(Some(Span { first: [12, 0], elements: 3 })));
        let all = rows(&run, (&info(&[5, 3]), 5), (&info(&[1, 3, 3]), 3));
        assert_eq!(all, Ok(Some(Span { first: [6, 0], elements: 9 })));
        let none = Run { rows: 2, ..run };
        assert_eq!(rows(&none, (&info(&[5, 3]), 5), (&info(&[1, 3]), 3)), Ok(None));
        assert_eq!(rows(&run, (&info(&[5, 3]), 5), (&info(&[3, 4]), 3)), Err(()));
    }
}
