//! The operations programs are made of. One file each; [`OpKind`] lists them.

mod add;
mod attn_heads;
mod attn_probs;
mod attn_scores;
mod cache;
mod embed;
mod gated_act;
mod linear;
mod rms_norm;
mod rope;

pub use add::Add;
pub use attn_heads::AttnHeads;
pub use attn_probs::AttnProbs;
pub use attn_scores::AttnScores;
pub use cache::Cache;
pub use embed::Embed;
pub use gated_act::{Activation, GatedAct};
pub use linear::Linear;
pub use rms_norm::RmsNorm;
pub use rope::Rope;

use crate::program::Axis;

macro_rules! op_kinds {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// An operation's description.
        #[derive(Clone, Debug)]
        pub enum OpKind {
            $($(#[$doc])* $variant($variant),)*
        }
        $(impl From<$variant> for OpKind {
            fn from(op: $variant) -> OpKind { OpKind::$variant(op) }
        })*
        impl OpKind {
            /// What the operation is called in results.
            pub fn name(&self) -> &'static str {
                match self { $(OpKind::$variant(_) => $name,)* }
            }

            /// Axes of the output, given those of the first input.
            pub fn axes(&self, input: &[Axis]) -> Vec<Axis> {
                match self { $(OpKind::$variant(op) => op.axes(input),)* }
            }

            /// Weights read, with their shapes.
            pub fn weights(&self) -> Vec<(&str, Vec<usize>)> {
                match self { $(OpKind::$variant(op) => op.weights(),)* }
            }
        }
    };
}

op_kinds! {
    /// Row lookup.
    Embed => "embed",
    /// Root-mean-square normalisation.
    RmsNorm => "rms_norm",
    /// Matrix product.
    Linear => "linear",
    /// Rotary position embedding.
    Rope => "rope",
    /// Append to the key or value cache.
    Cache => "kv_cache",
    /// Queries times keys.
    AttnScores => "attn_scores",
    /// Mask and softmax.
    AttnProbs => "attn_probs",
    /// Probabilities times values.
    AttnHeads => "attn_heads",
    /// Sum of two values.
    Add => "add",
    /// Activation times gate.
    GatedAct => "gated_act",
}
