//! # Norm weight used as 1 + w
//!
//! Some families store `w - 1` and multiply by `1 + w`. Here the stored weight is the whole one, and the
//! engine adds 1.
//!
//! ## How it shows
//!
//! Outputs of norms are too large by the normalised input itself. Cosine stays at 0.997.
//!
//! ## Seen in
//!
//! - utensils/mold#1074
//! - vllm-project/vllm#31464
//! - kekzl/imp#459
//!
//! ## Fix
//!
//! Add 1 for families that need it only, and only if the converter has not.

use super::tools::norms_plus;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    norms_plus(scene, "norm weights are used as 1 + w", 1.0)
}
