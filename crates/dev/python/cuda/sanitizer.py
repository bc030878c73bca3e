"""NVIDIA's compute-sanitizer over a short run of the engine."""

import re
from collections import Counter

from correctness import tokens
from results import call

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def sanitise(binary, model, vocab, label, prompt=9, steps=4, tools=TOOLS):
    rows = []
    ids = ",".join(map(str, tokens(prompt, vocab)))
    for tool in tools:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", "--print-limit", "0", binary, "run", model]
        command += ["--backend", "cuda", "--tokens", ids, "-n", steps, "--ignore-stop", "--format", "json"]
        try:
            done = call(command, 200, ok=None)
            summary = [line for line in (done["stdout"] + done["stderr"]).splitlines() if "SUMMARY" in line]
            first = [line for line in (done["stdout"] + done["stderr"]).splitlines() if line.startswith("=========")]
            row = {"code": done["code"], "summary": " ".join(summary)[:200], "seconds": round(done["seconds"], 1)}
            # cuBLAS multiplies prompts, and racecheck finds fault with some of its kernels too.
            row["by kernel"] = dict(Counter(name for line in first for name in re.findall(r"between \w+ access at (\w+)", line)))
            if done["code"] != 0:
                row["first lines"] = " / ".join(first[:12])[:1500] or done["stderr"][-500:]
        except Exception as error:  # noqa: BLE001 - a tool that is missing must not lose the others
            row = {"code": None, "summary": str(error)[-300:]}
        rows.append({"model": label, "tool": tool} | row)
    return rows
