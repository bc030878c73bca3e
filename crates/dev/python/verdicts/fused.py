"""Right engines that compute otherwise than transformers: what fused kernels and split sums do, in a copy of it.

Each is a context manager on a loaded model, and says in trace.json's words how it rounds where the format has words.
"""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.nn.functional import linear
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import blocks
from bugs import everywhere, replaced, source
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half


def fused_projections(model):
    """Queries, keys and values as one product with stacked weights; gate and up as another."""

    def stacked(modules):
        weight = torch.cat([m.weight for m in modules])
        bias = None if modules[0].bias is None else torch.cat([m.bias for m in modules])
        ends = torch.tensor([m.weight.shape[0] for m in modules]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        part = lambda start, end: lambda x: linear(x, weight, bias)[..., start:end].contiguous()
        return [replaced(m, part(start, end)) for m, start, end in zip(modules, starts, ends)]

    layers = model.model.layers
    return everywhere(
        context
        for layer in layers
        for context in (
            *stacked([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
            *stacked([layer.mlp.gate_proj, layer.mlp.up_proj]),
        )
    )


def fused_activation(model):
    """silu(gate) times up in one kernel: one rounding, not three."""

    def forward(mlp):
        def run(x):
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            return mlp.down_proj((torch.nn.functional.silu(gate.float()) * up.float()).to(x.dtype))

        return run

    return everywhere(replaced(layer.mlp, forward(layer.mlp)) for layer in model.model.layers)


def norms(model):
    return [module for module in model.modules() if hasattr(module, "variance_epsilon")]


def normed(norm, x, dtype):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return (wide * norm.weight.float()).to(dtype)


def norm_weight_first(model):
    """The norm's weight is multiplied before the only cast."""
    run = lambda norm: lambda x: normed(norm, x, model.dtype)
    return everywhere(replaced(norm, run(norm)) for norm in norms(model))


def residual_in_f32(model):
    """The residual stream is kept in f32 between layers; everything else in the model's format."""

    def forward(layer):
        def run(hidden_states, **kwargs):
            stream = hidden_states.float()
            x, _ = layer.self_attn(hidden_states=layer.input_layernorm(stream), **kwargs)
            stream = stream + x.float()
            return stream + layer.mlp(layer.post_attention_layernorm(stream)).float()

        return run

    layers = (replaced(layer, forward(layer)) for layer in model.model.layers)
    return everywhere([norm_weight_first(model), *layers])


def fused_add_norm(carried):
    """One kernel adds and norms: the norm reads the sum before it is rounded. The stream goes on rounded, or, with
    `carried`, unrounded too, while what a recorder sees of it is rounded.

    The sums are handed from the addition to what reads them behind transformers' back.
    """

    @contextmanager
    def plant(model):
        exact = {}

        def add(residual, x):
            before = exact["value"] if carried and exact.get("of") is residual else residual
            wide = before.float() + x.float()
            exact["value"], exact["of"] = wide, wide.to(model.dtype)
            return exact["of"]

        def forward(layer):
            def run(hidden_states, **kwargs):
                x, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
                residual = add(hidden_states, x)
                return add(residual, layer.mlp(layer.post_attention_layernorm(residual)))

            return run

        def norm_of_sum(norm):
            return lambda x: normed(norm, exact["value"] if exact.get("of") is x else x, model.dtype)

        streams = [model.model.norm]
        for layer in model.model.layers:
            streams += [layer.input_layernorm, layer.post_attention_layernorm]
        with everywhere([
            *(replaced(layer, forward(layer)) for layer in model.model.layers),
            *(replaced(norm, norm_of_sum(norm)) for norm in streams),
        ]):
            yield

    return plant


def rope_in_f32(model):
    """Cosines, sines and the rotation in f32, one cast at the end."""

    def angles(x, position_ids):
        rotary = model.model.rotary_emb
        turns = position_ids[..., None].float() * rotary.inv_freq.float()
        both = torch.cat((turns, turns), -1)
        return both.cos() * rotary.attention_scaling, both.sin() * rotary.attention_scaling

    def apply(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        turn = lambda x: (x.float() * cos + rotate_half(x.float()) * sin).to(x.dtype)
        return turn(q), turn(k)

    return everywhere([
        replaced(model.model.rotary_emb, angles),
        patch.object(source(model), "apply_rotary_pos_emb", apply),
    ])


def attention_replaced(model, attention):
    kind = model.config._attn_implementation
    if kind == "eager":
        return patch.object(source(model), "eager_attention_forward", attention)
    return patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {kind: attention})


def allowed_keys(module, query, key, mask):
    if mask is not None:
        mask = mask[..., : key.shape[-2]]
        return mask if mask.dtype == torch.bool else mask == 0
    tokens, keys = query.shape[-2], key.shape[-2]
    return (torch.arange(keys)[None] <= torch.arange(keys - tokens, keys)[:, None])[None, None]


BLOCK = 8  # keys at a time


def flash(model):
    """Online softmax over blocks of keys: unnormalised probabilities in the model's format, sums in f32, one division."""

    def attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
        groups = module.num_key_value_groups
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        scaling = module.scaling if scaling is None else scaling
        seen = allowed_keys(module, query, key, mask).expand(query.shape[0], query.shape[1], -1, -1)
        top = torch.full((*query.shape[:-1], 1), -1e30)
        total, out = torch.zeros_like(top), torch.zeros(query.shape)
        for start in range(0, key.shape[-2], BLOCK):
            part = slice(start, start + BLOCK)
            scores = query.float() @ key[:, :, part].float().transpose(2, 3) * scaling
            scores = scores.masked_fill(~seen[..., part], -1e30)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights = torch.exp(scores - higher).masked_fill(~seen[..., part], 0.0)
            fade = torch.exp(top - higher)
            total = total * fade + weights.sum(-1, keepdim=True)
            out = out * fade + weights.to(query.dtype).float() @ value[:, :, part].float()
            top = higher
        out = out / total.clamp(min=1e-30)
        return out.to(query.dtype).transpose(1, 2).contiguous(), None

    return attention_replaced(model, attention)


def queries_scaled_first(model):
    """Queries are scaled, and rounded, before the product with the keys."""

    def attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
        groups = module.num_key_value_groups
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        query = query * (module.scaling if scaling is None else scaling)
        scores = torch.matmul(query, key.transpose(2, 3))
        if mask is not None:
            scores = scores + mask[..., : key.shape[-2]]
        probs = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs

    return attention_replaced(model, attention)


def split_sums(parts, reduced):
    """Products cut along the inner axis; partial results are added up in f32, or rounded first (`reduced`)."""

    def plant(model):
        def forward(module):
            def run(x):
                width = -(-x.shape[-1] // parts)
                sums = torch.zeros((), dtype=torch.float32)
                for start in range(0, x.shape[-1], width):
                    part = linear(x[..., start : start + width].float(), module.weight[:, start : start + width].float())
                    if reduced:
                        sums = (sums + part.to(x.dtype).float()).to(x.dtype).float()
                    else:
                        sums = sums + part
                return (sums if module.bias is None else sums + module.bias.float()).to(x.dtype)

            return run

        linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        return everywhere(replaced(module, forward(module)) for module in linears)

    return plant


def bias_afterwards(model):
    """A bias is added by a kernel of its own: the product is rounded before."""
    biased = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None]
    return everywhere(replaced(m, lambda x, m=m: linear(x, m.weight) + m.bias) for m in biased)


@contextmanager
def f16_cache(model):
    """A float32 model whose cache holds float16."""
    with ExitStack() as stack:
        model.cache_format = torch.float16
        stack.enter_context(blocks.half_cache(model))
        yield
        if not any(hasattr(m, "input_rounding") for m in model.modules()):
            del model.cache_format
