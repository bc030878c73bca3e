//! Models as programs: an ordered list of operations, each with one named output.
//!
//! A family (`families/<family>.rs`) reads a configuration and writes down its forward pass as a
//! [`Program`]. An operation (`ops/<op>.rs`) is a description: what it computes, from what, with
//! which weights. Executing it is the business of other crates.

mod error;
pub mod families;
mod inspect;
mod model;
pub mod ops;
mod program;
mod rope;
mod settings;

pub use error::Error;
pub use families::{FAMILIES, Family};
pub use inspect::{Flag, inspect};
pub use model::{Model, TensorUse, Usage};
pub use ops::OpKind;
pub use program::{Axis, Builder, Counts, EntryCount, Op, Program, Value, WeightUse, extents};
pub use rope::RopeFrequencies;
pub use settings::{Setting, Settings, Simulation};
