"""What caches do to keys and values on the way in and out: `held(x, layer_scale)` of rows [T, Hkv, D]."""

from dataclasses import dataclass

import torch

from .way import DTYPES, rounded

LARGEST = {"fp8-e4m3": 448.0, "fp8-e5m2": 57344.0}


@dataclass(frozen=True)
class Plain:
    """A shorter float format, without a scale."""

    format: str

    def held(self, x, _which):
        return rounded(x, self.format)

    declared = property(lambda self: {"kv_cache": self.format})


@dataclass(frozen=True)
class Scaled:
    """8-bit floats with one scale a layer ("tensor"), a head, a token, or a token's head."""

    format: str
    over: str = "tensor"
    fixed: float = 0.01  # of "tensor": as calibration found it

    def scale(self, x):
        if self.over == "tensor":
            return torch.tensor(self.fixed)
        axes = {"token": (1, 2), "token-head": (2,)}[self.over]
        return x.abs().amax(axes, keepdim=True).clamp(min=1e-12) / LARGEST[self.format]

    def held(self, x, _which):
        scale = self.scale(x)
        limit = LARGEST[self.format]
        return (x / scale).clamp(-limit, limit).to(DTYPES[self.format]).float() * scale

    declared = property(lambda self: {"kv_cache": self.format})


@dataclass(frozen=True)
class Blocks:
    """ggml's q8_0 and q4_0: blocks of 32 channels with an f16 scale, over all heads of a token."""

    bits: int

    def held(self, x, _which):
        rows = x.flatten(1).unflatten(-1, (-1, 32))
        if self.bits == 8:
            scale = rows.abs().amax(-1, keepdim=True) / 127
            whole = rows * torch.where(scale > 0, 1 / scale, 0.0)
            whole = torch.copysign((whole.abs() + 0.5).floor(), whole)
        else:
            most = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
            scale = most / -8
            whole = (rows * torch.where(scale != 0, 1 / scale, 0.0) + 8.5).floor().clamp(0, 15) - 8
        return (whole * scale.half().float()).reshape(x.shape)

    declared = property(lambda self: {"kv_cache": f"q{self.bits}_0"})


@dataclass(frozen=True)
class Integers:
    """8-bit integers with a scale (and with `affine` an offset) for each token, token's head, or group of channels."""

    group: object = "head"  # "head", "token", or a number of channels
    affine: bool = False
    scales: str = "f32"  # format of scales and offsets

    def held(self, x, _which):
        rows = {"head": lambda: x, "token": lambda: x.flatten(1)}.get(
            self.group, lambda: x.flatten(1).unflatten(-1, (-1, int(self.group))))()
        if self.affine:
            low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
            scale = rounded(((high - low) / 255).clamp(min=1e-7), self.scales)
            low = rounded(low, self.scales)
            back = ((rows - low) / scale).round().clamp(0, 255) * scale + low
        else:
            scale = rounded((rows.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7), self.scales)
            back = (rows / scale).round().clamp(-127, 127) * scale
        return back.reshape(x.shape)

    declared = property(lambda self: {"kv_cache": "int8", "kv_group": self.group})


@dataclass(frozen=True)
class Widened:
    """What another cache holds, brought to a 16-bit format when it is read."""

    inside: object
    format: str

    def held(self, x, which):
        return rounded(self.inside.held(x, which), self.format)

    declared = property(lambda self: self.inside.declared)
