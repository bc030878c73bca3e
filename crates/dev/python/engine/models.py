"""The tiny models that faults are planted in: `tests/tiny.py`'s configurations, made once under target/.

Quantised ones are GGUF files made from a copy with an MLP of 96 channels: their blocks hold 32. llama.cpp's files know no
sliding window in these families, so those models exist in float formats only.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import config as configs
from .arithmetic import ARITHMETICS
from .frequencies import frequencies, plain
from .scaled import Scaled
from .weights import Folder, Gguf

ROOT = Path(__file__).resolve().parents[4]
CACHE = ROOT / "target" / "dev" / "tiny"
sys.path.append(str(ROOT / "tests"))



def _small_embedding(tensors):
    """As real models have it: only then does a norm's epsilon show."""
    tensors["model.embed_tokens.weight"] *= 0.02


def _massive_channel(tensors):
    """Channel 5 of layer 2's MLP leaves the range of f16, as massive activations of real models do."""
    tensors["model.layers.2.mlp.down_proj.weight"][5] *= 2.0**17


def _subnormal_values(tensors):
    """Weights that bfloat16 holds and f16 holds only as subnormals."""
    for name in tensors:
        if "v_proj" in name:
            tensors[name] *= 2.0**-16


# Models that tests/tiny.py does not have: (its name there, further settings, change of the weights)
EXTRA = {
    "llama-8-heads": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}, None),
    "llama-8-heads-2-kv": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}, None),
    "llama-12-layers": ("llama", {"num_hidden_layers": 12}, None),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}, None),
    "llama-small-embedding": ("llama", {}, _small_embedding),
    "llama-massive": ("llama", {}, _massive_channel),
    # Hidden size 80: its root is no number of bf16.
    "gemma3-80": ("gemma3", {"hidden_size": 80, "num_hidden_layers": 2}, None),
    "gemma3-caps-2-layers": ("gemma3-caps", {"num_hidden_layers": 2}, None),
    "qwen3_moe-2-layers": ("qwen3_moe", {"num_hidden_layers": 2}, None),
    "qwen3_moe-window-2-layers": ("qwen3_moe-window", {"num_hidden_layers": 2}, None),
    "llama-bf16-subnormal": ("llama-bf16", {}, _subnormal_values),
    # Sizes that are whole blocks, and tables of scales that are whole tiles.
    "qwen3-blocks": ("qwen3", {"num_hidden_layers": 2, "intermediate_size": 128}, None),
    "qwen3_moe-blocks": ("qwen3_moe", {"num_hidden_layers": 2, "moe_intermediate_size": 64, "num_experts": 4}, None),
}
# Models in formats whose scales are tensors of their own: (unquantised model, function and settings in tests/quantised.py)
SCALED = {
    "qwen3-fp8": ("qwen3-blocks", "as_fp8", "FP8"),
    "qwen3-mxfp4": ("qwen3-blocks", "as_deepseek_fp4", "FP8"),
    "qwen3-nvfp4": ("qwen3-blocks", "as_compressed_nvfp4", "COMPRESSED_NVFP4"),
    "qwen3-nvfp4-modelopt": ("qwen3-blocks", "as_modelopt_nvfp4", "MODELOPT_NVFP4"),
    "qwen3_moe-fp8": ("qwen3_moe-blocks", "as_fp8", "FP8"),
    "qwen3_moe-mxfp4": ("qwen3_moe-blocks", "as_deepseek_fp4", "FP8"),
    "qwen3_moe-nvfp4": ("qwen3_moe-blocks", "as_modelopt_nvfp4", "MODELOPT_NVFP4"),
}
FP8_BLOCK = (16, 16)
# A window, a length-dependent scaling, or an amplitude on cosine and sine has no place in these GGUF files.
FLOAT_ONLY = ("window", "layer-types", "yarn", "dynamic", "linear", "gelu")


def has_gguf(name):
    return not any(word in name for word in FLOAT_ONLY)


@lru_cache(maxsize=None)
def tiny_folder(name, wide=False):
    """The folder with config.json and safetensors."""
    return _scaled_folder(name) if name in SCALED else _plain_folder(name, wide)


def _plain_folder(name, wide=False):
    base, settings, change = EXTRA.get(name, (name, {}, None))
    if wide:
        settings = {**settings, "intermediate_size": 96}
    folder = CACHE / (f"{name}-wide" if wide else name)
    wanted = json.dumps([base, settings, "" if change is None else inspect.getsource(change)])
    wanted += hashlib.sha256((ROOT / "tests" / "tiny.py").read_bytes()).hexdigest()
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != wanted:
        import tiny  # brings transformers along: only where something has to be made

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if base.startswith("minimind"):
            import minimind

            minimind.make(next(mini for mini in minimind.CONFIGS if mini.name == base), folder)
            complete.write_text(wanted)
            return folder
        made = dataclasses.replace(tiny.BY_NAME[base], name=folder.name, config={**tiny.BY_NAME[base].config, **settings})
        with torch.random.fork_rng():
            tiny.make(made, folder)
        if change is not None:
            file = folder / "model.safetensors"
            tensors = {n: t.clone() for n, t in load_file(file).items()}
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
        complete.write_text(wanted)
    return folder


def _scaled_folder(name):
    folder, (base, how, settings) = CACHE / name, SCALED[name]
    scripts = b"".join((ROOT / "tests" / script).read_bytes() for script in ("tiny.py", "quantised.py"))
    wanted = json.dumps([SCALED[name], EXTRA[base][:2], FP8_BLOCK]) + hashlib.sha256(scripts).hexdigest()
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != wanted:
        import quantised

        shutil.rmtree(folder, ignore_errors=True)
        function, settings = getattr(quantised, how), dict(getattr(quantised, settings))
        if "weight_block_size" in settings:
            settings["weight_block_size"] = list(FP8_BLOCK)
        function = function(FP8_BLOCK) if how == "as_fp8" else function
        made, _ = quantised.quantise(_plain_folder(base), CACHE / f"{name}.tmp", function, settings)
        made.rename(folder)
        shutil.rmtree(CACHE / f"{name}.tmp")
        complete.write_text(wanted)
    return folder


@lru_cache(maxsize=None)
def load(name, arithmetic):
    """(config, weights, what `firstdiff --model` takes) of a tiny model in an arithmetic."""
    kind = ARITHMETICS[arithmetic].quantised
    folder = tiny_folder(name, wide=kind is not None)
    config = configs.read(folder)
    if kind is None:
        return config, Scaled(folder, FP8_BLOCK) if name in SCALED else Folder(folder), folder
    file = folder / f"{kind.name}.gguf"
    if not file.exists():
        _write_gguf(folder, config, kind, file)
    return config, Gguf(file, config), file


def _write_gguf(folder, config, kind, file):
    import gguf_models

    if not has_gguf(folder.name):
        raise ValueError(f"{folder.name} cannot be written as GGUF")
    ratios = plain(config.theta, config.head_dim) / frequencies(config, 1)[0]
    freqs = ratios.numpy().astype(np.float32) if config.rope["rope_type"] == "llama3" else None
    raw = json.loads((folder / "config.json").read_text())
    settings = {**raw, "head_dim": config.head_dim, "rope_theta": config.theta, "rms_norm_eps": config.eps,
                "num_key_value_heads": config.kv_heads}  # fmt: skip
    weights = {n: t for part in sorted(folder.glob("*.safetensors")) for n, t in load_file(part).items()}
    temporary = file.with_suffix(f".{os.getpid()}.tmp")  # two runs at once may both make it
    gguf_models.write(temporary, settings, weights, kind, freqs)
    os.replace(temporary, file)


def prompt_ids(length, vocab=96, seed=2):
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
