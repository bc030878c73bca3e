"""How an engine computes: every choice that changes its roundings, with transformers' (eager) as the default."""

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8-e4m3": torch.float8_e4m3fn,
          "fp8-e5m2": torch.float8_e5m2}  # fmt: skip
STREAM = ("attn_resid", "out")


def rounded(x, format):
    """`x` as `format` holds it, in float32."""
    return x.to(DTYPES[format]).float()


@dataclass(frozen=True)
class Way:
    """`store` is the format of results; the other settings say where an engine differs from transformers."""

    store: str = "bf16"
    weights: str = ""  # format that weights are rounded to; the store's where empty, "file" leaves them as they are
    stored: tuple = ()  # (kind of tap, format): held and recorded in another format than `store`
    recorded: str = ""  # format that values are written in, where it is longer than what they hold
    unread: tuple = ()  # kinds of taps whose readers see the value before it was rounded for the recording
    reads_sum: bool = False  # norms of the stream read the addition before it was rounded; the stream goes on rounded
    cache: Any = None  # what the cache does to keys and values: `caches.py`
    inputs: Any = None  # what products with a projection's weight do to their input
    all_inputs: Any = None  # what every product does to both of its factors
    ranks: int = 1  # of tensor parallelism: row-parallel products are so many partial sums
    reduce: str = "f32"  # how the ranks' parts are added: "f32", or "hop": rounded after each addition
    splits: int = 1  # every product is so many partial sums
    splits_rounded: bool = False
    sums: str = ""  # every partial sum of a product is rounded to this format
    attention: str = "eager"  # eager, flash, split, scaled-first
    block: int = 8  # keys at a time in flash
    parts: int = 1  # key splits in split
    parts_rounded: bool = False  # the parts' results are stored in `store` before they are merged
    norm: str = "after"  # the weight is multiplied after the cast, "before" it; "root", "reciprocal": held in `store`
    rotation: str = "eager"  # "eager", "f32" (one rounding), "table" (a rounded table, one rounding)
    fused_activation: bool = False
    fused_experts: bool = False
    router: str = "all"  # softmax over all experts, or over the "chosen" ones

    def format(self, kind):
        """The format in which a kind of tap is held."""
        return dict(self.stored).get(kind, "f32" if kind == "router_scores" else self.store)

    @property
    def weight_format(self):
        return self.weights or self.store

    def shows(self, kind):
        """Whether the engine holds such a value at all."""
        if kind == "router_scores":  # float32 inside a router, and shown by few
            return kind in dict(self.stored)
        return not (self.attention in ("flash", "split") and kind in ("attn_scores", "attn_probs"))
