"""Weights by Hugging Face's names, from a safetensors folder or a GGUF file; read once, shared by all engines."""

from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

# The engine's name of a module -> Hugging Face's
LAYER = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o_proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
GEMMA_LAYER = LAYER | {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}
GGUF_LAYER = {
    "attn_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o_proj": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
GGUF_ENDS = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}


def split(name):
    """`layers.3.q_proj.weight` -> (3, "q_proj", "weight"); layer None outside the layers"""
    *layer, module, part = name.split(".")
    return (int(layer[1]) if layer else None), module, part


class Folder:
    """A folder with safetensors files."""

    quantised = False

    def __init__(self, path):
        self.path = Path(path)

    @cached_property
    def tensors(self):
        return {n: t for file in sorted(self.path.glob("*.safetensors")) for n, t in load_file(file).items()}

    @cached_property
    def names(self):
        gemma = any("pre_feedforward_layernorm" in name for name in self.tensors)
        return GEMMA_LAYER if gemma else LAYER

    def hub(self, name):
        layer, module, part = split(name)
        if layer is None:
            return f"{ENDS[module]}.{part}"
        # `router`, or `expert-3-up_proj`
        other = "mlp.gate" if module == "router" else "mlp.experts." + module.removeprefix("expert-").replace("-", ".")
        if module.startswith("shared_"):
            other = "mlp.shared_experts.0." + module.removeprefix("shared_")
        return f"model.layers.{layer}.{self.names.get(module, other)}.{part}"

    def has(self, name):
        return self.hub(name) in self.tensors

    def read(self, name):
        return self.tensors[self.hub(name)].float()


class Gguf:
    """A GGUF file; `raw` shows the blocks, `read` the values, llama's q and k rows put back in the hub's order."""

    quantised = True

    def __init__(self, path, config):
        self.path, self.config = Path(path), config
        self._values = {}

    @cached_property
    def tensors(self):
        return {tensor.name: tensor for tensor in gguf.GGUFReader(self.path).tensors}

    @staticmethod
    def short(name):
        layer, module, part = split(name)
        return f"{GGUF_ENDS[module]}.{part}" if layer is None else f"blk.{layer}.{GGUF_LAYER[module]}.{part}"

    def has(self, name):
        return self.short(name) in self.tensors

    def raw(self, name):
        """(bytes of each row, block format)"""
        tensor = self.tensors[self.short(name)]
        return np.array(tensor.data), tensor.tensor_type

    def shape(self, name):
        return [int(n) for n in self.tensors[self.short(name)].shape[::-1]]

    def read(self, name):
        if name not in self._values:
            self._values[name] = self.ordered(name, gguf.quants.dequantize(*self.raw(name)))
        return self._values[name]

    def ordered(self, name, values):
        """Decoded values as the engine uses them: float32, in the hub's shape and order."""
        values = np.array(values, np.float32).reshape(self.shape(name))
        module = split(name)[1]
        if self.config.family == "llama" and module in ("q_proj", "k_proj"):
            heads = self.config.heads if module == "q_proj" else self.config.kv_heads
            values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        return torch.from_numpy(np.ascontiguousarray(values))
