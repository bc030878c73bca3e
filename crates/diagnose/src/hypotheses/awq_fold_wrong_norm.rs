//! # Scales of channels folded into another norm
//!
//! A quantiser multiplies input channels of matrices by scales and divides the norm before them by the
//! same. The norm that was divided is not the one before these matrices.
//!
//! ## How it shows
//!
//! Inputs of one group of products miss their scales, and another norm's output is off by the same scales,
//! channel by channel.
//!
//! ## Seen in
//!
//! - mlx-node/mlx-node#87
//!
//! ## Fix
//!
//! Fold scales into the norm that feeds the scaled matrices, by name for each family.

use std::collections::HashMap;

use firstdiff_model::OpKind;

use super::fits::factor;
use crate::scene::short;
use crate::{Edit, Scene};

/// Groups of products, and the norm that may have their scales though it feeds others.
const GROUPS: [(&[&str], &str); 2] = [(&["q_proj", "k_proj", "v_proj"], "mlp_norm"), (&["gate_proj", "up_proj"], "attn_norm")];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    GROUPS.iter().filter_map(|(taps, norm)| folded(scene, taps, norm)).collect()
}

fn folded(scene: &Scene, taps: &'static [&str], norm: &'static str) -> Option<Edit> {
    taps.iter().find(|tap| scene.find_tap(tap).is_some())?;
    let ops = &scene.program().ops;
    let layer = |i: usize| firstdiff_trace::tap::split(&ops[i].tap).0;
    // Names of weights, and what each input channel, or channel of the norm, is multiplied by.
    let mut factors: HashMap<String, Vec<f64>> = HashMap::new();
    for i in (0..ops.len()).filter(|&i| short(&ops[i]) == norm) {
        let Some(scales) = divided(scene, i) else { continue };
        let OpKind::RmsNorm(kind) = &ops[i].kind else { return None };
        let products = (0..ops.len()).filter(|&j| layer(j) == layer(i) && taps.contains(&short(&ops[j])));
        for name in products.filter_map(|j| ops[j].kind.weights().first().map(|(name, _)| name.to_string())) {
            factors.insert(name, scales.iter().map(|s| 1.0 / s).collect());
        }
        factors.insert(kind.weight.clone(), scales);
    }
    let detail = format!("channels of {} are scaled, and {norm} is divided by these scales", taps.join(", "));
    let channels = factors.values().next()?.len();
    Some(Edit::new(detail).fitted(channels).rough().weight(move |w| {
        let factors = factors.get(w.name)?;
        let scaled = |(i, w): (usize, &f32)| (f64::from(*w) * factors[i % channels]) as f32;
        // Not rounded as weights are: the factors are not exactly the engine's.
        Some(w.values()?.iter().enumerate().map(scaled).collect())
    }))
}

/// The factor on each channel of a norm's output, where it is on most channels not one.
fn divided(scene: &Scene, norm: usize) -> Option<Vec<f64>> {
    let op = &scene.program().ops[norm];
    let OpKind::RmsNorm(kind) = &op.kind else { return None };
    let engine = scene.recorded(norm, scene.step)?;
    let input = op.inputs.first()?.0;
    let sum = &scene.program().ops[input];
    let x = match scene.recorded(input, scene.step) {
        Some(x) => x,
        None if matches!(sum.kind, OpKind::Add(_)) => {
            let (mut a, b) = (scene.recorded(sum.inputs.first()?.0, scene.step)?, scene.recorded(sum.inputs.get(1)?.0, scene.step)?);
            a.data_mut().iter_mut().zip(b.data()).for_each(|(a, b)| *a += b);
            a
        }
        None => return None,
    };
    let w = scene.weight(&kind.weight)?;
    let mut exact = x.clone();
    for row in exact.data_mut().chunks_mut(kind.dim) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / kind.dim as f64;
        let scale = (mean + kind.eps).powf(-0.5);
        row.iter_mut().zip(w.iter()).for_each(|(x, w)| *x *= scale * f64::from(*w));
    }
    let column = |data: &[f64], c: usize| -> Vec<f64> { data.iter().skip(c).step_by(kind.dim).copied().collect() };
    let factors: Vec<f64> =
        (0..kind.dim).map(|c| factor(&column(engine.data(), c), &column(exact.data(), c))).collect::<Option<_>>()?;
    let moved = factors.iter().filter(|f| (*f - 1.0).abs() > 0.02).count();
    (2 * moved > kind.dim && factors.iter().all(|f| *f > 0.0)).then_some(factors)
}
