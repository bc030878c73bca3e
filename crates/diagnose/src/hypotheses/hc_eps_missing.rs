//! # An epsilon of the hyper-connections is left out
//!
//! `hc_eps` is added to the weights into a branch, to the mixing matrix after its softmax, and to every divisor that balances it.
//!
//! ## How it shows
//!
//! Small with the released value of 1e-6: below what bfloat16 shows, above what float32 does.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Add it in all three places, in the final mix of streams too; the weights back into the streams have none.

use firstdiff_model::OpKind;
use firstdiff_model::ops::HcPart;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let part = |pre: bool| {
        scene.find(|k| match k {
            OpKind::HcWeights(w) => (w.part == HcPart::Pre) == pre && w.part != HcPart::Post,
            _ => false,
        })
    };
    let mut edits = Vec::new();
    if part(true).is_some() {
        edits.push(Edit::new("none in the weights into the branch").ops(|op| {
            if let OpKind::HcWeights(w) = &mut op.kind
                && w.part == HcPart::Pre
            {
                w.eps = 0.0;
            }
        }));
    }
    if part(false).is_some() {
        for (detail, softmax, divisor) in [
            ("none after the softmax", true, false),
            ("none in the divisors", false, true),
            ("none in the mixing matrix", true, true),
        ] {
            edits.push(Edit::new(detail).ops(move |op| {
                if let OpKind::HcWeights(w) = &mut op.kind
                    && let HcPart::Mix { divisor_eps, .. } = &mut w.part
                {
                    if divisor {
                        *divisor_eps = 0.0;
                    }
                    if softmax {
                        w.eps = 0.0;
                    }
                }
            }));
        }
    }
    edits
}
