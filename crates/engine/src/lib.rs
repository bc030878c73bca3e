//! The fast engine, and the definition of how the next token is chosen.
//!
//! [`cuda`] runs a model on an NVIDIA GPU from the same program as the reference, and shows any value of it.
//! [`sampler`] says which token comes next.

pub mod cuda;
pub mod sampler;
