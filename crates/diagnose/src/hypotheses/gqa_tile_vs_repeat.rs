//! # Key/value heads tiled instead of repeated
//!
//! With fewer key/value heads than query heads, query head `h` reads head `h div group`. Here it reads `h
//! mod n_kv`: the heads were tiled (`a b a b`) where they should be repeated (`a a b b`).
//!
//! ## How it shows
//!
//! The first query head is right and most others are not, from position 0 on.
//!
//! ## Seen in
//!
//! - ekzhang/jax-js#180
//! - onnx/onnx#7274
//! - apple/ml-hypercloning#1
//! - state-spaces/mamba#462
//!
//! ## Fix
//!
//! Repeat each key/value head `group` times in a row (`repeat_interleave`), or index with `h / group`.

use super::tools::{grouping, heads_mapped};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    match grouping(scene) {
        Some((heads, kv)) if kv > 1 && kv < heads => vec![heads_mapped(
            format!("query head h reads key/value head h mod {kv} where the model has h div {}", heads / kv),
            |head, _, kv| head % kv,
        )],
        _ => vec![],
    }
}
