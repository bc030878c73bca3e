"""Tokens a second: the engine, the limit set by memory, transformers and cuBLAS, in one run."""

import json

import torch
from baselines import CublasDecode, copy_rate, eager, matrix_rate, prefill_flop, shape_rate, static_graph
from checkpoints import make, weight_bytes
from results import call, median
from shapes import bytes_per_token, config

CONTEXTS = (128, 4096)


def device_rates():
    return {
        "device": torch.cuda.get_device_name(),
        "copy, GB/s": copy_rate() / 1e9,
        "bf16 8192 x 8192 x 8192, TFLOP/s": matrix_rate() / 1e12,
    }


def engine(bench, path, c, rates, label, rounds=5, tokens=256, prefill=2048, tap_steps=32):
    """Rows of decoding, and what prefill and taps cost."""
    options = ["--contexts", ",".join(map(str, CONTEXTS)), "--tokens", tokens, "--rounds", rounds]
    options += ["--prefill", prefill, "--tap-steps", tap_steps]
    said = json.loads(call([bench, path, *options], 240)["stdout"])
    rows = []
    for part in said["decode"]:
        seconds = median(part["seconds"]) / part["tokens"]
        needed = bytes_per_token(c, weight_bytes(path), part["context"] + part["tokens"] / 2)
        rows.append(
            {
                "weights": label,
                "context": part["context"],
                "tokens/s": 1 / seconds,
                "us/token": seconds * 1e6,
                "MB/token": needed / 1e6,
                "of the limit": needed / seconds / (rates["copy, GB/s"] * 1e9),
                "spread": (max(part["seconds"]) - min(part["seconds"])) / median(part["seconds"]),
            }
        )
    other = {"weights": label, "load_s": said["load"]}
    if said["prefill"]["seconds"]:
        seconds = median(said["prefill"]["seconds"])
        rate = prefill_flop(c, prefill) / seconds
        other |= {"prefill": prefill, "prefill_ms": seconds * 1e3, "prefill TFLOP/s of products": rate / 1e12}
        other["of the matrix rate"] = rate / (rates["bf16 8192 x 8192 x 8192, TFLOP/s"] * 1e12)
    if said["taps"]:
        off, logits, everything = (median(said["taps"][k]) for k in ("off", "logits", "all"))
        steps = said["taps"]["steps"]
        other |= {"step_us, taps off": off / steps * 1e6, "logits": logits / steps * 1e6}
        other |= {"all taps": everything / steps * 1e6, "all taps / off": everything / off}
    return rows, other


def baselines(path, c, tokens=100):
    """Tokens a second of others, on the same weights where they have any."""
    from transformers import AutoModelForCausalLM

    rows = []
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
        for context in CONTEXTS:
            for name, work in (
                ("transformers eager", lambda: eager(model, context, 40)),
                ("transformers static cache, CUDA graph", lambda: static_graph(model, context, tokens)),
                ("cuBLAS through torch, CUDA graph", lambda: CublasDecode(c, context).tokens_a_second(tokens)),
            ):
                try:
                    rows.append({"engine": name, "context": context, "tokens/s": work()})
                except Exception as error:  # noqa: BLE001 - the others are still worth having
                    rows.append({"engine": name, "context": context, "tokens/s": None, "failed": str(error)[:300]})
    return rows


def speed(bench, checkpoints, rates, name="qwen3-0.6b", formats=("bf16", "q8_0", "q4_k_m"), tiny=False):
    c = config(name, tiny)
    decode, other = [], []
    for file_format in formats:
        path = make(checkpoints, name, file_format, tiny, "cuda")
        rows, rest = engine(bench, path, c, rates, file_format)
        decode += rows
        other.append(rest)
    return decode, other


def cublas_at_these_shapes(c, tokens=2048):
    return {"cuBLAS at the prompt's shapes, TFLOP/s": shape_rate(c, tokens) / 1e12}
