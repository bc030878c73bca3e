//! The engine on NVIDIA GPUs.
//!
//! Nothing of CUDA is needed to build this. What is needed to run it is looked for when an [`Engine`] is
//! loaded, and an [`Error`] names what is missing.

mod bench;
mod blas;
mod compile;
mod decode;
mod device;
mod engine;
mod error;
mod plan;
mod prefill;
mod sample;
mod taps;
mod weights;

pub use device::Device;
pub use engine::{Engine, Memory, Options, Step};
pub use error::Error;
pub use taps::{Tap, Wanted};
