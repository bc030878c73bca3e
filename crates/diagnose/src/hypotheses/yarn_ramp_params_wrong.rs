//! # YaRN's ramp with other ends
//!
//! YaRN keeps fast pairs, slows slow ones down, and passes from one to the other along a ramp. Its ends
//! come from other numbers: `beta_fast` and `beta_slow` exchanged, rounded to whole pairs or not, another
//! original context.
//!
//! ## How it shows
//!
//! Pairs in the middle are wrong, the fastest and the slowest are right.
//!
//! ## Seen in
//!
//! - pytorch/torchtitan#3787
//! - keras-team/keras-hub#2696 (probably)
//!
//! ## Fix
//!
//! Take `beta_fast`, `beta_slow`, `truncate` and `original_max_position_embeddings` from the configuration,
//! and round the ends down and up unless `truncate` is false.

use std::f64::consts::PI;

use firstdiff_model::OpKind;

use super::rope_scaling_factor_wrong::configured;
use super::tools::{plain, rotation, short_number, with_frequencies};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, model)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let (Some(theta), Some(longest)) =
        (super::rope_theta_wrong::model_theta(scene), scene.number("max_position_embeddings"))
    else {
        return vec![];
    };
    let config = scene.model.checkpoint.config();
    let section = config.get("rope_scaling").filter(|s| !s.is_null()).or_else(|| config.get("rope_parameters"));
    let word = |key: &str| section.and_then(|s| s.get(key)).and_then(|v| v.as_str());
    if word("rope_type").or_else(|| word("type")) != Some("yarn") {
        return vec![];
    }
    let number = |key: &str| configured(scene, key).filter(|x| *x > 0.0);
    let original = number("original_max_position_embeddings").unwrap_or(longest);
    let factor = number("factor").unwrap_or(longest / original);
    let (fast, slow) = (number("beta_fast").unwrap_or(32.0), number("beta_slow").unwrap_or(1.0));
    let truncate = section.and_then(|s| s.get("truncate")).and_then(|v| v.as_bool()).unwrap_or(true);
    let plain = plain(theta, rope.dim);
    let d = rope.dim as f64;
    let ramp = |length: f64, fast: f64, slow: f64, truncate: bool| -> Vec<f64> {
        let channel = |turns: f64| d * (length / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (channel(fast), channel(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let slowed = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        plain.iter().enumerate().map(|(i, f)| f / factor * slowed(i) + f * (1.0 - slowed(i))).collect()
    };
    let mut tried = vec![
        ("beta_fast and beta_slow exchanged".to_string(), ramp(original, slow, fast, truncate)),
        (
            if truncate { "ends not rounded to whole pairs" } else { "ends rounded to whole pairs" }.to_string(),
            ramp(original, fast, slow, !truncate),
        ),
        ("beta_fast 32 and beta_slow 1".to_string(), ramp(original, 32.0, 1.0, truncate)),
    ];
    for length in [longest, original * factor, original / factor, longest / factor, 4096.0, 8192.0, 32768.0] {
        if (length / original - 1.0).abs() > 1e-9 {
            let detail = format!("an original context of {} where it is {}", short_number(length), short_number(original));
            tried.push((detail, ramp(length, fast, slow, truncate)));
        }
    }
    let other = |f: &[f64]| f.iter().zip(&model).any(|(a, b)| (a / b - 1.0).abs() > 1e-9);
    tried.retain(|(_, f)| f.iter().all(|f| f.is_finite()) && other(f));
    tried.iter().flat_map(|(detail, f)| with_frequencies(scene, &format!("ramp: {detail}"), 0, f)).collect()
}
