//! Holds an engine's trace against its model: replays every operation from the engine's own
//! values, measures the difference in units of what rounding explains, and finds the first
//! operation that is wrong.

pub use firstdiff_trace::taps::is_branch;

mod align;
mod arithmetic;
mod beside;
mod check;
mod diff;
mod error;
mod evidence;
mod finding;
mod history;
mod inspection;
mod judge;
mod measure;
mod order_of_keys;
mod parts;
mod place;
mod place_axes;
mod reach;
mod replay;
mod shared;
mod side_by_side;
mod steps;
mod structure;
mod tokens;
mod ulps;
mod unmodelled;

pub use arithmetic::{ArithmeticUse, Taken};
pub use beside::{Beside, BesideRow, Side, Worse, beside};
pub use check::{Candidates, Check, CheckOptions, Coverage, Unloaded, Verdict, check, check_with_evidence};
pub use diff::{Circumstances, Diff, DiffRow, DiffVerdict, Differing, Held, SameWeights, WorstElement, diff};
pub use error::Error;
pub use evidence::Evidence;
pub use finding::{Because, Cause, Element, Finding, Floor, Rejected, Sizes, Unnamed};
pub use inspection::{Inspection, Setting, TensorReport, inspect};
pub use measure::{Choices, MAX_RATIO, Measured, THRESHOLDS, Test, Thresholds, Why};
pub use parts::LayersChecked;
pub use reach::NotCompared;
pub use replay::Ambiguous;
pub use shared::Shared;
pub use structure::Structure;
pub use tokens::{
    BestTen, FedOtherwise, Fork, Loop, Mismatch, NotFollowing, Source, Stop, TokenKind, Tokens,
    TokensOptions, TokensReport, Top, Tops, Unexplained, tokens,
};
pub use ulps::Ulps;
