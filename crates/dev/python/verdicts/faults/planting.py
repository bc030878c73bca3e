"""How a kind of fault is written down: a change of one operation's result, in sizes, at the taps where it can happen."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import staged
from cases import Fault

HEADS = ("q_rope", "k_rope", "k_cache", "v_cache", "attn_heads", "q_norm", "k_norm")
SCORES = ("attn_scores", "attn_probs")  # eager alone shows them
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
ROWS = ("attn_norm", "attn_out", "attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "mlp_out", "out")
ENDS = ("embed", "final_norm", "logits")
EVERYWHERE = (*PROJECTIONS, "q_rope", "k_rope", *SCORES, "attn_heads", *ROWS, *ENDS)
FEW = ("q_proj", "attn_probs", "attn_heads", "attn_out", "mlp_norm", "mlp_act", "out", "logits")


@dataclass(frozen=True)
class Kind:
    """`make(size)` gives `change(value, where)`; `sizes` are (words, number)."""

    name: str
    sizes: tuple
    taps: tuple
    make: Any
    models: Any = None
    calls: Any = None  # which forward calls err
    formats: tuple = ("f32", "bf16", "f16", "q8")
    layers: Any = "cycle"
    runs: Any = None

    def fault(self, size, tap, layers=None):
        words, number = size
        return staged_fault(self.name, words, tap, self.make(number), layers, self.calls, number)


def staged_fault(kind, size, tap, change, layers=None, calls=None, value=0.0):
    when = calls or (lambda call: True)
    layers = None if tap in ENDS else layers

    def plant(model, wrong):
        return staged.planted(model, tap, change if wrong else None, layers, when)

    return Fault(kind, size, tap, plant, tuple(sorted(layers)) if layers else None, value=value)


def patched_fault(kind, size, tap, patch, layers=None, step=0, value=0.0):
    """A fault that is no staged change: `patch(model)` is a context manager. `layers` is () for a tap of no layer."""

    @contextmanager
    def plant(model, wrong):
        if not wrong:
            yield
            return
        with patch(model):
            yield

    return Fault(kind, size, tap, plant, layers, step, value)


def sized(*numbers, words="{}"):
    return tuple((words.format(number), number) for number in numbers)


def some(count, of, seed):
    """`count` different places of `of`, drawn."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[: min(count, of)]


def noise_like(value, seed):
    """Random values of the same size."""
    drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = value.double().pow(2).mean().sqrt()
    return (drawn * size).to(value.dtype)
