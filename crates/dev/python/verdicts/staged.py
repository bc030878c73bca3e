"""A copy of transformers' arithmetic with a place to stand in every operation: after its sum, before its last rounding.

A wrong kernel errs there: a factor in a product's epilogue, a wrong head, a token from another row. What `change` is
given is one sequence's value in a wider format and in the tap's own axes; what it returns is rounded as the engine
rounds and goes on from there.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import cache_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bugs import everywhere, replaced, source
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half


@dataclass
class Where:
    """Which value it is: layer, forward call, position of the first row; the module and what it was given."""

    tap: str
    layer: int
    call: int
    past: int
    config: Any
    module: Any = None
    given: Any = None


@dataclass
class Stage:
    """One planted change, and where it first made a difference."""

    tap: str
    change: Any
    layers: Any  # a set, or None for all
    calls: Any  # predicate on the call's number
    config: Any
    call: int = -1
    past: int = 0
    layer: int = 0
    acted: list = field(default_factory=list)  # (call, tap) of values that differ after rounding

    def begin(self, module, args, kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self.past = int(cache.get_seq_length()) if cache is not None else 0
        self.call += 1

    def apply(self, layer, wide, dtype, module=None, given=None):
        """`wide` [batch, …] changed in its first sequence, and rounded."""
        right = wide.to(dtype)
        if self.change is None or not self.calls(self.call) or not (self.layers is None or layer in self.layers):
            return right
        where = Where(self.tap, layer, self.call, self.past, self.config, module, None if given is None else given[0])
        first = self.change(wide[0].clone(), where).to(dtype)
        if not torch.equal(first, right[0]):
            self.acted.append((self.call, self.tap if layer is None else f"layers.{layer}.{self.tap}"))
        return torch.cat((first[None], right[1:]))


def wider(dtype):
    return torch.float64 if dtype == torch.float32 else torch.float32


def product(module, x):
    """A linear's result before it is rounded."""
    to = wider(x.dtype)
    x = getattr(module, "input_rounding", lambda x: x)(x)
    return linear(x.to(to), module.weight.to(to), None if module.bias is None else module.bias.to(to))


def of_linear(modules):
    def stage(model, at):
        def forward(n, module):
            return lambda x: at.apply(n, product(module, x), x.dtype, module, x)

        return everywhere(replaced(module, forward(n, module)) for n, module in modules(model))

    return stage


def of_norm(modules):
    def stage(model, at):
        def forward(n, norm):
            def run(x):
                to = wider(x.dtype)
                inner = torch.float32 if x.dtype != torch.float32 else torch.float64
                h = x.to(inner)
                h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
                h = h if x.dtype == torch.float32 else h.to(x.dtype)
                return at.apply(n, norm.weight.to(to) * h.to(to), x.dtype, norm, x)

            return run

        return everywhere(replaced(norm, forward(n, norm)) for n, norm in modules(model))

    return stage


def of_embedding(model, at):
    embedding = model.model.embed_tokens

    def run(ids):
        rows = nn.functional.embedding(ids, embedding.weight)
        return at.apply(None, rows.to(wider(rows.dtype)), rows.dtype, embedding, ids)

    return replaced(embedding, run)


def of_rotation(which):
    @contextmanager
    def stage(model, at):
        def apply(q, k, cos, sin, unsqueeze_dim=1):
            cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
            turned = []
            for name, x in (("q", q), ("k", k)):
                to = wider(x.dtype)
                wide = (x * cos).to(to) + (rotate_half(x) * sin).to(to)
                if name != which:
                    turned.append(wide.to(x.dtype))
                else:
                    rounded = at.apply(at.layer, wide.transpose(1, 2), x.dtype, None, x.transpose(1, 2))
                    turned.append(rounded.transpose(1, 2))
            return tuple(turned)

        hooks = [
            layer.self_attn.register_forward_pre_hook(lambda *_, n=n: setattr(at, "layer", n))
            for n, layer in enumerate(model.model.layers)
        ]
        with patch.object(source(model), "apply_rotary_pos_emb", apply):
            yield
        for hook in hooks:
            hook.remove()

    return stage


def of_cache(which):
    """What the cache hands to attention; `where.given` is what was stored in this call."""

    def stage(model, at):
        right = cache_utils.Cache.update

        def update(self, key_states, value_states, layer_idx, *args, **kwargs):
            held = list(right(self, key_states, value_states, layer_idx, *args, **kwargs))
            states = held[which].transpose(1, 2)
            given = (key_states, value_states)[which].transpose(1, 2)
            used = at.past + given.shape[1]  # a static cache is longer
            changed = at.apply(layer_idx, states[:, :used].to(wider(states.dtype)), states.dtype, None, given)
            held[which] = torch.cat((changed, states[:, used:]), 1).transpose(1, 2)
            return tuple(held)

        return patch.object(cache_utils.Cache, "update", update)

    return stage


def of_attention(tap):
    """eager attention step by step; of sdpa, only the result."""

    def stage(model, at):
        kind = model.config._attn_implementation
        if kind != "eager":
            assert tap == "attn_heads", f"{kind} has no {tap}"
            right = ALL_ATTENTION_FUNCTIONS[kind]

            def wrong(module, query, *args, **kwargs):
                output, weights = right(module, query, *args, **kwargs)
                wide = output.to(wider(output.dtype))
                return at.apply(module.layer_idx, wide, output.dtype, module), weights

            return patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {kind: wrong})

        def attention(module, query, key, value, mask, scaling, dropout=0.0, **_):
            groups, dtype, to = module.num_key_value_groups, query.dtype, wider(query.dtype)
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
            scores = torch.matmul(query, key.transpose(2, 3)) * scaling
            if tap == "attn_scores":
                # behind the recorder's back, into the product that it has seen: its hooks are off in here
                with torch._C.DisableTorchFunction():
                    wide = torch.matmul(query, key.transpose(2, 3)).to(to) * scaling
                    scores.copy_(at.apply(module.layer_idx, wide, dtype, module))
            masked = scores if mask is None else scores + mask[..., : key.shape[-2]]
            wide = masked.softmax(-1, dtype=to if to == torch.float64 else torch.float32)
            probs = at.apply(module.layer_idx, wide, dtype, module, masked) if tap == "attn_probs" else wide.to(dtype)
            if tap == "attn_heads":
                wide = torch.matmul(probs.to(to), value.to(to)).transpose(1, 2)
                return at.apply(module.layer_idx, wide, dtype, module), probs
            return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs

        return patch.object(source(model), "eager_attention_forward", attention)

    return stage


def of_residual(tap):
    def stage(model, at):
        def forward(n, layer):
            def add(name, residual, x):
                if name != tap:
                    return residual + x
                to = wider(x.dtype)
                return at.apply(n, residual.to(to) + x.to(to), x.dtype, layer, residual)

            def run(hidden_states, **kwargs):
                x, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
                residual = add("attn_resid", hidden_states, x)
                return add("out", residual, layer.mlp(layer.post_attention_layernorm(residual)))

            return run

        return everywhere(replaced(layer, forward(n, layer)) for n, layer in enumerate(model.model.layers))

    return stage


def of_activation(model, at):
    def forward(n, mlp):
        def run(x):
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            to = wider(x.dtype)
            wide = mlp.act_fn(gate).to(to) * up.to(to)
            return mlp.down_proj(at.apply(n, wide, x.dtype, mlp, torch.stack((gate, up), 1)))

        return run

    return everywhere(replaced(layer.mlp, forward(n, layer.mlp)) for n, layer in enumerate(model.model.layers))


def in_layers(path):
    def modules(model):
        for n, layer in enumerate(model.model.layers):
            module = layer
            for name in path.split("."):
                module = getattr(module, name)
            yield n, module

    return modules


STAGES = {
    "embed": of_embedding,
    "attn_norm": of_norm(in_layers("input_layernorm")),
    "q_proj": of_linear(in_layers("self_attn.q_proj")),
    "k_proj": of_linear(in_layers("self_attn.k_proj")),
    "v_proj": of_linear(in_layers("self_attn.v_proj")),
    "q_norm": of_norm(in_layers("self_attn.q_norm")),
    "k_norm": of_norm(in_layers("self_attn.k_norm")),
    "q_rope": of_rotation("q"),
    "k_rope": of_rotation("k"),
    "k_cache": of_cache(0),
    "v_cache": of_cache(1),
    "attn_scores": of_attention("attn_scores"),
    "attn_probs": of_attention("attn_probs"),
    "attn_heads": of_attention("attn_heads"),
    "attn_out": of_linear(in_layers("self_attn.o_proj")),
    "attn_resid": of_residual("attn_resid"),
    "mlp_norm": of_norm(in_layers("post_attention_layernorm")),
    "gate_proj": of_linear(in_layers("mlp.gate_proj")),
    "up_proj": of_linear(in_layers("mlp.up_proj")),
    "mlp_act": of_activation,
    "mlp_out": of_linear(in_layers("mlp.down_proj")),
    "out": of_residual("out"),
    "final_norm": of_norm(lambda model: [(None, model.model.norm)]),
    "logits": of_linear(lambda model: [(None, model.lm_head)]),
}


@contextmanager
def planted(model, tap, change, layers=None, calls=lambda call: True):
    """`change` in the operation of `tap`, in these layers and forward calls; None changes nothing."""
    at = Stage(tap, change, layers, calls, model.config)
    with ExitStack() as stack:
        hook = model.register_forward_pre_hook(at.begin, with_kwargs=True)
        stack.callback(hook.remove)
        stack.enter_context(STAGES[tap](model, at))
        yield at
