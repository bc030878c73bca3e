"""Tokens a second: the engine, the limit set by memory, and transformers, in one run."""

import json

import torch
from baselines import copy_rate, eager, matrix_rate, shape_rate, static_graph
from checkpoints import make, weight_bytes
from correctness import tokens
from results import call, median
from shapes import bytes_per_token, config

CONTEXTS = (128, 4096)


def device_rates():
    return {
        "device": torch.cuda.get_device_name(),
        "copy, GB/s": copy_rate() / 1e9,
        "bf16 8192 x 8192 x 8192, TFLOP/s": matrix_rate() / 1e12,
    }


def engine(bench, path, label, baselines, prefill=2048):
    """What the engine's own bench measures, by the GPU's clock: a row a measurement."""
    options = ["--context", ",".join(map(str, CONTEXTS)), "--prefill", prefill, "--taps"]
    said = call([bench, path, *options, *(["--baselines"] if baselines else [])], 240)["stdout"]
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    rows = [{"weights": label} | line for line in lines if "what" in line]
    rest = {k: v for line in lines if "what" not in line for k, v in line.items()}
    return rows, {"weights": label} | rest


def as_users_run_it(binary, path, c, rates, label, rounds=3, count=256):
    """The same through `firstdiff run`: every token reaches the host, by the wall clock."""
    rows = []
    for context in CONTEXTS:
        ids = ",".join(map(str, tokens(context, c["vocab_size"])))
        command = [binary, "run", path, "--backend", "cuda", "--tokens", ids, "-n", count, "--ignore-stop"]
        runs = [json.loads(call([*command, "--format", "json"], 120)["stdout"]) for _ in range(rounds)]
        seconds = median([run["seconds"]["generate"] for run in runs]) / (count - 1)
        needed = bytes_per_token(c, weight_bytes(path), context + count / 2)
        rows.append(
            {
                "weights": label,
                "what": "firstdiff run",
                "context": context,
                "tokens_per_s": 1 / seconds,
                "MB/token": needed / 1e6,
                "fraction": needed / seconds / (rates["copy, GB/s"] * 1e9),
                "load_s": median([run["seconds"]["load"] for run in runs]),
                "prompt_s": median([run["seconds"]["prompt"] for run in runs]),
            }
        )
    return rows


def baselines(path, count=100):
    """Tokens a second of transformers on the same weights."""
    from transformers import AutoModelForCausalLM

    rows = []
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
        for context in CONTEXTS:
            for name, work in (
                ("transformers eager", lambda: eager(model, context, 40)),
                ("transformers static cache, CUDA graph", lambda: static_graph(model, context, count)),
            ):
                try:
                    rows.append({"engine": name, "context": context, "tokens/s": work()})
                except Exception as error:  # noqa: BLE001 - the others are still worth having
                    rows.append({"engine": name, "context": context, "tokens/s": None, "failed": str(error)[:300]})
    return rows


def speed(binary, bench, checkpoints, rates, name="qwen3-0.6b", formats=("bf16", "q8_0", "q4_k_m"), tiny=False):
    c = config(name, tiny)
    rows, other = [], []
    for file_format in formats:
        path = make(checkpoints, name, file_format, tiny, "cuda")
        measured, rest = engine(bench, path, file_format, baselines=file_format == "bf16")
        rows += measured + as_users_run_it(binary, path, c, rates, file_format)
        other.append(rest)
    return rows, other


def cublas_at_these_shapes(c, count=2048):
    return {"cuBLAS at the prompt's shapes, TFLOP/s": shape_rate(c, count) / 1e12}
