"""Traces of the CUDA engine, held against the model: every value of every step."""

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkpoints import make
from gguf_file import FORMATS
from results import call
from shapes import MODELS, config

# (tokens of the prompt, decode steps)
PROMPTS = ((1, 4), (7, 8), (129, 4), (128, 64), (2048, 1))
WHOLE = ("bf16", "q8_0", "q4_k_m")
# For files in the other formats: the kernels differ in the weights only.
SHORT = ((33, 8),)
# What grows with the square of the prompt is left out of the longest one.
LONG = 1024
SQUARE = ("attn_scores", "attn_probs")


def tokens(count, vocab, seed=3):
    draw = random.Random(seed)
    return [draw.randrange(vocab) for _ in range(count)]


def taps(binary, prompt, names):
    if prompt <= LONG:
        return []
    return ["--taps", ",".join(n for n in names if n.rsplit(".", 1)[-1] not in SQUARE)]


def tap_names(c):
    """Globs of all taps of a family."""
    layer = "attn_norm q_proj k_proj v_proj q_rope k_rope k_cache v_cache attn_scores attn_probs attn_heads attn_out "
    layer += "attn_resid mlp_norm gate_proj up_proj mlp_act mlp_out out"
    names = layer.split() + (["q_norm", "k_norm"] if c["model_type"] == "qwen3" else [])
    return ["embed", *(f"layers.*.{n}" for n in names), "final_norm", "logits"]


def record(binary, model, out, prompt, steps, vocab, extra=()):
    shutil.rmtree(out, ignore_errors=True)
    ids = ",".join(map(str, tokens(prompt, vocab)))
    return call([binary, "trace", model, out, "--backend", "cuda", "--tokens", ids, "--steps", steps, *extra], ok=None)


def verdict(binary, trace, model, threads):
    """What `check` says, in short."""
    done = call([binary, "check", trace, "--model", model, "--format", "json", "--threads", threads], 580, ok=None)
    if done["code"] not in (0, 1, 3):
        return {"verdict": "error", "detail": done["stderr"][-400:]}
    found = json.loads(done["stdout"])
    first = found["findings"][0] if found["findings"] else None
    return {
        "verdict": found["verdict"],
        "values": found["coverage"]["taps"],
        "missing": len(found["coverage"]["missing"]),
        "closest": (found.get("closest") or [None, None])[1],
        "finding": first and {k: first.get(k) for k in ("step", "tap", "where", "ratio", "cause")},
        "other tokens": (found.get("tokens") or {}).get("kind"),
        "seconds": round(done["seconds"], 1),
    }


def broken_barrier(trace_binary, binary, model, work, prompt=20, steps=6):
    """What `check` says of the barrier whose counter block 0 sets back: it must see, and name, keys or values read too early."""
    out = Path(work) / "trace-broken-barrier"
    shutil.rmtree(out, ignore_errors=True)
    call([trace_binary, model, out, f"random:{prompt}", steps, "all", "broken-barrier"])
    done = call([binary, "check", out, "--model", model, "--format", "json"], ok=(1,))
    findings = json.loads(done["stdout"])["findings"]
    cached = [f for f in findings if any(tap.endswith(("k_rope", "k_cache", "v_cache")) for tap in f["taps"])]
    assert cached, f"nothing at keys and values, but at {[f['taps'] for f in findings]}"
    named = [f["cause"] and f["cause"]["id"] for f in cached]
    assert "race-cross-block-visibility" in named, f"keys and values are wrong by {named}"
    shutil.rmtree(out, ignore_errors=True)
    return [{k: f.get(k) for k in ("step", "taps", "where", "cause")} for f in findings]


def cases(models, formats):
    for name in models:
        for file_format in formats:
            for prompt, steps in PROMPTS if file_format in WHOLE else SHORT:
                yield name, file_format, prompt, steps


class Checks:
    """Traces are recorded in turn; their checks run beside whatever comes next, on `threads` cores each."""

    def __init__(self, binary, work, threads, at_once):
        self.binary, self.work, self.threads = binary, Path(work), threads
        self.pool = ThreadPoolExecutor(at_once)
        self.rows = []

    def add(self, name, path, label, prompt, steps, vocab, extra=()):
        row = {"model": name, "weights": label, "prompt": prompt, "steps": steps}
        self.rows.append(row)
        # Of its own: another one's check may still be waiting.
        out = self.work / f"trace-{len(self.rows)}"
        done = record(self.binary, path, out, prompt, steps, vocab, extra)
        if done["code"] != 0:
            row |= {"verdict": "not recorded", "detail": done["stderr"][-400:]}
            return
        row["record_s"] = round(done["seconds"], 1)

        def finish():
            try:
                row.update(verdict(self.binary, out, path, self.threads))
            except Exception as error:  # noqa: BLE001 - one failed check must not lose the others
                row.update({"verdict": "error", "detail": str(error)[-400:]})
            shutil.rmtree(out, ignore_errors=True)

        self.pool.submit(finish)

    def add_models(self, checkpoints, models=tuple(MODELS), formats=("bf16", *FORMATS), tiny=False, device="cuda"):
        for name, file_format, prompt, steps in cases(models, formats):
            c = config(name, tiny)
            path = make(checkpoints, name, file_format, tiny, device)
            label = f"{name}, hidden size {c['hidden_size']}" if tiny else name
            self.add(label, path, file_format, prompt, steps, c["vocab_size"], taps(self.binary, prompt, tap_names(c)))

    def add_tiny(self, folder, root):
        """The tiny configurations of tests/tiny.py: every family and every setting that changes numerics."""
        import sys

        sys.path.insert(0, str(root / "tests"))
        import tiny

        for each in tiny.CONFIGS:
            path = tiny.make(each, Path(folder) / each.name)
            self.add(each.name, path, "tiny", 40, 8, tiny.BASE["vocab_size"])

    def wait(self):
        self.pool.shutdown(wait=True)
        return self.rows
