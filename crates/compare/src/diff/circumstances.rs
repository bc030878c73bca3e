//! How two traces were recorded, and what of their difference that alone explains.

use firstdiff_reference::{CacheFormat, MatmulInputs};
use firstdiff_tensor::Float;
use firstdiff_trace::Trace;
use serde::Serialize;
use serde_json::Value;

use crate::Error;
use crate::arithmetic;
use crate::diff::order::roundings;
use crate::diff::sums::Sums;

/// A key of `trace.json` that two traces do not have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// The key, with the object it is in.
    pub key: String,
    /// Both values; `null` where there is none.
    pub values: [Value; 2],
}

/// The formats that a side holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Held {
    /// Name of its arithmetic profile.
    pub profile: String,
    /// Format of its activations.
    pub activations: String,
    /// Format its weights were rounded to.
    pub weights: String,
    /// Whether the trace declares them; else they were told from the stored values.
    pub declared: bool,
    /// The coarsest format anywhere.
    #[serde(skip)]
    pub(crate) coarsest: f64,
}

/// Whether two traces come from the same weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SameWeights {
    /// The fingerprints are equal.
    Yes,
    /// The fingerprints differ, or the embeddings of the same tokens do.
    No,
    /// Nothing tells.
    Unknown,
}

/// How two traces were recorded.
#[derive(Clone, Debug, Serialize)]
pub struct Circumstances {
    /// Whether producer, version, model, arithmetic and environment are the same, as far as both say.
    pub same_engine: bool,
    /// What is not.
    pub differing: Vec<Differing>,
    /// Whether they hold the same weights.
    pub weights: SameWeights,
    /// Both fingerprints, where both are known.
    pub fingerprints: Option<[String; 2]>,
    /// By how much the embeddings of the same tokens differ, relative to the first side's.
    pub embed: Option<f64>,
    /// The formats of each side.
    pub held: [Held; 2],
    /// What those formats alone leave at the end, relative; see [`crate::DiffRow::explained`].
    pub explained: f64,
}

/// Keys of `environment` that are another one in every run and say nothing about the engine.
const TIMES: [&str; 6] = ["date", "time", "timestamp", "started", "finished", "pid"];

impl Circumstances {
    pub(crate) fn new(a: &Trace, b: &Trace, embed: &Sums, layers: usize) -> Result<Circumstances, Error> {
        let held = [held(a)?, held(b)?];
        let mut differing = Vec::new();
        let (x, y) = (described(a), described(b));
        for key in x.keys().chain(y.keys().filter(|k| !x.contains_key(*k))) {
            let value = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
            if value(&x) != value(&y) {
                differing.push(Differing { key: key.clone(), values: [value(&x), value(&y)] });
            }
        }
        let of = |t: &Trace| t.manifest.model.as_ref().and_then(|m| m.fingerprint.clone());
        let fingerprints = of(a).zip(of(b)).map(|(a, b)| [a, b]);
        if fingerprints.is_some() {
            // The same file under another name is the same file.
            differing.retain(|d| d.key != "model.name");
        }
        for (key, values) in [
            ("arithmetic.activations", [&held[0].activations, &held[1].activations]),
            ("arithmetic.weights", [&held[0].weights, &held[1].weights]),
        ] {
            if values[0] != values[1] && !differing.iter().any(|d| d.key == key) {
                let values = values.map(|v| Value::from(v.clone()));
                differing.push(Differing { key: key.into(), values });
            }
        }
        let distance = (embed.elements > 0 && embed.first > 0.0).then(|| (embed.error / embed.first).sqrt());
        // An embedding is looked up, not computed: all that rounding can do is to store it in another
        // format, twice where it is scaled. Single rows that differ are a wrong look-up.
        let stored = 2.0 * (held[0].coarsest + held[1].coarsest);
        let other_rows = distance.is_some_and(|d| d > stored) && 2 * embed.differ > embed.elements;
        let weights = match &fingerprints {
            Some([a, b]) if a == b => SameWeights::Yes,
            Some(_) => SameWeights::No,
            None if other_rows => SameWeights::No,
            None => SameWeights::Unknown,
        };
        let mut circumstances = Circumstances {
            same_engine: differing.is_empty(),
            differing,
            weights,
            fingerprints,
            embed: distance,
            held,
            explained: 0.0,
        };
        circumstances.explained = Expected::new(&circumstances.held, layers).at("logits");
        Ok(circumstances)
    }

    /// Whether the two hold their values in different formats.
    pub fn other_arithmetic(&self) -> bool {
        let formats = |h: &Held| (h.activations.clone(), h.weights.clone(), h.profile.clone());
        formats(&self.held[0]) != formats(&self.held[1])
    }
}

/// Half a step of a block of 8-bit integers, relative to a typical element: 127 steps reach from zero to the
/// largest of 32 elements, which is about twice the root of their mean square.
const BLOCK_ROUNDOFF: f64 = 1.0 / 128.0;

fn held(trace: &Trace) -> Result<Held, Error> {
    let (arithmetic, used) = arithmetic::resolve(trace)?;
    let inputs = match arithmetic.matmul_inputs {
        MatmulInputs::AsStored => 0.0,
        MatmulInputs::Ggml => BLOCK_ROUNDOFF,
        MatmulInputs::Short(format) | MatmulInputs::Scaled { format, .. } => format.unit_roundoff(),
    };
    Ok(Held {
        profile: used.profile,
        activations: arithmetic.store.name().into(),
        weights: arithmetic.weights.name().into(),
        declared: used.declared,
        coarsest: [arithmetic.store, arithmetic.weights]
            .map(Float::unit_roundoff)
            .into_iter()
            .chain([arithmetic.k_cache, arithmetic.v_cache].map(CacheFormat::unit_roundoff))
            .chain([inputs])
            .fold(0.0, f64::max),
    })
}

/// Everything that says which engine it was, by key.
fn described(trace: &Trace) -> serde_json::Map<String, Value> {
    let manifest = &trace.manifest;
    let mut all = serde_json::Map::new();
    all.insert("producer.name".into(), manifest.producer.name.clone().into());
    all.insert("producer.version".into(), manifest.producer.version.clone().into());
    let objects = [
        ("model", manifest.model.as_ref().and_then(|m| serde_json::to_value(m).ok())),
        ("arithmetic", manifest.arithmetic.as_ref().and_then(|m| serde_json::to_value(m).ok())),
        ("environment", manifest.environment.clone().map(Value::Object)),
    ];
    for (object, value) in objects {
        let Some(Value::Object(value)) = value else { continue };
        for (key, value) in value {
            if object != "environment" || !TIMES.contains(&key.as_str()) {
                all.insert(format!("{object}.{key}"), value);
            }
        }
    }
    all
}

/// What rounding on both sides is expected to leave of a difference.
///
/// Every operation rounds, and the residual stream carries the errors on: after `n` independent roundings
/// by a fraction `u` an error of about `u sqrt(n)` is left. What engines do in between (sums, an attention
/// that amplifies) is covered by a factor that docs/VERDICTS.md measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    roundoff: f64,
    layers: usize,
}

/// Measured on healthy pairs: never above 2 (docs/VERDICTS.md), so 4 leaves room and still sees what matters.
const MARGIN: f64 = 4.0;

/// However deep the model and coarse the formats: what is as far away as its own size, such as zeros, is not explained.
const MOST: f64 = 0.99;

impl Expected {
    /// For a model of as many layers.
    pub fn new(held: &[Held; 2], layers: usize) -> Expected {
        Expected { roundoff: held[0].coarsest.hypot(held[1].coarsest), layers }
    }

    /// At one tap, relative to its value.
    pub fn at(&self, name: &str) -> f64 {
        (MARGIN * self.roundoff * (roundings(name, self.layers) as f64).sqrt()).min(MOST)
    }
}
