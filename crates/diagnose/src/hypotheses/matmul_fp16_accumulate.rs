//! # Matrix products summed in float16
//!
//! A product keeps its running sum in float16, against what was asked for: it overflows at 65504, and
//! rounds at every step.
//!
//! ## How it shows
//!
//! Infinite where the sum exceeds 65504, on one backend; elsewhere errors that grow with the length of the
//! sum.
//!
//! ## Seen in
//!
//! - ggml-org/llama.cpp#13607
//!
//! ## Fix
//!
//! Ask for float32 accumulation, and check that the library follows.

use firstdiff_model::OpKind;
use firstdiff_tensor::Float;

use super::dtype_fp16_overflow::{beyond, overflows};
use crate::scene::short;
use crate::{Edit, Scene};

/// Steps of sums that are worth simulating.
const MOST: usize = 40_000_000;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let op = &scene.program().ops[scene.op];
    let OpKind::Linear(linear) = &op.kind else { return vec![] };
    let tap = short(op).to_string();
    if overflows(scene) {
        return vec![Edit::new(format!("sums of {tap} are held in float16, whose range ends at 65504")).lost(beyond(tap))];
    }
    if scene.engine.len() * linear.input > MOST {
        return vec![];
    }
    vec![Edit::new(format!("sums of {tap} are held in float16 and round at every term")).output(move |at, inputs, value| {
        let OpKind::Linear(linear) = &at.op().kind else { return None };
        (at.tap() == tap).then_some(())?;
        let (x, w) = (inputs.first()?, at.weight(&linear.weight)?);
        let bias = linear.bias.as_deref().and_then(|b| at.weight(b));
        let mut out = value.clone();
        for (y, x) in out.data_mut().chunks_mut(linear.output).zip(x.data().chunks(linear.input)) {
            for (o, (y, w)) in y.iter_mut().zip(w.chunks(linear.input)).enumerate() {
                // Products and sums as float32 hardware makes them, then rounded.
                let add = |sum: f32, (x, w): (&f64, &f32)| Float::F16.round(f64::from(sum + *x as f32 * w)) as f32;
                let sum = x.iter().zip(w).fold(0.0, add);
                *y = f64::from(sum + bias.as_ref().map_or(0.0, |b| b[o]));
            }
        }
        Some(out)
    })]
}
