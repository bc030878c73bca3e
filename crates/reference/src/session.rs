//! A sequence being decoded.

use firstdiff_tensor::{Real, Tensor};

use crate::error::Error;
use crate::execute::{Computed, Executor, StepInput, Taps};
use crate::keys::KeyValues;

/// Feeds tokens to the reference, step by step, and keeps its caches.
pub struct Session<'a, T> {
    executor: Executor<'a>,
    keys: KeyValues<T>,
    position: u32,
}

impl<'a, T: Real> Session<'a, T> {
    /// A session at position 0.
    pub fn new(executor: Executor<'a>) -> Session<'a, T> {
        Session { executor, keys: KeyValues::new(executor.program.ops.len()), position: 0 }
    }

    /// Tokens fed so far.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Runs one step and returns the logits of its last token, `[V]`.
    ///
    /// # Errors
    /// When a token id is out of range or a weight cannot be read.
    pub fn feed(&mut self, tokens: &[i64]) -> Result<Vec<T>, Error> {
        let ops = &self.executor.program.ops;
        let logits = ops.len() - 1;
        let norm = self.executor.program.before_logits().map_or(logits, |v| v.0);
        let mut last = LastRow { norm, logits, row: vec![] };
        self.feed_with(tokens, &mut last)?;
        Ok(last.row)
    }

    /// Runs one step, showing every value to `taps`.
    ///
    /// # Errors
    /// When a token id is out of range, a weight cannot be read, or `taps` stops.
    pub fn feed_with(&mut self, tokens: &[i64], taps: &mut impl Taps<T>) -> Result<(), Error> {
        let step = StepInput::new(tokens, self.position);
        self.executor.execute(&[step], &mut self.keys, taps)?;
        self.position += tokens.len() as u32;
        Ok(())
    }
}

/// Cuts the hidden state to its last row before the output matrix: only that row's logits count.
struct LastRow<T> {
    norm: usize,
    logits: usize,
    row: Vec<T>,
}

impl<T: Real> Taps<T> for LastRow<T> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, Error> {
        let value = computed.exact;
        if computed.op == self.logits {
            self.row = value.row(value.rows() - 1).to_vec();
        } else if computed.op == self.norm {
            return Ok(Tensor::new([1, value.row_len()], value.row(value.rows() - 1).to_vec()).ok());
        }
        Ok(None)
    }
}
