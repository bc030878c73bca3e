"""Planted faults, a file for each kind; here they meet arithmetics, models, layers, ways to run, and what is recorded."""

from dataclasses import replace
from itertools import count, product

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
PRODUCTS = ("q_proj", "k_proj", "v_proj", "attn_out", "gate_proj", "up_proj", "mlp_out", "logits")


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
    return found + in_short_products() + written()


def undeclared():
    """The same with nothing said of the arithmetic: one of each kind and size in each format."""
    found, seen = [], set()
    for case in cases():
        one = case.group, case.fault.size, case.format, case.variant not in ("eager", "sdpa", "8-bit blocks")
        # a shorter cache of which nothing is said is an arithmetic, not a fault
        if one not in seen and case.group != "cache: in 8-bit floats":
            seen.add(one)
            found.append(replace(case, undeclared=True))
    return found


SHORT = (("tf32", "f32"), ("8-bit float inputs", "bf16"), ("f16 cache", "f32"), ("split sums rounded", "bf16"),
         ("residual unrounded inside a kernel", "bf16"))


def in_short_products():
    """Faults in products, in engines whose arithmetic is not that of transformers."""
    found = []
    kinds = [kind for file in FILES for kind in file.KINDS if not kind.models and set(kind.taps) & set(PRODUCTS)]
    for n, ((variant, format), kind, size_) in enumerate(product(SHORT, kinds, range(2))):
        tap = [tap for tap in kind.taps if tap in PRODUCTS][(n + size_) % len(set(kind.taps) & set(PRODUCTS))]
        if format in kind.formats:
            fault = kind.fault(kind.sizes[size_ % len(kind.sizes)], tap, None if tap in ENDS else LAYERS[n % len(LAYERS)])
            found.append(Case(MODELS[n % 5], format, variant, taps=RECORDED[size_], seed=n, fault=fault, group=kind.name))
    return found


def one(kind, size_, format, taps, n):
    many = len(kind.taps)
    tap = kind.taps[(n * 7 + n // many) % many if many % 7 else n % many]
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
