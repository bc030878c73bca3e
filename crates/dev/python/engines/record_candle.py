"""Runs candle on tiny random models and records what it computes.

    python record_candle.py OUT --program PROGRAM [--match TEXT]

PROGRAM is built from `crates/dev/engines/candle`; this makes its models and calls it.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

from checkpoints import Tiny, small
from output import Run, arguments, run_all

# candle's Qwen2 is left out: it rounds angles to bf16 before it takes their cosine, which no rounding of values explains
RUNS: dict[str, dict[str, Any]] = {
    "candle-bf16-llama": {"tiny": Tiny("llama", "bf16", hidden=128)},
    "candle-bf16-llama-wide": {"tiny": Tiny("llama", "bf16", hidden=512, layers=1, heads=8, tied=True)},
    "candle-bf16-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=128, layers=3)},
    "candle-bf16-massive": {"tiny": Tiny("llama", "bf16", hidden=256, massive=100.0)},
    "candle-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "candle-f16-qwen3": {"tiny": Tiny("qwen3", "f16", hidden=512, layers=1, heads=8)},
    "candle-f16-massive": {"tiny": Tiny("llama", "f16", hidden=256, massive=100.0)},
    "candle-bf16-small": {"tiny": small("bf16"), "length": 5, "decoded": 1},
    "candle-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "candle-f32-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=64)},
}


def run(out: Path, program: Path, name: str, tiny: Tiny, length: int = 20, decoded: int = 4) -> None:
    """A prompt, then decoded tokens one at a time."""
    one = Run(out, name)
    tiny.write(one.model)
    prompt = ",".join(map(str, tiny.prompt(length)))
    subprocess.run([program, one.model, one.trace, tiny.stored, prompt, str(decoded)], check=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--program", type=Path, required=True)
    args = parser.parse_args()
    run_all(RUNS, args.match, functools.partial(run, args.out, args.program))


if __name__ == "__main__":
    main()
