"""Runs vLLM's CPU engine on tiny random models and records what it computes.

    python record_vllm.py OUT [--match TEXT]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# set before vLLM is imported: an engine in this process, but for those with several ranks
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from checkpoints import Tiny, small
from output import Run, arguments, run_all

# ranks of one machine share its cores, whatever NUMA nodes it has
_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def run(
    out: Path,
    name: str,
    tiny: Tiny,
    caches: bool = True,
    prompts: tuple[int, ...] = (20,),
    shared: int = 0,
    tokens: int = 5,
    wrong: bool = False,
    **engine: Any,
) -> None:
    """Prompts of these lengths at once; with `shared`, one after another, all with the same first tokens."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm_recorder import record

    one = Run(out, name)
    if wrong:
        one.is_wrong()
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
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    first = tiny.prompt(shared, seed=9) if shared else []
    ids = [{"prompt_token_ids": first + tiny.prompt(length, seed)} for seed, length in enumerate(prompts)]
    with record(llm, one.trace, caches):
        for batch in [[prompt] for prompt in ids] if shared else [ids]:
            llm.generate(batch, greedy, use_tqdm=False)
    del llm
    cleanup_dist_env_and_memory()


def _served(stored: str) -> dict[str, dict[str, Any]]:
    """What a server does: batches, chunks of prompts, prefixes from the cache, several ranks."""
    llama, qwen3 = Tiny("llama", stored, hidden=128), Tiny("qwen3", stored, hidden=128)
    at_once = {"prompts": (20, 9, 14)}
    chunks = {"prompts": (40, 21), "enable_chunked_prefill": True, "max_num_batched_tokens": 16}
    prefix = {"prompts": (10, 12, 9), "shared": 64, "block_size": 32, "enable_prefix_caching": True}
    ranks = Tiny("llama", stored, hidden=256, heads=8, kv_heads=4)
    return {
        f"vllm-{stored}-batch": {"tiny": llama, **at_once},
        f"vllm-{stored}-batch-nocache": {"tiny": qwen3, **at_once, "caches": False},
        f"vllm-{stored}-chunks": {"tiny": llama, **chunks},
        f"vllm-{stored}-prefix": {"tiny": llama, **prefix},
        f"vllm-{stored}-prefix-nocache": {"tiny": qwen3, **prefix, "caches": False},
        f"vllm-{stored}-tp2": {"tiny": ranks, "tensor_parallel_size": 2},
    }


RUNS: dict[str, dict[str, Any]] = {
    "vllm-bf16-llama": {"tiny": Tiny("llama", "bf16", hidden=128)},
    "vllm-bf16-qwen2": {"tiny": Tiny("qwen2", "bf16", hidden=256, theta=1e6, tied=True)},
    "vllm-bf16-qwen3": {"tiny": Tiny("qwen3", "bf16", hidden=128, heads=4, layers=3)},
    "vllm-bf16-massive": {"tiny": Tiny("llama", "bf16", hidden=512, heads=8, massive=250.0)},
    "vllm-f32-llama": {"tiny": Tiny("llama", "f32", hidden=128)},
    "vllm-f32-qwen3": {"tiny": Tiny("qwen3", "f32", hidden=128)},
    "vllm-f16-llama": {"tiny": Tiny("llama", "f16", hidden=128)},
    **_served("bf16"),
    **_served("f16"),
    "vllm-bf16-small": {
        "tiny": small("bf16", hidden=48, head_dim=32, kv_heads=2),
        "prompts": (8,),
        "tokens": 2,
    },
    "vllm-tp2-small": {
        "tiny": small("bf16", hidden=48, head_dim=32, kv_heads=2),
        "prompts": (5,),
        "tokens": 2,
        "tensor_parallel_size": 2,
    },
    # the CPU's 8-bit caches hold the neighbour towards zero, whichever is nearer
    "vllm-fp8-e4m3": {"tiny": Tiny("llama", "bf16", hidden=128), "kv_cache_dtype": "fp8", "wrong": True},
    "vllm-fp8-e5m2": {"tiny": Tiny("llama", "bf16", hidden=128), "kv_cache_dtype": "fp8_e5m2", "wrong": True},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run(args.out, args.one, **RUNS[args.one])
        return

    def start(name: str, **settings: Any) -> None:
        if "tensor_parallel_size" not in settings:
            with redirect_stdout(sys.stderr):
                run(args.out, name, **settings)
            return
        # ranks are processes, and so must be what starts them: it must not have run an engine itself
        command = [sys.executable, __file__, str(args.out), "--one", name]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **_RANKS}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)

    run_all(RUNS, args.match, start)


if __name__ == "__main__":
    main()
