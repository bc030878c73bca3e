//! # A hit on a block that was evicted and used again
//!
//! The prefix cache still points at a block that has been given to another request meanwhile.
//!
//! ## How it shows
//!
//! After a hit, a block of the cache holds keys and values of other tokens, at other positions. Found by
//! looking for the tokens whose first-layer values the rows are.
//!
//! ## Seen in
//!
//! - local-inference-lab/vllm#480
//! - vllm-project/vllm#49449
//! - ovg-project/kvcached#446 (probably)
//!
//! ## Fix
//!
//! Take a block out of the prefix cache before it is given away; count references.

use super::stored::{block, overwritten_as_recorded};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(found) = block(scene).filter(|f| f.first as usize != f.slots.start && f.slots.len() > 1) else {
        return vec![];
    };
    let detail = format!(
        "slots {} to {} hold tokens {:?} of positions {} on, of another request",
        found.slots.start,
        found.slots.end - 1,
        found.tokens,
        found.first
    );
    overwritten_as_recorded(detail, found)
}
