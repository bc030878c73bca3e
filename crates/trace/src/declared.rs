//! What `trace.json` may declare of an engine's arithmetic and of how its tensors are laid out, with every key checked:
//! an error names the key, what it holds, and what to write instead.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{ArithmeticSpec, Manifest};

/// A format of stored numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit float.
    F16,
    /// 8-bit float, 4 exponent bits.
    Fp8E4m3,
    /// 8-bit float, 5 exponent bits.
    Fp8E5m2,
    /// ggml's blocks of 32 8-bit integers with an f16 scale.
    Q8_0,
    /// ggml's blocks of 32 4-bit integers with an f16 scale.
    Q4_0,
    /// The same with an offset.
    Q4_1,
    /// ggml's blocks of 32 5-bit integers with an f16 scale.
    Q5_0,
    /// The same with an offset.
    Q5_1,
    /// ggml's blocks of 32 numbers out of 16.
    Iq4Nl,
    /// 8-bit integers with a scale.
    Int8,
    /// 4-bit integers with a scale.
    Int4,
    /// Blocks of 16 4-bit floats with an FP8 scale.
    Nvfp4,
    /// Blocks of 32 4-bit floats with a power of two as their scale.
    Mxfp4,
}

impl Format {
    /// The format that a spelling means, in any that engines use.
    pub fn parse(text: &str) -> Option<Format> {
        let text = text.trim_start_matches("torch.").to_ascii_lowercase().replace('_', "-");
        Some(match text.as_str() {
            "f64" | "float64" | "double" | "fp64" => Format::F64,
            "f32" | "float32" | "float" | "fp32" => Format::F32,
            "bf16" | "bfloat16" => Format::Bf16,
            "f16" | "float16" | "half" | "fp16" => Format::F16,
            "fp8-e4m3" | "e4m3" | "f8-e4m3" | "float8-e4m3fn" | "fp8-e4m3fn" | "fp8" => Format::Fp8E4m3,
            "fp8-e5m2" | "e5m2" | "f8-e5m2" | "float8-e5m2" => Format::Fp8E5m2,
            "q8-0" => Format::Q8_0,
            "q4-0" => Format::Q4_0,
            "q4-1" => Format::Q4_1,
            "q5-0" => Format::Q5_0,
            "q5-1" => Format::Q5_1,
            "iq4-nl" => Format::Iq4Nl,
            "int8" | "i8" => Format::Int8,
            "int4" | "i4" => Format::Int4,
            "nvfp4" => Format::Nvfp4,
            "mxfp4" => Format::Mxfp4,
            _ => return None,
        })
    }

    /// Whether it is a float of its own, without blocks or scales.
    pub fn is_float(self) -> bool {
        use Format::{Bf16, F16, F32, F64, Fp8E4m3, Fp8E5m2};
        matches!(self, F64 | F32 | Bf16 | F16 | Fp8E4m3 | Fp8E5m2)
    }

    /// As docs/TRACE.md spells it.
    pub fn name(self) -> &'static str {
        match self {
            Format::F64 => "f64",
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::Fp8E4m3 => "fp8-e4m3",
            Format::Fp8E5m2 => "fp8-e5m2",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Iq4Nl => "iq4_nl",
            Format::Int8 => "int8",
            Format::Int4 => "int4",
            Format::Nvfp4 => "nvfp4",
            Format::Mxfp4 => "mxfp4",
        }
    }
}

/// Formats of cached keys and of cached values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Of keys.
    pub keys: Format,
    /// Of values.
    pub values: Format,
}

impl Caches {
    /// One format for both, or `K/V`.
    pub fn parse(text: &str) -> Option<Caches> {
        let (keys, values) = text.split_once('/').unwrap_or((text, text));
        Some(Caches { keys: Format::parse(keys)?, values: Format::parse(values)? })
    }
}

/// What shares a scale in a cache of integers or short floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvGroup {
    /// One head of one token.
    Head,
    /// All of one token.
    Token,
    /// So many neighbouring channels.
    Channels(usize),
}

/// What a product does to its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductInputs {
    /// It is used as it is stored.
    AsStored,
    /// What ggml does on CPUs.
    GgmlQ8,
    /// Rounded to 19 bits.
    Tf32,
    /// Rounded to a shorter float.
    Short(Format),
    /// To an 8-bit float with one scale a token, or for so many channels.
    Fp8 {
        /// The 8-bit format.
        format: Format,
        /// Channels that share a scale; `None`: all of a token.
        block: Option<usize>,
    },
    /// To 8-bit integers with one scale a token, or for so many channels.
    Int8 {
        /// Channels that share a scale; `None`: all of a token.
        group: Option<usize>,
    },
    /// To 4-bit floats in blocks of 16.
    Nvfp4,
    /// To 4-bit floats in blocks of 32.
    Mxfp4,
}

impl ProductInputs {
    /// What a spelling means.
    pub fn parse(text: &str) -> Option<ProductInputs> {
        let spelled = text.to_ascii_lowercase().replace('_', "-");
        Some(match spelled.as_str() {
            "as-stored" => ProductInputs::AsStored,
            "ggml-q8" | "q8-0" | "q8-k" | "q8-1" => ProductInputs::GgmlQ8,
            "tf32" => ProductInputs::Tf32,
            "fp8-e4m3-128" => ProductInputs::Fp8 { format: Format::Fp8E4m3, block: Some(128) },
            "int8-token" | "int8" => ProductInputs::Int8 { group: None },
            "nvfp4" => ProductInputs::Nvfp4,
            "mxfp4" => ProductInputs::Mxfp4,
            other => match other.strip_prefix("int8-group") {
                Some(n) => {
                    let group = n
                        .trim_start_matches([' ', '-'])
                        .parse()
                        .ok()
                        .filter(|n| (1..=1 << 16).contains(n))?;
                    ProductInputs::Int8 { group: Some(group) }
                }
                None => match Format::parse(other)? {
                    format @ (Format::Bf16 | Format::F16) => ProductInputs::Short(format),
                    format @ (Format::Fp8E4m3 | Format::Fp8E5m2) => {
                        ProductInputs::Fp8 { format, block: None }
                    }
                    _ => return None,
                },
            },
        })
    }
}

/// What this rank is of how many, in one way of dividing a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub of: usize,
}

/// One rank's part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rank {
    /// Tensor parallel: a part of each layer's products.
    pub tensor: Option<Share>,
    /// Pipeline parallel: some layers.
    pub pipeline: Option<Share>,
    /// Expert parallel: some experts.
    pub expert: Option<Share>,
}

impl Rank {
    /// Whether it holds a part of products only.
    pub fn is_partial(&self) -> bool {
        self.tensor.or(self.expert).is_some_and(|share| share.of > 1)
            || self.expert.is_some_and(|share| share.of > 1)
    }
}

/// In which order q, k and the key cache hold the channels that are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeOrder {
    /// i and i + D/2.
    #[default]
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

/// The additions to `arithmetic`, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// Ranks whose partial sums are added up: 1 where there is one.
    pub tensor_parallel: Option<usize>,
    /// Formats of caches.
    pub caches: Option<Caches>,
    /// What shares a scale in them.
    pub kv_group: Option<KvGroup>,
    /// What products do to their input.
    pub product_inputs: Option<ProductInputs>,
    /// Formats of single kinds of taps, by pattern.
    pub stored: BTreeMap<String, Format>,
    /// Whether operations read values before they were rounded for storing.
    pub read_unrounded: bool,
}

/// How tensors are laid out, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Axes of kinds of taps, by pattern: letters of `T H D K C`.
    pub axes: BTreeMap<String, String>,
    /// The order of rotary pairs.
    pub rope_order: RopeOrder,
    /// Which rank's part it is.
    pub rank: Option<Rank>,
}

const CACHES: &str = "f64, f32, bf16, f16, fp8-e4m3, fp8-e5m2, q8_0, q4_0, int8, int4, nvfp4, mxfp4, or another type of ggml's caches; or two of them as \
                      'f16/q8_0' where keys and values differ";
const FLOATS: &str = "f64, f32, bf16, f16, fp8-e4m3 or fp8-e5m2";
const INPUTS: &str = "as-stored, ggml-q8, tf32, bf16, f16, fp8-e4m3 and fp8-e5m2 (one scale a token), fp8-e4m3-128 (one scale \
                      for 128 channels), int8-token, int8-group N, nvfp4 or mxfp4";

fn wrong(key: &str, value: &Value, write: &str) -> String {
    let shown: String = value.to_string().chars().take(80).collect();
    format!("key '{key}' is {shown}; write {write}")
}

/// A key of an object that is there and not null.
fn given<'v>(map: &'v Map<String, Value>, key: &str) -> Option<&'v Value> {
    map.get(key).filter(|v| !v.is_null())
}

fn text<'v>(key: &str, value: &'v Value, write: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| wrong(key, value, write))
}

impl ArithmeticSpec {
    /// The additions, parsed.
    ///
    /// # Errors
    /// What key holds what it cannot, and what to write instead.
    pub fn additions(&self) -> Result<Arithmetic, String> {
        let mut found = Arithmetic::default();
        if let Some(value) = given(&self.other, "tensor_parallel") {
            let n = value.as_u64().filter(|n| (1..=1024).contains(n));
            let n =
                n.ok_or_else(|| wrong("arithmetic.tensor_parallel", value, "a whole number from 1 to 1024"))?;
            found.tensor_parallel = Some(n as usize);
        }
        if let Some(name) = &self.kv_cache {
            let caches = Caches::parse(name);
            let value = Value::from(name.as_str());
            found.caches = Some(caches.ok_or_else(|| wrong("arithmetic.kv_cache", &value, CACHES))?);
        }
        if let Some(value) = given(&self.other, "kv_group") {
            let n =
                value.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| KvGroup::Channels(n as usize));
            let group = match value.as_str() {
                Some("head") => Some(KvGroup::Head),
                Some("token") => Some(KvGroup::Token),
                Some(text) => text.parse().ok().filter(|n| (1..=1 << 16).contains(n)).map(KvGroup::Channels),
                None => n,
            };
            let write = "'head', 'token', or the number of channels that share a scale";
            found.kv_group = Some(group.ok_or_else(|| wrong("arithmetic.kv_group", value, write))?);
        }
        if let Some(name) = &self.matmul_inputs {
            let inputs = ProductInputs::parse(name);
            let value = Value::from(name.as_str());
            found.product_inputs =
                Some(inputs.ok_or_else(|| wrong("arithmetic.matmul_inputs", &value, INPUTS))?);
        }
        if let Some(value) = given(&self.other, "stored") {
            let write = "an object of tap patterns and formats, such as {\"layers.*.attn_scores\": \"f32\"}";
            let map = value.as_object().ok_or_else(|| wrong("arithmetic.stored", value, write))?;
            for (pattern, format) in map {
                let key = format!("arithmetic.stored.{pattern}");
                let parsed = Format::parse(text(&key, format, FLOATS)?);
                let parsed = parsed.filter(|f| f.is_float()).ok_or_else(|| wrong(&key, format, FLOATS))?;
                found.stored.insert(pattern.clone(), parsed);
            }
        }
        if let Some(value) = given(&self.other, "read") {
            found.read_unrounded = match value.as_str() {
                Some("unrounded") => true,
                Some("as-stored") => false,
                _ => return Err(wrong("arithmetic.read", value, "'unrounded', or leave it out")),
            };
        }
        Ok(found)
    }
}

impl Manifest {
    /// How tensors are laid out, parsed.
    ///
    /// # Errors
    /// What key holds what it cannot, and what to write instead.
    pub fn layout(&self) -> Result<Layout, String> {
        let mut layout = Layout::default();
        if let Some(value) = given(&self.other, "axes") {
            let write = "an object of tap patterns and letters of T (tokens), H (heads), D (head size), K (keys) and C \
                         (channels), such as {\"layers.*.q_rope\": \"HTD\"}";
            let map = value.as_object().ok_or_else(|| wrong("axes", value, write))?;
            for (pattern, letters) in map {
                let key = format!("axes.{pattern}");
                let spelled = text(&key, letters, write)?;
                let letter = |c: char| "THDKC".contains(c) && spelled.matches(c).count() == 1;
                if spelled.is_empty() || !spelled.chars().all(letter) {
                    return Err(wrong(
                        &key,
                        letters,
                        "each axis once, by a letter of T H D K C, such as 'HTD'",
                    ));
                }
                layout.axes.insert(pattern.clone(), spelled.to_string());
            }
        }
        if let Some(value) = given(&self.other, "rope_order") {
            layout.rope_order = match value.as_str() {
                Some("halves") => RopeOrder::Halves,
                Some("neighbours" | "neighbors" | "interleaved") => RopeOrder::Neighbours,
                _ => {
                    return Err(wrong(
                        "rope_order",
                        value,
                        "'halves' (i with i + D/2) or 'neighbours' (2i with 2i + 1)",
                    ));
                }
            };
        }
        if let Some(value) = given(&self.other, "rank") {
            let write = "an object such as {\"tp\": [0, 2]}: this rank and how many, for tp, pp or ep";
            let map = value.as_object().ok_or_else(|| wrong("rank", value, write))?;
            let share = |key: &str| -> Result<Option<Share>, String> {
                let Some(value) = given(map, key) else { return Ok(None) };
                let pair = value.as_array().map(|a| a.iter().filter_map(Value::as_u64).collect::<Vec<_>>());
                match pair.as_deref() {
                    Some(&[rank, of]) if rank < of && of <= 1 << 16 => {
                        Ok(Some(Share { rank: rank as usize, of: of as usize }))
                    }
                    _ => Err(wrong(
                        &format!("rank.{key}"),
                        value,
                        "[this rank from 0, how many], such as [0, 2]",
                    )),
                }
            };
            if let Some(other) = map.keys().find(|k| !["tp", "pp", "ep"].contains(&k.as_str())) {
                return Err(wrong(&format!("rank.{other}"), &map[other], write));
            }
            let rank = Rank { tensor: share("tp")?, pipeline: share("pp")?, expert: share("ep")? };
            layout.rank = Some(rank);
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Producer;
    use serde_json::json;

    fn additions(value: Value) -> Result<Arithmetic, String> {
        serde_json::from_value::<ArithmeticSpec>(value).unwrap().additions()
    }

    fn layout(value: Value) -> Result<Layout, String> {
        let mut manifest = Manifest::new(Producer::default());
        manifest.other = value.as_object().unwrap().clone();
        manifest.layout()
    }

    #[test]
    fn additions_to_the_arithmetic_are_understood() {
        let found = additions(json!({
            "tensor_parallel": 4, "kv_cache": "f16/q8_0", "kv_group": 32, "matmul_inputs": "int8-group 128",
            "stored": {"layers.*.attn_scores": "float32"}, "read": "unrounded", "attention": "paged",
        }))
        .unwrap();
        assert_eq!(found.tensor_parallel, Some(4));
        assert_eq!(found.caches, Some(Caches { keys: Format::F16, values: Format::Q8_0 }));
        assert_eq!(found.kv_group, Some(KvGroup::Channels(32)));
        assert_eq!(found.product_inputs, Some(ProductInputs::Int8 { group: Some(128) }));
        assert_eq!(found.stored["layers.*.attn_scores"], Format::F32);
        assert!(found.read_unrounded);
        assert_eq!(
            additions(json!({"kv_cache": "torch.float8_e4m3fn"})).unwrap().caches.unwrap().keys,
            Format::Fp8E4m3
        );
        assert_eq!(
            additions(json!({"matmul_inputs": "q8_0"})).unwrap().product_inputs,
            Some(ProductInputs::GgmlQ8)
        );
        assert_eq!(additions(json!({"kv_group": null, "read": null})), Ok(Arithmetic::default()));
    }

    #[test]
    fn every_format_is_understood_by_its_own_name() {
        for format in [
            Format::F64,
            Format::F32,
            Format::Bf16,
            Format::F16,
            Format::Fp8E4m3,
            Format::Fp8E5m2,
            Format::Q8_0,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q5_1,
            Format::Iq4Nl,
            Format::Int8,
            Format::Int4,
            Format::Nvfp4,
            Format::Mxfp4,
        ] {
            assert_eq!(Format::parse(format.name()), Some(format));
        }
    }

    #[test]
    fn how_tensors_are_laid_out_is_understood() {
        let found = layout(
            json!({"axes": {"layers.*.q_rope": "HTD"}, "rope_order": "neighbours", "rank": {"tp": [1, 2]}}),
        );
        let found = found.unwrap();
        assert_eq!(
            (found.axes["layers.*.q_rope"].as_str(), found.rope_order),
            ("HTD", RopeOrder::Neighbours)
        );
        assert_eq!(found.rank.unwrap().tensor, Some(Share { rank: 1, of: 2 }));
        assert!(found.rank.unwrap().is_partial());
        assert!(!layout(json!({"rank": {"pp": [0, 2]}})).unwrap().rank.unwrap().is_partial());
        assert_eq!(layout(json!({})), Ok(Layout::default()));
    }

    #[test]
    fn what_is_not_understood_is_named_with_what_to_write() {
        for (value, key) in [
            (json!({"tensor_parallel": 0}), "arithmetic.tensor_parallel"),
            (json!({"tensor_parallel": "2"}), "arithmetic.tensor_parallel"),
            (json!({"kv_cache": "q9"}), "arithmetic.kv_cache"),
            (json!({"kv_cache": "f16/"}), "arithmetic.kv_cache"),
            (json!({"kv_group": "row"}), "arithmetic.kv_group"),
            (json!({"kv_group": 0}), "arithmetic.kv_group"),
            (json!({"matmul_inputs": "int8-group 0"}), "arithmetic.matmul_inputs"),
            (json!({"matmul_inputs": "int4"}), "arithmetic.matmul_inputs"),
            (json!({"stored": ["f32"]}), "arithmetic.stored"),
            (json!({"stored": {"logits": "q8_0"}}), "arithmetic.stored.logits"),
            (json!({"read": true}), "arithmetic.read"),
        ] {
            let error = additions(value).unwrap_err();
            assert!(error.contains(&format!("'{key}'")) && error.contains("; write "), "{error}");
        }
        for (value, key) in [
            (json!({"axes": "HTD"}), "axes"),
            (json!({"axes": {"layers.*.q_rope": "HTT"}}), "axes.layers.*.q_rope"),
            (json!({"axes": {"layers.*.q_rope": "BTD"}}), "axes.layers.*.q_rope"),
            (json!({"rope_order": "pairs"}), "rope_order"),
            (json!({"rank": 1}), "rank"),
            (json!({"rank": {"tp": [2, 2]}}), "rank.tp"),
            (json!({"rank": {"tp": [0, 2], "dp": [0, 1]}}), "rank.dp"),
        ] {
            let error = layout(value).unwrap_err();
            assert!(error.contains(&format!("'{key}'")) && error.contains("; write "), "{error}");
        }
    }
}
