//! # YaRN's factor on cosines and sines
//!
//! YaRN multiplies cosines and sines by an attention factor: `0.1 ln(factor) + 1`, or the one that the
//! configuration gives, or a ratio of two. The engine takes another of these, or 1.
//!
//! ## How it shows
//!
//! Rotated queries and keys are too long or too short by one factor at every position, position 0 included;
//! scores by its square.
//!
//! ## Seen in
//!
//! - kekzl/imp#880
//! - turboderp-org/exllamav3#259
//! - ml-explore/mlx-lm#1507
//! - ggml-org/llama.cpp#17945
//!
//! ## Fix
//!
//! Use `attention_factor` where it is given; else the ratio of `mscale` and `mscale_all_dim` where both
//! are; else `0.1 ln(factor) + 1`.

use firstdiff_model::OpKind;

use super::rope_scaling_factor_wrong::configured;
use super::tools::{ropes, rotation, short_number};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, _)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let Some(factor) = configured(scene, "factor").filter(|f| *f > 1.0) else { return vec![] };
    let config = scene.model.checkpoint.config();
    let section = config.get("rope_scaling").filter(|s| !s.is_null()).or_else(|| config.get("rope_parameters"));
    let word = |key: &str| section.and_then(|s| s.get(key)).and_then(|v| v.as_str());
    if word("rope_type").or_else(|| word("type")) != Some("yarn") {
        return vec![];
    }
    let mscale = |m: f64| 0.1 * m * factor.ln() + 1.0;
    let mut factors = vec![
        (1.0, "1".to_string()),
        (mscale(1.0), "0.1 ln(factor) + 1".to_string()),
        (mscale(1.0).powi(2), "(0.1 ln(factor) + 1)^2".to_string()),
    ];
    for key in ["mscale", "mscale_all_dim"] {
        if let Some(m) = configured(scene, key) {
            factors.push((mscale(m), format!("0.1 {key} ln(factor) + 1")));
        }
    }
    if let (Some(a), Some(b)) = (configured(scene, "mscale"), configured(scene, "mscale_all_dim")) {
        factors.push((mscale(a) / mscale(b), "the ratio for mscale and mscale_all_dim".into()));
    }
    factors.retain(|(m, _)| (m / rope.amplitude - 1.0).abs() > 1e-9);
    let mut edits = Vec::new();
    for (amplitude, name) in factors {
        for (which, set) in ropes(scene) {
            let right = short_number(rope.amplitude);
            let detail = format!("cosine and sine times {name} = {}, not {right}{which}", short_number(amplitude));
            edits.push(Edit::new(detail).ops(move |op| {
                let here = set(crate::scene::short(op));
                if let OpKind::Rope(rope) = &mut op.kind
                    && here
                {
                    rope.amplitude = amplitude;
                }
            }));
        }
    }
    edits
}
