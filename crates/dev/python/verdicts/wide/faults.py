"""Faults on top of these engines, from hardly larger than rounding to gross, declared and not: what an arithmetic explains
must not hide them."""

from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch

from faults import layout, parts, size
from faults.planting import ENDS
from staged import Where

from .cases import WideCase
from .variants import VARIANTS

# (variant, formats, families): one of each kind of arithmetic
ON = [
    ("eager", ("bf16", "f32"), ("llama", "qwen2", "qwen3", "qwen3_moe")),
    ("flash", ("f16",), ("llama", "qwen3")),
    ("split-KV, parts rounded", ("bf16",), ("llama", "qwen3")),
    ("norm keeps its root", ("f16", "bf16"), ("llama", "qwen3")),
    ("serving kernels", ("bf16",), ("llama", "qwen3", "qwen3_moe")),
    ("tensor parallel 2", ("bf16",), ("llama", "qwen2", "qwen3_moe")),
    ("tensor parallel 8", ("f16",), ("llama", "qwen3")),
    ("split sums rounded", ("bf16",), ("llama", "qwen3")),
    ("sums in the activation type", ("bf16",), ("llama", "qwen3")),
    ("f32 residual, massive channel", ("bf16",), ("massive-llama-128*250.token", "massive-qwen3-256*300.all")),
    ("fused add and norm, massive channel", ("bf16", "f16"), ("massive-llama-128*250.token", "massive-llama-512*250.mlp")),
    ("f32 residual recorded", ("bf16",), ("llama", "qwen3")),
    ("f32 logits", ("bf16",), ("llama", "qwen2")),
    ("f32 router", ("bf16",), ("qwen3_moe",)),
    ("f32 rotation", ("bf16",), ("llama", "qwen3")),
    ("f32 attention", ("f16", "bf16"), ("llama", "qwen3")),
    ("wide before the cache", ("bf16",), ("llama", "qwen3")),
    ("read before rounding", ("f16",), ("llama", "qwen2")),
    ("bf16 products in f32", ("f32",), ("llama", "qwen2")),
    ("tf32", ("f32",), ("llama", "qwen3")),
    ("f16 cache", ("f32",), ("llama", "qwen3")),
    ("fp8-e4m3 cache", ("bf16",), ("llama", "qwen3")),
    ("fp8-e4m3 cache, a scale a tensor", ("bf16",), ("llama", "qwen3")),
    ("q8_0 cache", ("f32",), ("llama", "qwen3-wide")),
    ("int8 cache, head", ("f32",), ("llama-wide", "qwen3-wide")),
    ("fp8 inputs, a scale a token", ("bf16",), ("fp8-tensor", "fp8-channel")),
    ("fp8 inputs, groups of 128", ("bf16",), ("fp8-128",)),
    ("router ties", ("bf16",), ("ties",)),
]
DENSE_TAPS = ("attn_norm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "k_cache", "v_cache", "attn_heads", "attn_out",
              "attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "mlp_out", "out", "final_norm", "logits")
EXPERT_TAPS = ("attn_norm", "q_proj", "k_rope", "v_cache", "attn_heads", "attn_out", "mlp_norm", "router_weights",
               "experts_out", "out", "logits")
HEADED = ("q_proj", "v_proj", "q_rope", "k_rope", "k_cache", "attn_heads")
decoding = lambda call: call >= 1

# (kind, make, sizes, taps it can happen at or None, forward calls)
STRENGTHS = [
    ("common factor", size.scaled, (1.003, 1.01, 1.03, 1.1, 1.3, -1.0), None, None),
    ("common factor while decoding", size.scaled, (1.03, 1.1), None, decoding),
    ("bias-like offset", size.shifted, (0.01, 0.05, 0.2), None, None),
    ("one token louder", parts.louder_token, (1.02, 1.1, 3.0), None, None),
    ("tokens, sign flipped", parts.flipped, (1,), None, None),
    ("one head louder", parts.louder_head, (1.02, 1.1, 1.5), HEADED, None),
    ("heads, another's values", parts.other_head, (1,), HEADED, None),
    ("one channel louder", parts.louder_channel, (1.02, 1.1, 2.0), None, None),
    ("channels, zeroed", parts.zeroed_channels, (1,), None, None),
    ("tokens rolled by one", layout.tokens_rolled, (0,), None, lambda call: call == 0),
]
LAYERS = (None, (0,), (1,), None)


@dataclass(frozen=True)
class WideFault:
    """A change of one operation's result, before it is rounded."""

    kind: str
    size: str
    tap: str
    change: Any
    layers: Any = None
    calls: Any = None
    value: float = 0.0


class Planted:
    """The fault in one run: it acts in the first sequence of each recorded call. With `wrong` false it does nothing."""

    def __init__(self, fault, config, wrong):
        self.fault, self.wrong, self.acted, self.call, self.active = fault, wrong, [], 0, False
        self.config = SimpleNamespace(num_attention_heads=config.heads, num_key_value_heads=config.kv_heads)

    def begin(self, call, active):
        fault = self.fault
        self.call, self.active = call, active and self.wrong and (fault.calls is None or fault.calls(call))

    def apply(self, engine, tap, name, x, rounding):
        fault = self.fault
        if not self.active or tap != fault.tap or not (fault.layers is None or engine.layer in fault.layers):
            return x
        changed = fault.change(x.clone(), Where(tap, engine.layer, self.call, engine.length, self.config))
        if not torch.equal(rounding(changed), rounding(x)):
            self.acted.append((self.call, name))
        return changed


def cases():
    found, turn = [], count()
    for variant, formats, families in ON:
        for kind, make, sizes, possible, calls in STRENGTHS:
            for number in sizes:
                n = next(turn)
                family = families[n % len(families)]
                taps = EXPERT_TAPS if "moe" in family or "ties" in family else DENSE_TAPS
                taps = [tap for tap in taps if possible is None or tap in possible]
                tap = taps[(n * 7) % len(taps)]
                layers = (0,) if "512" in family else LAYERS[n % len(LAYERS)]  # those have one
                fault = WideFault(kind, f"{number:g}", tap, make(number), None if tap in ENDS else layers, calls, number)
                case = WideCase(f"{family}#{n % 3}", formats[n % len(formats)], variant, taps=("all", "all", "modules")[n % 3],
                                seed=n, fault=fault, group=kind)
                found += [case, replace(case, declared=False)]
    return found


assert all(variant in VARIANTS for variant, _, _ in ON)
