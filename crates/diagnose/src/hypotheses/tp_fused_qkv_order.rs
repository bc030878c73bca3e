//! # Shards of fused q, k and v joined in the wrong order
//!
//! Each rank holds its share of q, of k and of v. Joined rank by rank, the rows lie as `q0 k0 v0 q1 k1 v1`
//! and are read as all q, all k, all v; or a matrix is cut for ranks as if it lay so.
//!
//! ## How it shows
//!
//! q, k and v hold each other's channels, only with two ranks or more.
//!
//! ## Seen in
//!
//! - ndif-team/nnsight#719
//! - deepspeedai/DeepSpeed#3844
//! - vllm-project/vllm#42803
//!
//! ## Fix
//!
//! Gather and split q, k and v each on its own.

use super::weight_fused_qkv_layout::{heads, reordered};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, kv)) = heads(scene) else { return vec![] };
    let ranks = [2, 4, 8, 16].into_iter().filter(|ranks| *ranks <= kv);
    let edits = ranks.flat_map(|ranks| {
        let joined = format!("shards of {ranks} ranks joined as q0 k0 v0 q1 k1 v1 …, and read as all q, all k, all v");
        let cut = format!("all q, all k, all v, cut for {ranks} ranks as if they lay as q0 k0 v0 q1 k1 v1 …");
        [reordered(scene, &joined, ranks, false), reordered(scene, &cut, ranks, true)]
    });
    edits.flatten().collect()
}
