"""Tiny random checkpoints: every family and every setting that changes numerics, each a folder like a hub download.

Every parameter is random (norms and biases too): a default norm weight of one would hide a norm that is never applied.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPT = 40
LOGIT_STD = 1.5


@dataclass(frozen=True)
class Tiny:
    """One checkpoint: what its config.json says, and how its weights are stored."""

    name: str
    family: str
    config: dict = field(default_factory=dict)
    without: tuple = ()
    style: str = "v4"  # "v4": sparse file as written by hand or by old versions; "v5": what save_pretrained writes today
    stored: torch.dtype = torch.float32
    shards: int = 1
    fused: bool = False  # experts stacked in one tensor, as transformers holds them in memory

    def raw_config(self):
        fields = {k: v for k, v in BASE.items() if k not in self.without}
        return {"model_type": self.family, **fields, **self.config}


def rope(kind, key="rope_type", **settings):
    return {"rope_scaling": {key: kind, **settings}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
EXPERTS = {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "rope_theta": 1e6}
GEMMA = {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 6}
MIXED = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}

CONFIGS = [
    Tiny("llama", "llama"),
    Tiny("llama-v5", "llama", {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}, style="v5"),
    Tiny("llama-without-kv-heads", "llama", without=("num_key_value_heads",)),
    Tiny("llama-tied", "llama", {"tie_word_embeddings": True, "rope_theta": 100000, "rms_norm_eps": 1e-5}),
    Tiny("llama-linear", "llama", rope("linear", "type", factor=4.0)),
    Tiny("llama-dynamic", "llama", {"max_position_embeddings": 20, **rope("dynamic", "type", factor=4.0)}),
    Tiny("llama-llama3", "llama", {"rope_theta": 5e5, **rope("llama3", **LLAMA3)}),
    Tiny("llama-llama3-v5", "llama", {"rope_theta": 5e5, **rope("llama3", **LLAMA3)}, style="v5"),
    Tiny("llama-yarn", "llama", rope("yarn", **YARN)),
    Tiny("llama-yarn-factor", "llama", rope("yarn", **YARN, attention_factor=1.3)),
    Tiny("llama-yarn-mscale", "llama", rope("yarn", **YARN, mscale=0.8, mscale_all_dim=0.4)),
    Tiny("llama-yarn-untruncated", "llama", rope("yarn", **YARN, truncate=False)),
    Tiny("llama-yarn-betas", "llama", {"rope_theta": 1e6, **rope("yarn", "type", **YARN, beta_fast=16.0, beta_slow=2.0)}),
    Tiny("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Tiny("llama-head-dim", "llama", {"head_dim": 24}),
    Tiny("llama-sharded", "llama", shards=3),
    Tiny("llama-bf16", "llama", {"rms_norm_eps": 1e-5}, style="v5", stored=torch.bfloat16),
    Tiny("llama-f16-null-scaling", "llama", {"rope_scaling": None}, stored=torch.float16),
    Tiny("qwen2", "qwen2", {"rope_theta": 1e6}),
    Tiny("qwen2-v5-tied", "qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}, style="v5"),
    Tiny("qwen2-head-dim", "qwen2", {"head_dim": 24}),
    Tiny("qwen2-window", "qwen2", WINDOW),
    Tiny("qwen2-window-unused", "qwen2", {"sliding_window": 7, "max_window_layers": 2}),
    Tiny("qwen2-yarn", "qwen2", {"rope_theta": 1e6, **rope("yarn", "type", **YARN)}),
    Tiny("qwen2-v5-window-bf16", "qwen2", WINDOW, style="v5", stored=torch.bfloat16),
    Tiny("qwen3", "qwen3", {"head_dim": 16, "rope_theta": 1e6}),
    Tiny("qwen3-default-head-dim", "qwen3", {"hidden_size": 32, "num_attention_heads": 2}),
    Tiny("qwen3-tied-biases", "qwen3", {"head_dim": 24, "tie_word_embeddings": True, "attention_bias": True}),
    Tiny("qwen3-window", "qwen3", {"head_dim": 16, **WINDOW, "sliding_window": 5, "max_window_layers": 1}),
    Tiny("qwen3-layer-types", "qwen3", {"head_dim": 16, **WINDOW, "max_window_layers": 3}, style="v5", shards=2),
    Tiny("qwen3_moe", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    Tiny("qwen3_moe-mixed-v5", "qwen3_moe", {**EXPERTS, **MIXED, "num_experts_per_tok": 3}, style="v5", shards=2),
    Tiny("qwen3_moe-window", "qwen3_moe", {**EXPERTS, "use_sliding_window": True, "sliding_window": 5}),
    Tiny("qwen3_moe-fused-bf16", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, stored=torch.bfloat16, fused=True),
    Tiny("gemma3", "gemma3_text", GEMMA),
    Tiny("gemma3-linear-v5", "gemma3_text", {**GEMMA, "rope_local_base_freq": 5e3, **rope("linear", factor=8.0)}, style="v5"),
    Tiny("gemma3-caps", "gemma3_text", {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    Tiny("gemma3-pattern-bf16", "gemma3_text", {**GEMMA, "sliding_window_pattern": 3, "tie_word_embeddings": False}, stored=torch.bfloat16),
    Tiny("qwen3-yarn-v5", "qwen3", {"head_dim": 16, "rope_theta": 1e6, **rope("yarn", **YARN)}, style="v5"),
]
BY_NAME = {tiny.name: tiny for tiny in CONFIGS}


def prompt_ids(length=PROMPT, seed=2, vocab=BASE["vocab_size"]):
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def randomise(model, seed):
    """Random values of realistic size: unit-size q and k, so attention is neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(("gemma" not in model.config.model_type) + 0.3 * draw(p))
            elif p.dim() == 1:
                p.copy_(0.3 * draw(p))
            elif "embed_tokens" in name and not model.config.tie_word_embeddings:
                p.copy_(draw(p))
            else:
                p.copy_(draw(p) * (1.2 / p.shape[-1] ** 0.5))
        head = model.get_output_embeddings().weight
        logits = model(torch.tensor([prompt_ids()]), use_cache=False).logits
        head.mul_(LOGIT_STD / logits.std())


def tensors_of(model):
    tied = model.config.tie_word_embeddings
    return {n: p.detach() for n, p in model.named_parameters() if not (tied and n == "lm_head.weight")}


def experts_apart(tensors):
    """Experts as the hub's files have them: a tensor for each matrix of each expert."""
    for name, tensor in tensors.items():
        at, _, part = name.rpartition(".experts.")
        if not at:
            yield name, tensor
        elif part == "gate_up_proj":
            for number, both in enumerate(tensor):
                for half, matrix in zip(("gate_proj", "up_proj"), both.chunk(2)):
                    yield f"{at}.experts.{number}.{half}.weight", matrix
        else:
            for number, matrix in enumerate(tensor):
                yield f"{at}.experts.{number}.{part}.weight", matrix


def save_weights(tensors, folder, shards=1):
    """One safetensors file, or several with the index file that names them."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map, names = {}, sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make(tiny, folder, seed=None):
    """Writes the checkpoint and returns its folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(tiny.raw_config(), indent=1))
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model, seed=sum(tiny.name.encode()) if seed is None else seed)
    tensors = tensors_of(model) if tiny.fused else dict(experts_apart(tensors_of(model)))
    save_weights({n: t.to(tiny.stored).contiguous() for n, t in tensors.items()}, folder, tiny.shards)
    if tiny.style == "v5":
        model.config.dtype = tiny.stored
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    return folder


def load(folder, dtype=torch.float32, attention="eager"):
    """The checkpoint in transformers, refusing anything it would quietly invent."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def reset_rope(model):
    """Dynamic scaling remembers the longest sequence it has seen: a new sequence must not inherit that."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
