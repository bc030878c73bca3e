//! Which arithmetic a trace was recorded in: what it declares, else what its values show.

use firstdiff_model::Simulation;
use firstdiff_reference::{Arithmetic, Attention, MatmulInputs};
use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{Manifest, Trace};
use serde::Serialize;

use crate::Error;
use crate::replay::Judged;

/// The arithmetic a verdict rests on.
#[derive(Clone, Debug, Serialize)]
pub struct ArithmeticUse {
    /// The profile's name.
    pub profile: String,
    /// Whether the trace declares it (or the user did).
    pub declared: bool,
    /// Why this one.
    pub why: String,
}

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

/// The arithmetic declared in the manifest, or inferred from the stored values.
pub(crate) fn resolve(trace: &Trace) -> Result<(Arithmetic, ArithmeticUse), Error> {
    match declared(&trace.manifest, trace.path())? {
        Some(arithmetic) => {
            let why = "declared by the trace".to_string();
            let profile = arithmetic.name.clone();
            Ok((arithmetic, ArithmeticUse { profile, declared: true, why }))
        }
        None => {
            let (format, why) = inferred(trace)?;
            let arithmetic = Arithmetic::uniform(format);
            let profile = arithmetic.name.clone();
            Ok((arithmetic, ArithmeticUse { profile, declared: false, why }))
        }
    }
}

fn declared(manifest: &Manifest, path: &std::path::Path) -> Result<Option<Arithmetic>, Error> {
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
        arithmetic.kv_cache = kv_cache;
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
        && arithmetic.kv_cache == Float::F16
    {
        arithmetic.attention = Attention::OnlineF16;
    }
    Ok(Some(arithmetic))
}

/// Values examined of each tap: enough to tell formats apart, since a value in a longer format
/// looks like one in a shorter format with a chance of at most 2^-13.
const SAMPLE: usize = 4096;

/// The shortest format that holds every sampled value.
fn inferred(trace: &Trace) -> Result<(Float, String), Error> {
    let mut candidates = vec![Float::BF16, Float::F16, Float::F32, Float::F64];
    let mut any = false;
    for step in &trace.steps {
        for (name, info) in step.taps() {
            if !info.dtype.is_float() {
                continue;
            }
            any = true;
            let bytes = step.raw(name).unwrap_or_default();
            let bytes = &bytes[..bytes.len().min(SAMPLE * info.dtype.size())];
            let held: Vec<f64> = info.dtype.decode(bytes).unwrap_or_default();
            let holds = |f: &Float| {
                info.dtype == dtype(*f) || held.iter().all(|&x| !x.is_finite() || f.round(x) == x)
            };
            candidates.retain(holds);
        }
    }
    match candidates.first() {
        Some(&format) if any => Ok((
            format,
            format!("not declared; {} is the shortest format that holds every recorded value", format.name()),
        )),
        _ => Ok((Float::F32, "not declared, and no values to tell it from".into())),
    }
}

fn dtype(format: Float) -> DType {
    match format {
        Float::F64 => DType::F64,
        Float::F32 => DType::F32,
        Float::F16 => DType::F16,
        Float::BF16 => DType::BF16,
        // Never stored as such: they are widened when recorded.
        Float::TF32 | Float::E4M3 | Float::E5M2 => DType::F32,
    }
}

/// Profiles that may explain what `base`, inferred from stored values, does not; cheaper ones first.
/// Coarser ones only for what the engine may do inside its operations: how it stores is known.
pub(crate) fn dearer(base: &Arithmetic, quantised: bool) -> Vec<Arithmetic> {
    match base.store {
        _ if base.matmul_inputs != MatmulInputs::AsStored => vec![],
        Float::F32 if quantised => vec![Arithmetic::ggml()],
        Float::F32 => vec![Arithmetic::tf32()],
        Float::BF16 | Float::F16 => {
            let fused = base.clone().with_fused_residual();
            let split = base.clone().with_split_sums(SPLIT);
            vec![fused.clone(), split, fused.with_split_sums(SPLIT)]
        }
        _ => vec![],
    }
}

/// Parts into which libraries commonly cut long sums.
const SPLIT: usize = 4;

/// Whether a dearer profile is the engine's arithmetic and not a bug explained away: an arithmetic
/// acts on every operation of a kind, a bug on some. At least half of the operations whose floor it
/// raises must need it, and it must explain at least half of those: a bug may be there besides.
pub(crate) fn is_adopted(base: &[Judged], again: &[Judged]) -> bool {
    let raised =
        || base.iter().zip(again).filter(|(b, a)| a.measured.noise_rel_l2 > 1.1 * b.measured.noise_rel_l2);
    let needed = raised().filter(|(b, _)| b.measured.is_wrong()).count();
    let left = raised().filter(|(_, a)| a.measured.is_wrong()).count();
    needed > 0 && 2 * needed >= raised().count() && 2 * left <= needed
}
