"""Runs ONNX Runtime on tiny random models and records what it computes, with `firstdiff.onnx`.

    python record_onnxruntime.py OUT [--match TEXT]

The values that are taps are made outputs of the graph. That keeps ONNX Runtime from fusing across them; `-outputs` runs
mark only the layers' outputs and leave the fusions as they are. `-planted-` runs have a fault in the graph, which must be
found where it is.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Optional

import onnxruntime
from checkpoints import Tiny, small
from onnx_graph import Fault, lost_weight, marked, rope_base
from onnx_graph import run as run_engine
from output import Run, arguments, command, run_all

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    optimise: str = "all",
    attention: str = "eager",
    taps: Optional[list[str]] = None,
    fault: Optional[Fault] = None,
    **lengths: int,
) -> None:
    one = Run(out, name)
    with tempfile.TemporaryDirectory() as scratch:
        file, where = marked(tiny, one, Path(scratch), attention, taps, fault)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimise]
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        run_engine(one, tiny, session, where, **lengths)
    if tiny.stored == "f32":
        one.declare({"activations": "f32"})


def of_command(out: Path, name: str, tiny: Tiny) -> None:
    """`python -m firstdiff.onnx`, which exports the checkpoint by itself."""
    one = Run(out, name)
    command("onnx", tiny.write(one.model), tiny, one)


RUNS: dict[str, dict[str, Any]] = {
    "ort-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "ort-f16-llama-unoptimised": {"tiny": Tiny("llama", "f16", hidden=128), "optimise": "none"},
    "ort-f16-llama-outputs": {
        "tiny": Tiny("llama", "f16", hidden=128),
        "taps": ["out", "k_cache", "v_cache", "embed", "logits"],
    },
    "ort-f16-qwen2-sdpa": {"tiny": Tiny("qwen2", "f16", hidden=64, layers=3), "attention": "sdpa"},
    "ort-f16-qwen3": {"tiny": Tiny("qwen3", "f16", hidden=512, layers=1, heads=8)},
    "ort-f16-qwen3-unoptimised": {"tiny": Tiny("qwen3", "f16", hidden=512, layers=1, heads=8), "optimise": "none"},
    "ort-f16-massive": {"tiny": Tiny("llama", "f16", hidden=256, massive=100.0)},
    "ort-f16-small": {"tiny": small("f16"), "length": 5, "decoded": 1},
    "ort-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "ort-planted-rope-llama": {
        "tiny": Tiny("llama", "f32", hidden=128),
        "fault": (rope_base, "layers.0.q_rope"),
    },
    "ort-planted-norm-qwen3": {
        "tiny": Tiny("qwen3", "f32", hidden=64),
        "fault": (lost_weight, "layers.1.mlp_norm"),
    },
    "ort-command-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=64), "run": of_command},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out), args.out)


if __name__ == "__main__":
    main()
