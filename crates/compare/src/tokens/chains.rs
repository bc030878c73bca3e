//! The sequences of a trace: which token went in where, and which was chosen after it.

use firstdiff_trace::{Step, Trace};

use crate::Error;
use crate::steps::rows_of_logits;

/// Logits of one row, as recorded.
pub(crate) struct Row {
    /// One a token of the vocabulary.
    pub values: Vec<f64>,
    /// Unit roundoff of the type they are stored in.
    pub roundoff: f64,
}

impl Row {
    /// The recorded logits of `row` of a step; `None` where that row was not recorded. Only this
    /// row is decoded: all rows of a prompt may be gigabytes. Columns beyond the `vocabulary` are padding.
    pub fn read(step: &Step, row: usize, vocabulary: usize) -> Result<Option<Row>, Error> {
        let (Some(tap), Some(bytes)) = (step.taps().get("logits"), step.raw("logits")) else {
            return Ok(None);
        };
        let width = tap.shape.last().copied().unwrap_or(0) * tap.dtype.size();
        if width == 0 || !bytes.len().is_multiple_of(width) {
            return Ok(None);
        }
        if vocabulary < usize::MAX && width < vocabulary.saturating_mul(tap.dtype.size()) {
            // A part of the vocabulary, as one rank holds it.
            return Ok(None);
        }
        let Some(row) = recorded(step, row, bytes.len() / width) else { return Ok(None) };
        let kept = width.min(vocabulary.saturating_mul(tap.dtype.size()));
        let Some(bytes) = bytes.get(row * width..row * width + kept) else { return Ok(None) };
        let Ok(values) = tap.dtype.decode(bytes) else { return Ok(None) };
        let bits = match tap.dtype.name() {
            "F64" => 53,
            "F16" => 11,
            "BF16" => 8,
            _ => 24,
        };
        Ok(Some(Row { values, roundoff: 0.5f64.powi(bits) }))
    }

    /// The value of a token, where the vocabulary has it.
    pub fn get(&self, token: i64) -> Option<f64> {
        usize::try_from(token).ok().and_then(|t| self.values.get(t)).copied()
    }
}

/// The place of `row` among the `count` rows of logits of a step: those that the trace lists; with as many as there are
/// sequences, the last row of each, in the order in which sequences first appear; else the last rows.
pub(crate) fn recorded(step: &Step, row: usize, count: usize) -> Option<usize> {
    if let Some(rows) = rows_of_logits(step).filter(|rows| rows.len() == count && count < step.rows()) {
        return rows.iter().position(|r| *r == row);
    }
    (row + count).checked_sub(step.rows())
}

/// The token recorded as chosen after a step for one of its sequences.
pub(crate) fn chosen(step: &Step, sequence: i64) -> Option<i64> {
    step.chosen(sequence)
}

/// A token chosen after a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Its place in the sequence, if it went in next.
    pub index: usize,
    /// The token.
    pub token: i64,
    /// The step after which it was chosen.
    pub step: usize,
    /// The row of that step.
    pub row: usize,
    /// Whether the trace says so by `sampled`; else it is read off the next step's input.
    pub said: bool,
}

/// One sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Its number in the trace.
    pub sequence: i64,
    /// Its tokens, the last chosen one included.
    pub ids: Vec<i64>,
    /// Whether each token was given to the engine: a prompt, a later turn.
    pub given: Vec<bool>,
    /// Step and row that each token went in with; the last chosen one went in with none.
    pub rows: Vec<(usize, usize)>,
    /// The choices, in order.
    pub choices: Vec<Choice>,
    /// Position of the first token.
    pub first: i64,
    /// Tokens that the model has; logits have as many columns, or more.
    pub vocabulary: usize,
    /// Places of tokens that went in alone, and that neither the trace nor the logits before them call for.
    pub uncalled: Vec<usize>,
}

impl Chain {
    /// The recorded logits of a row, where there are any.
    pub fn logits(&self, trace: &Trace, step: usize, row: usize) -> Result<Option<Row>, Error> {
        trace.steps.get(step).map(|s| Row::read(s, row, self.vocabulary)).transpose().map(Option::flatten)
    }

    /// Tokens before the first that was chosen.
    pub fn prompt(&self) -> usize {
        self.given.iter().take_while(|given| **given).count()
    }

    /// Goes on from `position`, if the sequence has it or it comes next; the tokens from there on
    /// are dropped, as an engine drops them from its cache.
    fn rewound(&self, position: i64) -> Option<Chain> {
        let keep = usize::try_from(position - self.first).ok().filter(|k| *k <= self.rows.len())?;
        let mut kept = self.clone();
        kept.ids.truncate(keep);
        kept.given.truncate(keep);
        kept.rows.truncate(keep);
        kept.choices.clear();
        kept.uncalled.clear();
        Some(kept)
    }
}

/// The sequences of a trace. `declared`: the trace says how tokens were chosen, so each single token
/// that follows was; otherwise only those are taken for choices that their logits call for. Logits may have more
/// columns than the `vocabulary` has tokens.
pub(crate) fn chains(trace: &Trace, declared: bool, vocabulary: usize) -> Result<Vec<Chain>, Error> {
    let mut done: Vec<Chain> = Vec::new();
    let mut open: Vec<Chain> = Vec::new();
    for (s, step) in trace.steps.iter().enumerate() {
        let mut numbers: Vec<i64> = step.sequence.clone();
        numbers.sort_unstable();
        numbers.dedup();
        for q in numbers {
            let rows: Vec<usize> = (0..step.rows()).filter(|&r| step.sequence[r] == q).collect();
            let Some(&first) = rows.first() else { continue };
            let position = step.positions[first];
            let at = open.iter().position(|c| c.sequence == q);
            let fresh = Chain { sequence: q, first: position, vocabulary, ..Chain::default() };
            let mut chain = at.map_or_else(|| fresh.clone(), |at| open.swap_remove(at));
            let continues = chain.rows.is_empty() || position == chain.first + chain.rows.len() as i64;
            if !continues {
                let kept = chain.rewound(position).unwrap_or(fresh);
                done.push(std::mem::replace(&mut chain, kept));
            }
            let follows =
                continues && rows.len() == 1 && chain.follows(trace, step.token_ids[first], declared)?;
            // A choice that went in is in the sequence already: as its last token.
            chain.ids.truncate(chain.rows.len());
            chain.given.truncate(chain.rows.len());
            for &r in &rows {
                chain.ids.push(step.token_ids[r]);
                chain.given.push(!follows);
                chain.rows.push((s, r));
            }
            if let (Some(token), Some(&row)) = (chosen(step, q), rows.last()) {
                chain.choices.push(Choice { index: chain.ids.len(), token, step: s, row, said: true });
                chain.ids.push(token);
                chain.given.push(false);
            }
            open.push(chain);
        }
    }
    done.append(&mut open);
    done.sort_by_key(|c| (c.rows.first().copied(), c.sequence));
    Ok(done)
}

impl Chain {
    /// Whether `token`, which went in alone next, was chosen; notes the choice where it was not
    /// recorded as one.
    fn follows(&mut self, trace: &Trace, token: i64, declared: bool) -> Result<bool, Error> {
        let Some(&(step, row)) = self.rows.last() else { return Ok(false) };
        if let Some(last) = self.choices.last().filter(|c| c.said && (c.step, c.row) == (step, row)) {
            return Ok(last.token == token);
        }
        let logits = if declared { None } else { self.logits(trace, step, row)? };
        let called_for = logits.map(|l| {
            let value = l.get(token);
            value.is_some_and(|v| l.values.iter().all(|x| x <= &v))
        });
        if called_for == Some(false) {
            self.uncalled.push(self.rows.len());
        }
        if declared || called_for == Some(true) {
            self.choices.push(Choice { index: self.rows.len(), token, step, row, said: false });
        }
        // Without logits nothing tells a given token from a chosen one; one at a time is how
        // engines generate.
        Ok(declared || called_for != Some(false))
    }
}
