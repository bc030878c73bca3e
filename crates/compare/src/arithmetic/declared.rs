//! The arithmetic that a trace declares.

use firstdiff_model::Simulation;
use firstdiff_reference::{Arithmetic, Attention, CacheFormat, MatmulInputs};
use firstdiff_tensor::Float;
use firstdiff_trace::Manifest;

use crate::Error;

const FLOATS: &str = "f64, f32, bf16, f16";
const CACHE_FLOATS: &str = "f64, f32, bf16, f16, fp8-e4m3, fp8-e5m2";
/// Formats of caches that no activation is stored in.
const CACHES: [Float; 2] = [Float::E4M3, Float::E5M2];
const INPUTS: &str = "as-stored, ggml-q8, tf32, bf16, f16, fp8-e4m3 and fp8-e5m2 (one scale a token), \
                      fp8-e4m3-128 (one scale for 128 channels)";

/// `matmul_inputs` as traces spell it.
fn matmul_inputs(name: &str) -> Option<MatmulInputs> {
    let scaled = |format, block| MatmulInputs::Scaled { format, block };
    Some(match name {
        "as-stored" => MatmulInputs::AsStored,
        "ggml-q8" => MatmulInputs::Ggml,
        "tf32" => MatmulInputs::Short(Float::TF32),
        "bf16" => MatmulInputs::Short(Float::BF16),
        "f16" => MatmulInputs::Short(Float::F16),
        "fp8-e4m3" => scaled(Float::E4M3, None),
        "fp8-e5m2" => scaled(Float::E5M2, None),
        "fp8-e4m3-128" => scaled(Float::E4M3, Some(128)),
        _ => return None,
    })
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
            let (more, known): (&[Float], _) =
                if key == "kv_cache" { (&CACHES, CACHE_FLOATS) } else { (&[], FLOATS) };
            let allowed = |f: &Float| Arithmetic::ACTIVATIONS.contains(f) || more.contains(f);
            Float::from_name(name).filter(allowed).map(Some).ok_or_else(|| wrong(key, name, known))
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
    if let Some(kv_cache) = float("kv_cache", &spec.kv_cache)? {
        arithmetic = arithmetic.with_cache(CacheFormat::Float(kv_cache));
    }
    let residual = spec.other.get("residual").filter(|v| !v.is_null());
    let residual = residual.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from));
    if let Some(residual) = float("residual", &residual)? {
        arithmetic.residual = residual;
        if residual != store {
            arithmetic.name += &format!("+residual-{}", residual.name());
        }
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
        arithmetic.matmul_inputs =
            matmul_inputs(inputs).ok_or_else(|| wrong("matmul_inputs", inputs, INPUTS))?;
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
