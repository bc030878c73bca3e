//! # Rows of a batch rotated at another row's position
//!
//! In a batch with one token each, the kernel's row index or stride is wrong, and rows get the position of
//! another one, mostly of the first.
//!
//! ## How it shows
//!
//! One sequence alone is right. In a batch the first row is right and the others are turned by its
//! position.
//!
//! ## Seen in
//!
//! - ml-explore/mlx-lm#1457
//!
//! ## Fix
//!
//! Pass one position for each row, and test with prompts of different lengths.

use firstdiff_model::OpKind;

use super::tools::{Set, fitted_positions, ropes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let step = scene.input();
    let several = step.sequence.iter().any(|s| Some(s) != step.sequence.first());
    if !several {
        return vec![];
    }
    let mut edits = Vec::new();
    let mut push = |detail: &str, parameters: usize, from: Vec<usize>| {
        for (which, set) in ropes(scene) as Vec<Set> {
            let from = from.clone();
            edits.push(Edit::new(format!("{detail}{which}")).fitted(parameters).positions(move |at, positions| {
                if matches!(at.op().kind, OpKind::Rope(_)) && set(at.tap()) && positions.len() == from.len() {
                    *positions = from.iter().map(|&row| positions[row.min(from.len() - 1)]).collect();
                }
            }));
        }
    };
    let rows = step.positions.len();
    push("every row is rotated at the first row's position", 0, vec![0; rows]);
    push("every row is rotated at the last row's position", 0, vec![rows - 1; rows]);
    push("each row is rotated at the position of the row before", 0, (0..rows).map(|r| r.saturating_sub(1)).collect());
    // The rows whose positions the angles show.
    let last = step.positions.iter().copied().max().unwrap_or(0);
    let limit = last.saturating_mul(2).saturating_add(64);
    let from: Option<Vec<usize>> = fitted_positions(scene, limit)
        .and_then(|fitted| fitted.iter().map(|f| step.positions.iter().position(|p| p == f)).collect());
    if let Some(from) = from.filter(|_| step.sequence.len() <= 16) {
        push(&format!("rows are rotated at the positions of rows {from:?}"), rows, from);
    }
    edits
}
