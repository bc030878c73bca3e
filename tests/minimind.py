"""MiniMind, both generations, in torch from their description: tiny random checkpoints, and what their logits are.

transformers has no such model. This is written token row by token row, with the experts in a plain loop, and shares
nothing with firstdiff.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import silu

VOCAB = 96


@dataclass(frozen=True)
class MiniMind:
    name: str
    third: bool
    config: dict = field(default_factory=dict)
    export: str = ""  # the family that the repository's own script exports it to

    def settings(self):
        base = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB}
        return {"model_type": "minimind", **base, **self.config}


MOE3 = {"use_moe": True, "num_experts": 4, "moe_intermediate_size": 48}
MOE2 = {"use_moe": True, "n_routed_experts": 4, "intermediate_size": 48}
CONFIGS = [
    MiniMind("minimind-3", True),
    MiniMind("minimind-3-moe", True, MOE3),
    MiniMind("minimind-3-moe-top-2", True, {**MOE3, "num_experts_per_tok": 2, "norm_topk_prob": False}),
    MiniMind("minimind-3-yarn", True, {"inference_rope_scaling": True, "head_dim": 24}),
    MiniMind("minimind-2", False),
    MiniMind("minimind-2-moe", False, MOE2),
    MiniMind("minimind-2-moe-top-1", False, {**MOE2, "num_experts_per_tok": 1}),
    MiniMind("minimind-3-as-qwen3", True, export="qwen3"),
    MiniMind("minimind-3-moe-as-qwen3_moe", True, MOE3, export="qwen3_moe"),
    MiniMind("minimind-2-as-llama", False, export="llama"),
]


def sizes(mini):
    c = mini.settings()
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    if mini.third:
        inner = math.ceil(hidden * math.pi / 64) * 64
    else:
        inner = 64 * ((int(8 * hidden / 3) + 63) // 64)
    inner = c.get("intermediate_size", inner)
    return hidden, heads, c["num_key_value_heads"], c.get("head_dim", hidden // heads), inner


def weights(mini):
    """Random values of realistic size; norms too."""
    c, generator = mini.settings(), torch.Generator().manual_seed(sum(mini.name.encode()))
    hidden, heads, kv_heads, dim, inner = sizes(mini)
    matrix = lambda rows, cols: torch.randn(rows, cols, generator=generator) * (1.2 / cols**0.5)
    norm = lambda n: 1 + 0.3 * torch.randn(n, generator=generator)
    w = {"model.embed_tokens.weight": torch.randn(VOCAB, hidden, generator=generator) * 0.2, "model.norm.weight": norm(hidden)}

    def mlp(at, inner):
        w[at + "gate_proj.weight"], w[at + "up_proj.weight"] = matrix(inner, hidden), matrix(inner, hidden)
        w[at + "down_proj.weight"] = matrix(hidden, inner)

    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            w[f"{at}self_attn.{name}.weight"] = matrix(rows * dim, hidden)
        w[at + "self_attn.o_proj.weight"] = matrix(hidden, heads * dim)
        w[at + "input_layernorm.weight"], w[at + "post_attention_layernorm.weight"] = norm(hidden), norm(hidden)
        if mini.third:
            w[at + "self_attn.q_norm.weight"], w[at + "self_attn.k_norm.weight"] = norm(dim), norm(dim)
        if not c.get("use_moe"):
            mlp(at + "mlp.", inner)
            continue
        count = c["num_experts" if mini.third else "n_routed_experts"]
        w[at + "mlp.gate.weight"] = matrix(count, hidden)
        for expert in range(count):
            mlp(f"{at}mlp.experts.{expert}.", c.get("moe_intermediate_size", inner))
        if not mini.third:
            mlp(at + "mlp.shared_experts.0.", inner)
    return w


def exported(mini):
    """What the export writes into config.json: the settings that its family would otherwise take for absent."""
    c = mini.settings()
    hidden, heads, kv_heads, dim, inner = sizes(mini)
    out = {**c, "model_type": mini.export, "intermediate_size": inner, "rope_theta": 1e6, "rope_scaling": None,
           "max_position_embeddings": 32768, "rms_norm_eps": 1e-6 if mini.third else 1e-5, "tie_word_embeddings": True}
    if mini.third:
        out["head_dim"] = dim
    if c.get("use_moe"):
        out |= {"num_experts_per_tok": 1, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return out


def make(mini, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = exported(mini) if mini.export else mini.settings()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(mini), folder / "model.safetensors")
    return folder


def norm(x, w, eps):
    return w * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def frequencies(mini, dim):
    i = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    f = 1e6**-i
    if mini.config.get("inference_rope_scaling"):  # the shipped constants: 16 times 2048 tokens
        channel = lambda turns: dim * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(1e6))
        low, high = max(math.floor(channel(32)), 0), min(math.ceil(channel(1)), dim // 2 - 1)
        ramp = ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
        f = f / 16 * ramp + f * (1 - ramp)
    return f


def rotate(x, f):
    """[T, H, D], pairs i and i + D/2."""
    angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * f
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def logits(mini, ids):
    """All rows, in float64."""
    c, w = mini.settings(), {name: t.double() for name, t in weights(mini).items()}
    _, heads, kv_heads, dim, _ = sizes(mini)
    eps, f = (1e-6 if mini.third else 1e-5), frequencies(mini, dim)
    tokens = len(ids)
    mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)
    gated = lambda at, h: (silu(h @ w[at + "gate_proj.weight"].T) * (h @ w[at + "up_proj.weight"].T)) @ w[at + "down_proj.weight"].T
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, w[at + "input_layernorm.weight"], eps)
        q, k, v = ((h @ w[f"{at}self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, dim)) for n in "qkv")
        if mini.third:
            q, k = norm(q, w[at + "self_attn.q_norm.weight"], eps), norm(k, w[at + "self_attn.k_norm.weight"], eps)
        q, k = rotate(q, f), rotate(k, f)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        p = (torch.einsum("qhd,khd->hqk", q, k) / dim**0.5 + mask).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", p, v).flatten(1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, w[at + "post_attention_layernorm.weight"], eps)
        if not c.get("use_moe"):
            x = x + gated(at + "mlp.", h)
            continue
        k = c.get("num_experts_per_tok", 1 if mini.third else 2)
        best, chosen = (h @ w[at + "mlp.gate.weight"].T).softmax(-1).topk(k)
        if c.get("norm_topk_prob", True) and (mini.third or k > 1):
            best = best / (best.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(h)
        for row in range(tokens):
            for weight, expert in zip(best[row], chosen[row]):
                out[row] += weight * gated(f"{at}mlp.experts.{int(expert)}.", h[row])
        x = x + (out if mini.third else out + gated(at + "mlp.shared_experts.0.", h))
    return norm(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight"].T
