"""Planted faults, a file for each kind; here they meet arithmetics, models, layers, ways to run, and what is recorded."""

from itertools import count

from cases import Case

from . import as_written, attention, caches, elsewhere, layout, norms, parts, places, rotation, size
from .planting import ENDS, SCORES

FILES = (size, parts, layout, places, rotation, norms, attention, caches, elsewhere)
MODELS = ("llama", "qwen2", "qwen3", "llama-llama3", "qwen3-tied-biases", "llama-biases", "qwen2-window", "qwen3-window")
BLOCKS = ("blocks-llama", "blocks-qwen2", "blocks-qwen3")
THIRD = ("q_norm", "k_norm")
LAYERS = (None, {2}, {0}, {3}, {1})
RUNS = ("plain", "chunked", "plain", "static", "batch", "plain", "left-padded", "right-padded")
RECORDED = ("all", "modules")


def fits(kind, model, format, tap):
    blocks = model.startswith("blocks-")
    return (blocks == (format == "q8") and (not kind.models or model in kind.models)
            and not (tap in THIRD and "qwen3" not in model))


def cases():
    """Every kind and size in every format, once with every tap and once with module outputs alone; what else there is to
    choose (tap, model, layers, way to run) takes turns."""
    found, turn = [], count()
    for kind in (kind for file in FILES for kind in file.KINDS):
        for size_ in kind.sizes:
            for format in kind.formats:
                for taps in RECORDED:
                    for _ in range(2 if len(kind.taps) > 4 else 1):
                        n = next(turn)
                        found += one(kind, size_, format, taps, n)
    return found + written()


def one(kind, size_, format, taps, n):
    tap = kind.taps[(n * 7 + n // len(kind.taps)) % len(kind.taps)] if len(kind.taps) % 7 else kind.taps[n % len(kind.taps)]
    models = [m for m in (kind.models or (*MODELS, *BLOCKS)) if fits(kind, m, format, tap)]
    if not models:
        return []
    layers = LAYERS if kind.layers == "cycle" else kind.layers
    runs = kind.runs or (("plain",) if kind.calls else RUNS)
    fault = kind.fault(size_, tap, None if tap in ENDS else layers[n % len(layers)])
    eager = tap in SCORES or n % 3
    variant = "8-bit blocks" if format == "q8" else ("eager" if eager else "sdpa")
    return [Case(models[n % len(models)], format, variant, "eager" if eager else "sdpa", runs[n % len(runs)], taps, n,
                 fault, group=kind.name)]


def written():
    found = []
    for n, (model, fault) in enumerate(as_written.faults()):
        for format in ("f32", "bf16", "f16"):
            for m, (attention, taps) in enumerate((("eager", "all"), ("sdpa", "all"), ("sdpa", "modules"))):
                found.append(Case(model, format, attention, attention, "plain", taps, 40 + n + m, fault,
                                  group="as written"))
    return found
