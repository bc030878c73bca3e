"""Right engines whose products and caches are shorter than their activations: tf32, 8-bit floats."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.nn.functional import linear
from transformers import cache_utils

from bugs import everywhere, replaced
from fused import attention_replaced
from transformers.models.llama.modeling_llama import repeat_kv

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def tf32(x):
    """f32 with 10 bits of mantissa, halves away from zero."""
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def scaled_8_bit(format, group=None):
    """8-bit floats with one scale a token, or one for each `group` of channels."""

    def rounded(x):
        rows = x.float() if group is None else x.float().unflatten(-1, (-1, min(group, x.shape[-1])))
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST[format]
        back = (rows / scale).to(format).float() * scale
        return back if group is None else back.flatten(-2)

    return rounded


E4M3 = scaled_8_bit(torch.float8_e4m3fn)


def products_of(inputs, weights=lambda w: w):
    """Every product with a weight rounds its input; sums in f32, results in the model's format."""

    def plant(model):
        def forward(m):
            bias = None if m.bias is None else m.bias.float()
            return lambda x: linear(inputs(x).float(), weights(m.weight).float(), bias).to(x.dtype)

        modules = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        # a fault planted in one of them computes the same way: staged.product asks
        said = [patch.object(m, "input_rounding", inputs, create=True) for m in modules]
        return everywhere([*said, *(replaced(m, forward(m)) for m in modules)])

    return plant


def tf32_everywhere(model):
    """As with torch's matmul precision "high": weights, inputs and both products of attention."""

    def attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
        groups = module.num_key_value_groups
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        scores = torch.matmul(tf32(query), tf32(key).transpose(2, 3)) * scaling
        if mask is not None:
            scores = scores + mask[..., : key.shape[-2]]
        probs = scores.softmax(-1)
        return torch.matmul(tf32(probs), tf32(value)).transpose(1, 2).contiguous(), probs

    return everywhere([products_of(tf32, tf32)(model), attention_replaced(model, attention)])


@contextmanager
def cache_in(format):
    """Keys and values are stored in a shorter format, without a scale."""
    right = cache_utils.Cache.update

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        stored = [states.to(format).to(states.dtype) for states in (key_states, value_states)]
        return right(self, *stored, layer_idx, *args, **kwargs)

    with patch.object(cache_utils.Cache, "update", update):
        yield
