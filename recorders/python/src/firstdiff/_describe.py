"""What trace.json says of a transformers model: its arithmetic, its surroundings, how it samples and when it stops."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from ._fingerprint import fingerprint
from ._generate import setting

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}


def describe(model: Any, implementation: str) -> dict[str, Any]:
    weights = DTYPES.get(model.dtype, str(model.dtype).removeprefix("torch."))
    device = model.device
    autocast = torch.is_autocast_enabled(device.type)
    activations = DTYPES.get(torch.get_autocast_dtype(device.type), weights) if autocast else weights
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stop = getattr(model.config, "eos_token_id", None) if stop is None else stop
    about = {"name": getattr(model.config, "_name_or_path", "") or type(model).__name__,
             "family": model.config.model_type}
    try:
        # which file it was: a trace of another revision is then told from a bug
        if known := fingerprint(model):
            about["fingerprint"] = known
    except (OSError, ValueError, KeyError, RuntimeError):
        pass  # a checkpoint laid out in another way: the trace goes without
    return {
        "model": about,
        "arithmetic": {"weights": weights, "activations": activations, "kv_cache": activations,
                       "attention": implementation},
        "environment": {"python": platform.python_version(), "torch": torch.__version__,
                        "transformers": version("transformers"), "safetensors": version("safetensors"),
                        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                        "threads": torch.get_num_threads(), "attn_implementation": implementation},
        "stop_ids": [] if stop is None else [int(stop)] if isinstance(stop, int) else [int(one) for one in stop],
    }


def sizes(config: Any) -> dict[str, int]:
    """What the letters of docs/TRACE.md's axes stand for, as far as the configuration says."""
    names = {"d": ("hidden_size",), "H": ("num_attention_heads",), "Hkv": ("num_key_value_heads",), "D": ("head_dim",),
             "F": ("intermediate_size",), "V": ("vocab_size",), "E": ("num_experts", "num_local_experts", "n_routed_experts"),
             "k": ("num_experts_per_tok",)}
    found = {letter: next((n for name in keys if isinstance(n := getattr(config, name, None), int)), None)
             for letter, keys in names.items()}
    if found["D"] is None and found["d"] and found["H"]:
        found["D"] = found["d"] // found["H"]
    found["Hkv"] = found["Hkv"] or found["H"]
    return {letter: number for letter, number in found.items() if number is not None}


def sampling(model: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "num_beams",
             "no_repeat_ngram_size", "min_new_tokens", "min_length", "guidance_scale")
    values = {name: setting(model, args, kwargs, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float))}
