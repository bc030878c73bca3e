"""Everything that is measured on a GPU, in one call that is sure to end.

    python all.py --firstdiff BINARY --bench BINARY --out FOLDER [--work FOLDER] [--parts a,b] [--seconds 540]

Parts run in the order given; each writes what it found to FOLDER/results.json and results.md before the next begins,
and a part that fails says why and loses nothing of the others. README.md says what each part is.
"""

import argparse
import functools
import os
import time
import traceback
from pathlib import Path

import torch
from checkpoints import make
from correctness import WHOLE, Checks, broken_barrier
from gguf_file import FORMATS, OTHER_FORMATS
from kl import compare
from repeat import repeat, seeds, together
from results import Results
from sanitizer import TOOLS, sanitise
from shapes import MODELS, SEVERAL_ROWS, config
from speed import baselines, cublas_at_these_shapes, device_rates, speed

print = functools.partial(print, flush=True)
ROOT = Path(__file__).resolve().parents[4]
PARTS = ("rates", "checkpoints", "speed", "baselines", "check", "tiny", "seeds", "repeat", "together", "kl", "sanitizer", "barrier")
MAIN = "qwen3-0.6b"


class Run:
    def __init__(self, a):
        self.a, self.c = a, config(MAIN, a.tiny)
        self.work = Path(a.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoints = self.work / "checkpoints"
        self.results = Results(a.out)
        self.models = a.models.split(",")
        self.formats = a.formats.split(",")
        self.checks = None
        self.found_rates = None

    def model(self, file_format="bf16", name=MAIN):
        return make(self.checkpoints, name, file_format, self.a.tiny, self.a.device)

    def checker(self):
        if self.checks is None:
            at_once = 2
            self.checks = Checks(self.a.firstdiff, self.work, max(1, (os.cpu_count() or 2) // at_once - 1), at_once)
        return self.checks

    def rates(self):
        if self.found_rates is None:
            self.found_rates = device_rates()
        return self.found_rates

    def checkpoints_(self):
        for name in self.models:
            for file_format in self.formats:
                self.model(file_format, name)
        return {"made": len(self.models) * len(self.formats)}

    def speed(self):
        formats = [f for f in self.a.speed_formats.split(",") if f]
        decode, other = speed(self.a.firstdiff, self.a.bench, self.checkpoints, self.rates(), MAIN, formats, self.a.tiny)
        self.results.put("prefill and taps", {"rows": other} | cublas_at_these_shapes(self.c))
        return {"rows": decode} | self.rates()

    def baselines(self):
        return {"rows": baselines(self.model())}

    def check(self):
        self.checker().add_models(self.checkpoints, self.models, self.formats, self.a.tiny, self.a.device)
        return {"recorded": len(self.checks.rows)}

    def tiny(self):
        self.checker().add_tiny(self.work / "tiny", ROOT)
        formats = (*FORMATS, *OTHER_FORMATS)
        self.checker().add_models(self.work / "several-rows", self.models, formats, SEVERAL_ROWS, self.a.device)
        return {"recorded": len(self.checks.rows)}

    def repeat(self):
        return repeat(self.a.firstdiff, self.model(), self.c["vocab_size"], self.a.repeat_steps)

    def together(self):
        if not self.a.trace:
            return {"skipped": "needs --trace"}
        formats = [f for f in WHOLE if f in self.formats]
        return {f"{n} {f}": together(self.a.trace, self.model(f, n), self.work) for n in self.models for f in formats}

    def seeds(self):
        return seeds(self.a.firstdiff, self.model(), self.c["vocab_size"])

    def kl(self):
        return compare(self.a.firstdiff, self.model(), self.c, self.work, self.a.kl_steps, device=self.a.device)

    def barrier(self):
        if not self.a.trace:
            return {"skipped": "needs --trace"}
        model = make(self.work / "small", MAIN, "bf16", True, self.a.device)
        return broken_barrier(self.a.trace, self.a.firstdiff, model, self.work)

    def sanitizer(self):
        rows = []
        for name in self.models:
            small = config(name, SEVERAL_ROWS)
            for file_format in self.a.sanitizer_formats.split(","):
                path = make(self.work / "several-rows", name, file_format, SEVERAL_ROWS, self.a.device)
                tools = self.a.sanitizer_tools.split(",")
                rows += sanitise(self.a.firstdiff, path, small["vocab_size"], f"{name} {file_format}", tools=tools)
                self.results.put("sanitizer", rows)
        return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--firstdiff", required=True)
    p.add_argument("--bench", help="the example cuda_bench of crates/engine")
    p.add_argument("--trace", help="the example cuda_trace of crates/engine")
    p.add_argument("--out", required=True)
    p.add_argument("--work", default="/tmp/firstdiff-cuda")
    p.add_argument("--parts", default=",".join(PARTS))
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--formats", default=",".join(("bf16", *FORMATS)))
    p.add_argument("--speed-formats", default="bf16,q8_0,q4_k_m")
    p.add_argument("--sanitizer-formats", default="bf16,q4_k_m,mixed_f32")
    p.add_argument("--sanitizer-tools", default=",".join(TOOLS))
    p.add_argument("--repeat-steps", type=int, default=10_000)
    p.add_argument("--kl-steps", type=int, default=1000)
    p.add_argument("--seconds", type=float, default=540, help="no part begins after so many")
    p.add_argument("--tiny", action="store_true", help="tiny shapes: to try the scripts")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    run, started, spent = Run(a), time.time(), []
    for part in a.parts.split(","):
        if time.time() - started > a.seconds:
            run.results.put(part, {"skipped": f"{a.seconds:.0f} s were over"})
            continue
        before = time.time()
        try:
            work = getattr(run, "checkpoints_" if part == "checkpoints" else part)
            value = work()
        except Exception:  # noqa: BLE001
            value = {"failed": traceback.format_exc()[-3000:]}
        run.results.put(part, value)
        spent.append({"part": part, "seconds": round(time.time() - before, 1)})
        run.results.put("time", spent)
        print(f"{part}: {spent[-1]['seconds']} s" + (" FAILED" if "failed" in value else ""))
        if isinstance(value, dict) and "failed" in value:
            print(value["failed"])
        if run.checks:
            run.results.put("verdicts", run.checks.rows)
    if run.checks:
        run.results.put("verdicts", run.checks.wait())
    print(run.results.markdown()[-11000:])
    os._exit(0)


if __name__ == "__main__":
    main()
