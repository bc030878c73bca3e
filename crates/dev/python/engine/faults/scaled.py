"""Weights whose scales are tensors of their own, decoded wrongly: FP8, MXFP4, NVFP4, of dense layers and of experts."""

import torch

from ..fault import Fault
from .tools import as_weight, module_of

MLP = ("gate_proj", "up_proj")


class _Scaled(Fault):
    """`misread(parts)` gives the values of every weight of `modules` that has scales of its own."""

    arithmetics = ("f32", "bf16")
    modules = ("gate_proj", "up_proj", "down_proj")
    first = MLP

    def load_weight(self, engine, right, name):
        parts = engine.weights.parts(name)
        if parts is None or module_of(name).split("-")[-1] not in self.modules:
            return right(name)
        return as_weight(engine, self.misread(parts))


class _Experts:
    first = ("experts_out",)


class HighNibbleFirst(_Scaled):
    id, variant, model = "quant-nibble-order", "scaled", "qwen3-mxfp4"
    wrong = "a byte's high code is taken for the first element"

    def misread(self, parts):
        return parts.values(parts.elements(parts.codes().unflatten(1, (-1, 2)).flip(-1).flatten(1)))


class HighNibbleFirstNvfp4(HighNibbleFirst):
    variant, model = "nvfp4", "qwen3-nvfp4"


class HighNibbleFirstExperts(_Experts, HighNibbleFirst):
    variant, model = "experts", "qwen3_moe-mxfp4"


class Halves(HighNibbleFirst):
    variant, model = "halves-of-blocks", "qwen3_moe-nvfp4"
    first = ("experts_out",)
    wrong = "low codes are taken for a block's first half, as GGUF has them"

    def misread(self, parts):
        pairs = parts.codes().unflatten(1, (-1, parts.block[1] // 2, 2))
        return parts.values(parts.elements(pairs.transpose(-1, -2).flatten(1)))


class SignExtended(_Scaled):
    id, variant, model = "quant-signed-encoding", "extended", "qwen3_moe-mxfp4"
    first = ("experts_out",)
    wrong = "bytes of I8 become words by way of signed integers: a negative one sets all bits above it"

    def misread(self, parts):
        signed = parts.stored.view(torch.int8).long().unflatten(1, (-1, 4))
        word = signed[..., 0]
        for place in range(1, 4):
            word = word | signed[..., place] << 8 * place
        stored = torch.stack([word >> 8 * place & 255 for place in range(4)], -1).flatten(1)
        return parts.other(stored=stored.to(torch.uint8)).values()


class SignExtendedDense(SignExtended):
    variant, model, first = "extended-dense", "qwen3-mxfp4", MLP


class WholeNumbers(_Scaled):
    id, variant, model = "quant-signed-encoding", "whole-numbers", "qwen3-nvfp4"
    wrong = "4-bit floats are taken for integers from -8 to 7"

    def misread(self, parts):
        codes = parts.codes().float()
        return parts.values(torch.where(codes > 7, codes - 16, codes))


class Reciprocal(_Scaled):
    # Of one matrix: squares of what three of them leave are infinite.
    id, model, modules, first = "quant-global-scale-reciprocal", "qwen3-nvfp4", ("up_proj",), ("up_proj",)
    wrong = "compressed-tensors' factor is multiplied by"

    def misread(self, parts):
        return parts.other(divides=not parts.divides).values()


class ReciprocalOfModelopt(Reciprocal):
    variant, model = "modelopt", "qwen3-nvfp4-modelopt"
    wrong = "modelopt's factor is divided by"


class ReciprocalExperts(_Experts, Reciprocal):
    variant, model, wrong = "experts", "qwen3_moe-nvfp4", ReciprocalOfModelopt.wrong


class FactorMissing(Reciprocal):
    variant, model = "missing", "qwen3-nvfp4-modelopt"
    wrong = "the factor on top of the scales is not applied"

    def misread(self, parts):
        return parts.other(factor=None).values()


def in_tiles(table):
    """A table in tiles of 128 rows and 4 columns, filled up with zeros, as one row of numbers."""
    down, along = (-len(table) % 128, -table.shape[1] % 4)
    whole = torch.nn.functional.pad(table, (0, along, 0, down))
    return whole.unflatten(0, (-1, 4, 32)).unflatten(3, (-1, 4)).permute(0, 3, 2, 1, 4).flatten()


class TilesReadFlat(_Scaled):
    id, model = "quant-scale-swizzled", "qwen3-nvfp4"
    wrong = "scales that were brought into tiles for tensor cores are read row by row"

    def misread(self, parts):
        table = in_tiles(parts.table)[: parts.table.numel()].reshape(parts.table.shape)
        return parts.other(table=table).values()


class TilesReadFlatMxfp4(TilesReadFlat):
    variant, model = "mxfp4", "qwen3-mxfp4"


class TilesReadFlatExperts(_Experts, TilesReadFlat):
    variant, model = "experts", "qwen3_moe-nvfp4"


class FlatReadAsTiles(TilesReadFlat):
    variant, model, modules = "not-swizzled", "qwen3-nvfp4-modelopt", MLP
    wrong = "scales stored row by row are given to a kernel that wants tiles"

    def misread(self, parts):
        places = in_tiles(torch.arange(parts.table.numel()).reshape(parts.table.shape))
        table = torch.empty(parts.table.numel())
        table[places] = parts.table.flatten()
        return parts.other(table=table.reshape(parts.table.shape)).values()


class LargerBlocks(_Scaled):
    id, model = "quant-block-size-wrong", "qwen3-fp8"
    wrong = "a kernel for blocks of 32 x 32 is given scales of blocks of 16 x 16"

    def misread(self, parts):
        down, along = (2 * n for n in parts.block)
        rows = torch.arange(len(parts.stored)) // down
        columns = torch.arange(parts.columns) // along
        return parts.elements() * parts.scales()[rows[:, None], columns[None]]


class LargerBlocksNvfp4(LargerBlocks):
    variant, model = "nvfp4", "qwen3-nvfp4"
    wrong = "32 elements share a scale where the format has 16"

    def misread(self, parts):
        columns = torch.arange(parts.columns) // 32
        return parts.elements() * parts.scales()[:, columns]


class LargerBlocksExperts(_Experts, LargerBlocks):
    variant, model = "experts", "qwen3_moe-fp8"


class ScalesTransposed(_Scaled):
    id, variant, model = "quant-scale-transposed", "fp8", "qwen3-fp8"
    wrong = "the table of scales is read as its transpose"

    def misread(self, parts):
        down, along = parts.table.shape
        return parts.other(table=parts.table.reshape(along, down).T).values()


class ScalesTransposedMxfp4(ScalesTransposed):
    variant, model = "mxfp4", "qwen3-mxfp4"


class ScalesTransposedNvfp4(ScalesTransposed):
    variant, model = "nvfp4", "qwen3-nvfp4-modelopt"


class ScalesTransposedExperts(_Experts, ScalesTransposed):
    variant, model = "experts", "qwen3_moe-fp8"


class NoScales(_Scaled):
    id, variant, model = "quant-scale-missing", "fp8", "qwen3-fp8"
    wrong = "codes are used without their scales"

    def misread(self, parts):
        return parts.elements()


class NoScalesExperts(_Experts, NoScales):
    variant, model = "experts", "qwen3_moe-mxfp4"


class ScalesTwice(_Scaled):
    id, variant, model = "quant-scale-double", "fp8", "qwen3-fp8"
    wrong = "scales are applied twice"

    def misread(self, parts):
        return parts.values(parts.values())


class OneScale(_Scaled):
    id, variant, model = "quant-row-scale-as-scalar", "weight", "qwen3_moe-nvfp4"
    first = ("experts_out",)
    wrong = "each expert's matrix takes its first scale for all of it"

    def misread(self, parts):
        return parts.elements() * parts.scales()[0, 0]


class OneScaleFp8(OneScale):
    variant, model, first = "weight-fp8", "qwen3-fp8", MLP


class FirstRowsScale(Fault):
    """Inputs of a product are quantised with a scale for each row; the kernel undoes the first row's."""

    id, model, first = "quant-row-scale-as-scalar", "qwen3-fp8", ("gate_proj",)
    arithmetics = ("f32", "bf16")
    wrong = "a product's rows are scaled by the first row's scale"

    def product(self, engine, right, x, weight, module):
        if module != "gate_proj":
            return right(x, weight, module)
        largest = x.float().abs().amax(-1, keepdim=True)
        return right(x, weight, module) * (largest[:1] / largest)


class FirstRowOfAnExpert(FirstRowsScale):
    variant, model, first = "experts", "qwen3_moe-nvfp4", ("experts_out",)
    wrong = "an expert's gate and up projections scale all of its rows by its first row's scale"

    def at(self, engine, right, tap, x):
        if tap in ("mlp_norm", "router_topk"):
            setattr(self, tap, x)
        return right(tap, x)

    def product(self, engine, right, x, weight, module):
        if not module.startswith("expert-") or module.endswith("down_proj"):
            return right(x, weight, module)
        row = (self.router_topk == int(module.split("-")[1])).any(-1).nonzero()[0]
        largest = lambda x: x.float().abs().amax(-1, keepdim=True)
        return right(x, weight, module) * (largest(self.mlp_norm[row]) / largest(x))
