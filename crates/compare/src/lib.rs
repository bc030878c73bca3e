//! Holds an engine's trace against its model: replays every operation from the engine's own
//! values, measures the difference in units of what rounding explains, and finds the first
//! operation that is wrong.

mod align;
mod arithmetic;
mod beside;
mod check;
mod diff;
mod error;
mod evidence;
mod finding;
mod inspection;
mod judge;
mod measure;
mod parts;
mod place;
mod replay;
mod shared;
mod side_by_side;
mod structure;
mod tokens;
mod ulps;

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
pub use replay::Ambiguous;
pub use shared::Shared;
pub use structure::Structure;
pub use tokens::{
    BestTen, FedOtherwise, Fork, Loop, Mismatch, NotFollowing, Source, Stop, TokenKind, Tokens,
    TokensOptions, TokensReport, Top, Tops, Unexplained, tokens,
};
pub use ulps::Ulps;
