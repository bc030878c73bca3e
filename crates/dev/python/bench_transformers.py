"""Times transformers in float32 on a GGUF's dequantised weights; reads what to measure from standard input."""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))
from gguf_models import GgufModel

path, prefill, decode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = GgufModel(path).to_transformers(attention="sdpa")
vocab = min(model.config.vocab_size, 30_000)
ids = torch.tensor([[(i * 7919 + 13) % vocab for i in range(prefill + decode)]])


@torch.inference_mode()
def measure(what):
    if what == "prefill":
        start = time.perf_counter()
        model(ids[:, :prefill], use_cache=True)
        return time.perf_counter() - start
    cache = model(ids[:, :prefill], use_cache=True).past_key_values
    start = time.perf_counter()
    for i in range(prefill, prefill + decode):
        model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    return (time.perf_counter() - start) / decode


print("ready", flush=True)
for line in sys.stdin:
    print(measure(line.strip()) * 1e3, flush=True)
