"""Quantised weights decoded wrongly. Q8_0 is 32 signed bytes and a scale; Q4_0 packs codes i and i + 16 in one byte."""

import numpy as np
import torch

from ..fault import Fault

Q4, Q8 = ("q4",), ("q8",)


class _Quant(Fault):
    """`decode(scales [rows, blocks, 1], codes [rows, blocks, 32])` for one module's weight; codes as stored.

    Q4_0's codes are 0 to 15, from `unpack`; Q8_0's are -127 to 127.
    """

    model = "llama"
    module = "gate_proj"
    first = ("gate_proj",)
    arithmetics = Q8

    def load_weight(self, engine, right, name):
        if name.split(".")[-2] != self.module:
            return right(name)
        data, kind = engine.weights.raw(name)
        blocks = data.reshape(len(data), -1, 18 if kind.name == "Q4_0" else 34)
        scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        codes = blocks[..., 2:]
        codes = self.unpack(codes) if kind.name == "Q4_0" else codes.view(np.int8)
        return engine.weights.ordered(name, self.decode(scales, codes.astype(np.float32)))

    def unpack(self, codes):
        return np.concatenate([codes & 15, codes >> 4], -1)

    def decode(self, scales, codes):
        return scales * (codes - 8)


class ZeroPoint(_Quant):
    id = "quant-zero-point-off-by-one"
    arithmetics = Q4
    wrong = "zero point 7 where the format has 8"

    def decode(self, scales, codes):
        return scales * (codes - 7)


class NibbleOrder(_Quant):
    id = "quant-nibble-order"
    model, module, first, arithmetics = "qwen2", "up_proj", ("up_proj",), Q4
    wrong = "a byte's two codes taken as values 2i and 2i+1, instead of i and i + 16"

    def unpack(self, codes):
        return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], 32)


class NibbleHalves(NibbleOrder):
    variant = "halves"
    model = "qwen3"
    wrong = "high codes taken as the first half of a block"

    def unpack(self, codes):
        return np.concatenate([codes >> 4, codes & 15], -1)


class Signed(_Quant):
    id = "quant-signed-encoding"
    arithmetics = Q4
    wrong = "codes read as two's complement where they are stored plus 8"

    def decode(self, scales, codes):
        return scales * np.where(codes > 7, codes - 16, codes)


class BlockLayout(_Quant):
    id = "quant-block-layout"
    model = "qwen2"
    wrong = "each block takes the scale of its neighbour in the pair"

    def decode(self, scales, codes):
        return scales[:, np.arange(scales.shape[1]) ^ 1] * codes


class BlocksLeftZero(_Quant):
    id = "quant-blocks-left-zero"
    model = "qwen3"
    wrong = "decoding returns after each row's first block; the rest stays zero"

    def decode(self, scales, codes):
        values = scales * codes
        values[:, 1:] = 0
        return values


class ScaleMissing(_Quant):
    id = "quant-scale-missing"
    wrong = "codes used without their scales"

    def decode(self, scales, codes):
        return codes


class ScaleTransposed(_Quant):
    id = "quant-scale-transposed"
    module, first = "o_proj", ("attn_out",)
    wrong = "the table of scales [64, 2] is read as [2, 64] and transposed"

    def decode(self, scales, codes):
        rows, blocks, _ = scales.shape
        return scales.reshape(blocks, rows).T[..., None] * codes


class ScaleRounding(_Quant):
    id = "quant-scale-rounding-mismatch"
    model = "qwen3"
    wrong = "scales rounded up to powers of two after the codes were made"

    def decode(self, scales, codes):
        return 2.0 ** np.ceil(np.log2(scales)) * codes


class ScaleDouble(_Quant):
    id = "quant-scale-double"
    model = "qwen2"
    wrong = "scales applied twice"

    def decode(self, scales, codes):
        return scales * scales * codes


class ScaleDoubleConstant(ScaleDouble):
    variant = "constant"
    wrong = "a constant 1/127 applied again though the scales contain it"

    def decode(self, scales, codes):
        return scales / 127 * codes


class InputScale(Fault):
    """The other side of such a product: activations in blocks."""

    id = "quant-block-layout"
    variant = "activations"
    first, arithmetics = ("up_proj",), Q8
    wrong = "each block of the up projection's input takes the scale of its neighbour in the pair"

    def product(self, engine, right, x, weight, module):
        if module != "up_proj":
            return right(x, weight, module)
        from ..arithmetic import q8_blocks

        codes, scales = q8_blocks(x)
        swapped = scales[..., torch.arange(scales.shape[-2]) ^ 1, :]
        return (codes * swapped).reshape(x.shape) @ weight.T
