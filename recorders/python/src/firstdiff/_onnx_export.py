"""A transformers model as an ONNX graph whose key/value cache goes in and comes out as plain tensors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Union

import torch
from transformers import DynamicCache


class _WithCache(torch.nn.Module):
    """A causal model that takes and gives its cache as a list of tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor) -> tuple:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2])):
            cache.update(keys, values, layer)
        out = self.model(input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
        return (out.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


def export(model: torch.nn.Module, target: Union[str, Path], tokens: int = 512) -> None:
    """Writes the graph of torch's exporter, for up to `tokens` tokens in a call and as many in the cache.

    Inputs are `input_ids`, `position_ids` and `past.N.key`, `past.N.value`; outputs `logits` and `present.N.…`.
    """
    config = model.config
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    several, cached = torch.export.Dim("tokens", max=tokens), torch.export.Dim("cached", min=0, max=tokens)
    past = [torch.zeros(1, heads, 3, size, dtype=model.dtype) for _ in range(2 * config.num_hidden_layers)]
    parts = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _WithCache(model).eval(),
            (torch.arange(3, 8)[None], torch.arange(3, 8)[None], *past),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "position_ids", *(f"past.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            dynamic_shapes=({1: several}, {1: several}, tuple({2: cached} for _ in past)),
        )
    program.save(str(target))
