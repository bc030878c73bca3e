"""Runs one case: records the trace, asks `firstdiff check`, and holds the answer against where the fault was planted."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

import effect
from planted import ENDS, LAYER, kind_of


@dataclass
class Outcome:
    """What one binary said of one case."""

    code: int = -1
    verdict: str = ""
    findings: list = field(default_factory=list)
    closest: list = field(default_factory=list)
    expected: tuple = ()  # (step, tap)
    effect: float = 0.0  # of a fault: its size at the expected tap, in single roundings
    right: bool = False  # agrees, or the expected tap named first
    planted: str = ""
    seconds: tuple = ()  # of processor time: to record, to check
    silent: str = ""  # why there is no answer: refused, crash, timeout; or bench, where the trace could not be made
    error: str = ""
    taps: int = 0
    extra: dict = field(default_factory=dict)

    def as_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, kept):
        kept["expected"], kept["seconds"] = tuple(kept["expected"]), tuple(kept["seconds"])
        return cls(**kept)


class NoAnswer(Exception):
    """`check` ended without a verdict."""

    def __init__(self, silent, text):
        super().__init__(text)
        self.silent = silent


@cache
def identity(binary):
    """Of a build: outcomes are kept under it."""
    return hashlib.sha256(Path(binary).read_bytes()).hexdigest()[:16]


def steps_of(trace):
    return [load_file(path) for path in sorted(Path(trace).glob("step-*.safetensors"))]


WAITING = 20  # times the limit: how long a check may stand, where other programs have the processor


def check(binary, trace, model, limit):
    """Exit code and the result. `limit` is in seconds of processor time."""
    command = [binary, "check", trace, "--model", model, "--format", "json", "--threads", "1"]
    most = lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, preexec_fn=most,
                              timeout=WAITING * limit)
    except subprocess.TimeoutExpired:
        raise NoAnswer("timeout", f"no answer within {WAITING * limit:g} s") from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise NoAnswer("timeout", f"no answer within {limit:g} s of processor time")
    if done.returncode not in (0, 1, 3):
        kind = "refused" if done.returncode == 2 else "crash"
        raise NoAnswer(kind, f"exit {done.returncode}: {done.stderr[-1500:]}")
    return done.returncode, json.loads(done.stdout)


def run(case, engines, binaries, scratch, limit):
    """The outcomes of `case`, one for each binary, from the same trace; it lives in `scratch` meanwhile."""
    trace, twin = scratch / "trace", scratch / "twin"
    for folder in (trace, twin):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    acted = case.write(engines, trace, True)
    about = {}
    if case.fault:
        about = where(case, engines, acted, trace, twin)
    recorded = time.process_time() - started
    return [answer(case, case.path(engines), binary, trace, about, recorded, limit) for binary in binaries]


def where(case, engines, acted, trace, twin):
    """Where a fault has to be found, and how large it is there."""
    layers = case.layers(engines)
    wrong = steps_of(trace)
    shows = list(showing(acted, wrong, layers))
    about = {"effect": 0.0, "extra": {}}
    if shows and case.measured:
        case.write(engines, twin, False)
        right, unit = steps_of(twin), lambda tap, values: case.unit(engines, tap, values)
        sizes = [effect.size(unit, step, tap, wrong, right) for step, _, tap in shows]
        first = next((n for n, one in enumerate(sizes) if one >= 1), 0)
        about["effect"], shows = sizes[first], shows[first:]
    if shows:
        about["planted"], about["expected"] = shows[0][1], shows[0][0::2]
        about["extra"] = {"steps": sorted({step for step, _, tap in shows if tap == shows[0][2]})}
    return about


def answer(case, model, binary, trace, about, recorded, limit):
    outcome = Outcome(**{**about, "extra": dict(about.get("extra", {}))})
    started = of_children()
    try:
        outcome.code, report = check(binary, trace, model, limit)
        outcome.verdict, outcome.closest = report["verdict"], report.get("closest") or []
        outcome.taps = report["coverage"]["taps"]
        keys = ("step", "tap", "layers", "steps", "segment", "operations", "ratio", "scale", "where")
        outcome.findings = [{key: one.get(key) for key in keys} for one in report["findings"][:4]]
        outcome.extra |= {"arithmetic": report["arithmetic"], "tokens": report.get("tokens")}
        outcome.right = judged(case, outcome)
    except NoAnswer as none:
        outcome.verdict, outcome.silent, outcome.error = "none", none.silent, str(none)
    outcome.seconds = (recorded, of_children() - started)
    return outcome


def of_children():
    """Processor time of every check so far: this process runs one at a time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


SHOWN = 6  # occasions looked at: a fault in every layer acts in hundreds


def showing(acted, steps, layers):
    """Where a fault shows first on each occasion on which it acted: (step, operation, recorded tap)."""
    for step, tap in acted[:SHOWN]:
        try:
            yield step, tap, first_wrong_of(tap, steps[step], layers)
        except ValueError:
            continue


# What a mixture of experts puts in the place of a dense MLP's taps.
EXPERTS = {
    "router_logits": ("linear", ["mlp_norm"]),
    "router_weights": ("router_weights", ["router_logits"]),
    "experts_out": ("experts", ["mlp_norm", "router_logits", "router_weights"]),
}


def program(layers):
    """Every tap in order, with what it is computed from."""
    order = {"embed": []}
    for n in range(layers):
        before = "embed" if n == 0 else f"layers.{n - 1}.out"
        for kind, (_, sources) in LAYER.items():
            if kind == "gate_proj":
                order |= {f"layers.{n}.{k}": [f"layers.{n}.{s}" for s in reads] for k, (_, reads) in EXPERTS.items()}
            order[f"layers.{n}.{kind}"] = [before if s == "in" else f"layers.{n}.{s}" for s in sources]
        order[f"layers.{n}.out"].append(f"layers.{n}.experts_out")
    last = {"last": f"layers.{layers - 1}.out"}
    return order | {tap: [last.get(s, s) for s in sources] for tap, (_, sources) in ENDS.items() if tap != "embed"}


def first_wrong_of(tap, step, layers):
    order = program(layers)
    changed, names = {tap}, list(order)
    for later in names[names.index(tap):]:
        if later == tap or changed & set(order[later]):
            changed.add(later)
            if later in step:
                return later
    raise ValueError(f"nothing recorded shows {tap}")


def judged(case, outcome):
    """Whether the verdict is right, and the first finding at the right place."""
    if case.fault is None:
        return case.accepts(outcome.verdict)
    if outcome.verdict != "diverges" or not outcome.findings or not outcome.expected:
        return False
    first = outcome.findings[0]
    inside = kind_of(outcome.planted) in {kind_of(op) for op in first["operations"]}
    return inside and first["tap"] == outcome.expected[1] and first["step"] in outcome.extra["steps"]
