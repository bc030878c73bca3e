"""Runs ONNX Runtime on tiny random models and records what it computes.

    python record_onnxruntime.py OUT [--match TEXT]

The values that are taps are made outputs of the graph. That keeps ONNX Runtime from fusing across them; `-outputs` runs
mark only the layers' outputs and leave the fusions as they are.
"""

from __future__ import annotations

import functools
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import onnx
import onnxruntime
from checkpoints import Tiny, small
from onnx_graph import export, generate, show, taps
from output import Run, arguments, run_all

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_NUMPY = {"f32": np.float32, "f16": np.float16}


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    optimise: str = "all",
    attention: str = "eager",
    few: bool = False,
    **lengths: int,
) -> None:
    one = Run(out, name)
    tiny.write(one.model)
    with tempfile.TemporaryDirectory() as scratch:
        plain, marked = Path(scratch) / "plain.onnx", Path(scratch) / "marked.onnx"
        export(tiny, one.model, plain, attention)
        where = taps(onnx.load(str(plain), load_external_data=False).graph)
        if few:
            kept = (".out", ".k_cache", ".v_cache", "embed", "logits")
            where = {tap: value for tap, value in where.items() if tap.endswith(kept)}
        show(plain, marked, list(where.values()))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimise]
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(marked), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, dict(inputs))))

        writer = one.writer(
            "onnxruntime",
            version("onnxruntime"),
            model={"family": tiny.family},
            environment={"torch": version("torch"), "optimisations": optimise, "attention": attention},
        )
        generate(tiny, call, where, writer, np.dtype(_NUMPY[tiny.stored]), **lengths)
    if tiny.stored == "f32":
        one.declare({"activations": "f32"})


RUNS: dict[str, dict[str, Any]] = {
    "ort-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "ort-f16-llama-unoptimised": {"tiny": Tiny("llama", "f16", hidden=128), "optimise": "none"},
    "ort-f16-llama-outputs": {"tiny": Tiny("llama", "f16", hidden=128), "few": True},
    "ort-f16-qwen2-sdpa": {"tiny": Tiny("qwen2", "f16", hidden=64, layers=3), "attention": "sdpa"},
    "ort-f16-qwen3": {"tiny": Tiny("qwen3", "f16", hidden=512, layers=1, heads=8)},
    "ort-f16-qwen3-unoptimised": {"tiny": Tiny("qwen3", "f16", hidden=512, layers=1, heads=8), "optimise": "none"},
    "ort-f16-massive": {"tiny": Tiny("llama", "f16", hidden=256, massive=100.0)},
    "ort-f16-small": {"tiny": small("f16"), "length": 5, "decoded": 1},
    "ort-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out))


if __name__ == "__main__":
    main()
