"""A tiny model as an ONNX graph with a cache, and which of the graph's values are taps.

torch's exporter notes in each node's metadata which module it came from. So no name is guessed: the last node of a
module writes what the module returns, the first one reads what it gets.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from checkpoints import Tiny
from firstdiff.trace import Writer
from transformers import AutoModelForCausalLM, DynamicCache

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# module of a layer -> tap of what it returns, tap of what it gets
_MODULES = {
    "": ("out", None),
    "input_layernorm": ("attn_norm", None),
    "self_attn.q_proj": ("q_proj", None),
    "self_attn.k_proj": ("k_proj", None),
    "self_attn.v_proj": ("v_proj", None),
    "self_attn.q_norm": ("q_norm", None),
    "self_attn.k_norm": ("k_norm", None),
    "self_attn.o_proj": ("attn_out", "attn_heads"),
    "post_attention_layernorm": ("mlp_norm", "attn_resid"),
    "mlp.gate_proj": ("gate_proj", None),
    "mlp.up_proj": ("up_proj", None),
    "mlp.down_proj": ("mlp_out", "mlp_act"),
}
_OUTSIDE = {"embed_tokens": "embed", "norm": "final_norm"}
# 1,H,T,D in the graph, T,H,D in a trace
_HEADS_FIRST = ("q_rope", "k_rope", "k_cache", "v_cache")


class _WithCache(torch.nn.Module):
    """A causal model whose cache goes in and comes out as plain tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor) -> tuple:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2])):
            cache.update(keys, values, layer)
        out = self.model(input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
        return (out.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


def export(tiny: Tiny, checkpoint: Path, target: Path, attention: str = "eager") -> None:
    """Writes the graph that torch's exporter makes of transformers' model."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=_DTYPES[tiny.stored], attn_implementation=attention
    ).eval()
    tokens, cached = torch.export.Dim("tokens", max=512), torch.export.Dim("cached", min=0, max=512)
    past = [torch.zeros(1, tiny.kv_heads, 3, tiny.size, dtype=_DTYPES[tiny.stored]) for _ in range(2 * tiny.layers)]
    parts = [f"{layer}.{part}" for layer in range(tiny.layers) for part in ("key", "value")]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _WithCache(model).eval(),
            (torch.arange(3, 8)[None], torch.arange(3, 8)[None], *past),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "position_ids", *(f"past.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            dynamic_shapes=({1: tokens}, {1: tokens}, tuple({2: cached} for _ in past)),
        )
    program.save(str(target))


def _module(node: onnx.NodeProto) -> str:
    """The path of the module that a node came from: `layers.0.self_attn.q_proj`."""
    for entry in node.metadata_props:
        if entry.key == "namespace":
            names = [part.split(":")[0].strip() for part in entry.value.split("/")[:-1]]
            return next((name for name in reversed(names) if name), "").removeprefix("model.").removeprefix("model.")
    return ""


def taps(graph: onnx.GraphProto) -> dict[str, str]:
    """tap -> name of the value in the graph."""
    constants = {one.name for one in graph.initializer}
    modules: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        modules.setdefault(_module(node), []).append(node)
    found = {"logits": "logits"}
    for path, nodes in modules.items():
        if path in _OUTSIDE:
            found[_OUTSIDE[path]] = nodes[-1].output[0]
        layer = re.fullmatch(r"layers\.(\d+)\.?(.*)", path)
        if not layer:
            continue
        at, module = f"layers.{layer[1]}.", layer[2]
        if module in _MODULES:
            returned, given = _MODULES[module]
            found[at + returned] = nodes[-1].output[0]
            if given:
                found[at + given] = next(name for name in nodes[0].input if name not in constants)
        if module == "self_attn":
            found.update({at + tap: value for tap, value in _attention(nodes, f"present.{layer[1]}.")})
    return found


def _attention(nodes: Sequence[onnx.NodeProto], present: str) -> Iterator[tuple[str, str]]:
    """Attention is a function, not a module: its values are found by what they are."""
    writer = {output: node for node in nodes for output in node.output}
    yield "k_cache", present + "key"
    yield "v_cache", present + "value"
    # the cache's keys are the old ones and the rotated new ones
    yield "k_rope", writer[present + "key"].input[1]
    # queries are rotated first, and a rotation ends in a sum
    yield "q_rope", next(node.output[0] for node in nodes if node.op_type == "Add")
    softmax = next((node for node in nodes if node.op_type == "Softmax"), None)
    if softmax is None:
        return
    yield "attn_probs", softmax.output[0]
    masked = writer[softmax.input[0]]
    if masked.op_type == "Cast":
        masked = writer[masked.input[0]]
    if masked.op_type == "Add":
        yield "attn_scores", masked.input[0]


def show(source: Path, target: Path, names: Sequence[str]) -> None:
    """The graph with these values among its outputs."""
    model = onnx.load(str(source))
    known = {value.name: value for value in model.graph.value_info}
    have = {output.name for output in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in have:
            model.graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
    onnx.save(model, str(target))


def generate(
    tiny: Tiny,
    call: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    where: Mapping[str, str],
    writer: Writer,
    cache: np.dtype,
    length: int = 20,
    decoded: int = 4,
) -> None:
    """A prompt and some tokens through an engine that maps inputs to outputs, recorded call by call."""
    past = {
        f"past.{layer}.{part}": np.zeros((1, tiny.kv_heads, 0, tiny.size), cache)
        for layer in range(tiny.layers)
        for part in ("key", "value")
    }
    ids, start = tiny.prompt(length), 0
    with writer:
        for _ in range(decoded + 1):
            positions = np.arange(start, start + len(ids))
            outputs = call({"input_ids": np.array([ids]), "position_ids": positions[None], **past})
            chosen = int(outputs["logits"][0, -1].argmax())
            values = {tap: _rows(tap, np.asarray(outputs[name])) for tap, name in where.items()}
            writer.step(ids, values, positions=positions, sampled=chosen)
            past = {name: outputs[name.replace("past", "present")] for name in past}
            ids, start = [chosen], start + len(ids)


def _rows(tap: str, value: np.ndarray) -> np.ndarray:
    value = value[0]
    return np.ascontiguousarray(value.swapaxes(0, 1)) if tap.endswith(_HEADS_FIRST) else value
