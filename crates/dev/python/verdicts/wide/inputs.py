"""What engines do to the inputs of products: 8-bit floats with scales, shorter floats."""

import torch

from .way import DTYPES, rounded


def fp8(format="fp8-e4m3", group=None):
    """8-bit floats with one scale a token, or one for each `group` of channels."""
    largest = {"fp8-e4m3": 448.0, "fp8-e5m2": 57344.0}[format]

    def through(x):
        rows = x if group is None else x.unflatten(-1, (-1, min(group, x.shape[-1])))
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-10) / largest
        back = (rows / scale).to(DTYPES[format]).float() * scale
        return back.reshape(x.shape)

    return through


def shorter(format):
    return lambda x: rounded(x, format)


def int8_token(x):
    """Symmetric integers with one scale a token."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def tf32(x):
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
