"""Runs mlx-lm on tiny random models and records what it computes, with `firstdiff.mlx_lm`.

    python record_mlx.py OUT [--match TEXT]

Every run is done twice: recording must not change a token, and must leave the model as it was. `-planted-` runs have a
fault in the model, which must be found where it is.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import mlx.core as mx
import mlx.nn as nn
from checkpoints import Tiny, save, small
from firstdiff.mlx_lm import _array, record
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from output import Run, arguments, command, run_all


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


def state(model: nn.Module) -> list[Any]:
    """What recording changes for a while: the classes of modules, and the function that attends."""
    attend = vars(sys.modules[type(model).__module__])["scaled_dot_product_attention"]
    return [attend, *(type(module) for _, module in model.named_modules())]


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    bits: int = 0,
    group: int = 64,
    length: int = 20,
    decoded: int = 4,
    plant: Optional[Callable[[nn.Module], None]] = None,
    at: str = "",
    **generation: Any,
) -> None:
    """A prompt in mlx-lm's own chunks, then decoded tokens one at a time."""
    one = Run(out, name)
    model, _ = load_model(tiny.write(one.model))
    if bits:
        quantise(model, tiny, one.model, bits, group)
    if plant:
        plant(model)
        one.is_wrong(at)

    def tokens() -> list[int]:
        steps = generate_step(mx.array(tiny.prompt(length)), model, max_tokens=decoded, **generation)
        return [int(token) for token, _ in steps]

    plain, before = tokens(), state(model)
    with record(model, one.trace):
        assert tokens() == plain, f"{name}: other tokens than without recording"
    assert state(model) == before, f"{name}: the model is not as it was"
    one.declare_apart()


def of_command(out: Path, name: str, tiny: Tiny) -> None:
    """`python -m firstdiff.mlx_lm`."""
    one = Run(out, name)
    command("mlx_lm", tiny.write(one.model), tiny, one)


def rope_base(model: nn.Module) -> None:
    """The rotary base that mlx-lm takes where a configuration does not say it at the top."""
    for layer in model.model.layers:
        layer.self_attn.rope.base = 1e6


def no_bias(model: nn.Module) -> None:
    """A key bias that a loader left at zero."""
    layer = model.model.layers[1].self_attn.k_proj
    layer.bias = mx.zeros_like(layer.bias)


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
    "mlx-planted-rope-llama": {"tiny": Tiny("llama", "bf16", hidden=128), "plant": rope_base, "at": "layers.0.q_rope"},
    "mlx-planted-bias-qwen2": {"tiny": Tiny("qwen2", "bf16", hidden=64), "plant": no_bias, "at": "layers.1.k_proj"},
    "mlx-command-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=64), "run": of_command},
    "mlx-q8-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=128), "bits": 8},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out), args.out)


if __name__ == "__main__":
    main()
