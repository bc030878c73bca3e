//! # Logits off by one factor
//!
//! Families like Granite and Cohere divide or multiply logits by a number of the configuration. The engine
//! leaves it out, takes the inverse, or has one where the model has none. Named with the factor that the
//! logits show.
//!
//! ## How it shows
//!
//! All logits are off by one factor: the best token stays, and every probability is wrong.
//!
//! ## Seen in
//!
//! - dphnAI/sonar#1054
//!
//! ## Fix
//!
//! Read `logits_scaling` or `logit_scale`, and mind which of the two divides.

use super::fits::{factor, snapped};
use super::tools::short_number;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.program().ops[scene.op].tap != "logits" {
        return vec![];
    }
    let Some(fitted) = scene.exact(scene.op).and_then(|exact| factor(scene.engine.data(), exact.data())) else { return vec![] };
    if fitted <= 0.0 || (fitted - 1.0).abs() < 1e-3 {
        return vec![];
    }
    let known: Vec<f64> = (2..=64).flat_map(|n| [f64::from(n), 1.0 / f64::from(n)]).collect();
    // The fit knows the factor to the mean of all roundings, a list to a percent.
    let near = snapped(fitted, &known).filter(|k| (fitted / k - 1.0).abs() < 1e-3);
    let factor = near.unwrap_or(fitted);
    vec![Edit::new(format!("logits are {} times the model's", short_number(factor))).fitted(1).output(move |at, _, value| {
        (at.tap() == "logits").then_some(())?;
        let mut out = value.clone();
        out.data_mut().iter_mut().for_each(|x| *x *= factor);
        Some(out)
    })]
}
