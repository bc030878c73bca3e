//! # Key/value heads by a wrong divisor
//!
//! Query head `h` reads key/value head `h div n_kv`, or always head 0: the number of heads is taken for the
//! size of a group, or the stride between heads is lost.
//!
//! ## How it shows
//!
//! Some key/value heads are read by nobody, from position 0 on.
//!
//! ## Seen in
//!
//! - HazyResearch/HipKittens#22
//!
//! ## Fix
//!
//! Divide by the group size, `heads / kv_heads`.

use super::tools::{grouping, heads_mapped};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((heads, kv)) = grouping(scene).filter(|(heads, kv)| *kv > 1 && kv < heads) else { return vec![] };
    let group = heads / kv;
    let mut edits = vec![heads_mapped("every query head reads key/value head 0".into(), |_, _, _| 0)];
    let mut divisors = vec![kv, 2 * group, group / 2];
    divisors.retain(|d| *d > 0 && *d != group);
    divisors.dedup();
    for divisor in divisors {
        let detail = format!("query head h reads key/value head h div {divisor} where the group is {group}");
        edits.push(heads_mapped(detail, move |head, _, kv| (head / divisor).min(kv - 1)));
    }
    edits
}
