//! What several hypotheses take from the engine's values.

use firstdiff_model::OpKind;

use crate::edit::Weight;
use crate::scene::short;
use crate::{Edit, Scene};

/// The factor that brings `exact` nearest to `engine`.
pub(super) fn factor(engine: &[f64], exact: &[f64]) -> Option<f64> {
    let pairs = || engine.iter().zip(exact).filter(|(x, y)| x.is_finite() && y.is_finite());
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let square: f64 = pairs().map(|(_, y)| y * y).sum();
    (square > 0.0 && dot != 0.0).then(|| dot / square)
}

/// The number among `known` that a fitted one stands for.
pub(super) fn snapped(fitted: f64, known: &[f64]) -> Option<f64> {
    known.iter().copied().find(|k| (fitted / k - 1.0).abs() < 0.01)
}

/// Squared error of a row against another, relative to that one.
fn apart(row: &[f64], other: &[f64]) -> f64 {
    let error: f64 = row.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = other.iter().map(|b| b * b).sum();
    if size > 0.0 { error / size } else { f64::INFINITY }
}

/// Which row of the exact value each of the engine's rows is a copy of, the own one where it can be. `None`
/// where a row is none's, or all are their own.
pub(super) fn sources(scene: &Scene) -> Option<Vec<usize>> {
    const CLOSE: f64 = 1e-3;
    let (engine, exact) = (&scene.engine, scene.exact(scene.op)?);
    if engine.shape() != exact.shape() {
        return None;
    }
    // Every row may be compared with every other.
    scene.may(20 * (engine.rows() * engine.len()) as u64).then_some(())?;
    let source = |row: usize| {
        let here = engine.row(row);
        if apart(here, exact.row(row)) < CLOSE {
            return Some(row);
        }
        let best = (0..exact.rows())
            .min_by(|&a, &b| apart(here, exact.row(a)).total_cmp(&apart(here, exact.row(b))))?;
        (apart(here, exact.row(best)) < CLOSE).then_some(best)
    };
    let sources: Vec<usize> = (0..engine.rows()).map(source).collect::<Option<_>>()?;
    sources.iter().enumerate().any(|(row, &from)| row != from).then_some(sources)
}

/// The wrong taps of the finding that are matrix products, with their weights in all layers.
pub(super) fn wrong_matrices(scene: &Scene) -> Vec<String> {
    let ops = &scene.program().ops;
    let wrong = |op: &&firstdiff_model::Op| scene.taps.iter().any(|t| t == short(op));
    ops.iter()
        .filter(wrong)
        .filter_map(|op| match &op.kind {
            OpKind::Linear(linear) => Some(linear.weight.clone()),
            _ => None,
        })
        .collect()
}

/// Edits of matrices: of all that the segment multiplies by, and where those are several, of each alone.
/// What is right in the engine is not looked at, so that all can be edited.
pub(super) fn of_matrices<F>(scene: &Scene, detail: &str, change: F) -> Vec<Edit>
where
    F: Fn(&Weight) -> Option<Vec<f32>> + Clone + Send + Sync + 'static,
{
    let linear: Vec<usize> = scene
        .ops
        .iter()
        .copied()
        .filter(|&i| matches!(scene.program().ops[i].kind, OpKind::Linear(_)))
        .collect();
    if linear.is_empty() {
        return vec![];
    }
    let every = change.clone();
    let mut edits = vec![Edit::new(detail).weight(move |w| (w.shape.len() == 2).then(|| every(w)).flatten())];
    if linear.len() > 1 {
        edits.extend(linear.into_iter().map(|index| {
            let (names, change) = (scene.weights_like(index), change.clone());
            let detail = format!("{detail} ({} alone)", short(&scene.program().ops[index]));
            Edit::new(detail).weight(move |w| names.iter().any(|n| n == w.name).then(|| change(w)).flatten())
        }));
    }
    edits
}

/// Channels that are fitted together.
const BLOCK: usize = 8;
/// At most so many blocks are fitted: the work grows with their square.
const MOST: usize = 640;

/// Which input channels the wrong matrix product sums over, in blocks of [`BLOCK`]: fitted as a factor for
/// each block, which must be 0 or 1. `None` where it is not so, or all or none are there.
pub(super) fn summed(scene: &Scene) -> Option<Vec<bool>> {
    let op = &scene.program().ops[scene.op];
    let OpKind::Linear(linear) = &op.kind else { return None };
    let x = scene.value(op.inputs.first()?.0)?;
    let bias = linear.bias.as_deref().and_then(|b| scene.weight(b));
    let (width, outputs) = (linear.input, linear.output);
    let blocks = width / BLOCK;
    if width % BLOCK != 0
        || !(2..=MOST).contains(&blocks)
        || scene.engine.data().iter().any(|y| !y.is_finite())
    {
        return None;
    }
    let rows = scene.engine.rows().min(8);
    let used = outputs.min((6 * blocks).div_ceil(rows).max(16));
    // A matrix of all blocks is added up, then factored.
    let work = blocks * blocks * (rows * used / 2 + blocks / 6) + rows * used * width;
    scene.may(10 * work as u64).then_some(())?;
    // Of a vocabulary's thousands of rows few are read.
    let chosen = || (0..used).map(|o| o * outputs / used);
    let w = scene.weight_rows(&linear.weight, chosen())?;
    let (mut matrix, mut right) = (vec![0.0; blocks * blocks], vec![0.0; blocks]);
    for t in 0..rows {
        // Later rows too: only they may be wrong.
        let t = t * scene.engine.rows() / rows;
        let (x, y) = (&x.data()[t * width..][..width], scene.engine.row(t));
        for (o, w) in chosen().zip(w.chunks(width)) {
            let terms: Vec<f64> = x
                .chunks(BLOCK)
                .zip(w.chunks(BLOCK))
                .map(|(x, w)| x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum())
                .collect();
            let y = y[o] - bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
            for (i, a) in terms.iter().enumerate() {
                right[i] += a * y;
                let row = matrix[i * blocks..].iter_mut().zip(&terms[..=i]);
                row.for_each(|(m, b)| *m += a * b);
            }
        }
    }
    let factors = solved(matrix, right)?;
    let near = |f: &f64, to: f64| (f - to).abs() < 0.2;
    let kept: Vec<bool> = factors.iter().map(|f| near(f, 1.0)).collect();
    let sure = factors.iter().all(|f| near(f, 0.0) || near(f, 1.0));
    (sure && kept.contains(&true) && kept.contains(&false)).then_some(kept)
}

/// Solves a symmetric positive system of which the lower half is given.
fn solved(m: Vec<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let factor = factored(m, b.len())?;
    solve(&factor, &mut b);
    Some(b)
}

/// Cholesky's factor of a symmetric positive matrix of which the lower half is given.
fn factored(mut m: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| m[i * n + k] * m[j * n + k]).sum();
            let rest = m[i * n + j] - dot;
            if i == j {
                m[i * n + i] = (rest > 1e-12 * m[i * n + i].abs()).then(|| rest.sqrt())?;
            } else {
                m[i * n + j] = rest / m[j * n + j];
            }
        }
    }
    Some(m)
}

fn solve(m: &[f64], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| m[i * n + k] * b[k]).sum();
        b[i] = (b[i] - dot) / m[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| m[k * n + i] * b[k]).sum();
        b[i] = (b[i] - dot) / m[i * n + i];
    }
}

/// Work that finding a whole matrix is worth.
const WORK: usize = 1_500_000_000;

/// The matrices by which the engine multiplies where the wrong products are, if they have nothing to do with
/// the model's. More rows than input channels tell: what is left over must then still fit.
pub(super) fn unrelated(scene: &Scene) -> Option<Edit> {
    let ops = &scene.program().ops;
    let tap = short(&ops[scene.op]);
    let here = |i: &usize| {
        let layer = firstdiff_trace::tap::split(&ops[*i].tap).0;
        short(&ops[*i]) == tap && layer.is_none_or(|l| scene.layers.contains(&l))
    };
    let mut found = std::collections::HashMap::new();
    for i in (0..ops.len()).filter(here) {
        let OpKind::Linear(linear) = &ops[i].kind else { return None };
        found.insert(linear.weight.clone(), matrix(scene, i, linear)?);
    }
    let detail = format!("the weight of {tap} has nothing to do with the file's: what it was created with");
    let parameters = found.values().map(Vec::len).max()?;
    Some(Edit::new(detail).fitted(parameters).rough().weight(move |w| found.get(w.name).cloned()))
}

fn matrix(scene: &Scene, op: usize, linear: &firstdiff_model::ops::Linear) -> Option<Vec<f32>> {
    let (n, outputs) = (linear.input, linear.output);
    let input = scene.program().ops[op].inputs.first()?.0;
    let (mut xs, mut ys) = (Vec::new(), Vec::new());
    for &step in &scene.wrong_steps {
        xs.extend(scene.recorded(input, step)?.into_data());
        ys.extend(scene.recorded(op, step)?.into_data());
    }
    let rows = xs.len() / n;
    if rows < n + n / 8 + 8 || (rows + outputs) * n * n > WORK || ys.iter().any(|y| !y.is_finite()) {
        return None;
    }
    scene.may(10 * ((rows + outputs) * n * n) as u64).then_some(())?;
    if let Some(bias) = linear.bias.as_deref() {
        let bias = scene.weight(bias)?;
        ys.iter_mut().enumerate().for_each(|(i, y)| *y -= f64::from(bias[i % outputs]));
    }
    let mut square = vec![0.0; n * n];
    for x in xs.chunks(n) {
        for (i, a) in x.iter().enumerate() {
            square[i * n..].iter_mut().zip(&x[..=i]).for_each(|(m, b)| *m += a * b);
        }
    }
    let factor = factored(square, n)?;
    let mut out = Vec::with_capacity(outputs * n);
    for o in 0..outputs {
        let mut right = vec![0.0; n];
        for (x, y) in xs.chunks(n).zip(ys.chunks(outputs)) {
            right.iter_mut().zip(x).for_each(|(b, x)| *b += x * y[o]);
        }
        solve(&factor, &mut right);
        out.extend(right.iter().map(|w| *w as f32));
    }
    let own = scene.weight(&linear.weight)?;
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let alike = product(&out, &own) / (product(&out, &out) * product(&own, &own)).sqrt();
    (alike.abs() < 0.2).then_some(out)
}

/// The wrong products with the channels of some blocks left out, and what to say of them.
pub(super) fn left_out(scene: &Scene, kept: Vec<bool>, detail: &str) -> Edit {
    let names = wrong_matrices(scene);
    let width = kept.len() * BLOCK;
    Edit::new(detail).weight(move |w| {
        if !names.iter().any(|n| n == w.name) || w.shape.last() != Some(&width) {
            return None;
        }
        let keep = |(i, w): (usize, &f32)| if kept[i % width / BLOCK] { *w } else { 0.0 };
        Some(w.values()?.iter().enumerate().map(keep).collect())
    })
}

/// Runs of blocks that are left out, in words: `16..32, 48..64`.
pub(super) fn runs(kept: &[bool]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (block, _) in kept.iter().enumerate().filter(|(_, kept)| !**kept) {
        match runs.last_mut() {
            Some((_, end)) if *end == block => *end += 1,
            _ => runs.push((block, block + 1)),
        }
    }
    let text: Vec<String> =
        runs.iter().take(4).map(|(a, b)| format!("{}..{}", a * BLOCK, b * BLOCK)).collect();
    if runs.len() > 4 { format!("{}, …", text.join(", ")) } else { text.join(", ") }
}

/// The row count that tells wrong steps from right ones: every wrong step has more rows than every right
/// one. `None` where there is no right step.
pub(super) fn threshold(scene: &Scene) -> Option<usize> {
    let rows = |step: usize| scene.steps()[step].token_ids.len();
    let (wrong, right): (Vec<usize>, Vec<usize>) =
        (0..scene.steps().len()).partition(|step| scene.wrong_steps.contains(step));
    let most = right.iter().map(|&s| rows(s)).max()?;
    let least = wrong.iter().map(|&s| rows(s)).min()?;
    (least > most).then_some(most)
}
