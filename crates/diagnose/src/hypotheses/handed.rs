//! Values that one part of a kernel hands to another, read before they were written: what that makes of a cache's newest row,
//! of rotations and of norms of heads.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::words::{Got, Words, of_any_size, read};
use crate::scene::short;
use crate::{At, Edit, Scene};

/// The newest row, in part read before it was written: the rest is right, and so is the same operation in some other
/// layer or step.
pub(super) fn read_early(scene: &Scene) -> Option<Edit> {
    let op = scene.alone()?;
    let exact = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape())?;
    let last = exact.rows().checked_sub(1)?;
    // Older rows are judged where they were written.
    (0..last).all(|row| super::stored::near(scene.engine.row(row), exact.row(row), 1e-4)).then_some(())?;
    let (words, got) = scene.at(scene.op, |at| {
        let read = read(at, scene.op, scene.step, scene.engine.row(last));
        read.filter(|(words, got)| of_any_size(at, scene.op, words, got))
    })?;
    let count = |pick: fn(&Got) -> bool| got.iter().filter(|got| pick(got)).count();
    let (before, zero) = (count(|g| matches!(g, Got::Before(_))), count(|g| *g == Got::Zero));
    let (lost, right) = (count(|g| *g == Got::Lost), count(|g| *g == Got::Right));
    // One number that is equal may be so by chance; and memory that nobody wrote holds one pattern.
    let some = before > 1 || zero > 0 || lost > 0;
    (right > 0 && some && (zero == 0 || lost == 0) && elsewhere(scene)).then_some(())?;
    let pattern = if lost > 0 { Some(one_pattern(scene)?) } else { None };
    if let OpKind::Rope(rope) = &op.kind {
        // A table that is not finite would be so for every head.
        let heads: Vec<Vec<bool>> =
            got.chunks(rope.dim).map(|h| h.iter().map(|g| *g == Got::Lost).collect()).collect();
        (lost == 0 || heads.iter().any(|head| *head != heads[0])).then_some(())?;
    }
    let detail = said(scene, &words, &got, [before, zero, lost], pattern);
    // Which elements were read too early is read off: a yes or no for each.
    Some(Edit::new(detail).fitted(got.len()).input(input).output(output).lost(gone))
}

/// What was seen, in words.
fn said(scene: &Scene, words: &Words, got: &[Got], counts: [usize; 3], pattern: Option<String>) -> String {
    let [before, zero, lost] = counts;
    let ops = &scene.program().ops;
    let held = words.place.map(|(op, step)| format!("{} of step {step}", ops[op].tap)).unwrap_or_default();
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(format!("{before} still hold {held}"));
    }
    if zero > 0 {
        parts.push(format!("{zero} are zero, as memory that nobody wrote"));
    }
    if let Some(pattern) = pattern {
        // A norm loses a whole head by one number, a rotation a pair.
        let follows =
            |i: usize| got[i] != Got::Lost || words.before(i).is_some_and(|before| !before.is_finite());
        parts.push(match (0..got.len()).all(follows) {
            true => format!("{lost} are what follows from {held}, which is not finite"),
            false => format!("{lost} are not finite, all {pattern}, as memory that nobody wrote"),
        });
    }
    let name = ops[scene.op].inputs.first().map_or("a value", |from| short(&ops[from.0]));
    let all = got.len();
    format!(
        "part of {name} is read before it is written: of {all} elements {}; the others are right",
        parts.join(", ")
    )
}

/// Whether the same operation is right in another layer or step of one row: what is wrong everywhere is no race.
pub(super) fn elsewhere(scene: &Scene) -> bool {
    let ops = &scene.program().ops;
    let name = short(&ops[scene.op]);
    let finite = |op: usize, step: usize| {
        let value = scene.recorded(op, step).filter(|v| v.rows() > 0);
        value.is_some_and(|v| v.row(v.rows() - 1).iter().all(|x| x.is_finite()))
    };
    let steps = || (0..scene.steps().len()).filter(|&s| scene.steps()[s].positions.len() == 1);
    let mut alike = (0..ops.len()).filter(|&i| short(&ops[i]) == name);
    alike.any(|i| {
        let from = ops[i].inputs.first().map(|v| v.0);
        let right =
            |s: usize| !scene.wrong.contains(&(i, s)) && finite(i, s) && from.is_some_and(|f| finite(f, s));
        steps().any(right)
    })
}

/// The one bit pattern of what is not finite, in hexadecimal; `None` where there are several.
fn one_pattern(scene: &Scene) -> Option<String> {
    let mut patterns = scene.not_finite()?.into_iter();
    let first = patterns.next()?;
    let text: String = first.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    patterns.next().is_none().then_some(format!("0x{text}"))
}

/// The newest row of an operation's recorded value, and what was read for it.
fn newest(at: &At) -> Option<(Words, Vec<Got>)> {
    let engine = at.recorded(at.site.index, at.site.step)?;
    read(at, at.site.index, at.site.step, engine.row(engine.rows().checked_sub(1)?))
}

fn input(at: &At, number: usize, value: &Tensor<f64>) -> Option<Tensor<f64>> {
    (number == 0 && !matches!(at.op().kind, OpKind::Cache(_))).then_some(())?;
    let (words, got) = newest(at)?;
    (value.len() == got.len()).then_some(())?;
    let mut mix = value.clone();
    for (i, (x, got)) in mix.data_mut().iter_mut().zip(&got).enumerate() {
        if *got != Got::Right {
            *x = words.number(i, *got);
        } else if !x.is_finite() {
            // What follows from it is lost: nothing can be computed with it.
            *x = 0.0;
        }
    }
    Some(mix)
}

fn output(at: &At, _inputs: &[&Tensor<f64>], value: &Tensor<f64>) -> Option<Tensor<f64>> {
    matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
    let mut mix = value.clone();
    for (row, words, got) in rows(at, value)? {
        let start = row * value.row_len();
        for (i, got) in got.iter().enumerate().filter(|(_, got)| **got != Got::Right) {
            mix.data_mut()[start + i] = words.number(i, *got);
        }
    }
    Some(mix)
}

/// What was read for each row of a cache when it was written, in steps of one row.
fn rows(at: &At, value: &Tensor<f64>) -> Option<Vec<(usize, Words, Vec<Got>)>> {
    let engine = at.recorded(at.site.index, at.site.step).filter(|e| e.shape() == value.shape())?;
    let (mut row, mut all) = (0, Vec::new());
    for (number, step) in at.site.steps[..=at.site.step].iter().enumerate() {
        let first = row;
        row += step.positions.len();
        (row <= engine.rows()).then_some(())?;
        // What is as it was written needs no reason.
        let from = at.op().inputs.first().filter(|_| step.positions.len() == 1);
        let written = from.and_then(|from| at.recorded(from.0, number));
        if written.is_some_and(|written| written.data() != engine.row(first)) {
            let (words, got) = read(at, at.site.index, number, engine.row(first))?;
            all.push((first, words, got));
        }
    }
    (row == engine.rows()).then_some(all)
}

/// Which elements of the operation's value are not finite.
fn gone(at: &At, value: &Tensor<f64>) -> Option<Vec<bool>> {
    let mut lost = vec![false; value.len()];
    let dead = |words: &Words, got: &[Got], i: usize| {
        got[i] == Got::Lost || got[i] == Got::Right && !words.right[i].is_finite()
    };
    match &at.op().kind {
        OpKind::Cache(_) => {
            for (row, words, got) in rows(at, value)? {
                (0..got.len()).for_each(|i| lost[row * value.row_len() + i] = dead(&words, &got, i));
            }
        }
        OpKind::Rope(rope) => {
            let (words, got) = newest(at).filter(|(_, got)| got.len() == value.len())?;
            let half = rope.dim / 2;
            let partner = |i: usize| if i % rope.dim < half { i + half } else { i - half };
            (0..got.len()).for_each(|i| lost[i] = dead(&words, &got, i) || dead(&words, &got, partner(i)));
        }
        OpKind::RmsNorm(norm) if norm.heads.is_some() => {
            let (words, got) = newest(at).filter(|(_, got)| got.len() == value.len())?;
            let head = |i: usize| i / norm.dim * norm.dim..(i / norm.dim + 1) * norm.dim;
            (0..got.len()).for_each(|i| lost[i] = head(i).any(|j| dead(&words, &got, j)));
        }
        _ => return None,
    }
    Some(lost)
}
