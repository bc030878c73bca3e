//! The arithmetic that a trace declares.

use firstdiff_model::Simulation;
use firstdiff_reference::{Arithmetic, Attention, CacheFormat, Group, MatmulInputs};
use firstdiff_tensor::Float;
use firstdiff_trace::Manifest;
use firstdiff_trace::declared::{Format, KvGroup, ProductInputs};

use crate::Error;

const FLOATS: &str = "f64, f32, bf16, f16";
const INPUTS: &str = "as-stored, ggml-q8, tf32, bf16, f16, fp8-e4m3 and fp8-e5m2 (one scale a token), \
                      fp8-e4m3-128 (one scale for 128 channels)";

/// What products do to their inputs, where that is modelled.
fn matmul_inputs(declared: ProductInputs) -> Option<MatmulInputs> {
    let float = |format: Format| Float::from_name(format.name());
    Some(match declared {
        ProductInputs::AsStored => MatmulInputs::AsStored,
        ProductInputs::GgmlQ8 => MatmulInputs::Ggml,
        ProductInputs::Tf32 => MatmulInputs::Short(Float::TF32),
        ProductInputs::Short(format) => MatmulInputs::Short(float(format)?),
        ProductInputs::Fp8 { format, block } => MatmulInputs::Scaled { format: float(format)?, block },
        ProductInputs::Int8 { .. } | ProductInputs::Nvfp4 | ProductInputs::Mxfp4 => return None,
    })
}

/// The format of a cache, where it is modelled.
fn cache_format(format: Format, group: Option<KvGroup>) -> Option<CacheFormat> {
    let integers = |bits| {
        let group = match group {
            Some(KvGroup::Channels(n)) => Group::Channels(n),
            Some(KvGroup::Token) => Group::Token,
            Some(KvGroup::Head) | None => Group::Head,
        };
        Some(CacheFormat::Integers { bits, group, scale: Float::F32 })
    };
    match format {
        Format::Q8_0 => Some(CacheFormat::blocks(8)),
        Format::Q4_0 => Some(CacheFormat::blocks(4)),
        Format::Int8 => integers(8),
        Format::Int4 => integers(4),
        other => Float::from_name(other.name()).map(CacheFormat::Float),
    }
}

/// What `trace.json` declares; none where it says nothing of activations.
pub(super) fn declared(manifest: &Manifest, path: &std::path::Path) -> Result<Option<Arithmetic>, Error> {
    let Some(spec) = &manifest.arithmetic else { return Ok(None) };
    let wrong = |key, value: &str, known| Error::Arithmetic {
        file: path.join("trace.json"),
        key,
        value: value.to_string(),
        known,
    };
    let float = |key, value: &Option<String>| match value {
        None => Ok(None),
        Some(name) => {
            let allowed = |f: &Float| Arithmetic::ACTIVATIONS.contains(f);
            Float::from_name(name).filter(allowed).map(Some).ok_or_else(|| wrong(key, name, FLOATS))
        }
    };
    let Some(store) = float("activations", &spec.activations)? else { return Ok(None) };
    let mut arithmetic = Arithmetic::uniform(store);
    arithmetic.weights = match spec.weights.as_deref() {
        Some("gguf" | "file") => Float::F32,
        _ => float("weights", &spec.weights)?.unwrap_or(store),
    };
    if let Some(accumulate) = float("accumulate", &spec.accumulate)? {
        arithmetic.accumulate = accumulate;
    }
    // The reader of the trace has checked the additions.
    let additions = spec.additions().unwrap_or_default();
    if let Some(caches) = additions.caches {
        let format =
            |format: Format| cache_format(format, additions.kv_group).unwrap_or(CacheFormat::Float(store));
        (arithmetic.k_cache, arithmetic.v_cache) = (format(caches.keys), format(caches.values));
    }
    arithmetic.tensor_parallel = additions.tensor_parallel.unwrap_or(1);
    if arithmetic.tensor_parallel > 1 {
        arithmetic.name += &format!("+tp-{}", arithmetic.tensor_parallel);
    }
    arithmetic.reads_unrounded = additions.read_unrounded;
    let stored = additions.stored.iter();
    arithmetic.stored = stored.filter_map(|(p, f)| Some((p.clone(), Float::from_name(f.name())?))).collect();
    let residual = spec.other.get("residual").filter(|v| !v.is_null());
    let residual = residual.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from));
    if let Some(residual) = float("residual", &residual)? {
        arithmetic.residual = residual;
        if residual != store {
            arithmetic.name += &format!("+residual-{}", residual.name());
        }
    }
    for (key, place) in
        [("product_sums", &mut arithmetic.product_sums), ("embed_factor", &mut arithmetic.embed_factor)]
    {
        let given = spec.other.get(key).filter(|v| !v.is_null());
        *place = float(key, &given.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from)))?;
    }
    if let Some(root) = spec.other.get("norm_root").filter(|v| !v.is_null()) {
        arithmetic.norm_root_stored = match root.as_str() {
            Some("stored") => true,
            Some("f32") => false,
            _ => return Err(wrong("norm_root", &root.to_string(), "stored, f32")),
        };
    }
    if let Some(list) = spec.other.get("truncated").filter(|v| !v.is_null()) {
        let taps = || -> Option<Vec<String>> {
            list.as_array()?.iter().map(|tap| Some(tap.as_str()?.to_string())).collect()
        };
        let known = "a list of tap patterns, such as [\"layers.*.k_rope\"]";
        arithmetic.truncated = taps().ok_or_else(|| wrong("truncated", &list.to_string(), known))?;
    }
    if let Some(parts) = spec.other.get("split_sums") {
        let parts = parts.as_u64().filter(|p| (1..=1024).contains(p));
        let given = spec.other["split_sums"].to_string();
        let parts = parts.ok_or_else(|| wrong("split_sums", &given, "whole numbers from 1 to 1024"))?;
        if parts > 1 {
            arithmetic = arithmetic.with_split_sums(parts as usize);
        }
    }
    if let Some(name) = spec.other.get("simulates").filter(|v| !v.is_null()) {
        let simulation = name.as_str().and_then(Simulation::from_name);
        let simulation = simulation.ok_or_else(|| wrong("simulates", &name.to_string(), "deepseek"))?;
        arithmetic = arithmetic.with_simulation(simulation);
    }
    if let Some(inputs) = spec.matmul_inputs.as_deref() {
        // What follows from inputs in a format that is not modelled is not compared.
        let parsed = additions.product_inputs.map(|p| matmul_inputs(p).unwrap_or(MatmulInputs::AsStored));
        arithmetic.matmul_inputs = parsed.ok_or_else(|| wrong("matmul_inputs", inputs, INPUTS))?;
        match arithmetic.matmul_inputs {
            MatmulInputs::AsStored => {}
            MatmulInputs::Ggml => arithmetic.name = inputs.into(),
            _ => arithmetic.name += &format!("+{inputs}"),
        }
    }
    if spec.other.get("attention").and_then(|v| v.as_str()) == Some("ggml-flash")
        && arithmetic.k_cache == CacheFormat::Float(Float::F16)
    {
        arithmetic.attention = Attention::OnlineF16;
    }
    Ok(Some(arithmetic))
}
