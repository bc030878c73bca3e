//! Executes a program exactly, with any of its values overridden, and measures what rounding in an
//! engine's arithmetic may do to each of them.
//!
//! [`Executor::execute`] is the one function behind everything: the reference is an execution with
//! nothing overridden, a local replay one with the engine's recorded values in place of its own.
//!
//! Results are the same bit for bit whatever the number of threads: work is cut into pieces by its
//! size alone, each piece is computed by one thread, and pieces are never summed across threads.

mod arithmetic;
mod cache;
mod dot;
mod error;
mod execute;
mod kernels;
mod keys;
mod matmul;
mod random;
mod session;
mod weights;
mod work;

pub use firstdiff_checkpoint::Misreading;

pub use arithmetic::{Arithmetic, Attention, MatmulInputs, is_row_parallel};
pub use cache::{CacheFormat, Group};
pub use error::Error;
pub use execute::{
    Choice, Computed, Damping, Edits, Executor, Noise, Nothing, Predicted, Recorded, Repeats, Site,
    StepInput, TIE, Taps, Unedited,
};
pub use keys::{Fork, KeyAxes, KeyLabel, KeyValues, counts, stored_keys, visible_keys};
pub use session::Session;
pub use weights::Weights;
pub use work::{Budget, PER_SECOND, Work};
