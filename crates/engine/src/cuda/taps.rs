//! Values of a step, as the engine held them.

use firstdiff_model::Program;
use firstdiff_tensor::DType;
use firstdiff_trace::tap::matches;

/// Which values of a program are to be recorded.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    ops: Vec<bool>,
}

impl Wanted {
    /// No value.
    pub fn none() -> Wanted {
        Wanted::default()
    }

    /// Every value whose name fits one of `globs`; `all` fits every name.
    pub fn matching(program: &Program, globs: &[impl AsRef<str>]) -> Wanted {
        let fits = |name: &str| globs.iter().any(|g| g.as_ref() == "all" || matches(g.as_ref(), name));
        Wanted { ops: program.ops.iter().map(|op| fits(&op.tap)).collect() }
    }

    /// Whether the output of this operation is wanted.
    pub fn has(&self, op: usize) -> bool {
        self.ops.get(op).copied().unwrap_or(false)
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        !self.ops.contains(&true)
    }
}

/// One recorded value.
#[derive(Clone, Debug)]
pub struct Tap {
    /// The tap's name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// BF16 or F32, as the engine held it.
    pub dtype: DType,
    /// The elements, little-endian.
    pub bytes: Vec<u8>,
}
