//! # Another prompt's block taken for this one's
//!
//! The prefix cache finds a block by a hash that does not cover all that matters: two prompts' hashes are
//! equal, or the hash lacks an adapter or a salt, and tokens are not compared.
//!
//! ## How it shows
//!
//! After a hit, a block of the cache holds keys and values of other tokens at the right positions. Found by
//! looking for the tokens whose first-layer values the rows are.
//!
//! ## Seen in
//!
//! - openvinotoolkit/openvino.genai#3722
//! - vllm-project/vllm#44701
//! - vllm-project/vllm#12621 (probably)
//!
//! ## Fix
//!
//! Compare tokens (and adapter, and salt) after the hash, or use a hash that is safe against collisions.

use super::stored::{block, overwritten_as_recorded};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(found) = block(scene).filter(|f| f.first as usize == f.slots.start && f.slots.len() > 1) else {
        return vec![];
    };
    let detail = format!(
        "slots {} to {} hold tokens {:?} of another prompt, at the right positions",
        found.slots.start,
        found.slots.end - 1,
        found.tokens
    );
    overwritten_as_recorded(detail, found)
}
