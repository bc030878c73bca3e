//! # A value beyond the range of float16
//!
//! Activations are held in float16, or pass through it, and some exceed 65504: they become infinite, and
//! NaN soon after.
//!
//! ## How it shows
//!
//! A few channels of a few tokens are not finite, in late layers, where the model's own values are above
//! 65504.
//!
//! ## Seen in
//!
//! - huggingface/transformers#39972
//! - QwenLM/Qwen3#761
//! - cactus-compute/cactus#503
//! - ROCm/hip-ep#168
//!
//! ## Fix
//!
//! Keep the residual stream and these products in bfloat16 or float32.

use firstdiff_tensor::Float;

use crate::scene::short;
use crate::{At, Edit, Scene};
use firstdiff_tensor::Tensor;

/// What rounds to infinity.
const LIMIT: f64 = 65520.0;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if !overflows(scene) {
        return vec![];
    }
    let tap = short(&scene.program().ops[scene.op]).to_string();
    let also = tap.clone();
    vec![
        Edit::new(format!("{tap} is held in float16, whose range ends at 65504")).lost(beyond(tap.clone())),
        Edit::new(format!("{tap} passes through float16, whose range ends at 65504"))
            .output(move |at, _, value| {
                (at.tap() == also).then_some(())?;
                let engine = at.recorded(at.site.index, at.site.step).filter(|e| e.len() == value.len());
                let mut out = value.clone();
                for (i, x) in out.data_mut().iter_mut().enumerate().filter(|(_, x)| x.abs() < LIMIT) {
                    // Where rounding before decides to which side a number goes, the engine may go to either.
                    let own = engine.as_ref().map(|e| e.data()[i]).filter(|e| Float::F16.round(*e) == *e);
                    // Half an ulp is the format's; the other half is for the sum's own error, which may be a good part of
                    // an ulp where large products cancel. A value that was not rounded to float16 fails the line above.
                    let tie = own.filter(|e| (e - *x).abs() <= Float::F16.ulp(*x));
                    *x = tie.unwrap_or_else(|| Float::F16.round(*x));
                }
                Some(out)
            })
            .lost(beyond(tap)),
    ]
}

/// Some of the engine's elements are not finite, and some are.
pub(super) fn overflows(scene: &Scene) -> bool {
    let lost = scene.engine.data().iter().filter(|x| !x.is_finite()).count();
    lost > 0 && lost < scene.engine.len()
}

/// Elements of a tap that float16 cannot hold.
pub(super) fn beyond(tap: String) -> impl Fn(&At, &Tensor<f64>) -> Option<Vec<bool>> {
    move |at, value| (at.tap() == tap).then(|| value.data().iter().map(|x| x.abs() >= LIMIT).collect())
}
