"""Where detection ends: the same faults smaller and smaller, until `check` takes them for rounding."""

from cases import Case

from . import attention, norms, parts, rotation, size
from .planting import Kind

TAPS = ("q_proj", "attn_heads", "attn_norm", "mlp_out")
HEADED = ("q_proj", "q_rope", "attn_heads", "v_proj")
# Under 8-bit blocks only products with a weight are inexact: what stands for these taps there.
PRODUCTS = {TAPS: ("q_proj", "attn_out", "up_proj", "mlp_out"), HEADED: ("q_proj", "k_proj", "v_proj")}
FLOATS = ("f32", "bf16", "f16")
FORMATS = ("f32", "bf16", "f16", "q8")
MODEL = {"f32": "llama", "bf16": "llama", "f16": "llama", "q8": "blocks-llama"}
HEADS_32 = {**dict.fromkeys(FORMATS, "heads-32"), "q8": "blocks-heads-32"}


def ladder(low, high):
    """1, 3, 10, … from 10^low to 10^high."""
    return tuple(float(f"{digit}e{power}") for power in range(low, high + 1) for digit in (1, 3))


LOW = {"f32": -7, "bf16": -4, "f16": -5, "q8": -4}  # where each format's ladder begins: well below its rounding


def one_plus(make):
    return lambda error: make(1 + error)


class Ladder:
    """One kind of fault, its sizes in each format, and how a size is written."""

    def __init__(self, name, make, taps=TAPS, sizes=None, words="{:g}", model=MODEL, formats=FORMATS):
        self.name, self.make, self.taps, self.sizes = name, make, taps, sizes
        self.words, self.model, self.formats = words, model, formats

    def cases(self):
        for format in self.formats:
            for number in self.sizes or ladder(LOW[format], -1):
                for n, tap in enumerate(PRODUCTS.get(self.taps, self.taps) if format == "q8" else self.taps):
                    kind = Kind(self.name, (), self.taps, self.make)
                    fault = kind.fault((self.words.format(number), number), tap, {1})
                    variant = "8-bit blocks" if format == "q8" else "eager"
                    yield Case(self.model[format], format, variant, seed=50 + n, fault=fault, steps=1, group=self.name)


LADDERS = [
    Ladder("common factor 1 + e on one operation", one_plus(size.scaled), words="{:.0e}"),
    Ladder("one token of 24, factor 1 + e", one_plus(parts.louder_token), words="{:.0e}"),
    Ladder("one head of 4, factor 1 + e", one_plus(parts.louder_head), HEADED, words="{:.0e}"),
    Ladder("one head of 32, factor 1 + e", one_plus(parts.louder_head), HEADED, words="{:.0e}", model=HEADS_32),
    Ladder("one channel, factor 1 + e", one_plus(parts.louder_channel), words="{:.0e}"),
    Ladder("offset of every token, share of the value's size", size.shifted, words="{:.0e}"),
    Ladder("rope exponent, relative error", rotation.theta_off, ("q_rope", "k_rope"), words="{:.0e}", formats=FLOATS),
    Ladder("rope positions, tokens late", rotation.late, ("q_rope", "k_rope"), words="{:.0e}", formats=FLOATS),
    Ladder("a sink's share: logit", attention.with_sink, ("attn_probs",),
           (-14.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0)),
    Ladder("eps for 1e-6", norms.other_eps, ("attn_norm", "mlp_norm"),
           (1.1e-6, 1.5e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3, 1e-2), words="{:.1e}", formats=FLOATS),
    Ladder("tokens of 24 with the sign flipped", parts.flipped, sizes=(1, 2, 4, 12)),
    Ladder("heads of 32 with another's values", parts.other_head, ("q_proj", "q_rope", "attn_heads", "v_cache"),
           (1, 2, 4, 16), model=HEADS_32),
    Ladder("channels of 64 (8-bit: 128) set to 0", parts.zeroed_channels, sizes=(1, 2, 4, 8)),
    Ladder("channels of 64 (8-bit: 128) with the neighbour's values", parts.neighbour_channels, sizes=(1, 2, 4, 8)),
    Ladder("one element, factor", parts.one_element, sizes=(1.1, 1.5, 3.0, 10.0, 100.0, 1e3, 1e4)),
]


def cases():
    return [case for one in LADDERS for case in one.cases()]
