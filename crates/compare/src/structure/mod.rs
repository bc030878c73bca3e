//! What an error looks like. Rounding is unbiased and has no structure; most bugs have one.
//!
//! Each test is a small model of the engine's value ("the right value, its heads permuted"). It holds
//! when that model leaves no more error than rounding explains, and explains most of the error
//! ([`View::explains`]); then it says where to look, and it says so in the finding. One file a test; [`TESTS`] lists
//! them.

mod copies;
mod factor;
mod offset;
mod permutation;
mod rotation;
mod view;

use firstdiff_model::Axis;
use firstdiff_reference::Noise;
use firstdiff_tensor::Tensor;
use serde::Serialize;

use view::View;

/// Something that the error of a value has and rounding has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Structure {
    /// Its name.
    pub kind: &'static str,
    /// A sentence with the numbers.
    pub detail: String,
}

/// A test: its name, and what it finds.
type Test = (&'static str, fn(&View) -> Option<String>);

/// All tests, in the order in which their findings are listed.
const TESTS: &[Test] = &[
    ("factor", factor::test),
    ("offset", offset::test),
    ("permutation", permutation::test),
    ("rotation", rotation::test),
    ("copies", copies::test),
];

/// Everything that holds for a value that rounding does not explain.
pub(crate) fn structure(
    recorded: &Tensor<f64>,
    exact: &Tensor<f64>,
    noise: &Noise<f64>,
    axes: &[Axis],
) -> Vec<Structure> {
    let view = View::new(recorded, exact, &noise.variance, axes);
    let found = |&(kind, test): &Test| test(&view).map(|detail| Structure { kind, detail });
    TESTS.iter().filter_map(found).collect()
}

#[cfg(test)]
mod tests;
