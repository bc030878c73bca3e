//! # A cache read in another layout than it was written
//!
//! Rows lie `[K, Hkv, D]` in the cache and are read as `[Hkv, K, D]`, or the reverse: after a restore, a
//! transfer, or a switch of kernels. With as many heads as something else has, no shape check notices.
//!
//! ## How it shows
//!
//! All numbers of the cache are there, in other places. The path that wrote the cache may read it rightly.
//!
//! ## Seen in
//!
//! - LMCache/LMCache#4463
//! - microsoft/onnxruntime#27108
//! - sgl-project/sglang#23020 (probably)
//!
//! ## Fix
//!
//! Store the layout with the cache, and compare it where the cache is read.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::stored::caches;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (which, set) in caches(scene) {
        for (detail, by_head) in [
            ("written [K, Hkv, D] and read [Hkv, K, D]", false),
            ("written [Hkv, K, D] and read [K, Hkv, D]", true),
        ] {
            edits.push(Edit::new(format!("{which} {detail}")).output(move |at, _, value| {
                (matches!(at.op().kind, OpKind::Cache(_)) && set(at.tap())).then_some(())?;
                let &[keys, heads, dim] = value.shape() else { return None };
                if by_head {
                    return Tensor::new([keys, heads, dim], value.permute(&[1, 0, 2]).into_data()).ok();
                }
                Some(Tensor::new([heads, keys, dim], value.data().to_vec()).ok()?.permute(&[1, 0, 2]))
            }));
        }
    }
    edits
}
