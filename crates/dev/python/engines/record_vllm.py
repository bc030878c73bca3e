"""Runs vLLM's CPU engine on tiny random models and records what it computes.

    python record_vllm.py OUT [--match TEXT]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from checkpoints import Tiny
from output import Run, arguments, run_all

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    caches: bool = True,
    prompts: tuple[int, ...] = (20,),
    shared: int = 0,
    sampling: dict[str, Any] | None = None,
    **engine: Any,
) -> None:
    """Prompts of these lengths at once; with `shared`, one after another, all with the same first tokens."""
    from vllm import LLM, SamplingParams
    from vllm_recorder import record

    one = Run(out, name)
    settings: dict[str, Any] = {
        "dtype": _DTYPES[tiny.stored],
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "skip_tokenizer_init": True,
        "kv_cache_memory_bytes": 1 << 26,
        "disable_log_stats": True,
        "worker_extension_cls": "vllm_recorder.WorkerExtension",
    }
    llm = LLM(str(tiny.write(one.model)), **{**settings, **engine})
    greedy = SamplingParams(**{"temperature": 0, "max_tokens": 5, "ignore_eos": True, "detokenize": False, **(sampling or {})})
    first = tiny.prompt(shared, seed=9) if shared else []
    ids = [{"prompt_token_ids": first + tiny.prompt(length, seed)} for seed, length in enumerate(prompts)]
    with record(llm, one.trace, caches):
        for batch in [[prompt] for prompt in ids] if shared else [ids]:
            llm.generate(batch, greedy, use_tqdm=False)


RUNS: dict[str, dict[str, Any]] = {
    "vllm-bf16-llama": {"tiny": Tiny("llama", "bf16", hidden=128)},
    "vllm-bf16-qwen2": {"tiny": Tiny("qwen2", "bf16", hidden=256, theta=1e6, tied=True)},
    "vllm-bf16-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=128, heads=4, layers=3)},
    "vllm-bf16-massive": {"tiny": Tiny("llama", "bf16", hidden=512, heads=8, massive=250.0)},
    "vllm-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "vllm-f32-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=128)},
    "vllm-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    "vllm-batch": {"tiny": Tiny("llama", "bf16", hidden=128), "prompts": (20, 9, 14)},
    "vllm-batch-nocache": {"tiny": Tiny("qwen3", "bf16", hidden=128), "prompts": (20, 9, 14), "caches": False},
    "vllm-chunks": {
        "tiny": Tiny("llama", "bf16", hidden=128),
        "prompts": (40, 21),
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 16,
    },
    "vllm-prefix": {
        "tiny": Tiny("llama", "bf16", hidden=128),
        "prompts": (10, 12, 9),
        "shared": 64,
        "block_size": 32,
        "enable_prefix_caching": True,
    },
    "vllm-prefix-nocache": {
        "tiny": Tiny("qwen3", "bf16", hidden=128),
        "prompts": (10, 12, 9),
        "shared": 64,
        "block_size": 32,
        "enable_prefix_caching": True,
        "caches": False,
    },
    "vllm-tp2": {"tiny": Tiny("llama", "bf16", hidden=256, heads=8, kv_heads=4), "tensor_parallel_size": 2},
    "vllm-tp2-f32": {"tiny": Tiny("llama", "f32", hidden=128, heads=8, kv_heads=4), "tensor_parallel_size": 2},
    "vllm-fp8-e4m3": {"tiny": Tiny("llama", "bf16", hidden=128), "kv_cache_dtype": "fp8"},
    "vllm-fp8-e5m2": {"tiny": Tiny("llama", "bf16", hidden=128), "kv_cache_dtype": "fp8_e5m2"},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run(args.out, args.one, **RUNS[args.one])
        return

    def alone(name: str, **_: Any) -> None:
        # an engine does not give its memory back: a process each, and what it prints is not ours
        command = [sys.executable, __file__, str(args.out), "--one", name]
        subprocess.run(command, check=True, stdout=sys.stderr)

    run_all(RUNS, args.match, alone)


if __name__ == "__main__":
    main()
