//! Local replay: the trace's values override the reference's, and each is measured on the way.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use firstdiff_model::{OpKind, Program};
use firstdiff_reference::{Arithmetic, Choice, Computed, KeyLabel, TIE, Taps};
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Step, Trace, tap};
use serde::Serialize;

use crate::Error;
use crate::align::Alignment;
use crate::judge::{Compared, Copied, Expected, Judgement, judge};
use crate::measure::{Measured, choice};
use crate::reach::Part;
use crate::structure::{Structure, structure};
use crate::ulps::{Ulps, ulps};

/// A measured tap.
#[derive(Debug)]
pub(crate) struct Judged {
    pub step: usize,
    pub op: usize,
    pub measured: Measured,
    /// What the error looks like; examined for the first few wrong taps of a kind.
    pub structure: Vec<Structure>,
    pub ulps: Option<Ulps>,
}

/// Tokens for which rounding decides a choice.
#[derive(Clone, Debug, Serialize)]
pub struct Ambiguous {
    /// The step.
    pub step: usize,
    /// The choice's tap.
    pub tap: String,
    /// Whether the engine's own choice is recorded, and another one than the reference's. Where it is not
    /// recorded, what follows is judged by both.
    pub recorded: bool,
    /// Positions of the tokens.
    pub tokens: Vec<i64>,
}

/// A trace as recorded values of a program.
pub(crate) struct Replay<'a> {
    pub trace: &'a Trace,
    pub program: &'a Program,
    pub alignment: &'a Alignment,
    pub arithmetic: &'a Arithmetic,
    pub judged: Vec<Judged>,
    pub ambiguous: Vec<Ambiguous>,
    /// For each step, the operations whose recorded value, or one that it was computed from, is not
    /// finite: what comes after a NaN is no finding of its own.
    poisoned: Vec<Vec<bool>>,
    /// Operations and steps whose recorded value was judged as one that follows from something not finite.
    pub inherited: BTreeSet<(usize, usize)>,
    /// An error of ours, kept while the executor is stopped.
    pub failed: Option<Error>,
}

/// Leaves the structure of the first few wrong taps of a kind: parts of a replay that run side by side each
/// examine as many.
pub(crate) fn leave_examined(judged: &mut [Judged], program: &Program) {
    let mut examined: BTreeMap<String, usize> = BTreeMap::new();
    for j in judged.iter_mut() {
        let count = examined.entry(tap::pattern(&program.ops[j.op].tap)).or_default();
        if *count >= EXAMINED {
            j.structure.clear();
            j.ulps = None;
        } else if !j.structure.is_empty() {
            *count += 1;
        }
    }
}

impl<'a> Replay<'a> {
    pub fn new(
        trace: &'a Trace,
        program: &'a Program,
        alignment: &'a Alignment,
        arithmetic: &'a Arithmetic,
    ) -> Self {
        let poisoned = vec![vec![false; program.ops.len()]; trace.steps.len()];
        let (judged, ambiguous, inherited) = (vec![], vec![], BTreeSet::new());
        Replay { trace, program, alignment, arithmetic, judged, ambiguous, poisoned, inherited, failed: None }
    }
}

/// Wrong taps of one kind whose structure is examined: a bug looks alike in every layer.
const EXAMINED: usize = 3;

impl Replay<'_> {
    /// Whether the structure of a wrong tap is to be examined.
    fn examine(&self, name: &str) -> bool {
        let pattern = tap::pattern(name);
        let wrong =
            |j: &&Judged| !j.structure.is_empty() && tap::pattern(&self.program.ops[j.op].tap) == pattern;
        self.judged.iter().filter(wrong).count() < EXAMINED
    }

    /// Whether a value was computed from one that is not finite, in this step or by way of a cache.
    fn inherits_poison(&self, op: usize, step: usize) -> bool {
        let cached = self.program.ops[op].kind.state().is_some();
        let earlier = cached && step.checked_sub(1).is_some_and(|s| self.poisoned[s][op]);
        earlier || self.program.ops[op].inputs.iter().any(|v| self.poisoned[step][v.0])
    }

    /// Keeps what was measured of a tensor, and gives the value to go on with: downstream of what is not finite,
    /// operations are judged on the exact value.
    fn compared(&mut self, op: usize, step: usize, compared: Compared) -> Tensor<f64> {
        let Compared { measured, recorded, exact, noise, axes, .. } = &compared;
        let (mut found, mut distances) = (vec![], None);
        if measured.is_wrong() && measured.non_finite == 0 && self.examine(&self.program.ops[op].tap) {
            found = structure(recorded, exact, noise, axes);
            distances = ulps(recorded, exact, noise);
        }
        if measured.non_finite > 0 {
            self.poisoned[step][op] = true;
        }
        let measured = measured.clone();
        self.judged.push(Judged { step, op, measured, structure: found, ulps: distances });
        compared.into_finite()
    }

    fn does_not_fit(
        &self,
        op: usize,
        step: usize,
        found: Vec<usize>,
        most: &[usize],
    ) -> firstdiff_reference::Error {
        let op = &self.program.ops[op];
        let inputs: Vec<&str> = op.inputs.iter().map(|v| self.program.ops[v.0].tap.as_str()).collect();
        firstdiff_reference::Error::Shape {
            step,
            tap: op.tap.clone(),
            found,
            reader: "the comparison".into(),
            expected: format!("at most {most:?}, which is what follows from {}", inputs.join(" and ")),
        }
    }

    /// Rows where rounding decides a choice that is not recorded.
    fn open(&mut self, op: usize, step: usize, choice: &Choice) {
        let k = match &self.program.ops[op].kind {
            OpKind::TopK(top) => top.k,
            OpKind::IndexTopK(top) => top.k,
            _ => return,
        };
        let rows = (0..choice.rows()).filter(|&row| choice.margin(row, k) <= TIE).collect();
        self.note_ambiguous(op, step, choice.rows(), rows, false);
    }

    fn note_ambiguous(&mut self, op: usize, step: usize, of: usize, rows: Vec<usize>, recorded: bool) {
        if rows.is_empty() {
            return;
        }
        let positions = &self.trace.steps[step].positions;
        let positions = &positions[positions.len().saturating_sub(of)..];
        let tokens = rows.iter().filter_map(|&row| positions.get(row).copied()).collect();
        self.ambiguous.push(Ambiguous { step, tap: self.program.ops[op].tap.clone(), recorded, tokens });
    }
}

/// How the newest rows of a cache were written, where what was written is recorded.
pub(crate) fn copied(
    program: &Program,
    alignment: &Alignment,
    arithmetic: &Arithmetic,
    (op, step): (usize, usize),
    recorded: &Step,
) -> Option<Copied> {
    let cache = &program.ops[op];
    // The newest rows stand last, unless a key axis says otherwise.
    let rows = &alignment.steps[step];
    let axis = rows.keys.of(tap::split(&cache.tap).0);
    let last = axis.is_none_or(|axis| {
        let own = rows.sequence.iter().zip(&rows.positions);
        let same = |(key, (q, p)): (&KeyLabel, (&i64, &u32))| key.sequence == *q && key.position == *p;
        axis.len() >= own.len() && axis[axis.len() - own.len()..].iter().zip(own).all(same)
    });
    let written = last
        && matches!(cache.kind, OpKind::Cache(_))
        && cache.inputs.first().is_some_and(|v| alignment.placements[step][v.0].is_some());
    written.then(|| Copied { format: arithmetic.cache_of(cache), rows: recorded.rows() })
}

impl Replay<'_> {
    /// Whether any value was not finite, or follows from one.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.iter().flatten().any(|&p| p)
    }

    fn read(&mut self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        let name = &self.program.ops[op].tap;
        match self.alignment.read::<f64>(step, op, name, &self.trace.steps[step]) {
            Ok(value) => Ok(value),
            Err(Error::Trace(e)) => Err(e.into()),
            Err(e) => {
                let (tap, reader) = (name.clone(), "the comparison".to_string());
                let (found, expected) = (vec![], e.to_string());
                self.failed = Some(e);
                Err(firstdiff_reference::Error::Shape { step, tap, found, reader, expected })
            }
        }
    }
}

impl Taps<f64> for Replay<'_> {
    fn start(&mut self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        self.read(op, step)
    }

    fn recorded(&self, op: usize, step: usize) -> bool {
        self.alignment.placements[step][op].is_some()
    }

    fn visit(&mut self, computed: Computed<f64>) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        let poisoned = self.inherits_poison(computed.op, computed.step);
        self.poisoned[computed.step][computed.op] = poisoned;
        if poisoned {
            self.inherited.insert((computed.op, computed.step));
        }
        let Some(value) = self.read(computed.op, computed.step)? else {
            if let Some(choice) = computed.choice {
                self.open(computed.op, computed.step, choice);
            }
            return Ok(None);
        };
        let (op, step) = (computed.op, computed.step);
        let expected = Expected {
            exact: Cow::Borrowed(computed.exact),
            noise: computed.noise,
            choice: computed.choice,
            poisoned,
            copied: copied(
                self.program,
                self.alignment,
                self.arithmetic,
                (op, step),
                &self.trace.steps[step],
            ),
            rows: &self.alignment.steps[step],
            part: self.alignment.reach.of(op, step),
        };
        if *expected.part == Part::Nothing && value.data().iter().any(|x| !x.is_finite()) {
            self.poisoned[step][op] = true;
        }
        match judge(self.program, op, value, expected) {
            Judgement::Unjudged(value) => Ok(Some(value)),
            Judgement::DoesNotFit { found } => {
                Err(self.does_not_fit(op, step, found, computed.exact.shape()))
            }
            Judgement::Choice(choice::Compared { measured, value, ambiguous }) => {
                self.note_ambiguous(op, step, value.rows(), ambiguous, true);
                self.judged.push(Judged { step, op, measured, structure: vec![], ulps: None });
                Ok(Some(value))
            }
            Judgement::Tensor(compared) => Ok(Some(self.compared(op, step, *compared))),
        }
    }
}
