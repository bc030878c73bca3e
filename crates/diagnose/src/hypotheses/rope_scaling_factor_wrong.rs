//! # Frequencies scaled by another factor
//!
//! The kind of scaling is right, its factor is that of another model: 8 where it is 32, 1 where it is 4.
//!
//! ## How it shows
//!
//! Slow pairs alone are wrong (all with linear scaling), by one ratio. Below some thousand tokens a cosine
//! stays near 1.
//!
//! ## Seen in
//!
//! - meta-llama/llama-models#241
//!
//! ## Fix
//!
//! Read `factor` from the model's own `rope_scaling`.

use firstdiff_model::{OpKind, RopeFrequencies};

use super::tools::{plain, ropes, rotation, short_number};
use crate::{Edit, Scene};

/// Factors in use.
const KNOWN: [f64; 9] = [2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0, 10.0, 128.0];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, frequencies)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let RopeFrequencies::Fixed(_) = rope.frequencies else { return dynamic(scene) };
    let Some(theta) = super::rope_theta_wrong::model_theta(scene) else { return vec![] };
    let plain = plain(theta, rope.dim);
    // How much each pair is slowed says how the scaling spreads; the slowest pair says by what factor.
    let slowed: Vec<f64> = plain.iter().zip(&frequencies).map(|(p, f)| p / f).collect();
    let factor = configured(scene, "factor").unwrap_or_else(|| slowed.iter().copied().fold(1.0, f64::max));
    let factor = if (factor - factor.round()).abs() < 1e-4 { factor.round() } else { factor };
    if factor <= 1.0 + 1e-6 {
        return vec![];
    }
    let kept: Vec<f64> = slowed.iter().map(|d| ((1.0 / d - 1.0 / factor) / (1.0 - 1.0 / factor)).clamp(0.0, 1.0)).collect();
    let mut edits = Vec::new();
    for other in KNOWN.into_iter().filter(|f| (f / factor - 1.0).abs() > 1e-6) {
        let f: Vec<f64> = plain.iter().zip(&kept).map(|(p, k)| p * ((1.0 - k) / other + k)).collect();
        let detail = format!("factor {} where the model has {}", short_number(other), short_number(factor));
        edits.extend(super::tools::with_frequencies(scene, &detail, 0, &f));
    }
    edits
}

/// A number of the configuration's `rope_scaling`, in either spelling.
pub(super) fn configured(scene: &Scene, key: &str) -> Option<f64> {
    let config = scene.model.checkpoint.config();
    let section = config.get("rope_scaling").filter(|s| !s.is_null()).or_else(|| config.get("rope_parameters"));
    section.and_then(|s| s.get(key)).and_then(|v| v.as_f64())
}

/// The same for scaling that depends on the length.
fn dynamic(scene: &Scene) -> Vec<Edit> {
    let edits = |other: f64| {
        ropes(scene).into_iter().map(move |(which, set)| {
            Edit::new(format!("dynamic factor {}{which}", short_number(other))).ops(move |op| {
                let here = set(crate::scene::short(op));
                if let OpKind::Rope(rope) = &mut op.kind
                    && here
                    && let RopeFrequencies::Dynamic { factor, .. } = &mut rope.frequencies
                {
                    *factor = other;
                }
            })
        })
    };
    KNOWN.into_iter().flat_map(edits).collect()
}
