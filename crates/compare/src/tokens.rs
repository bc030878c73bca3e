//! The tokens an engine chose, against those the reference would choose on the same history.

use firstdiff_model::{Model, Program};
use firstdiff_reference::{Arithmetic, Computed, Executor, KeyValues, StepInput, Taps, Weights};
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::Trace;
use serde::Serialize;

use crate::Error;
use crate::replay::input;

/// Why tokens differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TokenKind {
    /// The two best logits lie closer together than the noise that reached them.
    #[serde(rename = "tie flip")]
    TieFlip,
    /// They do not.
    #[serde(rename = "divergence")]
    Divergence,
}

/// The choices compared.
#[derive(Clone, Debug, Serialize)]
pub struct Tokens {
    /// Choices compared.
    pub compared: usize,
    /// The step after which the first other token was chosen.
    pub first_mismatch: Option<usize>,
    /// Why.
    pub kind: Option<TokenKind>,
    /// How far the reference prefers its own token over the engine's, in logits.
    pub margin: Option<f64>,
    /// Standard deviation of that difference under rounding in the engine's arithmetic.
    pub noise: Option<f64>,
    /// The engine's token and the reference's.
    pub chosen: Option<[i64; 2]>,
}

/// Standard deviations within which a margin is a tie: all but about one in 10^6 for a normal
/// distribution, with room for the deviation being estimated from a handful of executions.
const TIE: f64 = 5.0;

/// The token chosen after each step, where the trace tells: `sampled`; or the next step's input, if
/// the engine's own logits call for it. A token that they do not call for may have been given to
/// the engine, not chosen by it.
fn choices(trace: &Trace) -> Result<Vec<Option<i64>>, Error> {
    let follows = |s: usize| -> Result<Option<i64>, Error> {
        let Some(next) = trace.steps.get(s + 1) else { return Ok(None) };
        let continues = next.positions.first() == trace.steps[s].positions.last().map(|p| p + 1).as_ref();
        let Some(logits) = trace.steps[s].read::<f64>("logits")? else { return Ok(None) };
        if next.rows() != 1 || !continues || logits.is_empty() {
            return Ok(None);
        }
        let row = logits.row(logits.rows() - 1);
        let token = next.token_ids[0];
        let value = usize::try_from(token).ok().and_then(|t| row.get(t));
        Ok(value.is_some_and(|v| row.iter().all(|x| x <= v)).then_some(token))
    };
    let choice = |s: usize| match trace.steps[s].sampled {
        Some(token) => Ok(Some(token)),
        None => follows(s),
    };
    (0..trace.steps.len()).map(choice).collect()
}

/// Whether tokens were chosen by the largest logit.
fn greedy(trace: &Trace) -> bool {
    let Some(sampling) = &trace.manifest.sampling else { return true };
    let number = |key: &str| sampling.get(key).and_then(serde_json::Value::as_f64);
    sampling.get("do_sample").and_then(serde_json::Value::as_bool) != Some(true)
        && number("temperature").is_none_or(|t| t == 0.0 || sampling.contains_key("do_sample"))
        && number("repetition_penalty").is_none_or(|p| p == 1.0)
}

/// Compares the choices; `None` where the trace holds none that were made greedily.
pub(crate) fn compare(
    trace: &Trace,
    model: &Model,
    arithmetic: &Arithmetic,
    lanes: usize,
    progress: Option<&(dyn Fn(usize) + Sync)>,
) -> Result<Option<Tokens>, Error> {
    let choices = choices(trace)?;
    let batched = trace.steps.iter().any(|s| s.sequence.iter().any(|&q| q != 0));
    if batched || !greedy(trace) || choices.iter().all(Option::is_none) {
        return Ok(None);
    }
    let weights = Weights::new(&model.checkpoint, arithmetic.weights, 0);
    let program = &model.program;
    let executor = Executor { program, weights: &weights, arithmetic: None, lanes, progress };
    let steps: Vec<StepInput> = trace.steps.iter().map(input).collect();
    let mut rows = LastRows::<f32>::new(program, None);
    executor.execute(&steps, &mut KeyValues::new(program.ops.len()), &mut rows)?;

    let mut tokens =
        Tokens { compared: 0, first_mismatch: None, kind: None, margin: None, noise: None, chosen: None };
    for (s, choice) in choices.iter().enumerate() {
        let Some(choice) = *choice else { continue };
        tokens.compared += 1;
        let logits = &rows.logits[s];
        let best = largest(logits);
        if tokens.first_mismatch.is_none() && choice != best as i64 {
            let engine = usize::try_from(choice).ok().and_then(|c| logits.get(c));
            tokens.first_mismatch = Some(s);
            tokens.margin = engine.map(|&l| f64::from(logits[best]) - f64::from(l));
            tokens.chosen = Some([choice, best as i64]);
        }
    }
    let (Some(step), Some(margin), Some([theirs, ours])) =
        (tokens.first_mismatch, tokens.margin, tokens.chosen)
    else {
        if tokens.first_mismatch.is_some() {
            tokens.kind = Some(TokenKind::Divergence);
        }
        return Ok(Some(tokens));
    };
    // Only now is it worth executing every lane from end to end.
    let executor = Executor { arithmetic: Some(arithmetic), ..executor };
    let mut noisy = LastRows::<f32>::new(program, Some(step));
    executor.execute(&steps[..=step], &mut KeyValues::new(program.ops.len()), &mut noisy)?;
    let difference = |row: &[f32]| f64::from(row[ours as usize]) - f64::from(row[theirs as usize]);
    let exact = difference(&rows.logits[step]);
    let squares: f64 = noisy.lanes.iter().map(|l| (difference(l) - exact).powi(2)).sum();
    let noise = (squares / noisy.lanes.len().max(1) as f64).sqrt();
    tokens.noise = Some(noise);
    tokens.kind = Some(if margin <= TIE * noise { TokenKind::TieFlip } else { TokenKind::Divergence });
    Ok(Some(tokens))
}

fn largest<T: Real>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// Keeps the logits of each step's last row; or, of one step, those of that row in every lane.
///
/// The hidden state is cut to the rows that count before the output matrix, the largest product of
/// all, is applied. The lanes of the noisy step become rows there.
struct LastRows<T> {
    norm_op: usize,
    logits_op: usize,
    noisy_step: Option<usize>,
    logits: Vec<Vec<T>>,
    lanes: Vec<Vec<T>>,
}

impl<T> LastRows<T> {
    fn new(program: &Program, noisy_step: Option<usize>) -> Self {
        let logits_op = program.ops.len() - 1;
        let norm_op = program.ops[logits_op].inputs.first().map_or(logits_op, |v| v.0);
        LastRows { norm_op, logits_op, noisy_step, logits: vec![], lanes: vec![] }
    }
}

impl<T: Real> Taps<T> for LastRows<T> {
    fn recorded(&self, op: usize, step: usize) -> bool {
        op == self.norm_op && self.noisy_step == Some(step)
    }

    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, firstdiff_reference::Error> {
        let last = |t: &Tensor<T>| t.row(t.rows() - 1).to_vec();
        let value = computed.exact;
        if computed.op == self.norm_op {
            let rows = match computed.noise {
                Some(noise) if !noise.lanes.is_empty() => noise.lanes.iter().map(last).collect(),
                _ => vec![last(value)],
            };
            return Ok(Tensor::new([rows.len(), value.row_len()], rows.concat()).ok());
        }
        if computed.op == self.logits_op {
            if self.noisy_step == Some(computed.step) {
                self.lanes = (0..value.rows()).map(|r| value.row(r).to_vec()).collect();
            }
            self.logits.push(last(value));
        }
        Ok(None)
    }
}
