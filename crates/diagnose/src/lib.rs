//! Names the cause of a finding.
//!
//! A [`Hypothesis`] looks at one wrong value ([`Scene`]) and proposes edits ([`Edit`]): the program with another
//! operation, other weights, positions or inputs. Each edit is executed from the engine's own recorded
//! values and held against the engine's value, in the same noise floors as the check itself. An edit
//! that leaves nothing more than rounding explains, at every place that the finding covers, while
//! everything else is at least ten times worse, names the cause.

mod edit;
mod hypotheses;
mod loading;
mod rank;
mod scene;
mod screen;
mod search;
mod trial;

pub use edit::{At, Edit, Weight};
pub use hypotheses::{HYPOTHESES, Hypothesis, hypothesis};
pub use loading::unloaded;
pub use rank::{Options, Watch, diagnose, diagnose_watched};
pub use scene::Scene;

/// A diagnosis that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace could not be read.
    #[error(transparent)]
    Compare(#[from] firstdiff_compare::Error),
    /// The model could not be executed.
    #[error(transparent)]
    Reference(#[from] firstdiff_reference::Error),
}
