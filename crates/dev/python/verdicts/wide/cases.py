"""Cases of these engines: each variant in its formats, families, runs and selections, declared and not."""

from dataclasses import dataclass
from itertools import count
from typing import Any

import effect
import torch

from . import runs
from .variants import VARIANTS, arithmetic, in_format
from .way import DTYPES

# A product's module and the tap that it reads.
PRODUCTS = {"q_proj": ("q_proj", "attn_norm"), "k_proj": ("k_proj", "attn_norm"), "v_proj": ("v_proj", "attn_norm"),
            "attn_out": ("o_proj", "attn_heads"), "gate_proj": ("gate_proj", "mlp_norm"), "up_proj": ("up_proj", "mlp_norm"),
            "mlp_out": ("down_proj", "mlp_act"), "logits": ("lm_head", "final_norm")}  # fmt: skip


@dataclass(frozen=True)
class WideCase:
    """One trace of one of these engines."""

    model: str
    format: str
    variant: str
    run: str = "plain"
    taps: str = "all"
    seed: int = 0
    prompt: int = 24
    declared: bool = True
    fault: Any = None
    group: str = ""
    part: str = "wide"
    measured: bool = True
    attention: str = ""

    @property
    def of(self):
        return VARIANTS[self.variant]

    @property
    def way(self):
        return in_format(self.of, self.format)

    @property
    def arithmetic(self):
        return arithmetic(self.of, self.format) if self.declared else None

    @property
    def steps(self):
        return self.of.steps

    @property
    def last_rows(self):
        return self.of.last_rows

    @property
    def ring(self):
        return self.of.ring

    def says(self, what):
        return what in self.of.says

    def accepts(self, verdict):
        """Whether that is right of an engine that is."""
        return verdict == "agrees" or (verdict == "unmeasured" and self.of.unmeasured)

    def path(self, engines):
        return engines.wide.path(self.model)

    def layers(self, engines):
        return engines.wide.load(self.model)[0].layers

    def write(self, engines, folder, wrong):
        """Records the trace; where the planted fault acted, as (step, tap), or None where there is none."""
        if self.fault is None:
            runs.write(self, engines.wide, folder)
            return None
        from .faults import Planted

        planted = Planted(self.fault, engines.wide.load(self.model)[0], wrong)
        runs.write(self, engines.wide, folder, planted)
        return planted.acted

    def unit(self, engines, tap, values):
        """One rounding of each element of a tap, or what a product's short inputs do to it where that is more."""
        kind = effect.kind_of(tap)
        value = values[tap].double()
        unit = effect.rounding(value, DTYPES[self.way.format(kind)])
        shorten = self.way.inputs or self.way.all_inputs
        module, source = PRODUCTS.get(kind, (None, None))
        if shorten is None or module is None or (kind == "logits" and self.way.inputs):
            return unit
        layer = tap.rpartition(".")[0] + "." if source != "final_norm" else ""
        if layer + source not in values:
            return unit
        x = values[layer + source].float().flatten(1)
        _, weights = engines.wide.load(self.model)
        name = f"{layer}{module}.weight"
        name = name if weights.has(name) else "embed.weight"
        moved = (shorten(x) - x).double() @ weights.read(name).double().T
        usual = moved.pow(2).mean(-1, keepdim=True).sqrt().expand_as(moved).reshape(value.shape)
        return torch.maximum(usual, unit)

    @property
    def engine(self):
        return self.model, "wide"

    @property
    def name(self):
        fault = self.fault
        what = f" · {fault.kind} {fault.size} at {fault.tap}, layers {fault.layers or 'all'}" if fault else ""
        length = f" · {self.prompt} tokens" if self.prompt != 24 else ""
        declared = "declared" if self.declared else "undeclared"
        return (f"{self.model} {self.format} · {self.variant} · {declared} · {self.run} · {self.taps} · seed {self.seed}"
                f"{length}{what}")


def cases():
    found = []
    for name, variant in VARIANTS.items():
        turn = count()
        for format in variant.stores:
            for prompt in variant.prompts:
                for run in variant.runs:
                    for family in variant.families:
                        for seed in range(variant.seeds):
                            n = next(turn)
                            taps = variant.taps[(n // len(variant.families) + n) % len(variant.taps)]
                            model = f"{family}#{seed % 3}"
                            for declared in (True, False) if variant.undeclared else (True,):
                                found.append(WideCase(model, format, name, run, taps, n, prompt, declared))
    return found
