use crate::program::Axis;

/// Which of a hyper-connection's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HcPart {
    /// How much each stream gives to the branch, `[T, n]`: `sigmoid(m s + b) + eps`.
    Pre,
    /// How much each stream takes from the branch, `[T, n]`: `2 sigmoid(m s + b)`.
    Post,
    /// How streams mix, `[T, n, n]`, from the first index into the second: a softmax over the second
    /// one, plus `eps`, brought near a doubly stochastic matrix by so many iterations of Sinkhorn and
    /// Knopp: the first divides by the sums over the first index, each further one by those over the
    /// second index and then by those over the first.
    Mix {
        /// Iterations, the first included.
        iterations: usize,
        /// Added to every divisor.
        divisor_eps: f64,
        /// The first iteration divides by the other sums.
        rows_first: bool,
    },
}

/// The weights of a manifold-constrained hyper-connection (Xie et al., 2026), from its projection
/// `m`: `(2 + n) n` numbers, those of [`HcPart::Pre`] first, then `Post`, then `Mix`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct HcWeights {
    /// Which part.
    pub part: HcPart,
    /// Residual streams n.
    pub streams: usize,
    /// Numbers in the projection: `(2 + n) n`, or `n` where there is no branch.
    pub width: usize,
    /// b, `[width]`.
    pub base: String,
    /// s, one for each part.
    pub scale: String,
    /// Added so that nothing is zero.
    pub eps: f64,
}

impl HcWeights {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        let mut axes = vec![Axis::Tokens];
        if matches!(self.part, HcPart::Mix { .. }) {
            axes.push(Axis::Heads(self.streams));
        }
        axes.push(Axis::Channels(self.streams));
        axes
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        let parts = if self.width == self.streams { 1 } else { 3 };
        vec![(&self.base, vec![self.width]), (&self.scale, vec![parts])]
    }

    /// Where this part begins in the projection and in `base`, and which scale is its own.
    pub fn place(&self) -> (usize, usize) {
        match self.part {
            HcPart::Pre => (0, 0),
            HcPart::Post => (self.streams, 1),
            HcPart::Mix { .. } => (2 * self.streams, 2),
        }
    }
}
