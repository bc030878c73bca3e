"""What naming a cause costs: `check` of a trace with one wrong value beside `check` of the same trace without it.

Run by `cargo dev bench diagnose`. The trace is the reference's own, of 24 tokens and one decode step with module outputs; the
channels of one value are reversed, which no hypothesis explains, so that every one is tried. What follows from that value and
is recorded too makes further findings, and the cost is that of them all. It includes measuring the wrong value and saying what it
looks like, so the diagnosis alone costs less.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

PROMPT = ",".join(str(100 + 37 * i) for i in range(24))
TAPS = "embed,*norm,*_proj,*attn_out,*mlp_out,layers.*.out,logits"
WRONG = ("layers.3.q_proj", "layers.3.attn_out", "layers.3.mlp_out", "layers.3.mlp_norm", "final_norm", "logits")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firstdiff", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"medians of {args.rounds} rounds on two threads")
    print(f"{'model':10} {'wrong value':20} {'findings':>8} {'diagnosis':>10} {'of it CPU':>10} {'check':>8} {'its CPU':>8} {'peak':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("smollm2", "qwen"):
            model, trace = args.models / f"{name}.gguf", Path(folder) / name
            command = [args.firstdiff, "trace", model, trace, "--tokens", PROMPT, "--steps", "1", "--taps", TAPS]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            base = measure(args, trace, model)
            for tap in WRONG:
                broken = Path(folder) / "broken"
                shutil.rmtree(broken, ignore_errors=True)
                shutil.copytree(trace, broken)
                step = broken / "step-000000.safetensors"
                values = load_file(step)
                values[tap] = np.ascontiguousarray(values[tap][:, ::-1])
                save_file(values, step)
                wall, cpu, peak, findings = measure(args, broken, model)
                print(
                    f"{name:10} {tap:20} {findings:8} {wall - base[0]:8.1f} s {cpu - base[1]:8.1f} s "
                    f"{base[0]:6.1f} s {base[1]:6.1f} s {peak >> 20:5} MiB",
                    flush=True,
                )


def measure(args, trace, model):
    """Wall time, CPU time and peak memory of a check, and how many findings it makes."""
    command = [args.firstdiff, "check", trace, "--model", model, "--threads", "2", "--format", "json"]
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryFile() as out:
            start = time.perf_counter()
            process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.DEVNULL)
            _, _, usage = os.wait4(process.pid, 0)
            rounds.append((time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))
            out.seek(0)
            findings = len(json.load(out)["findings"])
    wall, cpu, peak = zip(*rounds)
    return statistics.median(wall), statistics.median(cpu), max(peak), findings


if __name__ == "__main__":
    main()
