"""ggml's arithmetic on CPUs in a copy of transformers: inputs of products in blocks of 8-bit integers, an f16 cache."""

from functools import cached_property
from unittest.mock import patch

import gguf
import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from gguf_models import GgufModel, write

LENGTH = 32  # of a block
DECLARED = {"weights": "gguf", "activations": "f32", "kv_cache": "f16", "matmul_inputs": "ggml-q8"}


def make(config, path, kind=gguf.GGMLQuantizationType.Q8_0):
    """A GGUF file with random weights in 8-bit blocks."""
    raw = config.raw_config()
    made = AutoConfig.for_model(raw.pop("model_type"), **raw)
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32).eval()
    tiny.randomise(model, seed=sum(config.name.encode()))
    write(path, config.raw_config(), tiny.tensors_of(model), kind)


class Blocks(GgufModel):
    """Read back as any GGUF file; the size of a head, which need not follow from the width, is taken from it too."""

    @cached_property
    def config(self):
        return {**super().config, "head_dim": self.setting("attention.key_length")}


def quantised(x):
    """x as blocks of 32 integers with an f16 scale, and back."""
    rows = x.unflatten(-1, (-1, LENGTH)).float()
    scale = rows.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(scale > 0, rows / scale.clamp(min=1e-38), 0.0)
    whole = torch.copysign((whole.abs() + 0.5).floor(), whole)  # halves away from zero, as C's roundf
    return (whole * scale.half().float()).flatten(-2).to(x.dtype)


def install(model):
    """Every product with a weight quantises its input; the cache holds f16."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.input_rounding = quantised
            module.forward = (lambda m: lambda x: linear(quantised(x), m.weight, m.bias))(module)
    model.cache_format = torch.float16


def half_cache(model):
    """What attention reads has been stored in the model's `cache_format`."""
    from transformers import cache_utils

    right = cache_utils.Cache.update
    kept = model.cache_format

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        stored = [states.to(kept).to(states.dtype) for states in (key_states, value_states)]
        return right(self, *stored, layer_idx, *args, **kwargs)

    return patch.object(cache_utils.Cache, "update", update)


