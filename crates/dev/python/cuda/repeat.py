"""The same tokens and the same logits, bit for bit, every time."""

import json

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


def seeds(binary, model, vocab, steps=200):
    """The same seed gives the same tokens; another one others."""
    ids = ",".join(map(str, tokens(32, vocab)))
    options = ["--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--min-p", 0.01, "--repetition-penalty", 1.1]

    def stream(seed):
        command = [binary, "run", model, "--backend", "cuda", "--tokens", ids, "-n", steps, "--ignore-stop"]
        return json.loads(call([*command, *options, "--seed", seed, "--format", "json"])["stdout"])["tokens"]

    first, again, other = stream(1), stream(1), stream(2)
    return {"same seed, same tokens": first == again, "another seed, other tokens": first != other}
