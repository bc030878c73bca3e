//! # Another expert's weights
//!
//! The expert used is not the one chosen: an offset between the numbers in the router and those in the
//! stack of weights, or an order that was turned round.
//!
//! ## How it shows
//!
//! `router_topk` and `router_weights` are right, `experts_out` is not, for every token.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#28715
//!
//! ## Fix
//!
//! Number experts as the router's rows do; with parallel experts, subtract each rank's first one.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Expert;

use crate::{Edit, Scene};

type Order = fn(&mut Vec<Expert>);

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Experts(_))) else { return vec![] };
    let OpKind::Experts(experts) = &op.kind else { return vec![] };
    if experts.experts.len() < 2 {
        return vec![];
    }
    let orders: [(&str, Order); 5] = [
        ("expert e is taken for e + 1", |e| e.rotate_right(1)),
        ("expert e is taken for e - 1", |e| e.rotate_left(1)),
        ("experts are in reverse order", |e| e.reverse()),
        ("experts are off by half of their number", |e| {
            let half = e.len() / 2;
            e.rotate_left(half);
        }),
        ("every expert is the first", |e| {
            if let Some(first) = e.first().cloned() {
                e.iter_mut().for_each(|e| *e = first.clone());
            }
        }),
    ];
    let edit = |(detail, order): (&str, Order)| {
        Edit::new(detail).ops(move |op| {
            if let OpKind::Experts(e) = &mut op.kind {
                order(&mut e.experts);
            }
        })
    };
    orders.into_iter().map(edit).collect()
}
