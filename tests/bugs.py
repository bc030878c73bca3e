"""Bugs planted by hand in a transformers model: context managers that change the engine and put it back.

Each is planted where a person would have written it (the rotation, the cache, the mask, a norm), below everything a
recorder can hook, so that what the recorder sees is what a broken engine would hold.
"""

import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from transformers import cache_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama  # noqa: F401  (the three families' files, for `source`)


def source(model):
    """The model file the engine runs: its functions are looked up there at each call."""
    return sys.modules[type(model).__module__]


@contextmanager
def swapped(parameter, values):
    """Other values in a parameter, for a while."""
    before = parameter.detach().clone()
    parameter.data.copy_(values)
    try:
        yield
    finally:
        parameter.data.copy_(before)


@contextmanager
def replaced(module, forward):
    """Another forward on one module; its hooks still run around it."""
    with patch.object(module, "forward", forward):
        yield


@contextmanager
def everywhere(contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


# ---- rotation ---------------------------------------------------------------------------------------------------


def frequencies(model, theta):
    dim = model.config.head_dim if getattr(model.config, "head_dim", None) else (
        model.config.hidden_size // model.config.num_attention_heads
    )
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def other_rope_theta(model):
    """10000 where the model has another base, and 1000000 where it has 10000."""
    theta = 1e6 if model.config.rope_parameters["rope_theta"] == 1e4 else 1e4
    return patch.object(model.model.rotary_emb, "inv_freq", frequencies(model, theta))


def rope_scaling_ignored(model):
    return patch.object(
        model.model.rotary_emb, "inv_freq", frequencies(model, model.config.rope_parameters["rope_theta"])
    )


def interleaved_pairs(model):
    """Channels 2i and 2i+1 are rotated together, instead of i and i + D/2."""

    def rotate(x, cos, sin):
        half = cos.shape[-1] // 2
        cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)

    def apply(q, k, cos, sin, unsqueeze_dim=1):
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return patch.object(source(model), "apply_rotary_pos_emb", apply)


def decode_positions_off_by_one(model):
    rotary = model.model.rotary_emb
    right = rotary.forward
    return replaced(rotary, lambda x, position_ids: right(x, position_ids + int(x.shape[1] == 1)))


# ---- projections and weights ------------------------------------------------------------------------------------


def qkv_biases_zeroed(model):
    return everywhere(
        swapped(getattr(layer.self_attn, name).bias, 0.0 * getattr(layer.self_attn, name).bias)
        for layer in model.model.layers
        for name in ("q_proj", "k_proj", "v_proj")
    )


def k_bias_zeroed(model):
    return everywhere(
        swapped(layer.self_attn.k_proj.bias, 0.0 * layer.self_attn.k_proj.bias) for layer in model.model.layers
    )


def up_proj_louder_in_layer_3(model):
    module = model.model.layers[3].mlp.up_proj
    right = module.forward
    return replaced(module, lambda x: right(x) * 1.05)


def o_proj_rows_swapped_in_layer_2(model):
    weight = model.model.layers[2].self_attn.o_proj.weight
    rows = torch.arange(weight.shape[0])
    rows[[3, 17]] = rows[[17, 3]]
    return swapped(weight, weight[rows].clone())


def o_proj_transposed_in_layer_1(model):
    weight = model.model.layers[1].self_attn.o_proj.weight
    return swapped(weight, weight.T.clone())


def wrong_output_head(model):
    """The embedding serves as head although the model brings its own head."""
    return swapped(model.lm_head.weight, model.model.embed_tokens.weight)


def tied_head_replaced(model):
    """A head of its own, rolled by one row, although the model says that the embedding is the head."""
    other = torch.nn.Parameter(model.lm_head.weight.detach().roll(1, 0).clone(), requires_grad=False)
    return patch.object(model.lm_head, "weight", other)


# ---- norms ------------------------------------------------------------------------------------------------------


def norm_eps_swapped(model):
    """1e-5 where the model has 1e-6, and 1e-6 where it has 1e-5."""
    eps = 1e-5 if model.config.rms_norm_eps < 5e-6 else 1e-6
    norms = [m for m in model.modules() if hasattr(m, "variance_epsilon")]
    return everywhere(patch.object(norm, "variance_epsilon", eps) for norm in norms)


def norm_overwrites_residual(model):
    """The input norm works in place: what is added back after attention is no longer the residual stream."""

    def in_place(norm):
        right = norm.forward
        return lambda hidden_states: hidden_states.copy_(right(hidden_states))

    norms = [layer.input_layernorm for layer in model.model.layers]
    return everywhere(replaced(norm, in_place(norm)) for norm in norms)


def final_norm_missing(model):
    return replaced(model.model.norm, lambda x: x.clone())


def k_norm_missing(model):
    norms = [layer.self_attn.k_norm for layer in model.model.layers]
    return everywhere(replaced(norm, lambda x: x.clone()) for norm in norms)


# ---- attention --------------------------------------------------------------------------------------------------


def attention_scale_missing(model):
    return everywhere(patch.object(layer.self_attn, "scaling", 1.0) for layer in model.model.layers)


def attention_function(model, change):
    """Attention given other queries, keys and values than the model handed over: `change(module, q, k, v)`."""
    kind = model.config._attn_implementation
    if kind == "eager":
        right = source(model).eager_attention_forward
    else:
        right = ALL_ATTENTION_FUNCTIONS[kind]

    def wrong(module, query, key, value, attention_mask, **kwargs):
        return right(module, *change(module, query, key, value), attention_mask, **kwargs)

    if kind == "eager":
        return patch.object(source(model), "eager_attention_forward", wrong)
    return patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {kind: wrong})


def v_head_shifted_when_read(model):
    """Head 0 reads its values one token late; the cache itself is right."""

    def change(module, q, k, v):
        v = v.clone()
        v[:, 0] = v[:, 0].roll(1, dims=-2)
        return q, k, v

    return attention_function(model, change)


def gqa_tiled(model):
    """Query head h reads kv head h mod Hkv, instead of h div group: the heads are tiled, not repeated."""
    kind = model.config._attn_implementation
    if kind == "eager":
        return patch.object(source(model), "repeat_kv", lambda states, n: states.repeat(1, n, 1, 1))
    right = ALL_ATTENTION_FUNCTIONS[kind]

    def wrong(module, query, *args, **kwargs):
        # the same by reordering query heads, so that the fast path keeps its own repeating
        order = torch.arange(query.shape[1]).view(module.num_key_value_groups, -1).T.flatten()
        output, weights = right(module, query[:, order], *args, **kwargs)
        return output[:, :, order.argsort()], weights

    return patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {kind: wrong})


def mask_changed(model, change):
    """Another mask wherever the model makes one; `change(allowed)` edits a bool [1, 1, T, K]."""
    kind = model.config._attn_implementation

    def maker(right):
        def wrong(*args, **kwargs):
            embeds, cache = kwargs["inputs_embeds"], kwargs.get("cache", kwargs.get("past_key_values"))
            right(*args, **kwargs)  # still raises what it would raise
            tokens = embeds.shape[1]
            past = cache.get_seq_length() if cache is not None else 0
            queries = torch.arange(past, past + tokens)[:, None]
            allowed = change(queries, torch.arange(past + tokens)[None])[None, None]
            if kind == "sdpa":
                return allowed
            return torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill(~allowed, torch.finfo(embeds.dtype).min)

        return wrong

    return patch.object(source(model), "create_causal_mask", maker(source(model).create_causal_mask))


def causal_mask_off_by_one(model):
    return mask_changed(model, lambda query, key: key <= query + 1)


def causal_mask_missing(model):
    return mask_changed(model, lambda query, key: (key >= 0) & (query >= 0))


def sliding_window_off_by_one(model):
    """One key more is visible, and kept: mask and cache agree with each other."""
    return patch.object(model.config, "sliding_window", model.config.sliding_window + 1)


# ---- cache ------------------------------------------------------------------------------------------------------


def cache_update(change):
    """What the cache hands to attention is changed: `change(cache, k, v, new tokens)`; `new` is the call's length."""
    right = cache_utils.Cache.update

    def wrong(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = right(self, key_states, value_states, layer_idx, *args, **kwargs)
        return change(keys, values, key_states.shape[-2], layer_idx)

    return patch.object(cache_utils.Cache, "update", wrong)


STALE_DECODE_STEP = 3


@contextmanager
def stale_slot_at_one_decode_step(model):
    """At one decode step attention reads the last slot before it is written: it still holds the slot before."""
    decode_calls = {}

    def change(keys, values, new, layer):
        if new > 1:
            decode_calls.clear()
            return keys, values
        decode_calls[layer] = decode_calls.get(layer, 0) + 1
        if decode_calls[layer] != STALE_DECODE_STEP:
            return keys, values
        return stale(keys), stale(values)

    with cache_update(change):
        yield


def stale(slots):
    slots = slots.clone()
    slots[..., -1, :] = slots[..., -2, :]
    return slots


@contextmanager
def v_head_shifted_when_stored(model):
    """Head 0's values go into the cache one token late."""
    right = cache_utils.Cache.update

    def wrong(self, key_states, value_states, layer_idx, *args, **kwargs):
        value_states = value_states.clone()
        value_states[:, 0] = value_states[:, 0].roll(1, dims=-2)
        return right(self, key_states, value_states, layer_idx, *args, **kwargs)

    with patch.object(cache_utils.Cache, "update", wrong):
        yield


# ---- MLP --------------------------------------------------------------------------------------------------------


def gate_and_up_swapped(model):
    def wrong(mlp):
        return lambda x: mlp.down_proj(mlp.gate_proj(x) * mlp.act_fn(mlp.up_proj(x)))

    return everywhere(replaced(layer.mlp, wrong(layer.mlp)) for layer in model.model.layers)


def gelu_for_silu(model):
    return everywhere(patch.object(layer.mlp, "act_fn", torch.nn.GELU()) for layer in model.model.layers)
