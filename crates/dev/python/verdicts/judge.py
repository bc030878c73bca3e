"""Runs one case: records the trace, asks `firstdiff check`, and holds the answer against where the fault was planted."""

import json
import shutil
import subprocess
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

import effect
from engines import prompt, record
from planted import kind_of, parents, program


@dataclass
class Outcome:
    """What came out of one case."""

    index: int
    code: int
    verdict: str
    findings: list
    closest: list
    expected: tuple = ()  # (step, tap)
    effect: float = 0.0  # of a fault: its size at the expected tap, in single roundings
    right: bool = False  # agrees, or the expected tap named first
    planted: str = ""
    seconds: tuple = ()
    error: str = ""
    size: int = 0
    taps: int = 0
    extra: dict = field(default_factory=dict)


def steps_of(trace):
    return [load_file(path) for path in sorted(Path(trace).glob("step-*.safetensors"))]


def check(binary, trace, model):
    while not Path(binary).exists():
        time.sleep(1)  # being rebuilt
    command = [binary, "check", trace, "--model", model, "--format", "json", "--threads", "1"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-1500:]}")
    return done.returncode, json.loads(done.stdout)


def run(index, case, engines, binary, scratch):
    """The outcome of `case`; its traces live in `scratch` meanwhile."""
    trace, twin = scratch / "trace", scratch / "twin"
    for folder in (trace, twin):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    model, path = engines.load(*case.engine), engines.path(case.model)
    ids = prompt(case.model, 10 + case.seed, case.prompt)
    outcome = Outcome(index, -1, "", [], [])

    def make(folder, wrong):
        plant = case.fault.plant(model, wrong) if case.fault else nullcontext()
        with case.right(model), plant as stage:
            record(model, folder, ids, case.run, case.taps, case.steps, case.declared)
        return stage

    stage = make(trace, wrong=True)
    if case.fault:
        acted = stage.acted if stage else [(case.fault.step, full_tap(case.fault))]
        shows = [(step, planted, tap) for step, planted, tap in showing(acted, steps_of(trace), model)]
        if shows and case.measured:
            make(twin, wrong=False)
            wrong, right = steps_of(trace), steps_of(twin)
            sizes = [effect.size(case, model, step, tap, wrong, right) for step, _, tap in shows]
            first = next((n for n, one in enumerate(sizes) if one >= 1), 0)
            outcome.effect, shows = sizes[first], shows[first:]
        if shows:
            outcome.planted, outcome.expected = shows[0][1], shows[0][0::2]
            outcome.extra["steps"] = sorted({step for step, _, tap in shows if tap == shows[0][2]})
    recorded = time.perf_counter()
    outcome.code, report = check(binary, trace, path)
    outcome.verdict, outcome.closest = report["verdict"], report.get("closest") or []
    outcome.taps = report["coverage"]["taps"]
    keys = ("step", "tap", "layers", "steps", "segment", "operations", "ratio", "scale", "where")
    outcome.findings = [{key: one.get(key) for key in keys} for one in report["findings"][:4]]
    outcome.extra |= {"arithmetic": report["arithmetic"], "tokens": report.get("tokens")}
    outcome.right = judged(case, outcome)
    outcome.seconds = (recorded - started, time.perf_counter() - recorded)
    return outcome


def full_tap(fault):
    """Of a fault that is no stage: the first layer it says it is in."""
    return fault.tap if fault.layers == () else f"layers.{fault.layers[0]}.{fault.tap}"


SHOWN = 6  # occasions looked at: a fault in every layer acts in hundreds


def showing(acted, steps, model):
    """Where a fault shows first on each occasion on which it acted: (step, operation, recorded tap)."""
    for step, tap in acted[:SHOWN]:
        try:
            yield step, tap, first_wrong_of(tap, steps[step], model)
        except ValueError:
            continue


def first_wrong_of(tap, step, model):
    layers = model.config.num_hidden_layers
    order = program(layers)
    changed = {tap}
    for later in order[order.index(tap):]:
        if later == tap or changed & set(parents(later, layers)):
            changed.add(later)
            if later in step:
                return later
    raise ValueError(f"nothing recorded shows {tap}")


def judged(case, outcome):
    """Whether the verdict is right, and the first finding at the right place."""
    if case.fault is None:
        return outcome.verdict == "agrees"
    if outcome.verdict != "diverges" or not outcome.findings or not outcome.expected:
        return False
    first = outcome.findings[0]
    inside = kind_of(outcome.planted) in {kind_of(op) for op in first["operations"]}
    return inside and first["tap"] == outcome.expected[1] and first["step"] in outcome.extra["steps"]
