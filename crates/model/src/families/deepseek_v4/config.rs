//! DeepSeek-V4's configuration, in the release's spelling and in that of transformers 5.

use firstdiff_checkpoint::Checkpoint;
use serde_json::Value;

use super::names::Names;
use crate::families::decoder::refuse_groups;
use crate::ops::Scoring;
use crate::rope::{self, RopeConfig};
use crate::{Error, Settings};

const V4: &str = "DeepSeek-V4";

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// To the window alone.
    Sliding,
    /// Also to every compressed entry (heavily compressed).
    Every {
        /// Tokens of an entry.
        ratio: usize,
    },
    /// Also to the compressed entries that the indexer chooses (compressed sparse).
    Chosen {
        /// Tokens of an entry.
        ratio: usize,
    },
}

/// A layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub attention: Attention,
    /// Experts are looked up by token instead of scored.
    pub hashed: bool,
}

/// Everything the forward pass depends on.
pub(super) struct V4Config {
    pub hidden: usize,
    pub heads: usize,
    pub dim: usize,
    pub rotated: usize,
    pub q_rank: usize,
    pub groups: usize,
    pub o_rank: usize,
    pub inner: usize,
    pub experts: usize,
    pub chosen: usize,
    pub scoring: Scoring,
    pub routed_scale: f64,
    pub index_heads: usize,
    pub index_dim: usize,
    pub index_k: usize,
    pub window: usize,
    pub streams: usize,
    pub iterations: usize,
    pub hc_eps: f64,
    pub eps: f64,
    pub limit: f64,
    pub vocab: usize,
    pub main: RopeConfig,
    pub compress: RopeConfig,
    pub layers: Vec<Layer>,
}

impl V4Config {
    pub fn read(s: &Settings, checkpoint: &Checkpoint) -> Result<V4Config, Error> {
        refuse(s)?;
        let embed = Names { checkpoint }.whole("embed.weight");
        let rows = checkpoint.tensor(&embed).and_then(|t| t.shape.first().copied()).filter(|&n| n > 0);
        let heads = s.extent_or("num_attention_heads", 64, V4)?;
        let dim = s.extent_or("head_dim", 512, V4)?;
        let groups = s.extent_or("o_groups", 8, V4)?;
        if !(heads * dim).is_multiple_of(groups) {
            return Err(
                s.wrong("o_groups", format!("is {groups}, which does not divide {heads} heads of {dim}"))
            );
        }
        let experts = s.extent_or("n_routed_experts", 256, V4)?;
        let chosen = s.extent_or("num_experts_per_tok", 6, V4)?;
        if chosen > experts {
            return Err(s.wrong("num_experts_per_tok", format!("is {chosen}, of {experts} experts")));
        }
        let scoring = s.string_or("scoring_func", "sqrtsoftplus", V4)?;
        let scoring = Scoring::from_name(&scoring).ok_or_else(|| {
            s.wrong("scoring_func", format!("is '{scoring}'; supported are {}", Scoring::NAMES))
        })?;
        let positions = s.extent_or("max_position_embeddings", 1 << 20, V4)? as f64;
        let index_dim = s.extent_or("index_head_dim", 128, V4)?;
        let rotated = rotated(s, dim)?;
        if rotated > index_dim {
            let reason = format!("is {index_dim}, less than the {rotated} rotated channels");
            return Err(s.wrong("index_head_dim", reason));
        }
        let (main, compress) = rotations(s, rotated, positions)?;
        Ok(V4Config {
            hidden: s.extent_or("hidden_size", 4096, V4)?,
            heads,
            dim,
            rotated,
            q_rank: s.extent_or("q_lora_rank", 1024, V4)?,
            groups,
            o_rank: s.extent_or("o_lora_rank", 1024, V4)?,
            inner: s.extent_or("moe_intermediate_size", 2048, V4)?,
            experts,
            chosen,
            scoring,
            routed_scale: s.positive_or("routed_scaling_factor", 1.5, V4)?,
            index_heads: s.extent_or("index_n_heads", 64, V4)?,
            index_dim,
            index_k: s.extent_or("index_topk", 512, V4)?,
            window: s.extent_or("sliding_window", 128, V4)?,
            streams: s.extent_or("hc_mult", 4, V4)?,
            iterations: s.extent_or("hc_sinkhorn_iters", 20, V4)?,
            hc_eps: s.positive_or("hc_eps", 1e-6, V4)?,
            eps: s.positive_or("rms_norm_eps", 1e-6, V4)?,
            limit: s.positive_or("swiglu_limit", 10.0, V4)?,
            vocab: match rows {
                Some(rows) => s.extent_or("vocab_size", rows, "rows of the embedding")?,
                None => s.extent("vocab_size")?,
            },
            main,
            compress,
            layers: layers(s, checkpoint)?,
        })
    }
}

/// What would change the forward pass in ways that this family has not been seen in.
fn refuse(s: &Settings) -> Result<(), Error> {
    let act = s.string_or("hidden_act", "silu", V4)?;
    if act != "silu" {
        return Err(s.wrong("hidden_act", format!("is '{act}'; {V4} has silu")));
    }
    for key in ["attention_bias", "mlp_bias", "tie_word_embeddings"] {
        if s.flag_or(key, false, V4)? {
            return Err(s.wrong(key, format!("is true; {V4} has none")));
        }
    }
    for (key, why) in [("num_key_value_heads", "one head that is key and value"), ("n_shared_experts", "one")]
    {
        let n = s.extent_or(key, 1, V4)?;
        if n != 1 {
            return Err(s.wrong(key, format!("is {n}; {V4} has {why}")));
        }
    }
    refuse_groups(s, V4)?;
    if !s.flag_or("norm_topk_prob", true, V4)? {
        s.note("norm_topk_prob used", true, "transformers and DeepSeek's own code ignore the setting");
    }
    Ok(())
}

/// Channels that turn, of each head.
fn rotated(s: &Settings, dim: usize) -> Result<usize, Error> {
    let nested =
        s.raw("rope_parameters").and_then(|p| p.get("main")).and_then(|m| m.get("partial_rotary_factor"));
    let factor = nested.or_else(|| s.raw("partial_rotary_factor")).and_then(Value::as_f64);
    let rotated = match factor {
        // As transformers computes it: cut off, not rounded.
        Some(factor) => (dim as f64 * factor) as usize,
        None => match s.optional_extent("qk_rope_head_dim")? {
            Some(rotated) => rotated,
            None => dim / 8,
        },
    };
    if rotated < 2 || rotated > dim || !rotated.is_multiple_of(2) {
        return Err(s.wrong(
            "qk_rope_head_dim",
            format!("is {rotated}; an even number from 2 to head_dim {dim} is needed"),
        ));
    }
    s.note("rotated channels", rotated, "partial_rotary_factor or qk_rope_head_dim");
    Ok(rotated)
}

/// The rotations of sliding layers and of layers with a compressor.
fn rotations(s: &Settings, rotated: usize, positions: f64) -> Result<(RopeConfig, RopeConfig), Error> {
    let parameters = s.raw("rope_parameters");
    let nested = |part: &str| parameters.and_then(|p| p.get(part)).filter(|v| v.is_object());
    if let (Some(main), Some(compress)) = (nested("main"), nested("compress")) {
        let theta = |values: &Value, part: &str| {
            values
                .get("rope_theta")
                .and_then(Value::as_f64)
                .ok_or_else(|| s.wrong("rope_parameters", format!("lacks {part}.rope_theta")))
        };
        return Ok((
            rope::section(
                s,
                ("rope_parameters", "main "),
                Some(main),
                theta(main, "main")?,
                rotated,
                positions,
            )?,
            rope::section(
                s,
                ("rope_parameters", "compress "),
                Some(compress),
                theta(compress, "compress")?,
                rotated,
                positions,
            )?,
        ));
    }
    let theta = s.positive_or("rope_theta", 10_000.0, V4)?;
    let compress = s.positive_or("compress_rope_theta", 160_000.0, V4)?;
    let (key, scaling) = match s.raw("rope_scaling") {
        Some(values) => ("rope_scaling", Some(values)),
        None => ("rope_parameters", parameters),
    };
    // Scaling is for the compressed layers alone.
    Ok((
        rope::section(s, ("rope_theta", "main "), None, theta, rotated, positions)?,
        rope::section(s, (key, "compress "), scaling, compress, rotated, positions)?,
    ))
}

/// What every layer is. Nothing is guessed: schedules differ between released models.
fn layers(s: &Settings, checkpoint: &Checkpoint) -> Result<Vec<Layer>, Error> {
    let count = s.extent("num_hidden_layers")?;
    if count > checkpoint.tensors().count() {
        let reason = format!("is {count}, more than the file has tensors; it is of another model");
        return Err(s.wrong("num_hidden_layers", reason));
    }
    let (sparse, heavy) = (
        rate(s, "compressed_sparse_attention", "compress_rate_csa", 4)?,
        rate(s, "heavily_compressed_attention", "compress_rate_hca", 128)?,
    );
    let attention: Vec<Attention> = if let Some(types) = s.raw("layer_types") {
        list(s, "layer_types", types, count)?
            .iter()
            .map(|t| match t.as_str() {
                Some("sliding_attention") => Ok(Attention::Sliding),
                Some("heavily_compressed_attention") => Ok(Attention::Every { ratio: heavy }),
                Some("compressed_sparse_attention") => Ok(Attention::Chosen { ratio: sparse }),
                _ => Err(s.wrong("layer_types", format!("has {t}; sliding_attention, heavily_compressed_attention or compressed_sparse_attention is expected"))),
            })
            .collect::<Result<_, _>>()?
    } else if let Some(ratios) = s.raw("compress_ratios") {
        list(s, "compress_ratios", ratios, count)?
            .iter()
            .map(|r| match r.as_u64() {
                Some(0) => Ok(Attention::Sliding),
                Some(4) => Ok(Attention::Chosen { ratio: sparse }),
                Some(128) => Ok(Attention::Every { ratio: heavy }),
                _ => Err(s.wrong("compress_ratios", format!("has {r}; 0, 4 or 128 is expected"))),
            })
            .collect::<Result<_, _>>()?
    } else {
        return Err(s.wrong("layer_types", "is missing, and so is compress_ratios; which layers are compressed has no default that is right for every model"));
    };
    let hashed: Vec<bool> = if let Some(types) = s.raw("mlp_layer_types") {
        list(s, "mlp_layer_types", types, count)?
            .iter()
            .map(|t| match t.as_str() {
                Some("hash_moe") => Ok(true),
                Some("moe") => Ok(false),
                _ => Err(s.wrong("mlp_layer_types", format!("has {t}; hash_moe or moe is expected"))),
            })
            .collect::<Result<_, _>>()?
    } else if let Some(n) = s.raw("num_hash_layers") {
        let n = n
            .as_u64()
            .ok_or_else(|| s.wrong("num_hash_layers", format!("is {n}; a whole number is expected")))?;
        s.note_read("num_hash_layers", n);
        (0..count as u64).map(|layer| layer < n).collect()
    } else {
        return Err(s.wrong(
            "mlp_layer_types",
            "is missing, and so is num_hash_layers; which layers choose experts by token is not guessed",
        ));
    };
    s.note(
        "layers",
        summary(&attention, &hashed),
        "layer_types or compress_ratios; mlp_layer_types or num_hash_layers",
    );
    Ok(attention.into_iter().zip(hashed).map(|(attention, hashed)| Layer { attention, hashed }).collect())
}

/// A list with an entry for each layer. Released ones are longer: the rest is for prediction blocks.
fn list<'v>(s: &Settings, key: &str, values: &'v Value, count: usize) -> Result<&'v [Value], Error> {
    let listed = values.as_array().ok_or_else(|| s.wrong(key, format!("is {values}; a list is expected")))?;
    listed.get(..count).ok_or_else(|| s.wrong(key, format!("lists {} layers of {count}", listed.len())))
}

/// Tokens of a compressed entry.
fn rate(s: &Settings, kind: &str, legacy: &str, default: usize) -> Result<usize, Error> {
    if let Some(rate) = s.optional_extent(legacy)? {
        return Ok(rate);
    }
    let Some(value) = s.raw("compress_rates").and_then(|rates| rates.get(kind)) else {
        s.note(legacy, default, format!("default: {V4}"));
        return Ok(default);
    };
    match value.as_u64() {
        Some(n) if (1..=1 << 20).contains(&n) => {
            s.note(legacy, n, "config.json: compress_rates");
            Ok(n as usize)
        }
        _ => {
            Err(s.wrong("compress_rates", format!("has {kind} = {value}; a whole number from 1 is expected")))
        }
    }
}

/// The schedule in words: `S H C H C, first 2 hashed`.
fn summary(attention: &[Attention], hashed: &[bool]) -> String {
    let letter = |a: &Attention| match a {
        Attention::Sliding => "S",
        Attention::Every { .. } => "H",
        Attention::Chosen { .. } => "C",
    };
    let kinds: Vec<&str> = attention.iter().map(letter).collect();
    let count = hashed.iter().filter(|h| **h).count();
    format!(
        "{} (S sliding, H heavily compressed, C compressed sparse); {count} with hashed experts",
        kinds.join(" ")
    )
}
