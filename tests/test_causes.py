"""Causes, on a sample of what `cargo dev bench causes` measures whole: pairs, faults of no class, exports, loading."""

import json
import sys
from pathlib import Path

import pytest
from firstdiff_binary import AGREES, DIVERGES, ERROR
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "crates" / "dev" / "python"))

from engine import record  # noqa: E402
from engine.faults import FAULTS  # noqa: E402
from engine.faults.stacks import STACKS  # noqa: E402

UNKNOWN = [title for title, fault in FAULTS.items() if not fault.id]


def names(finding):
    cause = finding["cause"]
    return {cause["id"], *(equal["id"] for equal in cause["equal"])} if cause else set()


@pytest.mark.parametrize("titles", STACKS[::4], ids=" + ".join)
def test_two_faults_give_two_findings_each_with_its_cause(titles, firstdiff, tmp_path):
    faults = [FAULTS[title] for title in titles]
    recorded = record(faults[0].model, "bf16", tmp_path / "trace", faults=faults)
    result = firstdiff.check(recorded.trace, recorded.model)
    for fault in faults:
        assert any(fault.id in names(finding) for finding in result.findings), str(result)


@pytest.mark.parametrize("title", UNKNOWN[::3])
def test_a_fault_of_no_class_is_located_and_not_named(title, firstdiff, tmp_path):
    fault = FAULTS[title]
    arithmetic = "f32" if "f32" in fault.arithmetics else fault.arithmetics[0]
    recorded = record(fault.model, arithmetic, tmp_path / "trace", faults=[fault])
    result = firstdiff.check(recorded.trace, recorded.model)
    first = result.findings[0]
    assert first["tap"].rsplit(".", 1)[-1] in fault.first, str(result)
    assert first["cause"] is None, str(result)


@pytest.mark.parametrize("variant", ["buffer", "norm", "poison", "unwritten"])
def test_words_read_before_they_are_written_are_one_cause_up_to_the_cache(variant, firstdiff, tmp_path):
    fault = FAULTS[f"race-cross-block-visibility.{variant}"]
    recorded = record(fault.model, "bf16", tmp_path / "trace", faults=[fault])
    first = firstdiff.check(recorded.trace, recorded.model).findings[0]
    assert names(first) == {fault.id}
    kinds = {tap.rsplit(".", 1)[-1] for tap in first["taps"]}
    assert kinds >= {"v_cache", *fault.first}


def test_rows_that_are_wrong_in_one_step_alone_were_overwritten_while_they_were_read(firstdiff, tmp_path):
    fault = FAULTS["race-shared-memory.slot"]
    for steps, cause in [(fault.step + 1, {fault.id}), (fault.step, set())]:
        recorded = record(fault.model, "bf16", tmp_path / str(steps), faults=[fault], steps=steps)
        first = firstdiff.check(recorded.trace, recorded.model).findings[0]
        # Without a step after it, they may as well have stayed wrong.
        assert (first["tap"], names(first)) == ("layers.1.v_cache", cause)


PROMPT = 12
# (steps, row, layer): where head 1 of the values is read as something else
STRIKES = {
    "a decoded row": ([(4, PROMPT + 1, 1)], True),
    "twice, elsewhere": ([(2, 4, 1), (4, 7, 1)], True),
    "once, and for good from the next but one on": ([(2, 4, 1), (4, 4, 1), (5, 4, 1), (6, 4, 1)], False),
    "once, and for good in another layer": ([(2, 4, 1), *((step, 4, 2) for step in range(2, 7))], False),
}


@pytest.mark.parametrize("places, named", STRIKES.values(), ids=STRIKES)
def test_what_stays_wrong_is_no_race(places, named, firstdiff, tiny_folder, tmp_path):
    trace = tmp_path / "trace"
    taps = "embed,layers.*.out,layers.*.v_proj,layers.*.v_cache"
    firstdiff.trace(tiny_folder("llama"), trace, range(1, PROMPT + 1), "--steps", 6, "--taps", taps)
    for step, row, layer in places:
        path = trace / f"step-{step:06d}.safetensors"
        tensors = load_file(path)
        values = tensors[f"layers.{layer}.v_cache"]
        values[row, 1] = 1.5 * values[row - 1, 1, ::-1] + 0.1
        with safe_open(path, "np") as old:
            save_file(tensors, path, metadata=old.metadata())
    found = firstdiff.check(trace, tiny_folder("llama")).findings
    assert found[0]["tap"] == "layers.1.v_cache"
    assert names(found[0]) == ({"race-shared-memory"} if named else set()), found[0]


def test_an_operation_is_exported_with_all_that_it_takes_to_run_it(firstdiff, tmp_path):
    fault = FAULTS["qkv-bias-missing"]
    recorded = record(fault.model, "f32", tmp_path / "trace", faults=[fault])
    only = ("--only", "0:layers.1.k_proj", "--export")
    done = firstdiff("check", recorded.trace, "--model", recorded.model, *only, tmp_path / "out")
    assert done.code == AGREES, str(done)
    inputs, weights, engine, reference = (
        load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("inputs", "weights", "engine", "reference")
    )
    x = inputs["layers.1.attn_norm"].astype("float64")
    product = x @ weights["model.layers.1.self_attn.k_proj.weight"].T.astype("float64")
    bias = weights["model.layers.1.self_attn.k_proj.bias"].astype("float64")
    assert abs(reference["layers.1.k_proj"] - (product + bias)).max() < 1e-9  # both in float64
    assert abs(engine["layers.1.k_proj"] - product).max() < abs(bias).max() / 100  # the bug: no bias
    page = (tmp_path / "out" / "README.md").read_text()
    assert "layers.1.k_proj" in page and "weights.safetensors" in page
    again = firstdiff("check", recorded.trace, "--model", recorded.model, *only, tmp_path / "out")
    assert again.code == ERROR and "not empty" in again.stderr
    for bad, says in [("0:layers.1.k_projj", "layers.*.k_proj"), ("99:embed", "steps 0.."), ("embed", "0:layers.3.q_rope")]:
        result = firstdiff("check", recorded.trace, "--model", recorded.model, "--only", bad, "--export", tmp_path / "other")
        assert result.code == ERROR and says in result.stderr, str(result)
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("title, line", [
    ("qkv-bias-missing", "q_proj.bias, v_proj.bias of all 4 layers are zero in what the engine used"),
    ("qkv-bias-missing.k", "k_proj.bias of all 4 layers is zero in what the engine used"),
])  # fmt: skip
def test_parameters_that_were_never_loaded_are_said_before_anything_else(title, line, firstdiff, tmp_path):
    fault = FAULTS[title]
    recorded = record(fault.model, "bf16", tmp_path / "trace", faults=[fault])
    text = firstdiff("check", recorded.trace, "--model", recorded.model)
    assert line in text.stdout and text.stdout.index(line) < text.stdout.index("segment"), str(text)
    inspected = firstdiff("inspect", recorded.model, "--trace", recorded.trace)
    assert line in inspected.stdout and inspected.code == DIVERGES, str(inspected)
    unloaded = json.loads(firstdiff("inspect", recorded.model, "--trace", recorded.trace, "--format", "json").stdout)["unloaded"]
    assert unloaded[0]["of"] == 4 and unloaded[0]["holds"] == "zero"
    healthy = record(fault.model, "bf16", tmp_path / "healthy")
    assert "not loaded" not in firstdiff("inspect", recorded.model, "--trace", healthy.trace).stdout
