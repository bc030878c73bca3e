"""Checkpoints of these engines: tests/tiny.py's families in several seeds, with massive channels, long, or in 8 bits."""

import os
from functools import cache
from pathlib import Path

import torch
from engine import config as configs
from engine.weights import Folder
from safetensors.torch import load_file, save_file

import quantised
import tiny
MASSIVE_TOKEN = 7
SMALL = {"num_hidden_layers": 2}
WIDE = {**SMALL, "hidden_size": 128, "intermediate_size": 160, "head_dim": 32}
FAMILIES = {
    "llama": ("llama", SMALL),
    "qwen2": ("qwen2", {**SMALL, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 16, "rope_theta": 1e6}),
    "qwen3_moe": ("qwen3_moe", {**SMALL, **tiny.EXPERTS, "norm_topk_prob": True}),
    "gemma3": ("gemma3_text", {**tiny.GEMMA, **SMALL, "sliding_window_pattern": 2}),
    "llama-tied": ("llama", {**SMALL, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-biases": ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama-wide": ("llama", WIDE),
    "qwen3-wide": ("qwen3", {**WIDE, "rope_theta": 1e6}),
    "qwen2-window": ("qwen2", {**SMALL, **tiny.WINDOW, "max_window_layers": 1}),
    "qwen3-window": ("qwen3", {**SMALL, "head_dim": 16, **tiny.WINDOW, "sliding_window": 5, "max_window_layers": 1}),
    "llama-long": ("llama", {**SMALL, "max_position_embeddings": 1024}),
    "qwen3-long": ("qwen3", {**SMALL, "head_dim": 16, "max_position_embeddings": 1024, "rope_theta": 1e6}),
    "ties": ("qwen3_moe", {**SMALL, **tiny.EXPERTS, "norm_topk_prob": True}),
    "ties-3": ("qwen3_moe", {**SMALL, **tiny.EXPERTS, "num_experts_per_tok": 3}),
    "fp8-tensor": ("qwen3", {**WIDE, "rope_theta": 1e6}),
    "fp8-channel": ("llama", WIDE),
    "fp8-128": ("qwen3", {**SMALL, "hidden_size": 256, "intermediate_size": 256, "head_dim": 32, "rope_theta": 1e6}),
}
HIDDEN = (64, 128, 256, 512)
for hidden in HIDDEN:
    for family in ("llama", "qwen3"):
        head = {"head_dim": 16} if family == "qwen3" else {"num_attention_heads": hidden // 16}
        FAMILIES[f"massive-{family}-{hidden}"] = (
            family, {**SMALL, "hidden_size": hidden, "num_hidden_layers": 2 if hidden < 512 else 1, **head})
CHANNEL = 5
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True},
    }},
}  # fmt: skip
FP8 = {
    "fp8-tensor": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "tensor"),
    "fp8-channel": (COMPRESSED, "channel"),
    "fp8-128": ({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
                "block"),
}  # fmt: skip


def whole(path, make):
    """`path`, made under another name and renamed, so that processes that share a folder see whole checkpoints only."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{os.getpid()}-{path.name}")
        make(temporary)
        try:
            temporary.rename(path)
        except OSError:
            assert path.exists(), path  # another process was faster
    return path


class Models:
    """Checkpoints in a folder, made on demand. Names are FAMILY#SEED; massive ones FAMILY*FACTOR.WHERE#SEED."""

    def __init__(self, folder):
        self.folder = Path(folder) / "wide"

    @cache
    def path(self, name):
        """What `firstdiff check --model` is given."""
        folder = whole(self.folder / name.replace("#", "-seed-").replace("*", "-times-"), lambda path: self.make(name, path))
        return folder / "quantised" if name.split("#")[0] in FP8 else folder

    @cache
    def load(self, name):
        path = self.path(name)
        path = path.with_name("twin") if path.name == "quantised" else path
        return configs.read(path), Folder(path)

    def make(self, name, folder):
        base, _, seed = name.partition("#")
        base, _, massive = base.partition("*")
        family, settings = FAMILIES[base]
        fp8 = base in FP8
        made = tiny.Tiny(base, family, settings, stored=torch.bfloat16 if fp8 else torch.float32)
        seed = sum(base.encode()) + 1000 * int(seed or 0)
        tiny.make(made, folder / "plain" if fp8 else folder, seed)
        if fp8:
            how, kind = FP8[base]
            quantised.quantise(folder / "plain", folder, HOW[kind], how)
        elif massive:
            factor, where = massive.split(".")
            change(folder, lambda weights: enlarge(weights, float(factor), where))
        elif base.startswith("ties"):
            change(folder, near_ties)


def change(folder, edit):
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def enlarge(weights, factor, where):
    """One channel of the stream many times the rest: for one token, for every token, or from a layer's MLP on."""
    embedding = weights["model.embed_tokens.weight"]
    match where:
        case "token":
            embedding[MASSIVE_TOKEN, CHANNEL] = factor
        case "all":
            embedding[:, CHANNEL] *= factor
        case "mlp":
            weights["model.layers.0.mlp.down_proj.weight"][CHANNEL] *= factor


def near_ties(weights):
    """Experts in pairs whose router rows differ by less than bf16 resolves."""
    generator = torch.Generator().manual_seed(3)
    for name, w in weights.items():
        if name.endswith("mlp.gate.weight"):
            w[1::2] = w[0::2] * (1 + 1e-4 * torch.randn(w[0::2].shape, generator=generator))


def by_rows(largest):
    def how(name, w):
        w = w.float()
        scale = largest(w).clamp(min=1e-12) / 448
        codes = (w / scale).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale": scale}, codes.float() * scale

    return how


HOW = {
    "tensor": by_rows(lambda w: w.abs().amax().reshape(1)),
    "channel": by_rows(lambda w: w.abs().amax(-1, keepdim=True)),
    "block": lambda name, w: quantised.as_fp8((128, 128))(name, w.float()),
}
