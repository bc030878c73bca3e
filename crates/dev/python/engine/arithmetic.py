"""In which formats the engine holds, sums and multiplies. One object, handed to every operation.

    f32, f16, bf16   as transformers runs (eager): every operation's result rounded, sums in float32
    q8, q4           as ggml runs on CPUs: weights from a GGUF file (Q8_0 or Q4_0), inputs of products with them in
                     blocks of 8-bit integers, f16 cache, float32 elsewhere
"""

from dataclasses import dataclass

import gguf
import torch

BLOCK = 32


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute; `declares` is what trace.json says of it."""

    name: str
    store: torch.dtype  # results of operations
    cache: torch.dtype  # cached keys and values
    weights: torch.dtype  # weights are rounded to this when loaded
    quantised: gguf.GGMLQuantizationType | None = None  # of the GGUF file that the weights come from

    @property
    def declares(self):
        short = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
        says = {"activations": short[self.store], "accumulate": "f32", "kv_cache": short[self.cache]}
        if self.quantised is None:
            return {"weights": short[self.weights], **says}
        return {"weights": "gguf", **says, "matmul_inputs": "ggml-q8"}

    @property
    def attention_inputs(self):
        """What queries and probabilities are rounded to where they meet the cache: ggml uses the cache's format."""
        return self.cache if self.quantised is not None else self.store


def _plain(name, dtype):
    return Arithmetic(name, dtype, dtype, dtype)


def _ggml(name, kind):
    return Arithmetic(name, torch.float32, torch.float16, torch.float32, kind)


ARITHMETICS = {
    a.name: a
    for a in [
        _plain("f32", torch.float32),
        _plain("bf16", torch.bfloat16),
        _plain("f16", torch.float16),
        _ggml("q8", gguf.GGMLQuantizationType.Q8_0),
        _ggml("q4", gguf.GGMLQuantizationType.Q4_0),
    ]
}


def q8_blocks(x):
    """x in blocks of 32 along its last axis: 8-bit integers (as floats) and their scales, held in f16.

    The integers are made with the scale as computed, not as stored, and halves go away from zero: both as ggml does.
    """
    blocks = x.float().reshape(*x.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    steps = blocks * inverse
    return torch.sign(steps) * torch.floor(steps.abs() + 0.5), scale.half().float()


def through_q8(x):
    """x as a product with a quantised weight sees it."""
    integers, scales = q8_blocks(x)
    return (integers * scales).reshape(x.shape)
