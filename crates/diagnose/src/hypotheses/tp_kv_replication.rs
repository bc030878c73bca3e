//! # The wrong key/value head on a rank
//!
//! There are more ranks than key/value heads, so several ranks share one. Rank `r` takes head `r mod n`
//! where it is head `r n / ranks`.
//!
//! ## How it shows
//!
//! Some ranks' heads are right and others read another head's keys and values; with as many ranks as heads
//! nothing is wrong.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#20967
//! - XPU-Forces/mojo_opset#233
//!
//! ## Fix
//!
//! Replicate each key/value head over neighbouring ranks: `r * n / ranks`.

use super::tools::{grouping, heads_mapped};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((heads, kv)) = grouping(scene) else { return vec![] };
    // With a rank for each query head it is another class's map.
    let ranks = [2, 4, 8, 16, 32, 64].into_iter().filter(|r| *r > kv && *r < heads && heads % r == 0 && kv > 1);
    ranks
        .map(|ranks| {
            let detail = format!("of {ranks} ranks, rank r has key/value head r mod {kv} instead of r div {}", ranks / kv);
            heads_mapped(detail, move |head, heads, kv| head / (heads / ranks) % kv)
        })
        .collect()
}
