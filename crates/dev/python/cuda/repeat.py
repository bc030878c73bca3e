"""The same tokens, the same logits and the same taps, bit for bit, every time."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from correctness import tokens
from results import call


def repeat(binary, model, vocab, steps=10_000, times=3, prompt=32):
    """Decodes so many greedy steps, each time in a new process, and compares tokens and the digest of all logits."""
    ids = ",".join(map(str, tokens(prompt, vocab)))
    runs = []
    for _ in range(times):
        command = [binary, "run", model, "--backend", "cuda", "--tokens", ids, "-n", steps, "--ignore-stop"]
        runs.append(json.loads(call([*command, "--digest", "--format", "json"], 280)["stdout"]))
    streams = [run["tokens"] for run in runs]
    # The fast path, on which nothing but tokens leaves the GPU, must give the same ones.
    rushed = json.loads(call([*command, "--format", "json"], 280)["stdout"])
    return {
        "steps": len(streams[0]),
        "times": times,
        "identical tokens": all(s == streams[0] for s in streams),
        "identical logits": len({run["digest"] for run in runs}) == 1,
        "identical tokens without looking at logits": rushed["tokens"] == streams[0],
        "digests": [run["digest"] for run in runs],
        "different tokens in the stream": len(set(streams[0])),
        "seconds": [round(run["seconds"]["generate"], 2) for run in runs],
    }


def together(trace_binary, model, work, prompt=128, steps=64, rounds=4, at_once=6):
    """Several recordings at a time, whose kernels take turns on the GPU: all files of all of them must be equal. What is read
    too late or too early inside a kernel shows here before it does where a process has the GPU to itself."""

    def record(out):
        shutil.rmtree(out, ignore_errors=True)
        call([trace_binary, model, out, f"random:{prompt}", steps])
        found = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.glob("step-*"))}
        shutil.rmtree(out)
        return found

    folders = [Path(work) / f"together-{n}" for n in range(at_once)]
    with ThreadPoolExecutor(at_once) as pool:
        recorded = [found for _ in range(rounds) for found in pool.map(record, folders)]
    others = [sorted(name for name in found if found[name] != recorded[0][name]) for found in recorded]
    return {
        "recordings": len(recorded),
        "steps": len(recorded[0]),
        "equal to the first": sum(not names for names in others),
        "first step that differs": min((names[0] for names in others if names), default=None),
    }


def seeds(binary, model, vocab, steps=200):
    """The same seed gives the same tokens; another one others."""
    ids = ",".join(map(str, tokens(32, vocab)))
    options = ["--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--min-p", 0.01, "--repetition-penalty", 1.1]

    def stream(seed):
        command = [binary, "run", model, "--backend", "cuda", "--tokens", ids, "-n", steps, "--ignore-stop"]
        return json.loads(call([*command, *options, "--seed", seed, "--format", "json"])["stdout"])["tokens"]

    first, again, other = stream(1), stream(1), stream(2)
    return {"same seed, same tokens": first == again, "another seed, other tokens": first != other}
