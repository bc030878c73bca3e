//! # A factor on what is added to the residual stream
//!
//! Some families multiply a branch by a number before they add it. The engine leaves it out, or has one
//! where the model has none. Named with the factor that the stream shows.
//!
//! ## How it shows
//!
//! What was added is a multiple of the branch's output, the same one in every layer.
//!
//! ## Seen in
//!
//! - ndif-team/nnterp#54
//!
//! ## Fix
//!
//! Read `residual_multiplier`, and leave other families' streams alone.

use firstdiff_model::OpKind;

use super::fits::{factor, snapped};
use super::tools::short_number;
use crate::{Edit, Scene};

const KNOWN: [f64; 8] = [0.22, 0.25, 0.5, 2.0, 0.1, 0.2, 0.246, std::f64::consts::FRAC_1_SQRT_2];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(fitted) = fitted(scene) else { return vec![] };
    // None, or the branch is not there at all.
    if !(0.01..100.0).contains(&fitted) || (fitted - 1.0).abs() < 1e-3 {
        return vec![];
    }
    let known = snapped(fitted, &KNOWN);
    let edit = |factor: f64, parameters| {
        let detail = format!("branches are multiplied by {} before they are added", short_number(factor));
        Edit::new(detail).fitted(parameters).input(move |at, number, x| {
            (matches!(at.op().kind, OpKind::Add(_)) && number == 1).then_some(())?;
            let mut out = x.clone();
            out.data_mut().iter_mut().for_each(|x| *x = at.stored(f64::from(*x as f32 * factor as f32)));
            Some(out)
        })
    };
    known.map(|k| edit(k, 0)).into_iter().chain([edit(fitted, 1)]).collect()
}

/// The factor on the branch that the wrong value shows: a sum, or a norm of one.
fn fitted(scene: &Scene) -> Option<f64> {
    let op = &scene.program().ops[scene.op];
    match &op.kind {
        OpKind::Add(_) => {
            let (a, b) = (scene.value(op.inputs.first()?.0)?, scene.value(op.inputs.get(1)?.0)?);
            let rest: Vec<f64> = scene.engine.data().iter().zip(a.data()).map(|(x, a)| x - a).collect();
            factor(&rest, b.data())
        }
        OpKind::RmsNorm(norm) => {
            let sum = &scene.program().ops[op.inputs.first()?.0];
            if !matches!(sum.kind, OpKind::Add(_)) {
                return None;
            }
            let (a, b) = (scene.value(sum.inputs.first()?.0)?, scene.value(sum.inputs.get(1)?.0)?);
            let w = scene.weight(&norm.weight)?;
            let (mut dot, mut square) = (0.0, 0.0);
            let rows = scene.engine.data().chunks(norm.dim).zip(a.data().chunks(norm.dim)).zip(b.data().chunks(norm.dim));
            for ((y, a), b) in rows {
                // Only the direction of the sum is left: what lies along it is taken from both.
                let u: Vec<f64> = y.iter().zip(w.iter()).map(|(y, w)| if *w == 0.0 { 0.0 } else { y / f64::from(*w) }).collect();
                let length: f64 = u.iter().map(|u| u * u).sum();
                if length == 0.0 {
                    continue;
                }
                let along = |v: &[f64]| v.iter().zip(&u).map(|(v, u)| v * u).sum::<f64>() / length;
                let (on_a, on_b) = (along(a), along(b));
                for ((a, b), u) in a.iter().zip(b).zip(&u) {
                    let (a, b) = (a - on_a * u, b - on_b * u);
                    dot -= a * b;
                    square += b * b;
                }
            }
            (square > 0.0).then(|| dot / square)
        }
        _ => None,
    }
}
