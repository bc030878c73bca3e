//! What engines do beside the formats that a trace shows: each is tried where values are left unexplained.

use firstdiff_checkpoint::Storage;
use firstdiff_model::{Model, Op, OpKind};
use firstdiff_reference::{Arithmetic, CacheFormat, Group, MatmulInputs, is_row_parallel};
use firstdiff_tensor::Float;
use firstdiff_trace::{ArithmeticSpec, Trace, tap};

use super::Formats;
use crate::judge::shortest;

/// Something that an engine may do.
pub(super) struct Candidate {
    /// Keys of `arithmetic` in trace.json that would declare it.
    pub declare: String,
    /// In words: "the engine …".
    pub what: String,
    /// Whether it can change what an operation gives.
    pub touches: fn(&Op) -> bool,
    /// The arithmetic of an engine that does it as well.
    pub apply: Box<dyn Fn(&Arithmetic) -> Arithmetic + Sync>,
    /// Candidates of one group exclude each other.
    pub group: &'static str,
    /// What errors are of it: a part of what it allows. Errors far below that speak against it. 0 where it shows only
    /// where values happen to lie unluckily.
    pub least: f64,
    /// Whether at least half of what it raises the floor of must need it: it raises much, and shows wherever it acts.
    pub shows: bool,
    /// Whether it explains so much that it is believed only where layers show it, not from end to end.
    pub coarse: bool,
    /// Whether all errors that it makes point towards zero.
    pub cuts_off: bool,
    /// Whether it is believed only where an operation that it acts on was recorded and is wrong itself, not behind others.
    pub direct: bool,
    /// Whether it raises the floor much where values cancel or one channel dominates, and little elsewhere.
    pub selective: bool,
}

/// Most bounds are reached by a third to a half of themselves (docs/VERDICTS.md).
const LEAST: f64 = 0.25;

impl Candidate {
    fn new(
        group: &'static str,
        declare: impl Into<String>,
        what: impl Into<String>,
        touches: fn(&Op) -> bool,
        apply: impl Fn(&Arithmetic) -> Arithmetic + Sync + 'static,
    ) -> Candidate {
        let (declare, what, apply) = (declare.into(), what.into(), Box::new(apply));
        Candidate {
            declare,
            what,
            touches,
            apply,
            group,
            least: LEAST,
            shows: false,
            coarse: false,
            cuts_off: false,
            direct: false,
            selective: false,
        }
    }

    /// Of something that shows only where values happen to lie unluckily.
    fn here_and_there(self) -> Candidate {
        self.at_least(0.0)
    }

    fn showing(self) -> Candidate {
        Candidate { shows: true, ..self }
    }

    fn at_least(self, least: f64) -> Candidate {
        Candidate { least, ..self }
    }

    fn selective(self) -> Candidate {
        Candidate { selective: true, ..self }
    }

    fn cutting_off(self) -> Candidate {
        Candidate { cuts_off: true, ..self }
    }

    fn coarse(self, coarse: bool) -> Candidate {
        Candidate { coarse, ..self }
    }
}

fn norm(op: &Op) -> bool {
    matches!(op.kind, OpKind::RmsNorm(_))
}

fn product(op: &Op) -> bool {
    matches!(op.kind, OpKind::Linear(_) | OpKind::Experts(_) | OpKind::GroupedLinear(_))
}

fn attention(op: &Op) -> bool {
    matches!(op.kind, OpKind::AttnScores(_) | OpKind::AttnHeads(_))
}

fn product_or_attention(op: &Op) -> bool {
    product(op) || attention(op)
}

fn cache(op: &Op) -> bool {
    matches!(op.kind, OpKind::Cache(_))
}

fn reads_stream(op: &Op) -> bool {
    norm(op) || matches!(op.kind, OpKind::Add(_))
}

fn any(_: &Op) -> bool {
    true
}

/// Whether a trace declares a key of `arithmetic`: what it declares is taken at its word.
fn declares(spec: Option<&ArithmeticSpec>, key: &str) -> bool {
    let Some(spec) = spec else { return false };
    match key {
        "weights" => spec.weights.is_some(),
        "accumulate" => spec.accumulate.is_some(),
        "kv_cache" => spec.kv_cache.is_some(),
        "matmul_inputs" => spec.matmul_inputs.is_some(),
        _ => spec.other.get(key).is_some_and(|v| !v.is_null()),
    }
}

/// What an engine whose arithmetic is `base` may do besides, what is likelier or finer first. `given`: the arithmetic
/// was named by the user, and nothing is added to it.
pub(super) fn candidates(base: &Arithmetic, trace: &Trace, model: &Model) -> Vec<Candidate> {
    let spec = trace.manifest.arithmetic.as_ref();
    let open = |key: &str| !declares(spec, key);
    let short = matches!(base.store, Float::BF16 | Float::F16);
    let plain = base.matmul_inputs == MatmulInputs::AsStored;
    let mut list = Vec::new();
    let shorter = shorter(base, trace, model);
    if open("stored") {
        list.extend(stored(&shorter));
    }
    // Where activations are declared, a factor or products in a shorter format, or in parts, are a bug.
    let undeclared = spec.is_none_or(|spec| spec.activations.is_none());
    if base.embed_factor.is_none() && undeclared {
        list.extend(embed_factor(base, model));
    }
    if short && open("residual") && base.residual == base.store {
        list.push(
            Candidate::new(
                "residual",
                "\"residual\": \"f32\"",
                "keeps the residual stream in f32",
                reads_stream,
                |a| a.clone().with_fused_residual(),
            )
            .selective()
            .here_and_there(),
        );
    }
    if short && !base.norm_root_stored {
        let what = format!("stores the root of each norm in {}", base.store.name());
        list.push(Candidate::new("norm", "\"norm_root\": \"stored\"", what, norm, |a| {
            let name = format!("{}+norm-root-stored", a.name);
            Arithmetic { name, norm_root_stored: true, ..a.clone() }
        }));
    }
    if short && open("tensor_parallel") && open("split_sums") && base.tensor_parallel == 1 {
        for ranks in [2, 4, 8] {
            let what = format!(
                "adds up {ranks} partial sums of row-parallel products in {} (tensor parallel)",
                base.store.name()
            );
            let declare = format!("\"tensor_parallel\": {ranks}");
            list.push(
                Candidate::new("tensor_parallel", declare, what, is_row_parallel, move |a| {
                    a.clone().with_tensor_parallel(ranks)
                })
                .selective(),
            );
        }
    }
    if short && undeclared && open("split_sums") && base.split_sums == 1 && plain {
        let what = format!("adds up partial sums of products in {}", base.store.name());
        list.push(
            Candidate::new("split_sums", format!("\"split_sums\": {SPLIT}"), what, product, |a| {
                a.clone().with_split_sums(SPLIT)
            })
            .selective(),
        );
    }
    if open("kv_cache") {
        list.extend(caches(base, trace, model));
    } else if let CacheFormat::Float(format @ (Float::E4M3 | Float::E5M2)) = base.k_cache {
        // Declared without a scale; an engine that has one, and does not record it, means the same.
        list.push(cached(CacheFormat::Scaled(format)));
    }
    if open("matmul_inputs") && plain {
        let in_short: Vec<Float> = match undeclared {
            true => vec![Float::F16, Float::BF16],
            // The bits of what was recorded say otherwise than the declaration.
            false => shorter.iter().map(|(_, format)| *format).collect(),
        };
        let direct = !undeclared;
        list.extend(inputs(base, model, &in_short).into_iter().map(|c| Candidate { direct, ..c }));
    }
    let sums = base.accumulate == Float::F32 && base.product_sums.is_none();
    if short && sums && open("product_sums") && open("accumulate") {
        let what = format!("holds the sums of products in {}", base.store.name());
        let declare = format!("\"product_sums\": \"{}\"", base.store.name());
        // Kernels add in several places at once: up to 16 short sums err by a quarter of what one long one does.
        list.push(
            Candidate::new("product_sums", declare, what, product, |a| {
                let name = format!("{}+sums-{}", a.name, a.store.name());
                Arithmetic { name, product_sums: Some(a.store), ..a.clone() }
            })
            .at_least(0.05)
            .showing(),
        );
    }
    if short && open("truncated") && base.truncated.is_empty() {
        let what = format!("cuts rotated queries and keys and attention's sums off to {}", base.store.name());
        let list_of = |a: &[&str]| a.iter().map(|t| format!("layers.*.{t}")).collect::<Vec<_>>();
        let taps = list_of(&CUT_OFF);
        let declare = format!("\"truncated\": [\"{}\"]", taps.join("\", \""));
        list.push(
            Candidate::new("truncated", declare, what, rotation_or_sum, move |a| {
                let name = format!("{}+truncated", a.name);
                Arithmetic { name, truncated: taps.clone(), ..a.clone() }
            })
            .cutting_off(),
        );
    }
    if open("read") && !base.reads_unrounded {
        let what = "goes on with values before they are rounded for recording";
        list.push(
            Candidate::new("read", "\"read\": \"unrounded\"", what, any, |a| {
                let name = format!("{}+reads-unrounded", a.name);
                Arithmetic { name, reads_unrounded: true, ..a.clone() }
            })
            .here_and_there(),
        );
    }
    list
}

/// What kernels without instructions for a 16-bit format cut off to it.
const CUT_OFF: [&str; 3] = ["q_rope", "k_rope", "attn_heads"];

fn rotation_or_sum(op: &Op) -> bool {
    matches!(op.kind, OpKind::Rope(_) | OpKind::AttnHeads(_))
}

/// Parts into which libraries commonly cut long sums.
const SPLIT: usize = 4;

/// Kinds of taps whose bits lie in a shorter format than activations do.
fn shorter(base: &Arithmetic, trace: &Trace, model: &Model) -> Vec<(String, Float)> {
    let formats = Formats::of(trace);
    let mut found: Vec<(String, Float)> = Vec::new();
    for op in &model.program.ops {
        let exact = op.kind.discrete().is_some() || op.kind.state().is_some();
        if exact || matches!(op.kind, OpKind::Embed(_)) {
            continue;
        }
        let pattern = tap::pattern(&op.tap);
        if let Some(format) = formats.get(&pattern)
            && format.significand_bits() < base.stored_in(op).significand_bits()
            && found.iter().all(|(known, _)| *known != pattern)
        {
            found.push((pattern, format));
        }
    }
    found
}

/// That they are stored in it.
fn stored(found: &[(String, Float)]) -> Option<Candidate> {
    if found.is_empty() {
        return None;
    }
    let found = found.to_vec();
    let list: Vec<String> = found.iter().map(|(tap, f)| format!("\"{tap}\": \"{}\"", f.name())).collect();
    let names: Vec<String> = found.iter().map(|(tap, f)| format!("{tap} in {}", f.name())).collect();
    let what = format!("stores {}", names.join(", "));
    Some(Candidate::new("stored", format!("\"stored\": {{{}}}", list.join(", ")), what, any, move |a| {
        let name = format!("{}+stored-short", a.name);
        let stored = found.iter().cloned().chain(a.stored.iter().cloned()).collect();
        Arithmetic { name, stored, ..a.clone() }
    }))
}

/// The format of the factor of embeddings, where the model has one.
fn embed_factor(base: &Arithmetic, model: &Model) -> Vec<Candidate> {
    let scale = model.program.ops.iter().find_map(|op| match &op.kind {
        OpKind::Embed(embed) if embed.scale != 1.0 => Some(embed.scale),
        _ => None,
    });
    let Some(scale) = scale else { return vec![] };
    let held = base.factor_format().round(scale);
    [Float::BF16, Float::F16, Float::F32]
        .into_iter()
        .filter(|f| f.round(scale) != held)
        .map(|format| {
            let what = format!("holds the factor of embeddings in {}", format.name());
            let declare = format!("\"embed_factor\": \"{}\"", format.name());
            Candidate::new(
                "embed_factor",
                declare,
                what,
                |op| matches!(op.kind, OpKind::Embed(_)),
                move |a| {
                    let name = format!("{}+embed-factor-{}", a.name, format.name());
                    Arithmetic { name, embed_factor: Some(format), ..a.clone() }
                },
            )
        })
        .collect()
}

/// How a format of both caches is declared.
fn declaration(format: CacheFormat) -> String {
    match format {
        CacheFormat::Float(format) => format!("\"kv_cache\": \"{}\"", format.name()),
        CacheFormat::Scaled(format) => {
            format!("\"kv_cache\": \"{}\", and record layers.N.k_scale and v_scale", format.name())
        }
        CacheFormat::Integers { bits, group: Group::Channels(32), scale: Float::F16 } => {
            format!("\"kv_cache\": \"q{bits}_0\"")
        }
        CacheFormat::Integers { bits, group, .. } => {
            let group = match group {
                Group::Channels(n) => n.to_string(),
                Group::Head => "\"head\"".into(),
                Group::Token => "\"token\"".into(),
            };
            format!("\"kv_cache\": \"int{bits}\", \"kv_group\": {group}")
        }
    }
}

/// Formats of the caches, the finer ones first.
fn caches(base: &Arithmetic, trace: &Trace, model: &Model) -> Vec<Candidate> {
    let recorded = |name: &str| trace.steps.iter().any(|s| s.taps().keys().any(|t| t.ends_with(name)));
    let both = recorded("k_cache") || recorded("v_cache");
    let finer = |f: &Float| f.significand_bits() < base.store.significand_bits();
    let mut list: Vec<CacheFormat> =
        [Float::F16, Float::BF16].into_iter().filter(finer).map(CacheFormat::Float).collect();
    list.push(CacheFormat::blocks(8));
    for group in [Group::Channels(32), Group::Channels(64), Group::Head, Group::Token] {
        list.push(CacheFormat::Integers { bits: 8, group, scale: Float::F32 });
    }
    for format in [Float::E4M3, Float::E5M2] {
        list.push(CacheFormat::Float(format));
        list.push(CacheFormat::Scaled(format));
    }
    // Steps this wide would explain much else: only where the cache itself shows them.
    if both {
        list.push(CacheFormat::blocks(4));
        for group in [Group::Channels(32), Group::Channels(64), Group::Head] {
            list.push(CacheFormat::Integers { bits: 4, group, scale: Float::F32 });
        }
    }
    let shape = model.program.ops.iter().find_map(|op| op.kind.state()).map(|s| (s.heads, s.dim));
    let distinct = |f: &CacheFormat| match f {
        CacheFormat::Integers { group: Group::Channels(n), scale: Float::F32, .. } => {
            shape.is_some_and(|(_, dim)| *n < dim)
        }
        _ => true,
    };
    let shown = shape.map(|shape| shown_caches(trace, shape)).unwrap_or_default();
    let fits = |f: &CacheFormat| {
        shape.is_none_or(|shape| shown.iter().all(|(rows, format)| f.may_hold(rows, shape, *format)))
    };
    list.into_iter().filter(|f| *f != base.k_cache && distinct(f) && fits(f)).map(cached).collect()
}

/// Recorded caches, each with the format that it was recorded in: those of the first layer and of the last, in the
/// first step and in the last. None where they are recorded in other axes than docs/TRACE.md lists.
fn shown_caches(trace: &Trace, (heads, dim): (usize, usize)) -> Vec<(Vec<f64>, Float)> {
    if ["axes", "rope_order"].iter().any(|key| trace.manifest.other.contains_key(*key)) {
        return vec![];
    }
    let mut found = Vec::new();
    for step in trace.steps.first().into_iter().chain(trace.steps.last()) {
        for name in ["k_cache", "v_cache"] {
            let of: Vec<_> = step.taps().iter().filter(|(tap, _)| tap::split(tap).1 == name).collect();
            for (tap, info) in of.first().into_iter().chain(of.last()) {
                let by_row = match info.shape[..] {
                    [_, width] => width == heads * dim,
                    [_, h, d] => (h, d) == (heads, dim),
                    _ => false,
                };
                let Some(bytes) = step.raw(tap).filter(|_| by_row) else { continue };
                let most = MOST_ROWS * heads * dim * info.dtype.size();
                let Ok(values) = info.dtype.decode(&bytes[..bytes.len().min(most)]) else { continue };
                found.extend(shortest(&values).map(|format| (values, format)));
            }
        }
    }
    found
}

/// Rows of a cache that are looked at: each has a scale of its own at most.
const MOST_ROWS: usize = 64;

/// Keys and values in one format.
fn cached(format: CacheFormat) -> Candidate {
    let what = format!("caches keys and values in {}", format.name());
    Candidate::new("kv_cache", declaration(format), what, cache, move |a| {
        let name = format!("{}+cache-{}", a.name, format.name().replace(' ', "-"));
        Arithmetic { name, ..a.clone().with_cache(format) }
    })
    .coarse(format.unit_roundoff() > Float::BF16.unit_roundoff())
}

/// What products may do to their inputs.
fn inputs(base: &Arithmetic, model: &Model, in_short: &[Float]) -> Vec<Candidate> {
    let any_weight = |is: fn(Storage) -> bool| model.checkpoint.tensors().any(|t| is(t.storage));
    let scaled = |format, block| MatmulInputs::Scaled { format, block };
    let mut list = Vec::new();
    if any_weight(|s| s.is_ggml_block()) && base.store == Float::F32 {
        list.push(("ggml-q8", MatmulInputs::Ggml));
    }
    // Engines bring inputs to 8-bit floats where the weights are.
    if any_weight(|s| s == Storage::ScaledFp8) {
        list.push(("fp8-e4m3-128", scaled(Float::E4M3, Some(128))));
        list.push(("fp8-e4m3", scaled(Float::E4M3, None)));
    }
    // Of declared values only products themselves show it: see `direct`.
    if base.store == Float::F32 {
        list.push(("tf32", MatmulInputs::Short(Float::TF32)));
    }
    for format in [Float::F16, Float::BF16] {
        if base.store == Float::F32 && in_short.contains(&format) {
            list.push((format.name(), MatmulInputs::Short(format)));
        }
    }
    list.into_iter()
        .map(|(name, inputs)| {
            let what = match inputs {
                MatmulInputs::Short(format) => {
                    format!("computes in {}: products read {name} inputs", format.name())
                }
                _ => format!("brings inputs of products to {name}"),
            };
            let touches =
                if matches!(inputs, MatmulInputs::Scaled { .. }) { product } else { product_or_attention };
            Candidate::new(
                "matmul_inputs",
                format!("\"matmul_inputs\": \"{name}\""),
                what,
                touches,
                move |a| match inputs {
                    MatmulInputs::Ggml => {
                        let ggml = Arithmetic::ggml();
                        Arithmetic { weights: a.weights, stored: a.stored.clone(), ..ggml }
                    }
                    MatmulInputs::Short(Float::TF32) => Arithmetic {
                        name: a.name.replacen("f32", "tf32", 1),
                        matmul_inputs: inputs,
                        ..a.clone()
                    },
                    _ => Arithmetic {
                        name: format!("{}+{name}-inputs", a.name),
                        matmul_inputs: inputs,
                        ..a.clone()
                    },
                },
            )
        })
        .collect()
}
