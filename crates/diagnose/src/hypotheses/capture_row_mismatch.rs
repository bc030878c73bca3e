//! # The recording itself holds other rows
//!
//! The model is right and the recording is not: the hook stores rows of another token, of padding, or of
//! the micro-batch before.
//!
//! ## How it shows
//!
//! A tap's rows are the right ones in another order, and what the engine computed from it next is right for
//! the right order.
//!
//! ## Seen in
//!
//! - ProjectDMX/DMI#67
//! - tenstorrent/tt-metal#44367
//!
//! ## Fix
//!
//! Check the recorder first: the recorded embedding of each row must be that of its token, and what one
//! operation gives must be what the next one reads.

use firstdiff_model::Value;
use firstdiff_tensor::Tensor;

use super::stored::near;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    propose_order(scene).into_iter().collect()
}

fn propose_order(scene: &Scene) -> Option<Edit> {
    let tokens = scene.input().positions.len();
    let exact = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape() && e.rows() == tokens && tokens > 1)?;
    // Every row is compared with every other.
    scene.may(10 * (tokens * exact.len()) as u64).then_some(())?;
    let order: Vec<usize> = (0..tokens).map(|row| nearest(scene.engine.row(row), exact)).collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    let moved = order.iter().enumerate().any(|(i, from)| i != *from);
    (moved && sorted.iter().enumerate().all(|(i, row)| i == *row)).then_some(())?;
    let tap = crate::scene::short(&scene.program().ops[scene.op]).to_string();
    let edit = captured(scene, tap, order);
    // What was computed from it must be right in the right order; else the rows were really exchanged.
    let ops = &scene.program().ops;
    let mut from = std::collections::BTreeSet::from([scene.op]);
    let reader = (scene.op + 1..ops.len()).find(|&i| {
        let reads = ops[i].inputs.iter().any(|v| from.contains(&v.0));
        reads && (scene.recorded(i, scene.step).is_some() || !from.insert(i))
    })?;
    let (right, read) = (scene.under_at(&edit, reader, scene.step)?, scene.recorded(reader, scene.step)?);
    let same = right.rows() == read.rows() && right.row_len() == read.row_len();
    (same && (0..read.rows()).all(|row| near(read.row(row), right.row(row), 1e-3))).then_some(edit)
}

/// The recorded value in another order, and what reads it in the right one.
fn captured(scene: &Scene, tap: String, order: Vec<usize>) -> Edit {
    let rows = order.len();
    let shift = order[0];
    let even = order.iter().enumerate().all(|(i, from)| (i + shift) % rows == *from);
    let detail = match even {
        true => format!("row 0 of the recorded {tap} is row {shift}, and so on around; what follows used the right order"),
        false => format!("rows of the recorded {tap} lie in another order; what follows used the right one"),
    };
    let readers: Vec<(usize, usize)> = {
        let ops = &scene.program().ops;
        let of_tap = |v: &Value| crate::scene::short(&ops[v.0]) == tap;
        let numbered = |i: usize| ops[i].inputs.iter().enumerate().filter(|(_, v)| of_tap(v)).map(move |(n, _)| (i, n)).collect::<Vec<_>>();
        (0..ops.len()).flat_map(numbered).collect()
    };
    let back = order.clone();
    Edit::new(detail)
        .fitted(if even { 1 } else { rows })
        .output(move |at, _, value| {
            (at.tap() == tap && value.rows() == order.len()).then(|| taken(value, &order))
        })
        .input(move |at, number, value| {
            (readers.contains(&(at.site.index, number)) && value.rows() == back.len()).then_some(())?;
            at.recorded(at.op().inputs.get(number)?.0, at.site.step)?;
            let mut from = vec![0; back.len()];
            back.iter().enumerate().for_each(|(i, row)| from[*row] = i);
            Some(taken(value, &from))
        })
}

fn taken(value: &Tensor<f64>, from: &[usize]) -> Tensor<f64> {
    let mut out = value.clone();
    let width = value.row_len();
    for (out, row) in out.data_mut().chunks_mut(width.max(1)).zip(from) {
        out.copy_from_slice(value.row(*row));
    }
    out
}

/// The exact row that a row is, up to rounding.
fn nearest(row: &[f64], exact: &Tensor<f64>) -> Option<usize> {
    let error = |o: &usize| row.iter().zip(exact.row(*o)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let best = (0..exact.rows()).min_by(|a, b| error(a).total_cmp(&error(b)))?;
    near(row, exact.row(best), 1e-3).then_some(best)
}
