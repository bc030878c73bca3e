//! # Norm weight used as w - 1
//!
//! The stored weights had 1 taken off for kernels that add it, and these kernels do not; or a family's `1 +
//! w` is left out.
//!
//! ## How it shows
//!
//! Outputs of norms are too small by the normalised input itself; with weights near 1 almost nothing is
//! left.
//!
//! ## Seen in
//!
//! - ggml-org/llama.cpp#5631
//!
//! ## Fix
//!
//! Keep converter and kernel to one convention.

use super::tools::norms_plus;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    norms_plus(scene, "norm weights lack 1", -1.0)
}
