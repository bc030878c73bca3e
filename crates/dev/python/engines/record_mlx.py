"""Runs mlx-lm on tiny random models and records what it computes.

    python record_mlx.py OUT [--match TEXT]

MLX modules have no hooks, and Python looks `__call__` up on the type. So each watched module gets a subclass of its own
class for as long as recording lasts. MLX arrays are values: one that is kept shows what it was made from, even where
the cache behind it is written later. All of them are computed once, when the step ends.
"""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from checkpoints import Tiny, save, small
from firstdiff.trace import Array, Raw, Writer
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from output import Run, arguments, run_all

_NAMES = {mx.float32: "f32", mx.bfloat16: "bf16", mx.float16: "f16"}


class Recorder:
    """Watches one model, Llama, Qwen2 or Qwen3, for one sequence at a time."""

    def __init__(self, model: nn.Module, writer: Writer) -> None:
        self._writer = writer
        self._taps: dict[str, mx.array] = {}
        self._undo: list[Callable[[], None]] = []
        self._inside = ""  # the layer whose attention runs
        self._rotated = 0  # how often it has rotated
        self._attach(model)

    def close(self) -> None:
        for undo in reversed(self._undo):
            undo()

    def _attach(self, model: nn.Module) -> None:
        self._watch(model, lambda args, kwargs, out: self._step(*args, out=out, **kwargs))
        self._output(model.model.embed_tokens, "embed")
        self._output(model.model.norm, "final_norm")
        for index, layer in enumerate(model.model.layers):
            at, attention, mlp = f"layers.{index}.", layer.self_attn, layer.mlp
            self._output(layer, at + "out")
            self._output(layer.input_layernorm, at + "attn_norm")
            for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm"):
                if name in attention:
                    self._output(attention[name], at + name)
            self._output(attention.o_proj, at + "attn_out")
            self._output(layer.post_attention_layernorm, at + "mlp_norm", of=at + "attn_resid")
            self._output(mlp.gate_proj, at + "gate_proj")
            self._output(mlp.up_proj, at + "up_proj")
            self._output(mlp.down_proj, at + "mlp_out", of=at + "mlp_act")
            self._watch(attention, lambda *_: None, before=self._enter(at))
            self._watch(attention.rope, lambda args, kwargs, out: self._rope(out))
        # the function by which a model's module reaches attention
        module = sys.modules[type(model).__module__]
        plain = module.scaled_dot_product_attention

        def attend(queries: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> mx.array:
            out = plain(queries, keys, values, *args, **kwargs)
            if isinstance(keys, mx.array):  # a quantised cache hands over its parts
                self._heads("k_cache", keys)
                self._heads("v_cache", values)
            self._heads("attn_heads", out)
            return out

        module.scaled_dot_product_attention = attend
        self._undo.append(lambda: setattr(module, "scaled_dot_product_attention", plain))

    def _watch(self, module: nn.Module, after: Callable, before: Optional[Callable] = None) -> None:
        base = type(module)

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if before is not None:
                before()
            out = base.__call__(self, *args, **kwargs)
            after(args, kwargs, out)
            return out

        # MLX modules are dictionaries with attributes of their own: go past them
        watched = type(base.__name__, (base,), {"__call__": call, "__module__": base.__module__})
        object.__setattr__(module, "__class__", watched)
        self._undo.append(lambda: object.__setattr__(module, "__class__", base))

    def _output(self, module: nn.Module, tap: str, of: Optional[str] = None) -> None:
        """`tap` is what the module returns; `of`, where given, what it gets."""

        def after(args: tuple, kwargs: dict, out: mx.array) -> None:
            self._taps[tap] = out[0]
            if of is not None:
                self._taps[of] = args[0][0]

        self._watch(module, after)

    def _enter(self, at: str) -> Callable[[], None]:
        def enter() -> None:
            self._inside, self._rotated = at, 0

        return enter

    def _rope(self, out: mx.array) -> None:
        # all models of mlx-lm rotate the queries first
        self._heads("k_rope" if self._rotated else "q_rope", out)
        self._rotated += 1

    def _heads(self, tap: str, value: mx.array) -> None:
        """1,H,T,D to T,H,D."""
        self._taps[self._inside + tap] = value[0].swapaxes(0, 1)

    def _step(self, inputs: mx.array, cache: Any = None, *_: Any, out: mx.array, **__: Any) -> None:
        if inputs.shape[0] != 1:
            raise ValueError("a batch is not recorded: mlx-lm pads it, and no tap says where")
        taps, self._taps = {**self._taps, "logits": out[0]}, {}
        mx.eval(list(taps.values()))
        ids = np.array(inputs[0]).astype(np.int64)
        end = len(ids) if cache is None else cache[0].offset
        positions = np.arange(end - len(ids), end)
        self._writer.step(ids, {tap: _array(value) for tap, value in taps.items()}, positions=positions)


def _array(value: mx.array) -> Array:
    if value.dtype != mx.bfloat16:
        return np.array(value)
    bits = np.ascontiguousarray(np.array(value.view(mx.uint16)))
    return Raw(bits, "BF16", bits.shape)


@contextmanager
def record(model: nn.Module, writer: Writer) -> Iterator[None]:
    """Records every call of the model inside the block."""
    recorder = Recorder(model, writer)
    try:
        with writer:
            yield
    finally:
        recorder.close()


def quantise(model: nn.Module, tiny: Tiny, folder: Path, bits: int, group: int) -> None:
    """Quantises in place, as `mlx_lm.convert -q` does, and writes the weights that the engine then works with."""
    nn.quantize(model, group_size=group, bits=bits)
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            full = mx.dequantize(module.weight, module.scales, module.biases, group, bits)
            weights[name + ".weight"] = _array(full)
            if "bias" in module:
                weights[name + ".bias"] = _array(module.bias)
        elif isinstance(module, nn.RMSNorm):
            weights[name + ".weight"] = _array(module.weight)
    save(folder, tiny.config(), weights)


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    bits: int = 0,
    group: int = 64,
    length: int = 20,
    decoded: int = 4,
    **generation: Any,
) -> None:
    """A prompt in mlx-lm's own chunks, then decoded tokens one at a time."""
    one = Run(out, name)
    model, _ = load_model(tiny.write(one.model))
    declared = {"activations": tiny.stored, "weights": tiny.stored, "kv_cache": tiny.stored}
    if bits:
        quantise(model, tiny, one.model, bits, group)
        declared["accumulate"] = tiny.stored  # the CPU's quantised product adds up in the activations' format
    writer = one.writer(
        "mlx-lm",
        version("mlx-lm"),
        model={"family": tiny.family},
        environment={"mlx": version("mlx"), "device": str(mx.default_device())},
    )
    with record(model, writer):
        for _ in generate_step(mx.array(tiny.prompt(length)), model, max_tokens=decoded, **generation):
            pass
    if "kv_bits" not in generation:
        one.declare(declared)


RUNS: dict[str, dict[str, Any]] = {
    "mlx-bf16-llama": {"tiny": Tiny("llama", "bf16", hidden=128)},
    "mlx-bf16-qwen2": {"tiny": Tiny("qwen2", "bf16", hidden=64, theta=1e6, tied=True)},
    "mlx-bf16-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=512, layers=1, heads=8, theta=1e6)},
    "mlx-bf16-massive": {"tiny": Tiny("llama", "bf16", hidden=256, massive=100.0)},
    "mlx-bf16-chunks": {"tiny": Tiny("qwen3", "bf16", hidden=64, layers=3), "prefill_step_size": 7},
    "mlx-f16-llama": {"tiny": Tiny("llama", "f16", hidden=256)},
    "mlx-f16-qwen2": {"tiny": Tiny("qwen2", "f16", hidden=128, layers=3)},
    "mlx-f16-qwen3": {"tiny": Tiny("qwen3", "f16", hidden=64)},
    "mlx-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "mlx-q4-llama": {"tiny": Tiny("llama", "bf16", hidden=128), "bits": 4},
    "mlx-q4-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=512, layers=1, heads=8), "bits": 4},
    "mlx-q4-f16-qwen2": {"tiny": Tiny("qwen2", "f16", hidden=256), "bits": 4, "group": 32},
    "mlx-q4-small": {"tiny": small("bf16"), "bits": 4, "group": 32, "length": 5, "decoded": 1},
    "mlx-q8-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=128), "bits": 8},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out))


if __name__ == "__main__":
    main()
