//! # Experts are chosen by score where a table chooses
//!
//! The first layers look their experts up by token id; scores only weigh them. The engine takes the best scores everywhere.
//!
//! ## How it shows
//!
//! `router_topk` of the first layers differs at nearly every token.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Read `tid2eid` by token id in layers that are `hash_moe`.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::TableChoice(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("the best scores are chosen").output(|at, _, value| {
        let OpKind::TableChoice(table) = &at.op().kind else { return None };
        // Scores and logits, which come before the choice, are in the same order.
        let (index, step) = (at.site.index, at.site.step);
        let scores = [1, 2].into_iter().find_map(|back| at.recorded(index.checked_sub(back)?, step))?;
        let mut out = value.clone();
        for (row, chosen) in out.data_mut().chunks_mut(table.k).enumerate() {
            let scores = scores.row(row.min(scores.rows().checked_sub(1)?));
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            chosen.iter_mut().zip(order).for_each(|(x, e)| *x = e as f64);
        }
        Some(out)
    })]
}
