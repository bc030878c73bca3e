//! # A sliding window's band on the wrong side
//!
//! The difference of row and key is compared with the window with the wrong sign, and the band lies on the
//! other side of the diagonal.
//!
//! ## How it shows
//!
//! Rows see what is older than the window instead of what is inside it, or what comes after them.
//!
//! ## Seen in
//!
//! - huggingface/transformers#41228
//!
//! ## Fix
//!
//! A row at `p` sees keys `k` with `p - w < k <= p`.

use super::masks::seeing;
use super::swa_off_by_one::windows;
use crate::{Edit, Scene};

/// Whether a row sees a key, from how far back it is and the window.
type Rule = fn(i64, i64) -> bool;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if windows(scene).is_empty() {
        return vec![];
    }
    let rules: [(&str, Rule); 6] = [
        ("own key and those older than the window", |d, w| d == 0 || d >= w),
        ("own key and those older than the window, its last one too", |d, w| d == 0 || d > w),
        ("keys older than the window", |d, w| d >= w),
        ("keys older than the window, its last one too", |d, w| d > w),
        ("keys at most a window after the row", |d, w| d <= 0 && d > -w),
        ("keys less than a window before or after the row", |d, w| d.abs() < w),
    ];
    let edit = |(what, rule): (&str, Rule)| {
        seeing(scene, format!("windowed layers see {what}"), move |_, pair| {
            let (row, key) = pair.positions();
            match pair.window {
                Some(w) => rule(i64::from(row) - i64::from(key), w as i64),
                None => pair.seen(),
            }
        })
    };
    rules.into_iter().flat_map(edit).collect()
}
