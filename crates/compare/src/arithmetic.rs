//! Which arithmetic a trace was recorded in: what it declares, else what its values show.

use firstdiff_reference::{Arithmetic, Attention, MatmulInputs};
use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{Manifest, Trace};
use serde::Serialize;

use crate::Error;

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
        Some(name) => Float::from_name(name).map(Some).ok_or_else(|| wrong(key, name, FLOATS)),
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
    match spec.matmul_inputs.as_deref() {
        None | Some("as-stored") => {}
        Some("ggml-q8") => {
            arithmetic.matmul_inputs = MatmulInputs::Ggml;
            arithmetic.name = "ggml-q8".into();
        }
        Some(other) => return Err(wrong("matmul_inputs", other, "as-stored, ggml-q8")),
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
    }
}
