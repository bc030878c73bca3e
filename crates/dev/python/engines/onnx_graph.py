"""A tiny model as an ONNX graph whose taps are outputs, and a recorded run of it by an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import onnx
import torch
from checkpoints import Tiny
from firstdiff._onnx_export import export
from firstdiff.onnx import Recorder, generate, mark
from output import Run
from transformers import AutoModelForCausalLM

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# a fault in a graph, and the first tap that it makes wrong
Fault = tuple[Callable[[onnx.ModelProto], None], str]


def marked(
    tiny: Tiny, one: Run, scratch: Path, attention: str, taps: Optional[list[str]] = None, fault: Optional[Fault] = None
) -> tuple[Path, dict[str, str]]:
    """The checkpoint, its graph with marked taps, and which output is which."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny.write(one.model), dtype=_DTYPES[tiny.stored], attn_implementation=attention
    ).eval()
    plain, target = scratch / "plain.onnx", scratch / "marked.onnx"
    export(model, plain)
    if fault:
        graph = onnx.load(str(plain))
        fault[0](graph)
        onnx.save(graph, str(plain))
        one.is_wrong(fault[1])
    return target, mark(plain, target, taps=taps)


def run(one: Run, tiny: Tiny, engine: Any, where: dict[str, str], length: int = 20, decoded: int = 4) -> None:
    """A prompt and some tokens; recording must not change them, and must leave the engine as it was."""
    prompt = tiny.prompt(length)
    state = lambda: (type(engine), dict(vars(engine)).get("run"))
    before, plain = state(), generate(engine, prompt, decoded + 1)
    recorder = Recorder(engine, one.trace, where=where, family=tiny.family)
    with recorder:
        assert generate(engine, prompt, decoded + 1, recorder.sampled) == plain, "other tokens than without recording"
    assert state() == before and recorder.steps == decoded + 1


def rope_base(graph: onnx.ModelProto) -> None:
    """Rotary frequencies of base 1e6 in place of 1e4."""
    import numpy as np

    for one in graph.graph.initializer:
        value = onnx.numpy_helper.to_array(one)
        size = 2 * value.size
        usual = 1e4 ** -(np.arange(0, size, 2) / size)
        if value.dtype == np.float32 and value.size > 4 and np.allclose(value.reshape(-1), usual, rtol=1e-5):
            wrong = (1e6 ** -(np.arange(0, size, 2) / size)).astype(np.float32).reshape(value.shape)
            one.CopyFrom(onnx.numpy_helper.from_array(wrong, one.name))
            return
    raise LookupError("the graph holds no rotary frequencies")


def lost_weight(graph: onnx.ModelProto) -> None:
    """The norm before the second layer's MLP multiplies by one."""
    import numpy as np

    name = "post_attention_layernorm.weight"
    one = next(one for one in graph.graph.initializer if one.name.endswith("layers.1." + name))
    value = onnx.numpy_helper.to_array(one)
    one.CopyFrom(onnx.numpy_helper.from_array(np.ones_like(value), one.name))
