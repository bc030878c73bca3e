//! One of two streams that are compared.

use firstdiff_checkpoint::Storage;
use firstdiff_model::Model;
use firstdiff_reference::{Arithmetic, MatmulInputs};
use firstdiff_tensor::Float;
use firstdiff_trace::{Manifest, Producer, Trace};

use super::chains::{self, Chain, Row};
use super::fork::Judged;
use super::input::Source;
use super::own::{self, Own};
use super::sampling::Sampling;
use crate::{Error, arithmetic};

/// A stream with everything that is known of it.
pub(crate) struct Side<'s> {
    pub trace: Option<&'s Trace>,
    pub chains: Vec<Chain>,
    pub owns: Vec<Own>,
    /// Whether the file tells which tokens are the prompt.
    pub prompt_known: bool,
    pub sampling: Sampling,
    pub arithmetic: Arithmetic,
}

impl<'s> Side<'s> {
    /// Reads a source; what follows from its own values alone is judged here.
    pub fn new(
        name: &str,
        source: &'s Source,
        model: Option<&Model>,
        given: Option<&Arithmetic>,
    ) -> Result<Self, Error> {
        match source {
            Source::Trace(trace) => {
                let sampling = Sampling::new(&trace.manifest);
                let vocabulary = model.map_or(usize::MAX, |m| m.program.vocab);
                let chains = chains::chains(trace, sampling.declared, vocabulary)?;
                let owns = own::judge(name, trace, &chains, &sampling)?;
                let arithmetic = match given {
                    Some(given) => given.clone(),
                    None => arithmetic::resolve(trace)?.0,
                };
                let trace = Some(&**trace);
                Ok(Side { trace, chains, owns, prompt_known: true, sampling, arithmetic })
            }
            Source::Ids { ids, prompt, reference, temperature, .. } => {
                let known = prompt.unwrap_or(0);
                let chain = Chain {
                    ids: ids.clone(),
                    given: (0..ids.len()).map(|i| i < known).collect(),
                    ..Chain::default()
                };
                let arithmetic = match (given, model) {
                    (Some(given), _) => given.clone(),
                    (None, Some(model)) if !reference => likely(model),
                    _ => Arithmetic::uniform(Float::F32),
                };
                let mut sampling = Sampling::new(&Manifest::new(Producer::default()));
                sampling.draws = *temperature > 0.0;
                let owns = vec![Own::default()];
                Ok(Side {
                    trace: None,
                    chains: vec![chain],
                    owns,
                    prompt_known: prompt.is_some(),
                    sampling,
                    arithmetic,
                })
            }
        }
    }

    /// The recorded logits that the token at `position` was chosen by.
    pub fn logits(&self, chain: usize, position: usize) -> Result<Option<Row>, Error> {
        let Some(chain) = self.chains.get(chain) else { return Ok(None) };
        let row = position.checked_sub(1).and_then(|p| chain.rows.get(p).copied());
        let (Some(trace), Some((step, row))) = (self.trace, row) else { return Ok(None) };
        chain.logits(trace, step, row)
    }

    /// As the reference needs it.
    pub fn judged(&self, chain: usize) -> Judged<'_> {
        let window = self.owns.get(chain).and_then(|o| o.window);
        Judged { arithmetic: &self.arithmetic, sampling: &self.sampling, window }
    }

    /// Puts the prompt of the other side before a list that lacks it.
    pub fn complete(&mut self, other: &Side) {
        if let ([own], [theirs]) = (self.chains.as_mut_slice(), other.chains.as_slice())
            && !self.prompt_known
            && other.prompt_known
        {
            let prompt = theirs.ids.get(..theirs.prompt()).unwrap_or_default();
            if !own.ids.starts_with(prompt) {
                own.ids.splice(0..0, prompt.iter().copied());
            }
            own.given = (0..own.ids.len()).map(|i| i < prompt.len()).collect();
        }
    }
}

/// The arithmetic in which a model of this file is most often executed.
fn likely(model: &Model) -> Arithmetic {
    let has = |is: fn(Storage) -> bool| model.checkpoint.tensors().any(|t| is(t.storage));
    if has(Storage::is_quantised) {
        Arithmetic::ggml()
    } else if has(|s| s == Storage::BF16) {
        Arithmetic::uniform(Float::BF16)
    } else if has(|s| s == Storage::F16) {
        Arithmetic::uniform(Float::F16)
    } else {
        Arithmetic::uniform(Float::F32)
    }
}

/// The relative size of one rounding: 8-bit blocks keep 1/254 of their largest value.
pub(crate) fn roundoff(arithmetic: &Arithmetic) -> f64 {
    let caches = arithmetic.k_cache.unit_roundoff().max(arithmetic.v_cache.unit_roundoff());
    let stored = arithmetic.store.unit_roundoff().max(caches);
    if arithmetic.matmul_inputs == MatmulInputs::Ggml { stored.max(1.0 / 254.0) } else { stored }
}
