//! The operations programs are made of. One file each; [`OpKind`] lists them.

mod add;
mod attn_heads;
mod attn_probs;
mod attn_scores;
mod cache;
mod embed;
mod entry_cache;
mod experts;
mod fake_quant;
mod gated_act;
mod grouped_linear;
mod hc_collapse;
mod hc_expand;
mod hc_weights;
mod index_scores;
mod index_top_k;
mod join_keys;
mod linear;
mod pool;
mod rms_norm;
mod rope;
mod router_scores;
mod router_weights;
mod sink_probs;
mod soft_cap;
mod streams;
mod table_choice;
mod tail_rope;
mod top_k;
mod visible_keys;
mod wide_norm;

pub use add::Add;
pub use attn_heads::AttnHeads;
pub use attn_probs::AttnProbs;
pub use attn_scores::AttnScores;
pub use cache::Cache;
pub use embed::Embed;
pub use entry_cache::EntryCache;
pub use experts::{Expert, Experts, Slice};
pub use fake_quant::{FakeFormat, FakeQuant};
pub use gated_act::{Activation, GateLimit, GatedAct, Limit};
pub use grouped_linear::GroupedLinear;
pub use hc_collapse::HcCollapse;
pub use hc_expand::HcExpand;
pub use hc_weights::{HcPart, HcWeights};
pub use index_scores::IndexScores;
pub use index_top_k::IndexTopK;
pub use join_keys::JoinKeys;
pub use linear::Linear;
pub use pool::Pool;
pub use rms_norm::{NormForm, RmsNorm};
pub use rope::Rope;
pub use router_scores::{RouterScores, Scoring};
pub use router_weights::RouterWeights;
pub use sink_probs::SinkProbs;
pub use soft_cap::SoftCap;
pub use streams::Streams;
pub use table_choice::TableChoice;
pub use tail_rope::{EntryPlace, TailRope};
pub use top_k::TopK;
pub use visible_keys::VisibleKeys;
pub use wide_norm::WideNorm;

use crate::program::Axis;

macro_rules! op_kinds {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// An operation's description.
        #[derive(Clone, Debug, PartialEq)]
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
    /// One hidden state as several residual streams.
    Streams => "hc_streams",
    /// Weights of a hyper-connection.
    HcWeights => "hc_weights",
    /// Residual streams into a branch.
    HcCollapse => "hc_collapse",
    /// A branch back into the residual streams.
    HcExpand => "hc_expand",
    /// Root-mean-square normalisation, rounded once.
    WideNorm => "rms_norm",
    /// Rotary position embedding of the last channels, in neighbouring pairs.
    TailRope => "rope",
    /// Tokens into compressed entries.
    Pool => "pool",
    /// Append to the compressed entries.
    EntryCache => "entry_cache",
    /// Keys and compressed entries one after the other.
    JoinKeys => "join_keys",
    /// How well compressed entries suit each token.
    IndexScores => "index_scores",
    /// The best of the compressed entries.
    IndexTopK => "index_topk",
    /// What each token sees.
    VisibleKeys => "visible_keys",
    /// Mask and softmax with a sink.
    SinkProbs => "attn_probs",
    /// A short format and back.
    FakeQuant => "fake_quant",
    /// Matrix products of groups of channels.
    GroupedLinear => "grouped_linear",
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

/// What an operation with state keeps from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Rows are compressed entries of so many tokens each; `None`: tokens.
    pub ratio: Option<usize>,
    /// Heads of each row.
    pub heads: usize,
    /// Head size.
    pub dim: usize,
}

impl OpKind {
    /// Whether the operation's weights are held in f32 whatever format activations are stored in.
    pub fn has_wide_weights(&self) -> bool {
        matches!(self, OpKind::WideNorm(_) | OpKind::HcWeights(_) | OpKind::Pool(_) | OpKind::SinkProbs(_))
            || matches!(self, OpKind::TopK(_))
    }

    /// Whether, and how, the output is a choice. Choices are never rounded. They are compared before
    /// everything that follows from them, which is computed from the engine's own.
    pub fn discrete(&self) -> Option<Discrete> {
        match self {
            OpKind::TopK(_) | OpKind::TableChoice(_) | OpKind::IndexTopK(_) => Some(Discrete::Set),
            OpKind::VisibleKeys(_) => Some(Discrete::Labels),
            _ => None,
        }
    }

    /// Whether the output is kept in the format of running sums, whatever other results are stored in.
    pub fn wide(&self) -> bool {
        matches!(self, OpKind::RouterScores(RouterScores { wide: true, .. }))
    }

    /// What the operation keeps; `None` for those without state.
    pub fn state(&self) -> Option<State> {
        match self {
            OpKind::Cache(cache) => Some(State { ratio: None, heads: cache.heads, dim: cache.dim }),
            OpKind::EntryCache(cache) => Some(State { ratio: Some(cache.ratio), heads: 1, dim: cache.dim }),
            _ => None,
        }
    }
}
