"""What the bench runs: a case is one trace of one engine, right or wrong, and what `check` should say of it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Optional

import torch

import blocks
import effect
import engines as settings
import fused
import precision


@dataclass(frozen=True)
class Variant:
    """A right way to compute. `declared` are keys of trace.json's `arithmetic` beyond what the recorder writes."""

    plant: Any = None
    attention: tuple = ("eager",)
    formats: tuple = ("f32", "bf16", "f16")
    declared: tuple = ()
    families: Any = None  # predicate on the configuration's name
    inputs: Any = None  # what a product does to its input first, if anything


HALF = ("bf16", "f16")
UNDECLARED = (("nothing", True),)

VARIANTS = {
    "eager": Variant(),
    "sdpa": Variant(attention=("sdpa",)),
    "f16 cache": Variant(fused.f16_cache, formats=("f32",), declared=(("kv_cache", "f16"),), attention=("eager", "sdpa")),
    "fused projections": Variant(fused.fused_projections),
    "fused activation": Variant(fused.fused_activation),
    "norm weight before the cast": Variant(fused.norm_weight_first, formats=HALF),
    "residual kept in f32": Variant(fused.residual_in_f32, formats=HALF, declared=(("residual", "f32"),)),
    "residual unrounded inside a kernel": Variant(fused.fused_add_norm(carried=True), formats=HALF,
                                                  declared=(("residual", "f32"),)),
    "fused add and norm": Variant(fused.fused_add_norm(carried=False), formats=HALF),
    "rotation in f32": Variant(fused.rope_in_f32, formats=HALF),
    "flash": Variant(fused.flash, attention=("sdpa",)),
    "queries scaled first": Variant(fused.queries_scaled_first),
    "sums split in 4": Variant(fused.split_sums(4, reduced=False)),
    "split sums rounded": Variant(fused.split_sums(4, reduced=True), formats=HALF, declared=(("split_sums", 4),)),
    "bias added afterwards": Variant(fused.bias_afterwards, families=lambda name: "qwen2" in name or "bias" in name),
    "tf32": Variant(precision.tf32_everywhere, formats=("f32",), declared=(("matmul_inputs", "tf32"),),
                    inputs=precision.tf32),
    "tf32, nothing declared": Variant(precision.tf32_everywhere, formats=("f32",), declared=UNDECLARED),
    "nothing declared": Variant(declared=UNDECLARED),
    "8-bit float inputs": Variant(precision.products_of(precision.E4M3), formats=("bf16", "f16"),
                                  declared=(("matmul_inputs", "fp8-e4m3"),), inputs=precision.E4M3),
    "8-bit float inputs, e5m2": Variant(precision.products_of(precision.scaled_8_bit(torch.float8_e5m2)),
                                        formats=("bf16",), declared=(("matmul_inputs", "fp8-e5m2"),)),
    "8-bit float inputs, groups of 128": Variant(precision.products_of(precision.scaled_8_bit(torch.float8_e4m3fn, 128)),
                                                 formats=("bf16",), declared=(("matmul_inputs", "fp8-e4m3-128"),)),
    "8-bit float cache": Variant(lambda model: precision.cache_in(torch.float8_e4m3fn), formats=("f32", "bf16", "f16"),
                                 declared=(("kv_cache", "fp8-e4m3"),)),
    "8-bit float cache, e5m2": Variant(lambda model: precision.cache_in(torch.float8_e5m2), formats=("bf16",),
                                       declared=(("kv_cache", "fp8-e5m2"),)),
    "llama.cpp": Variant(attention=("plain", "flash"), formats=()),
    "8-bit blocks": Variant(fused.f16_cache, formats=("q8",), attention=("eager", "sdpa"),
                            declared=tuple(blocks.DECLARED.items()), inputs=blocks.quantised),
}


@dataclass(frozen=True)
class Fault:
    """A planted mistake. `plant(model, wrong)` is a context manager that yields a `staged.Stage`, or nothing; with
    `wrong` false it computes the same way and changes nothing.

    `tap` is the operation that errs: in the layers listed (None: all) from step `step` on.
    """

    kind: str
    size: str
    tap: str
    plant: Any
    layers: Any = None
    step: Optional[int] = None  # None: whenever the stage first acted
    value: float = 0.0  # the size as a number, where detection limits are sought

    @property
    def full_tap(self):
        """Of a fault that is no stage: the first layer it says it is in."""
        return self.tap if self.layers == () else f"layers.{self.layers[0]}.{self.tap}"


@dataclass(frozen=True)
class Case:
    model: str
    format: str
    variant: str = "eager"
    attention: str = "eager"
    run: str = "plain"
    taps: str = "all"
    seed: int = 0
    fault: Optional[Fault] = None
    prompt: int = 24
    steps: int = 4
    group: str = ""  # what else the tables sort by
    part: str = ""  # of the bench
    measured: bool = True  # whether the fault's size is computed beside firstdiff, from a right twin
    undeclared: bool = False  # trace.json says nothing of the arithmetic

    @property
    def engine(self):
        return self.model, self.format, self.attention

    @property
    def name(self):
        fault = self.fault
        what = f" · {fault.kind} {fault.size} at {fault.tap}, layers {fault.layers or 'all'}" if fault else ""
        how = "" if self.prompt == 24 and self.steps == 4 else f" · {self.prompt} tokens and {self.steps} steps"
        return (f"{self.model} {self.format} {self.attention} · {self.variant}{' · undeclared' * self.undeclared} · "
                f"{self.run} · {self.taps} · seed {self.seed}{how}{what}")

    def right(self, model):
        """The variant, planted."""
        plant = VARIANTS[self.variant].plant
        return plant(model) if plant else nullcontext()

    @property
    def arithmetic(self):
        """What trace.json is to say beyond what the recorder writes."""
        return dict(UNDECLARED if self.undeclared else VARIANTS[self.variant].declared)

    @property
    def declared(self):
        return "nothing" not in self.arithmetic

    def accepts(self, verdict):
        """Whether that is right of an engine that is."""
        return verdict == "agrees"

    def path(self, engines):
        return engines.path(self.model)

    def layers(self, engines):
        return engines.load(*self.engine).config.num_hidden_layers

    def write(self, engines, folder, wrong):
        """Records the trace; where the planted fault acted, as (step, tap), or None where there is none."""
        model = engines.load(*self.engine)
        ids = settings.prompt(self.model, 10 + self.seed, self.prompt)
        plant = self.fault.plant(model, wrong) if self.fault else nullcontext()
        with self.right(model), plant as stage:
            settings.record(model, folder, ids, self.run, self.taps, self.steps, self.arithmetic)
        if self.fault is None:
            return None
        return stage.acted if stage else [(self.fault.step, self.fault.full_tap)]

    def unit(self, engines, tap, values):
        """One rounding of each element of a tap, by which a fault's size is told."""
        return effect.unit(VARIANTS[self.variant].inputs, self.variant, engines.load(*self.engine), tap, values)
