//! The operations programs are made of. One file each; [`OpKind`] lists them.

mod add;
mod attn_heads;
mod attn_probs;
mod attn_scores;
mod cache;
mod embed;
mod experts;
mod gated_act;
mod linear;
mod rms_norm;
mod rope;
mod router_scores;
mod router_weights;
mod soft_cap;
mod table_choice;
mod top_k;

pub use add::Add;
pub use attn_heads::AttnHeads;
pub use attn_probs::AttnProbs;
pub use attn_scores::AttnScores;
pub use cache::Cache;
pub use embed::Embed;
pub use experts::{Expert, Experts, Slice};
pub use gated_act::{Activation, GatedAct};
pub use linear::Linear;
pub use rms_norm::{NormForm, RmsNorm};
pub use rope::Rope;
pub use router_scores::{RouterScores, Scoring};
pub use router_weights::RouterWeights;
pub use soft_cap::SoftCap;
pub use table_choice::TableChoice;
pub use top_k::TopK;

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
    /// Bounded by a hyperbolic tangent.
    SoftCap => "soft_cap",
    /// What a router makes of its logits.
    RouterScores => "router_scores",
    /// The best of each token's candidates.
    TopK => "top_k",
    /// What a table lists for each token.
    TableChoice => "table_choice",
    /// What each chosen expert counts.
    RouterWeights => "router_weights",
    /// The chosen experts, added up.
    Experts => "experts",
}

/// How a choice is compared: its values are numbers of things, not measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discrete {
    /// Each row lists what was chosen, in any order; negative numbers fill it up.
    Set,
    /// Each element says something on its own: a mask, a label.
    Labels,
}

impl OpKind {
    /// Whether, and how, the output is a choice. Choices are never rounded. They are compared before
    /// everything that follows from them, which is computed from the engine's own.
    pub fn discrete(&self) -> Option<Discrete> {
        match self {
            OpKind::TopK(_) | OpKind::TableChoice(_) => Some(Discrete::Set),
            _ => None,
        }
    }

    /// Whether the output is kept in the format of running sums, whatever other results are stored in.
    pub fn wide(&self) -> bool {
        matches!(self, OpKind::RouterScores(RouterScores { wide: true, .. }))
    }
}
