"""The healthy engine against transformers (float32 logits within 1e-4), and against firstdiff in every arithmetic."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import models
from .arithmetic import ARITHMETICS
from .engine import Engine
from .record import record

NAMES = ("llama", "qwen2", "qwen2-window", "qwen3", "llama-llama3", "llama-yarn", "llama-biases", "llama-tied",
         "llama-dynamic", "qwen3-tied-biases", "qwen3-window")  # fmt: skip
# (taps, chunk, batch)
SETTINGS = (("all", None, None), ("modules", None, None), ("all", 7, None), ("all", None, (24, 20, 17)))
BINARY = models.ROOT / "target" / "release" / "firstdiff"


def against_transformers(name):
    """Largest logit difference over a prefill in chunks and a few single tokens."""
    import tiny

    config, weights, folder = models.load(name, "f32")
    model = tiny.load(folder)
    ids = models.prompt_ids(32)
    engine = Engine(config, weights, ARITHMETICS["f32"])
    with torch.no_grad():
        if config.rope["rope_type"] == "dynamic":  # depends on how tokens are cut into calls
            return float((engine.run(ids)[0] - model(torch.tensor([ids])).logits[0]).abs().max())
        theirs = model(torch.tensor([ids])).logits[0]
        ours = torch.cat([engine.run(part)[0] for part in (ids[:10], ids[10:29], ids[29:30], ids[30:31], ids[31:])])
    return float((ours - theirs).abs().max())


def check(recorded, *options):
    """firstdiff's result as JSON."""
    command = [BINARY, "check", recorded.trace, "--model", recorded.model, "--format", "json", "--threads", "1", *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def main():
    torch.set_num_threads(1)
    bad = 0
    for name in NAMES:
        difference = against_transformers(name)
        bad += difference > 1e-4
        print(f"{name:20} transformers {difference:.1e}{'  TOO LARGE' if difference > 1e-4 else ''}")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            for arithmetic, known in ARITHMETICS.items():
                if known.quantised is not None and not models.has_gguf(name):
                    continue
                for taps, chunk, batch in SETTINGS:
                    start = time.perf_counter()
                    recorded = record(name, arithmetic, Path(folder) / "trace", taps=taps, chunk=chunk, batch=batch)
                    took = time.perf_counter() - start
                    result = check(recorded)
                    agrees = result["verdict"] == "agrees"
                    bad += not agrees
                    print(f"{name:20} {arithmetic:5} {taps:8} chunk {chunk} batch {batch}: {result['verdict']} ({took * 1e3:.0f} ms)")
                    for finding in [] if agrees else result["findings"][:2]:
                        print("   ", finding["tap"], finding["where"], finding["ratio"])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
