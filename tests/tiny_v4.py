"""Tiny DeepSeek-V4 checkpoints: every spelling of the tensors' names, old and new configurations, all layer types.

transformers leaves norms, sinks, biases and tables at ones and zeros: everything is random here, or half of the
operations would go untested.
"""

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import LOGIT_STD, prompt_ids, save_weights
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

VOCAB = 96
S, H, C = "sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"
LAYERS = [S, H, C, H, C]
YARN = {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 256}

BASE = {
    "model_type": "deepseek_v4",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": len(LAYERS),
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": YARN,
    "hc_mult": 4,
    "sliding_window": 8,
    "o_groups": 2,
    "o_lora_rank": 12,
    # with four heads all of them are cut off to zero now and then, and two entries tie
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 3,
}
BY_TYPES = {
    "layer_types": LAYERS,
    "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
    "compress_rates": {C: 4, H: 16},
}
# the release's way; the lists' tails belong to blocks that predict further tokens
BY_RATIOS = {
    "compress_ratios": [0, 128, 4, 128, 4, 0],
    "num_hash_layers": 2,
    "compress_rate_csa": 4,
    "compress_rate_hca": 16,
}
# constants that make small faults visible
SENSITIVE = {"swiglu_limit": 0.7, "hc_eps": 1e-2, "rms_norm_eps": 1e-4, "hc_sinkhorn_iters": 3}


@dataclass(frozen=True)
class TinyV4:
    name: str
    config: dict = field(default_factory=dict)
    schedule: str = "types"
    spelling: str = "released"
    style: str = "v4"  # "v5": what save_pretrained writes
    stored: torch.dtype = torch.float32

    def raw_config(self):
        schedule = BY_TYPES if self.schedule == "types" else BY_RATIOS
        # a copy: transformers writes into what it is given
        return deepcopy({k: v for k, v in {**BASE, **schedule, **self.config}.items() if v is not None})


CONFIGS = [
    TinyV4("v4"),
    TinyV4("v4-sensitive", SENSITIVE),
    TinyV4("v4-ratios", schedule="ratios"),
    TinyV4("v4-modules-v5", spelling="modules", style="v5"),
    TinyV4("v4-saved-v5", spelling="saved", style="v5"),
    TinyV4("v4-saved-5.10", spelling="saved-5.10"),
    TinyV4("v4-no-scaling", {"rope_scaling": None, "rope_theta": 500.0, "compress_rope_theta": 3000.0}),
    TinyV4("v4-few-index-heads", {"index_n_heads": 4}),
]
BY_NAME = {tiny.name: tiny for tiny in CONFIGS}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.copy_(1 + 0.3 * draw(p))
            elif name.endswith("sinks"):
                p.copy_(draw(p))
            elif "position_bias" in name:
                p.copy_(0.7 * draw(p))
            elif name.endswith(("_hc.scale", "hc_scale")):
                p.copy_(0.5 + torch.rand(p.shape, generator=generator))
            elif name.endswith(("_hc.base", "hc_base")):
                p.copy_(0.5 * draw(p))
            else:
                p.copy_(draw(p) * (1.5 / p.shape[-1] ** 0.5))
        for name, b in model.named_buffers():
            if name.endswith("tid2eid"):
                rows = [torch.randperm(model.config.n_routed_experts, generator=generator) for _ in range(b.shape[0])]
                b.copy_(torch.stack(rows)[:, : b.shape[1]])
            elif name.endswith("e_score_correction_bias"):
                b.copy_(0.2 * draw(b))
        logits = model(torch.tensor([prompt_ids()]), use_cache=False).logits
        model.lm_head.weight.mul_(LOGIT_STD / logits.std())


# transformers' modules -> the release's names, within a layer
RELEASED = [
    (r"^model\.layers\.(\d+)\.", r"layers.\1."),
    (r"^lm_head\.", "head."),
    (r"^model\.embed_tokens\.", "embed."),
    (r"^model\.norm\.", "norm."),
    (r"^model\.hc_head\.hc_", "hc_head_"),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.self_attn\.compressor\.indexer\.scorer\.weights_proj\.", ".attn.indexer.weights_proj."),
    (r"\.self_attn\.compressor\.indexer\.q_b_proj\.", ".attn.indexer.wq_b."),
    (r"\.self_attn\.compressor\.indexer\.", ".attn.indexer.compressor."),
    (r"\.self_attn\.compressor\.", ".attn.compressor."),
    (r"(compressor)\.kv_proj\.", r"\1.wkv."),
    (r"(compressor)\.gate_proj\.", r"\1.wgate."),
    (r"(compressor)\.kv_norm\.", r"\1.norm."),
    (r"(compressor)\.position_bias$", r"\1.ape"),
    (r"\.self_attn\.q_a_proj\.", ".attn.wq_a."),
    (r"\.self_attn\.q_a_norm\.", ".attn.q_norm."),
    (r"\.self_attn\.q_b_proj\.", ".attn.wq_b."),
    (r"\.self_attn\.kv_proj\.", ".attn.wkv."),
    (r"\.self_attn\.o_a_proj\.", ".attn.wo_a."),
    (r"\.self_attn\.o_b_proj\.", ".attn.wo_b."),
    (r"\.self_attn\.sinks$", ".attn.attn_sink"),
    (r"\.self_attn\.kv_norm\.", ".attn.kv_norm."),
    (r"\.mlp\.gate\.e_score_correction_bias$", ".ffn.gate.bias"),
    (r"\.mlp\.shared_experts\.gate_proj\.", ".ffn.shared_experts.w1."),
    (r"\.mlp\.shared_experts\.up_proj\.", ".ffn.shared_experts.w3."),
    (r"\.mlp\.shared_experts\.down_proj\.", ".ffn.shared_experts.w2."),
    (r"\.mlp\.", ".ffn."),
]


def released(name):
    for pattern, replacement in RELEASED:
        name = re.sub(pattern, replacement, name)
    return name


def tensors_of(model, spelling):
    """The state dict as a checkpoint in this spelling holds it."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach().clone().contiguous()
        if spelling == "modules":
            out[name] = value
            continue
        layer = re.match(r"(model\.layers\.\d+)\.mlp\.experts\.(gate_up_proj|down_proj)$", name)
        if layer is None:
            new = name if spelling == "saved-5.10" else released(name)
            if name == "lm_head.weight":
                new = "head.weight"
            elif spelling == "saved":
                new = new.replace("attn.kv_norm.", "attn.norm.") if new.startswith("layers.") else name
                new = f"model.{new}" if new.startswith("layers.") else new
            out[new] = value
            continue
        block = {"released": "ffn", "saved": "ffn", "saved-5.10": "mlp"}[spelling]
        at = layer.group(1).removeprefix("model.") if spelling == "released" else layer.group(1)
        for number, expert in enumerate(value):
            if layer.group(2) == "down_proj":
                out[f"{at}.{block}.experts.{number}.w2.weight"] = expert.contiguous()
            else:
                gate, up = expert.chunk(2)
                out[f"{at}.{block}.experts.{number}.w1.weight"] = gate.contiguous()
                out[f"{at}.{block}.experts.{number}.w3.weight"] = up.contiguous()
    if spelling == "released":
        # of the block that predicts further tokens: in the file, and not executed
        out["mtp.0.enorm.weight"] = 1 + 0.3 * torch.randn(model.config.hidden_size)
    return out


def load(tiny, dtype=torch.float32, seed=0):
    """The model in transformers, made as the checkpoint is: its loader is not what is tested."""
    config = DeepseekV4Config(**{k: v for k, v in tiny.raw_config().items() if k != "model_type"})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(config).eval().float()
    randomise(model, seed + 1)
    return model


def to_dtype(model, dtype):
    """The model in a shorter format, as transformers' loader makes it: some parameters stay in float32."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        strict = any(part in name for part in [*model._keep_in_fp32_modules_strict, "inv_freq"])
        if value.is_floating_point() and not strict:
            value.data = value.data.to(dtype)
    return model


def make(tiny, folder, seed=0):
    """Writes the checkpoint and returns its folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = load(tiny, seed=seed)
    if tiny.style == "v5":
        model.config.architectures = ["DeepseekV4ForCausalLM"]
        model.config.save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps(tiny.raw_config(), indent=1))
    save_weights(tensors_of(model, tiny.spelling), folder)
    return folder
