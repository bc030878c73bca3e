"""Matrix products: partial sums lost, sums in too short a format, another kernel above a number of rows."""

import math

import torch

from ..fault import Fault


class _Product(Fault):
    def product(self, engine, right, x, weight, module):
        return self.wrong_product(engine, right, x, weight, module) if module in self.modules else right(x, weight, module)


class PartialReduction(_Product):
    id = "matmul-partial-reduction"
    modules, first = ("down_proj",), ("mlp_out",)
    wrong = "the down projection's sum leaves out its channels from 64 on"

    def wrong_product(self, engine, right, x, weight, module):
        x = x.clone()
        x[:, 64:] = 0
        return right(x, weight, module)


class PartialReductionBlocks(PartialReduction):
    variant = "blocks"
    model, modules, first = "qwen2", ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")
    wrong = "the sums of q, k and v leave out every second block of 16 channels"

    def wrong_product(self, engine, right, x, weight, module):
        x = x.clone()
        x.unflatten(-1, (-1, 2, 16))[..., 1, :] = 0
        return right(x, weight, module)


class HalfOverflow(_Product):
    id = "matmul-fp16-accumulate"
    model, arithmetics = "llama-massive", ("f32", "bf16", "q8")
    modules, first, layers = ("down_proj",), ("mlp_out",), (2,)
    wrong = "the down projection is summed in float16: channel 5 of layer 2 overflows"

    def wrong_product(self, engine, right, x, weight, module):
        if engine.layer != 2:
            return right(x, weight, module)
        y = right(x, weight, module)
        return torch.where(y.abs() > 65504, torch.sign(y) * math.inf, y)


class HalfSum(_Product):
    """Rounding alone, at a level that bfloat16 and 8-bit blocks have anyway."""

    id = "matmul-fp16-accumulate"
    variant = "precision"
    model, arithmetics = "qwen2", ("f32",)
    modules, first = ("gate_proj",), ("gate_proj",)
    wrong = "the gate projection is summed in float16, term by term"

    def wrong_product(self, engine, right, x, weight, module):
        total = torch.zeros(len(x), len(weight)).half()
        for terms, column in zip(x.float().T, weight.T):
            total = (total.float() + terms[:, None] * column).half()
        return total.float()


class Dispatch(_Product):
    id = "dispatch-threshold-batch"
    modules, first = ("gate_proj",), ("gate_proj",)
    wrong = "above 8 rows the gate projection runs another kernel, which leaves out the last 16 input channels"

    def wrong_product(self, engine, right, x, weight, module):
        if len(x) > 8:
            x = x.clone()
            x[:, -16:] = 0
        return right(x, weight, module)


class DispatchRows(Dispatch):
    variant = "rows"
    model, modules, first = "qwen3", ("up_proj",), ("up_proj",)
    wrong = "above 8 rows the up projection's kernel computes row 8 and later ones with the row before them"

    def wrong_product(self, engine, right, x, weight, module):
        y = right(x, weight, module)
        return torch.cat([y[:8], y[7:-1]]) if len(y) > 8 else y


class HalfRange(Fault):
    """Nothing is computed wrongly: the format ends."""

    id = "dtype-fp16-overflow"
    model, arithmetics = "llama-massive", ("f16",)
    first, layers = ("mlp_out",), (2,)
    wrong = "activations held in float16: channel 5 of layer 2's MLP is above 65504"

    def begin(self, engine):
        """The model alone does it."""


class HalfRangeInside(Fault):
    id = "dtype-fp16-overflow"
    variant = "cast"
    model, arithmetics = "llama-massive", ("f32", "bf16", "q8")
    first, layers = ("mlp_out",), (2,)
    wrong = "layer 2's down projection passes through float16: channel 5 overflows"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        return y.half().to(y.dtype) if module == "down_proj" and engine.layer == 2 else y


class UninitialisedPadding(Fault):
    id = "uninit-output-padding"
    first, prompt, step = ("mlp_out",), 32, 1
    wrong = "unwritten padding rows enter the largest value that all rows are scaled by: NaN where rows are no multiple of 16"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        return y * math.nan if module == "down_proj" and len(y) % 16 else y
