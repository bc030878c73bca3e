"""What config.json says, for each family, with each family's defaults."""

import json
from dataclasses import dataclass
from pathlib import Path

# Where a family's default is not what another family would take.
HEAD_DIM = {"qwen3": 128}
KV_HEADS = {"qwen2": 32, "qwen3": 32}


@dataclass(frozen=True)
class Config:
    """The numbers that the forward pass needs. `windows[n]` is layer n's sliding window, or None."""

    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    theta: float
    rope: dict
    max_positions: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_norms: bool
    windows: tuple
    act: str
    moe: dict = None  # experts, chosen, normalise, and the layers that have them
    gemma: bool = False  # scaled embeddings, 1 + w in norms, norms after attention and MLP, two rotations
    score_scale: float = None
    local_theta: float = None
    logit_cap: float = None


def read(folder):
    raw = json.loads((Path(folder) / "config.json").read_text())
    family = raw["model_type"]
    if family not in ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "minimind"):
        raise ValueError(f"{folder}: this engine does not run {family}")
    if family == "minimind":
        raw = _minimind(raw)
    gemma = family == "gemma3_text"
    heads, hidden, layers = raw["num_attention_heads"], raw["hidden_size"], raw["num_hidden_layers"]
    rope = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    theta = rope.get("rope_theta", raw.get("rope_theta", 1e6 if gemma else 10000.0))
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    bias = raw.get("attention_bias", False)
    return Config(
        family=family,
        layers=layers,
        hidden=hidden,
        inner=raw["intermediate_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads", KV_HEADS.get(family, heads)),
        head_dim=raw.get("head_dim") or HEAD_DIM.get(family) or hidden // heads,
        vocab=raw["vocab_size"],
        eps=raw.get("rms_norm_eps", 1e-6),
        theta=float(theta),
        rope=rope,
        max_positions=raw.get("max_position_embeddings", 32768),
        tied=raw.get("tie_word_embeddings", gemma),
        qkv_bias=family == "qwen2" or bias,
        o_bias=family != "qwen2" and bias,
        mlp_bias=family == "llama" and raw.get("mlp_bias", False),
        head_norms=family in ("qwen3", "qwen3_moe", "gemma3_text"),
        windows=tuple(_windows(raw, family, layers)),
        act=raw.get("hidden_activation", "gelu_pytorch_tanh") if gemma else raw.get("hidden_act", "silu"),
        moe=_moe(raw, layers) if family in ("qwen3_moe", "minimind") else None,
        gemma=gemma,
        score_scale=raw.get("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
        local_theta=raw.get("rope_local_base_freq", 1e4) if gemma else None,
        logit_cap=raw.get("final_logit_softcapping") if gemma else None,
    )


def _minimind(raw):
    """The second generation's defaults, said."""
    return {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "tie_word_embeddings": True, "decoder_sparse_step": 1,
            "norm_topk_prob": True, "num_experts": raw["n_routed_experts"], "num_experts_per_tok": 2, **raw}  # fmt: skip


def _moe(raw, layers):
    step, dense = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    return {
        "experts": raw.get("num_experts", raw.get("num_local_experts")),
        "chosen": raw["num_experts_per_tok"],
        "normalise": raw.get("norm_topk_prob", False),
        "shared": "n_routed_experts" in raw,
        "layers": [n for n in range(layers) if n not in dense and (n + 1) % step == 0],
    }


def _windows(raw, family, layers):
    window = raw.get("sliding_window")
    if family == "gemma3_text":
        pattern = raw.get("sliding_window_pattern", 6)
        yield from (None if (n + 1) % pattern == 0 else window for n in range(layers))
        return
    used = family != "llama" and raw.get("use_sliding_window", False) and window is not None
    kinds = raw.get("layer_types")
    for n in range(layers):
        sliding = kinds[n] == "sliding_attention" if kinds else family == "qwen3_moe" or n >= raw.get("max_window_layers", 28)
        yield window if used and sliding else None
