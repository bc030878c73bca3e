//! Two traces of the same tokens, without a model.

use std::cell::RefCell;
use std::collections::BTreeMap;

use firstdiff_trace::{Step, StepFile, TapInfo, Trace, tap};
use rayon::prelude::*;
use serde::Serialize;

use crate::Error;

mod circumstances;
mod order;
mod pairs;
mod row;
mod stored;
mod sums;

pub use circumstances::{Circumstances, Differing, Held, SameWeights};
pub use row::{DiffRow, WorstElement};

use circumstances::Expected;
use pairs::{Pairing, Run};
use sums::Sums;

/// What two traces say about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiffVerdict {
    /// Every common value is equal bit for bit.
    Identical,
    /// They differ by no more than rounding in their formats leaves.
    Agrees,
    /// One engine, in one environment, gave two results.
    NonDeterministic,
    /// They were recorded from different weights.
    OtherWeights,
    /// They were recorded in different formats, which is all that their difference shows.
    OtherArithmetic,
    /// They differ by more.
    Differs,
    /// They have no value in common.
    Unmeasured,
}

/// The comparison of two traces.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// What to make of it.
    pub verdict: DiffVerdict,
    /// Whether every common value is equal bit for bit.
    pub identical: bool,
    /// The first value in which anything differs.
    pub moved: Option<DiffRow>,
    /// The first value that differs by more than rounding explains.
    pub first: Option<DiffRow>,
    /// The largest jump from one tap to the next.
    pub jump: Option<DiffRow>,
    /// How the two were recorded.
    pub circumstances: Circumstances,
    /// Forward calls of each.
    pub steps: [usize; 2],
    /// Every common value, in order.
    pub rows: Vec<DiffRow>,
    /// Taps that one of the traces lacks.
    pub only_in_one: Vec<String>,
    /// Taps in both that cannot be compared, because the steps are divided differently.
    pub not_compared: Vec<String>,
    /// Whether rows were paired by sequence and position, because the steps are divided differently.
    pub by_rows: bool,
    /// The first step after which the traces chose different tokens.
    pub first_other_token: Option<usize>,
    /// Sequences that belong together by their prompts and have other numbers: in the first trace, in the second.
    pub renumbered: Vec<[i64; 2]>,
    /// Tokens of each trace that the other does not have.
    pub unpaired: [usize; 2],
}

/// Compares `a` and `b` tap by tap.
///
/// Without a model nothing can be replayed, so an error upstream shows in everything after it;
/// the first tap that moved, and the largest jump, are where to look.
///
/// # Errors
/// When the traces are not of the same tokens, or a common tap has shapes that do not fit together.
pub fn diff(a: &Trace, b: &Trace) -> Result<Diff, Error> {
    let pairing = pairs::pair(a, b)?;
    let (mut values, mut only, mut not_compared) = (Values::new(), vec![], vec![]);
    for run in &pairing.runs {
        compare(a, b, run, &pairing, &mut values, &mut not_compared)?;
        missing(&a.steps[run.steps[0]], &b.steps[run.steps[1]], &mut only);
    }
    let layers = layers(a, b);
    let circumstances = Circumstances::new(a, b, &embedded(&values), layers)?;
    let expected = Expected::new(&circumstances.held, layers);
    let rows = row::rows(a, b, &values, &expected);
    let moved = rows.iter().find(|r| r.differ > 0).cloned();
    let first = rows.iter().find(|r| r.rel_l2 > r.explained).cloned();
    let jumps = rows.iter().filter(|r| r.rel_l2 > r.explained);
    let jump = jumps.max_by(|p, q| p.growth.total_cmp(&q.growth)).cloned();
    let identical = values.values().all(|v| !v.sums.moved) && pairing.first_other_token.is_none();
    let fork = pairing.first_other_token;
    // Tokens may part where the logits lie as far apart as rounding can put them; elsewhere something is wrong.
    let tie = fork.is_none_or(|step| {
        rows.iter().any(|r| r.step == step && r.tap == "logits" && r.differ > 0 && r.rel_l2 <= r.explained)
    });
    let verdict = match () {
        () if rows.is_empty() => DiffVerdict::Unmeasured,
        () if identical => DiffVerdict::Identical,
        () if circumstances.weights == SameWeights::No => DiffVerdict::OtherWeights,
        () if (moved.is_some() || fork.is_some()) && circumstances.same_engine && !pairing.by_rows => {
            DiffVerdict::NonDeterministic
        }
        () if first.is_some() || !tie => DiffVerdict::Differs,
        () if circumstances.other_arithmetic() => DiffVerdict::OtherArithmetic,
        () => DiffVerdict::Agrees,
    };
    Ok(Diff {
        verdict,
        identical,
        moved,
        first,
        jump,
        circumstances,
        steps: [a.steps.len(), b.steps.len()],
        rows,
        only_in_one: only,
        not_compared,
        by_rows: pairing.by_rows,
        first_other_token: fork,
        renumbered: pairing.renumbered,
        unpaired: pairing.unpaired,
    })
}

/// Layers of a model whose traces name none. What rounding leaves was never seen above half of what is allowed,
/// and it grows with the root of the depth: this allows for four times as many layers.
const UNKNOWN_DEPTH: usize = 32;

/// How many layers the model has, as far as either trace tells, whatever was recorded in both.
fn layers(a: &Trace, b: &Trace) -> usize {
    let names = a.steps.iter().chain(&b.steps).flat_map(|s| s.taps().keys());
    names.filter_map(|name| tap::split(name).0).max().map_or(UNKNOWN_DEPTH, |last| last.saturating_add(1))
}

/// The sums of each step and tap, in order of execution, and where its elements lie.
type Values = BTreeMap<(usize, (usize, usize, usize, String), String), Value>;

#[derive(Clone, Debug, Default)]
struct Value {
    sums: Sums,
    /// The step in the second trace.
    other: usize,
}

/// The rows of the embedding, all steps together.
fn embedded(values: &Values) -> Sums {
    let mut sums = Sums::default();
    values.iter().filter(|((_, _, name), _)| name == "embed").for_each(|(_, v)| sums.merge(&v.sums));
    sums
}

fn missing(x: &Step, y: &Step, only: &mut Vec<String>) {
    let lacks = |p: &Step, q: &Step| {
        let names: Vec<String> =
            p.taps().keys().filter(|n| !q.taps().contains_key(*n)).map(|n| tap::pattern(n)).collect();
        names
    };
    for name in lacks(x, y).into_iter().chain(lacks(y, x)) {
        if !only.contains(&name) {
            only.push(name);
        }
    }
}

/// Elements of one piece of work. Fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// A piece of one tap.
struct Piece<'s> {
    name: &'s str,
    taps: [&'s TapInfo; 2],
    /// First element in each tap.
    first: [usize; 2],
    elements: usize,
}

fn compare(
    a: &Trace,
    b: &Trace,
    run: &Run,
    pairing: &Pairing,
    values: &mut Values,
    not_compared: &mut Vec<String>,
) -> Result<(), Error> {
    let (x, y) = (&a.steps[run.steps[0]], &b.steps[run.steps[1]]);
    let mut pieces: Vec<Piece> = Vec::new();
    for (name, p) in x.taps() {
        let Some(q) = y.taps().get(name).filter(|q| q.dtype.is_float() && p.dtype.is_float()) else {
            continue;
        };
        if pairing.by_rows && pairs::has_keys(name) {
            let pattern = tap::pattern(name);
            if !not_compared.contains(&pattern) {
                not_compared.push(pattern);
            }
            continue;
        }
        let span = if pairing.by_rows {
            pairs::rows(run, (p, x.rows()), (q, y.rows())).map_err(|()| shapes(y, name, p, q))?
        } else {
            Some(pairs::whole(p, q).ok_or_else(|| shapes(y, name, p, q))?)
        };
        let Some(span) = span else { continue };
        for start in (0..span.elements).step_by(PIECE) {
            let first = [span.first[0] + start, span.first[1] + start];
            pieces.push(Piece { name, taps: [p, q], first, elements: PIECE.min(span.elements - start) });
        }
    }
    let files = [x.file()?, y.file()?];
    let sums: Vec<Sums> = pieces
        .par_iter()
        .with_min_len((PIECE / pieces.iter().map(|p| p.elements).max().unwrap_or(PIECE).max(1)).min(64))
        .map(|piece| piece.read(&files))
        .collect::<Result<_, _>>()?;
    for (piece, sums) in pieces.iter().zip(&sums) {
        let key = (run.steps[0], order::order(piece.name), piece.name.to_string());
        let value = values.entry(key).or_default();
        value.other = run.steps[1];
        value.sums.merge(sums);
    }
    Ok(())
}

fn shapes(step: &Step, name: &str, p: &TapInfo, q: &TapInfo) -> Error {
    Error::Shapes {
        file: step.path().into(),
        tap: name.into(),
        found: q.shape.clone(),
        other: p.shape.clone(),
    }
}

thread_local! {
    /// The bytes of a piece in both files, kept from piece to piece.
    static BYTES: RefCell<[Vec<u8>; 2]> = RefCell::default();
}

impl Piece<'_> {
    fn read(&self, files: &[StepFile; 2]) -> Result<Sums, Error> {
        BYTES.with_borrow_mut(|bytes| {
            for (side, bytes) in bytes.iter_mut().enumerate() {
                let size = self.taps[side].dtype.size();
                bytes.resize(self.elements * size, 0);
                files[side].read(self.taps[side], self.first[side] * size, bytes)?;
            }
            let mut sums = Sums::default();
            let stored = |side: usize| (self.taps[side].dtype, bytes[side].as_slice());
            sums.add(stored(0), stored(1), self.first[0]);
            Ok(sums)
        })
    }
}
