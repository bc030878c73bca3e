"""Weights that are not the file's: misread, in another order, never loaded, folded in the wrong place."""

import torch

from ..fault import Fault
from .tools import as_weight, layer_of, module_of


class _Weights(Fault):
    """`change(engine, values, name)` edits the weights of one module."""

    module = ""

    def load_weight(self, engine, right, name):
        values = right(name)
        if module_of(name) != self.module or (self.layers and layer_of(name) not in self.layers):
            return values
        return self.change(engine, values, name)


class DtypeMisread(_Weights):
    id = "weight-dtype-misread"
    model, module, first, layers = "llama-bf16", "o_proj", ("attn_out",), (2,)
    arithmetics = ("f32", "bf16", "f16")
    wrong = "layer 2's output projection, stored in bfloat16, is read as float16"

    def change(self, engine, values, name):
        return as_weight(engine, values.bfloat16().view(torch.float16).float())


class Endianness(_Weights):
    id = "weight-dtype-misread"
    variant = "endian"
    model, module, first, layers = "qwen2-v5-window-bf16", "up_proj", ("up_proj",), (0,)
    arithmetics = ("f32", "bf16")
    wrong = "layer 0's up projection, stored in bfloat16, is read with its bytes exchanged"

    def change(self, engine, values, name):
        bits = values.bfloat16().contiguous().view(torch.int16).numpy()
        return as_weight(engine, torch.from_numpy(bits.byteswap()).view(torch.bfloat16).float().nan_to_num(0))


class Lossy(_Weights):
    id = "weight-dtype-lossy"
    model, module, first = "llama-bf16-subnormal", "v_proj", ("v_proj",)
    arithmetics = ("f32", "bf16")
    wrong = "weights stored in bfloat16 are converted to float16: values near 2e-6 become subnormal"

    def change(self, engine, values, name):
        return values.half().float()


class LayerOrder(Fault):
    id = "layer-order-wrong"
    model, layers = "llama-12-layers", tuple(range(2, 12))
    first = ("attn_norm",)
    wrong = "layers sorted as text: 0 1 10 11 2 3 .."

    def load_weight(self, engine, right, name):
        if not name.startswith("layers."):
            return right(name)
        order = sorted(range(engine.config.layers), key=str)
        _, layer, rest = name.split(".", 2)
        return right(f"layers.{order[int(layer)]}.{rest}")


class LayersExchanged(LayerOrder):
    variant = "shards"
    model, layers = "qwen2", (1, 2)
    wrong = "layers 1 and 2 exchanged, as by the order of shards"

    def load_weight(self, engine, right, name):
        layer = layer_of(name)
        if layer not in (1, 2):
            return right(name)
        return right(f"layers.{3 - layer}.{name.split('.', 2)[2]}")


class NotLoadedZero(_Weights):
    id = "weights-not-loaded"
    module, first, layers = "up_proj", ("up_proj",), (2,)
    wrong = "layer 2's up projection was not in the loader's list: zeros"

    def change(self, engine, values, name):
        return torch.zeros_like(values)


class NotLoadedRandom(_Weights):
    id = "weights-not-loaded"
    variant = "random"
    model, module, first, layers = "qwen3", "k_proj", ("k_proj",), (1,)
    prompt = 80  # more rows than input channels: else any output is a product with some matrix
    wrong = "layer 1's key projection keeps its initial normal numbers times 0.02"

    def change(self, engine, values, name):
        return as_weight(engine, 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(3)))


class NotLoadedNorm(_Weights):
    id = "weights-not-loaded"
    variant = "norm"
    module, first = "mlp_norm", ("mlp_norm",)
    wrong = "second norms keep their initial weight of one"

    def change(self, engine, values, name):
        return torch.ones_like(values)


class FoldedElsewhere(Fault):
    id = "awq-fold-wrong-norm"
    first = ("q_proj", "k_proj", "v_proj", "mlp_norm")
    wrong = "q, k and v are scaled up by channel (0.5 to 2), and the second norm is scaled down instead of the first"

    def load_weight(self, engine, right, name):
        values, module = right(name), module_of(name)
        scales = torch.linspace(0.5, 2, engine.config.hidden)
        if module in ("q_proj", "k_proj", "v_proj") and name.endswith("weight"):
            return as_weight(engine, values * scales)
        return as_weight(engine, values / scales) if module == "mlp_norm" else values
