"""Runs OpenVINO on tiny random models and records what it computes, with `firstdiff.onnx`.

    python record_openvino.py OUT [--match TEXT]

The same graphs as for ONNX Runtime. `-hint` runs ask for a shorter precision by name; without it, OpenVINO takes
bfloat16 for a model in float32 where the processor has instructions for it, and float32 elsewhere.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Optional

import openvino
from checkpoints import Tiny, small
from onnx_graph import Fault, marked, rope_base
from onnx_graph import run as run_engine
from output import Run, arguments, command, run_all


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    precision: str = "",
    attention: str = "eager",
    fault: Optional[Fault] = None,
    **lengths: int,
) -> None:
    one = Run(out, name)
    with tempfile.TemporaryDirectory() as scratch:
        file, where = marked(tiny, one, Path(scratch), attention, fault=fault)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
        taken = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        run_engine(one, tiny, compiled, where, **lengths)
    if "f32" in taken or "float32" in taken:
        # an output of a graph in f16 is f16, whatever it was computed in
        one.declare({"activations": "f32"} if tiny.stored == "f32" else {"activations": tiny.stored, "read": "unrounded"})


def of_command(out: Path, name: str, tiny: Tiny) -> None:
    """`python -m firstdiff.onnx --engine openvino`, which exports the checkpoint by itself."""
    one = Run(out, name)
    command("onnx", tiny.write(one.model), tiny, one, "--engine", "openvino")


RUNS: dict[str, dict[str, Any]] = {
    "openvino-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "openvino-f32-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=64, layers=1)},
    "openvino-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "openvino-hint-bf16-llama": {"tiny": Tiny("llama", "f32", hidden=128), "precision": "bf16"},
    "openvino-hint-bf16-small": {"tiny": small("f32", hidden=32), "precision": "bf16", "length": 5, "decoded": 1},
    "openvino-hint-f16-llama": {"tiny": Tiny("llama", "f32", hidden=128), "precision": "f16"},
    "openvino-planted-rope-llama": {
        "tiny": Tiny("llama", "f32", hidden=128),
        "fault": (rope_base, "layers.0.q_rope"),
    },
    "openvino-command-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=64), "run": of_command},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out), args.out)


if __name__ == "__main__":
    main()
