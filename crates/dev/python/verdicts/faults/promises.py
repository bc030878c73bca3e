"""Faults that have to be found, whatever else is."""

from cases import Case
from engines import LONG

from . import attention, elsewhere, norms, parts, size
from .planting import EVERYWHERE, HEADS, PROJECTIONS, SCORES, Kind

FAMILIES = ("llama", "qwen2", "qwen3")
BLOCKS = ("blocks-llama", "blocks-qwen2", "blocks-qwen3")
FLOATS = ("f32", "bf16", "f16")
ROWS_OF_2048 = ("q_proj", "attn_norm", "attn_heads", "mlp_act", "out", "logits")


def planted(promise, make, number, words, tap, model, format, n, layers=None, attention="eager", taps="all", **more):
    fault = Kind(promise, (), (tap,), make).fault((words, number), tap, layers)
    return Case(model, format, "8-bit blocks" if format == "q8" else attention, attention, "plain", taps, 70 + n, fault,
                group=promise, **more)


def cases():
    return [*factors(), *eps(), *tokens(), *heads(), *garbage(), *misaligned(), *sinks()]


# Reported, and no promise: operations that round several times on the way, in which a factor this small drowns; values
# so narrow that they have too few roundings to average over; SmolLM2's logits, which a few huge inputs carry.
SEVERAL = ("q_rope", "k_rope", "attn_probs", "mlp_act")
REPORTED = ("; rotation, softmax, gated activation", ", models 64 channels wide", "; logits")


def factors():
    # an embedding is copied, not computed: x1.001 of a bf16 number is rounded back to the number
    for n, tap in enumerate(tap for tap in EVERYWHERE if tap != "embed"):
        for m, model in enumerate(FAMILIES):
            name = "x1.001 on one operation, bf16" + REPORTED[tap not in SEVERAL]
            yield planted(name, size.scaled, 1.001, "", tap, model, "bf16", n, {(n + m) % 4}, prompt=96)
        yield planted("x1.01 on one operation, 8-bit blocks", size.scaled, 1.01, "", tap, BLOCKS[n % 3], "q8", n, {n % 4})


def real():
    """The same in SmolLM2-135M: 24 tokens, values of the width that engines have."""
    for n, tap in enumerate(tap for tap in EVERYWHERE if tap not in ("embed", "attn_scores")):
        # scores of heads of 64 channels are multiplied by 1/8: in bf16 x1.001 is rounded back there too
        name = "x1.001 on one operation, bf16, SmolLM2-135M" + REPORTED[0] * (tap in SEVERAL)
        yield planted(name, size.scaled, 1.001, "", tap, "smollm2", "bf16", n, {(11 * n) % 30}, steps=0)
    for n, tap in enumerate((*PROJECTIONS, "attn_out", "gate_proj", "up_proj", "mlp_out", "logits")):
        name = "x1.01 on one operation, 8-bit blocks, SmolLM2-135M" + REPORTED[2] * (tap == "logits")
        yield planted(name, size.scaled, 1.01, "", tap, "smollm2", "q8", n, {(7 * n) % 30}, steps=0)


def eps():
    name = "eps 1e-5 for 1e-6"
    for n, tap in enumerate(("attn_norm", "mlp_norm")):
        for model in FAMILIES:
            yield planted(name, norms.other_eps, 1e-5, "f32", tap, model, "f32", n, {n})
    for format in FLOATS:
        yield planted(name, norms.other_eps, 1e-5, "small values", "attn_norm", "quiet", format, 5, {0})


def tokens():
    for n, tap in enumerate(ROWS_OF_2048):
        for format in ("f32", "bf16"):
            yield planted(f"one sign-flipped token of {LONG:,}", parts.flipped, 1, "", tap, "long", format, n, {0},
                          "sdpa", prompt=LONG, steps=0)


def heads():
    for n, tap in enumerate((*PROJECTIONS, *(h for h in HEADS if "norm" not in h), *SCORES)):
        for format in (*FLOATS, "q8"):
            model = "blocks-heads-32" if format == "q8" else "heads-32"
            yield planted("one wrong head of 32", parts.other_head, 1, "", tap, model, format, n, {n % 4}, steps=1)


def garbage():
    for n, tap in enumerate(("embed", "attn_resid", "out")):
        for format in FLOATS:
            yield planted("garbage in 63 of 64 tokens beside one row 100 times larger", beside_massive, 63, "", tap,
                          "massive", format, n, {0}, prompt=64, steps=0)


def beside_massive(_):
    """Every row but the massive token's holds noise of its own size."""

    def change(value, where):
        large = value.norm(dim=-1)
        rows = (large < 0.1 * large.max()).nonzero().flatten()
        assert len(rows) == len(value) - 1, "this tap has no massive row"
        value[rows] = parts.noise_like(value[rows], seed=31)
        return value

    return change


def misaligned():
    for n, model in enumerate((*FAMILIES, "llama-bf16", *BLOCKS)):
        for format in ("q8",) if model in BLOCKS else FLOATS:
            for taps in ("all", "modules"):
                yield planted("misaligned token ids", elsewhere.misaligned, 1, "", "embed", model, format, n, taps=taps)


def sinks():
    for n, model in enumerate((*FAMILIES, *BLOCKS)):
        for format in ("q8",) if model in BLOCKS else FLOATS:
            for taps in ("all", "modules"):
                yield planted("a missing attention sink", attention.with_sink, 0.0, "", "attn_probs", model, format, n,
                              {n % 4}, taps=taps)
