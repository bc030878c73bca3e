"""Runs OpenVINO on tiny random models and records what it computes.

    python record_openvino.py OUT [--match TEXT]

The same graphs as for ONNX Runtime. `-hint` runs ask for a shorter precision by name; without it, OpenVINO takes
bfloat16 for a model in float32 where the processor has instructions for it, and float32 elsewhere.
"""

from __future__ import annotations

import functools
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import onnx
import openvino
from checkpoints import Tiny, small
from onnx_graph import export, generate, show, taps
from output import Run, arguments, run_all

_NUMPY = {"f32": np.float32, "f16": np.float16}


def run(
    out: Path, name: str, tiny: Tiny, precision: str = "", attention: str = "eager", **lengths: int
) -> None:
    one = Run(out, name)
    tiny.write(one.model)
    with tempfile.TemporaryDirectory() as scratch:
        plain, marked = Path(scratch) / "plain.onnx", Path(scratch) / "marked.onnx"
        export(tiny, one.model, plain, attention)
        where = taps(onnx.load(str(plain), load_external_data=False).graph)
        show(plain, marked, list(where.values()))
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        compiled = core.compile_model(core.read_model(str(marked)), "CPU", settings)

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            results = compiled(dict(inputs))
            return {alias: np.array(results[output]) for output in compiled.outputs for alias in output.names}

        taken = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        writer = one.writer(
            "openvino",
            openvino.__version__,
            model={"family": tiny.family},
            environment={"torch": version("torch"), "precision": taken, "attention": attention},
        )
        generate(tiny, call, where, writer, np.dtype(_NUMPY[tiny.stored]), **lengths)
    if "f32" in taken or "float32" in taken:
        one.declare({"activations": "f32"})


RUNS: dict[str, dict[str, Any]] = {
    "openvino-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "openvino-f32-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=64, layers=1)},
    "openvino-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "openvino-hint-bf16-llama": {"tiny": Tiny("llama", "f32", hidden=128), "precision": "bf16"},
    "openvino-hint-bf16-small": {"tiny": small("f32", hidden=32), "precision": "bf16", "length": 5, "decoded": 1},
    "openvino-hint-f16-llama": {"tiny": Tiny("llama", "f32", hidden=128), "precision": "f16"},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out))


if __name__ == "__main__":
    main()
