//! Element types, rounding to them, ulp distance, and dense tensors.
//!
//! Everything else in firstdiff speaks in these: a tap is a [`Tensor`], an arithmetic is a set of
//! [`Float`] formats to round to. Nothing here knows what a model is.

mod dtype;
mod float;
mod real;
mod tensor;
mod ulp;

pub use dtype::{DType, DecodeError};
pub use float::Float;
pub use real::Real;
pub use tensor::{ShapeError, Tensor, element_count};
pub use ulp::ulp_distance;
