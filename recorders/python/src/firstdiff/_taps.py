"""The list of taps, from `taps.json`: their names, axes, and what other programs call them.

`taps.json` is the one list that all recorders and `firstdiff import` share; a test holds it to the Rust side's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Iterable, Mapping, Optional

# the tap that an operation reads, where nothing else writes it: {tap of what it gives: tap of what it is given}
INPUT_OF = {"attn_out": "attn_heads", "mlp_out": "mlp_act", "mlp_norm": "attn_resid"}

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_FACTOR = re.compile(r"[A-Za-z][A-Za-z ]*")


@dataclass(frozen=True)
class Tap:
    """One tap: `name` is without `layers.N.`; `place` is `before`, `layer` or `after`; `axes` as in docs/TRACE.md."""

    name: str
    place: str
    axes: str
    aliases: tuple[str, ...]

    def elements(self, sizes: Mapping[str, int]) -> Optional[int]:
        """How many elements it has where each letter of `axes` stands for that many; None where one is not known."""
        number = 1
        for axis in self.axes.split(","):
            # `(H+2Hkv)*D` is written as people write it: a number and a letter side by side are a product
            text = re.sub(r"(\d)(?=[A-Za-z(])", r"\1*", axis)
            if any(name not in sizes for name in _FACTOR.findall(text)):
                return None
            number *= _value(_FACTOR.sub(lambda found: str(int(sizes[found[0]])), text))
        return number


def _value(text: str) -> int:
    """A sum of products of whole numbers, with brackets."""
    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", lambda found: str(_value(found[1])), text)
    total = 0
    for term in re.findall(r"[+-]?[^+-]+", text):
        product = -1 if term.startswith("-") else 1
        for factor in term.lstrip("+-").split("*"):
            product *= int(factor)
        total += product
    return total


@lru_cache(maxsize=None)
def taps() -> Mapping[str, Tap]:
    """All taps by name, in the order in which they are computed."""
    entries = json.loads(files(__package__).joinpath("taps.json").read_text(encoding="utf-8"))
    return {e["name"]: Tap(e["name"], e["place"], e["axes"], tuple(e["aliases"])) for e in entries}


@lru_cache(maxsize=None)
def _aliases() -> Mapping[str, str]:
    return {alias: tap.name for tap in taps().values() for alias in tap.aliases}


def tap_of(alias: str, layer: Optional[int] = None) -> Optional[str]:
    """The tap that another program's name means: `layers.3.q_proj` for `self_attn.q_proj` in layer 3, `embed` for
    `embed_tokens` outside the layers. None where it means none."""
    name = _aliases().get(alias)
    if name is None or (taps()[name].place == "layer") != (layer is not None):
        return None
    return name if layer is None else f"layers.{layer}.{name}"


def module_taps(paths: Iterable[str]) -> dict[str, str]:
    """{tap: module} for the modules of one layer, by their paths inside it, as Hugging Face names them.

    Of two modules for one tap, the one that its aliases have first: a module before the one around it.
    """
    paths = list(paths)
    # Gemma normalises what its branches give, too: there the norm of that name comes before the residual is added
    after_attention = "attn_post_norm" if "pre_feedforward_layernorm" in paths else "mlp_norm"
    found: dict[str, tuple[int, str]] = {}
    for path in paths:
        tap = after_attention if path == "post_attention_layernorm" else _aliases().get(path)
        if tap is not None and taps()[tap].place == "layer":
            aliases = taps()[tap].aliases
            rank = aliases.index(path) if path in aliases else 0
            found[tap] = min(found.get(tap, (rank, path)), (rank, path))
    return {tap: path for tap, (_, path) in found.items()}


def split(tap: str) -> tuple[Optional[int], str]:
    """`layers.3.q_rope` is (3, `q_rope`), `logits` is (None, `logits`)."""
    found = _LAYER.fullmatch(tap)
    return (int(found[1]), found[2]) if found else (None, tap)
