"""What several faults need."""

import torch

from ..engine import Engine
from ..models import prompt_ids


def turn(engine, a, b, cos, sin):
    """(a, b) rotated by an angle, rounded as the right rotation rounds."""
    a, b, cos, sin = a.float(), b.float(), cos.float(), sin.float()
    store = lambda x: engine.store(x).float()
    return engine.store(store(a * cos) + store(-b * sin)), engine.store(store(b * cos) + store(a * sin))


def other_request(engine, ids=None, seed=7, tokens=24):
    """A healthy engine that has served another prompt: its cache is what memory used before still holds."""
    other = Engine(engine.config, engine.weights, engine.arithmetic, lambda tap: False, engine.keys.shape[1])
    with torch.no_grad():
        other.run(prompt_ids(tokens, engine.config.vocab, seed) if ids is None else ids)
    return other


def used_memory(engine):
    """The cache was used before and not cleared."""
    other = other_request(engine, tokens=engine.keys.shape[1])
    engine.keys.copy_(other.keys)
    engine.values.copy_(other.values)


def as_weight(engine, values):
    return values.to(engine.arithmetic.weights).float()


def module_of(name):
    """`layers.0.q_proj.weight` -> `q_proj`"""
    return name.split(".")[-2]


def layer_of(name):
    return int(name.split(".")[1]) if name.startswith("layers.") else None


FUSED = ("attn_scores", "attn_probs")  # inside one attention kernel
