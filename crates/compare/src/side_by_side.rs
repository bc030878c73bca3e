//! Replays a trace, in parts side by side where that is asked for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use firstdiff_model::Model;
use firstdiff_reference::{Arithmetic, Executor, KeyValues, StepInput, Weights};
use firstdiff_trace::Trace;

use crate::align::Alignment;
use crate::parts::{self, Chosen};
use crate::replay::{Ambiguous, Judged, Replay, leave_examined};
use crate::{CheckOptions, Error};

/// What a replay gives.
#[derive(Default)]
pub(crate) struct Replayed {
    pub judged: Vec<Judged>,
    pub ambiguous: Vec<Ambiguous>,
    /// Operations and steps that were judged as what follows from something not finite.
    pub poisoned: BTreeSet<(usize, usize)>,
}

/// Parts for each job: they differ in size, and the last one should not be waited for long.
const PARTS: usize = 8;

/// Replays the chosen operations.
pub(crate) fn replay(
    trace: &Trace,
    model: &Model,
    alignment: &Alignment,
    chosen: &Chosen,
    steps: &[StepInput],
    arithmetic: &Arithmetic,
    options: &CheckOptions,
) -> Result<Replayed, Error> {
    let weights = Weights::held(&model.checkpoint, arithmetic, &model.program, options.memory);
    let whole = [chosen.ops.clone()];
    let part = Part { trace, model, alignment, steps, arithmetic, options, weights: &weights };
    let judged = if options.jobs > 1 {
        let parts = parts::cut(&model.program, alignment, &chosen.ops, PARTS * options.jobs);
        match part.replay_all(&parts, chosen.ops.len())? {
            Some(replayed) => Some(replayed),
            // What follows from a value that is not finite is known only in order.
            None => part.replay_all(&whole, chosen.ops.len())?,
        }
    } else {
        part.replay_all(&whole, chosen.ops.len())?
    };
    let mut replayed = judged.unwrap_or_default();
    if let Some(layers) = &chosen.layers {
        // What was computed on the way to these layers is no part of them.
        let layer = |op: usize| firstdiff_trace::tap::split(&model.program.ops[op].tap).0;
        replayed.judged.retain(|j| layer(j.op).is_some_and(|layer| layers.checked.contains(&layer)));
    }
    Ok(replayed)
}

struct Part<'a> {
    trace: &'a Trace,
    model: &'a Model,
    alignment: &'a Alignment,
    steps: &'a [StepInput],
    arithmetic: &'a Arithmetic,
    options: &'a CheckOptions<'a>,
    weights: &'a Weights<'a>,
}

/// What one part gives, and whether a value in it is not finite.
type Done = (Replayed, bool);

impl Part<'_> {
    /// Replays all parts; `None` where they depend on one another after all.
    fn replay_all(&self, parts: &[Vec<usize>], total: usize) -> Result<Option<Replayed>, Error> {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let results: Mutex<Vec<Option<Result<Done, Error>>>> =
            Mutex::new((0..parts.len()).map(|_| None).collect());
        let one = |at: usize, ops: &[usize]| {
            let count = |_: usize| {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some(progress) = self.options.progress {
                    progress(done, 2 * total);
                }
            };
            let result = self.replay(ops, &count);
            if let Some(place) = results.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
                *place = Some(result);
            }
        };
        let worker = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(ops) = parts.get(at) else { break };
                one(at, ops);
            }
        };
        if parts.len() == 1 || self.options.jobs <= 1 {
            worker();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..self.options.jobs.min(parts.len()) {
                    scope.spawn(worker);
                }
            });
        }
        let mut replayed = Replayed::default();
        for result in results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten() {
            let (part, poisoned) = result?;
            if poisoned && parts.len() > 1 {
                return Ok(None);
            }
            replayed.judged.extend(part.judged);
            replayed.ambiguous.extend(part.ambiguous);
            replayed.poisoned.extend(part.poisoned);
        }
        leave_examined(&mut replayed.judged, &self.model.program);
        Ok(Some(replayed))
    }

    fn replay(&self, ops: &[usize], progress: &(dyn Fn(usize) + Sync)) -> Result<Done, Error> {
        let executor = Executor {
            program: &self.model.program,
            weights: self.weights,
            arithmetic: Some(self.arithmetic),
            lanes: self.options.lanes,
            progress: Some(progress),
        };
        let mut replay = Replay::new(self.trace, &self.model.program, self.alignment, self.arithmetic);
        let mut keys = KeyValues::new(self.model.program.ops.len());
        let outcome = executor.execute_some(ops, self.steps, &mut keys, &mut replay);
        match (replay.failed.take(), outcome) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(())) => {
                let poisoned = replay.is_poisoned();
                let Replay { judged, ambiguous, inherited, .. } = replay;
                Ok((Replayed { judged, ambiguous, poisoned: inherited }, poisoned))
            }
        }
    }
}
