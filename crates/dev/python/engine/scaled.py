"""Weights whose scales are tensors of their own: FP8, MXFP4 and NVFP4 as safetensors folders have them."""

from dataclasses import dataclass, replace

import torch

from .weights import Folder

# Magnitudes of 4-bit floats; the code's upper bit is the sign.
MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
SCALES = ("weight_scale_inv", "weight_scale", "scale")


@dataclass(frozen=True)
class Parts:
    """A stored matrix. Faults replace fields, or call the methods with something else."""

    stored: torch.Tensor  # codes: float8 [N, K], or bytes of two codes each, [N, K / 2]
    table: torch.Tensor  # scales [down, along], in float32
    block: tuple  # rows and columns that share one
    factor: torch.Tensor = None  # on top of the scales
    divides: bool = False

    @property
    def packed(self):
        return self.stored.dtype == torch.uint8

    @property
    def columns(self):
        return self.stored.shape[1] * (2 if self.packed else 1)

    def codes(self):
        """4-bit codes [N, K]: the lower one of each byte first."""
        return torch.stack([self.stored & 15, self.stored >> 4], -1).flatten(1)

    def elements(self, codes=None):
        if not self.packed:
            return self.stored.float()
        codes = (self.codes() if codes is None else codes).long()
        return MAGNITUDES[codes & 7] * torch.where(codes > 7, -1.0, 1.0)

    def scales(self):
        if self.factor is None:
            return self.table
        return self.table / self.factor if self.divides else self.table * self.factor

    def spread(self, scales):
        """[N, K]"""
        down, along = self.block
        rows = scales.repeat_interleave(down, 0)[: len(self.stored)]
        return rows.repeat_interleave(along, 1)[:, : self.columns]

    def values(self, elements=None, scales=None):
        elements = self.elements() if elements is None else elements
        return elements * self.spread(self.scales() if scales is None else scales)

    def other(self, **fields):
        return replace(self, **fields)


class Scaled(Folder):
    """A folder with some weights in such formats. `parts` shows them, `read` the values."""

    quantised = True

    def __init__(self, path, fp8_block):
        super().__init__(path)
        self.fp8_block = fp8_block

    def parts(self, name):
        """None where the weight is stored as it is."""
        module = self.hub(name).removesuffix(".weight")
        stored = self.tensors.get(f"{module}.weight_packed", self.tensors.get(f"{module}.weight"))
        at = next((f"{module}.{end}" for end in SCALES if f"{module}.{end}" in self.tensors), None)
        if at is None or not name.endswith(".weight"):
            return None
        table, factor = self.tensors[at], self.tensors.get(f"{module}.weight_scale_2")
        inverse = self.tensors.get(f"{module}.weight_global_scale")
        if stored.dtype == torch.float8_e4m3fn:
            return Parts(stored, table.float(), self.fp8_block)
        block = (1, 16 if table.dtype == torch.float8_e4m3fn else 32)
        factor, divides = (factor, False) if inverse is None else (inverse, True)
        return Parts(stored.view(torch.uint8), table.float(), block, factor, divides)

    def has(self, name):
        return super().has(name) or self.parts(name) is not None

    def read(self, name):
        parts = self.parts(name)
        return super().read(name) if parts is None else parts.values()
