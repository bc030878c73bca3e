//! The firstdiff trace format, version 1: values an engine computed, forward call by forward call.
//!
//! A trace is a folder with `trace.json` and one safetensors file a forward call. docs/TRACE.md
//! is the specification; this crate is its Rust implementation. Traces are hostile input: every
//! size is checked against the file before anything is allocated, and nothing outside the folder
//! is opened.

pub mod declared;
mod error;
mod keys;
mod manifest;
mod reader;
mod step;
mod stream;
pub mod tap;
pub mod taps;
mod writer;

pub use error::Error;
pub use keys::{Fork, Key, KeyAxes, KeyAxis, in_order};
pub use manifest::{ArithmeticSpec, FORMAT, Manifest, ModelSpec, Producer};
pub use reader::Trace;
pub use step::{Step, TapInfo};
pub use stream::StepFile;
pub use writer::{StepWriter, Writer};
