//! # A later layer writes over the cache of the one before it
//!
//! Some models let late layers read the keys and values of an earlier one. An engine that takes a layer to be
//! of that kind, or lets one that is also write, puts its keys and values into a cache that is another's.
//!
//! ## How it shows
//!
//! The first call is right: each layer attends before a later one writes. From the second call on, one layer's
//! rows of earlier tokens are the later layer's.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-ascend#11791
//!
//! ## Fix
//!
//! Let the layer that owns a cache write it, and no other; take the list of sharing layers from the configuration.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;
use firstdiff_trace::tap;

use super::stored::near;
use crate::{Edit, Scene};

/// Squared error over squared size up to which rows are another layer's.
const CLOSE: f64 = 1e-2;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(layer) = tap::split(&scene.program().ops[scene.op].tap).0 else { return vec![] };
    let reads = scene.find(|k| matches!(k, OpKind::Cache(_))).is_some();
    // Layers of one size repeat one bug; a finding of many layers is another.
    if !reads || scene.step == 0 || scene.layers != [layer] {
        return vec![];
    }
    let layers = scene.program().ops.iter().filter_map(|op| tap::split(&op.tap).0).max().unwrap_or(0);
    (layer + 1..=layers).filter_map(|other| written(scene, layer, other)).collect()
}

/// Rows of earlier tokens in a layer's cache are those that another layer stores.
fn written(scene: &Scene, layer: usize, other: usize) -> Option<Edit> {
    let last = scene.wrong_steps.iter().copied().max()?.max(scene.step);
    let rows = |name: &str| {
        let op = scene.program().find(&tap::in_layer(other, name))?.0;
        let stored = || scene.under_at(&Edit::new(""), op, last);
        scene.recorded(op, last).or_else(stored)
    };
    let (keys, values) = (rows("k_cache")?, rows("v_cache")?);
    let target = &scene.program().ops[scene.op];
    if matches!(target.kind, OpKind::Cache(_)) {
        let theirs = if tap::split(&target.tap).1 == "k_cache" { &keys } else { &values };
        (theirs.rows() > 0 && theirs.row_len() == scene.engine.row_len()).then_some(())?;
        near(scene.engine.row(0), theirs.row(0), CLOSE).then_some(())?;
    }
    let detail = format!("earlier tokens have the keys and values of layer {other}");
    Some(Edit::new(detail).fitted(1).output(move |at, _, value| {
        (at.layer() == Some(layer) && matches!(at.op().kind, OpKind::Cache(_))).then_some(())?;
        let theirs = if at.tap() == "k_cache" { &keys } else { &values };
        overwritten(value, theirs, at.rows().positions.len())
    }))
}

/// A cache whose rows, but for the `new` last ones, are another's.
fn overwritten(value: &Tensor<f64>, theirs: &Tensor<f64>, new: usize) -> Option<Tensor<f64>> {
    let before = value.rows().checked_sub(new)? * value.row_len();
    (theirs.row_len() == value.row_len() && theirs.len() >= before).then_some(())?;
    let mut out = value.clone();
    out.data_mut()[..before].copy_from_slice(&theirs.data()[..before]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_rows_stay_the_layer_s_own() {
        let own = Tensor::new([3, 1, 2], vec![1.0; 6]).unwrap();
        let theirs = Tensor::new([3, 1, 2], vec![2.0; 6]).unwrap();
        assert_eq!(overwritten(&own, &theirs, 1).unwrap().data(), [2.0, 2.0, 2.0, 2.0, 1.0, 1.0]);
        assert!(overwritten(&own, &Tensor::new([1, 1, 2], vec![2.0; 2]).unwrap(), 1).is_none());
    }
}
