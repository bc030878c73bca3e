//! The firstdiff trace format, version 1: values an engine computed, forward call by forward call.
//!
//! A trace is a folder with `trace.json` and one safetensors file a forward call. docs/TRACE.md
//! is the specification; this crate is its Rust implementation. Traces are hostile input: every
//! size is checked against the file before anything is allocated, and nothing outside the folder
//! is opened.

mod error;
mod manifest;
mod reader;
mod step;
mod stream;
pub mod tap;
mod writer;

pub use error::Error;
pub use manifest::{ArithmeticSpec, FORMAT, Manifest, ModelSpec, Producer};
pub use reader::Trace;
pub use step::{Step, TapInfo};
pub use stream::StepFile;
pub use writer::{StepWriter, Writer};
