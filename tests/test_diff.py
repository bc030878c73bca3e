"""Two traces: a race, another revision, another arithmetic are named as such; beside a broken side the other is cleared."""

import json
import shutil

import bugs
import firstdiff.transformers as firstdiff_transformers
import pytest
import torch
from firstdiff_binary import AGREES, DIVERGES, ERROR, UNMEASURED
from recording import record
from safetensors.torch import load_file, save_file
from tiny import BY_NAME, load, make, prompt_ids

STEPS = 4
TAP = "layers.2.k_rope"


def diff(firstdiff, a, b, *args):
    return firstdiff("diff", a, b, "--format", "json", *args)


@pytest.fixture(scope="module")
def traced(tiny_folder, tmp_path_factory):
    """(model, dtype, attention) -> a right trace, recorded once."""
    made, root = {}, tmp_path_factory.mktemp("diff")

    def trace(name="llama", dtype=torch.float32, attention="eager", ids=None):
        key = (name, dtype, attention)
        if key not in made:
            model = load(tiny_folder(name), dtype, attention)
            made[key] = record(model, root / f"{len(made)}", prompt_ids(12), STEPS)
        return made[key]

    return trace


@pytest.fixture
def again(traced, tmp_path):
    """A copy of the float32 eager trace: a second run of the same engine."""
    shutil.copytree(traced(), tmp_path / "again")
    return tmp_path / "again"


def edit(trace, step, **changes):
    file = trace / f"step-{step:06}.safetensors"
    tensors = load_file(file)
    for name, change in changes.items():
        tensors[name.replace("__", ".")] = change(tensors[name.replace("__", ".")].clone())
    save_file(tensors, file)


def edit_json(trace, **changes):
    about = json.loads((trace / "trace.json").read_text())
    for key, value in changes.items():
        about.pop(key) if value is None else about.update({key: value})
    (trace / "trace.json").write_text(json.dumps(about))


def one_ulp(values):
    flat = values.view(-1)
    flat[5] = torch.nextafter(flat[5], torch.tensor(torch.inf))
    return values


def test_a_repeated_run_is_identical(firstdiff, traced, tiny_folder, tmp_path):
    second = record(load(tiny_folder("llama")), tmp_path / "second", prompt_ids(12), STEPS)
    result = diff(firstdiff, traced(), second)
    assert result.code == AGREES, str(result)
    report = result.json
    assert report["verdict"] == "identical" and report["identical"] and report["moved"] is None
    assert report["circumstances"]["same_engine"] and report["circumstances"]["weights"] == "yes"


def test_two_traces_with_the_same_nan_are_identical_and_the_nan_is_said(firstdiff, traced, again, tmp_path):
    def two_nans(values):
        values.view(-1)[3:5] = torch.nan
        return values

    edit(again, 1, **{TAP: two_nans})
    shutil.copytree(again, tmp_path / "third")
    result = firstdiff("diff", again, tmp_path / "third")
    assert result.code == AGREES and result.stdout.startswith("identical"), str(result)
    assert f"2 elements are NaN in both, first in {TAP} in step 1" in result.stdout, str(result)


def test_one_ulp_in_one_key_is_a_run_that_does_not_repeat(firstdiff, traced, again):
    edit(again, 1, **{TAP: one_ulp})
    result = diff(firstdiff, traced(), again)
    assert result.code == DIVERGES, str(result)
    report = result.json
    assert report["verdict"] == "non-deterministic"
    moved = report["moved"]
    assert (moved["step"], moved["tap"], moved["differ"]) == (1, TAP, 1)
    assert moved["ulps"][1] == 1 and sum(moved["ulps"]) == moved["elements"]
    first = firstdiff("diff", traced(), again).stdout.splitlines()[0]
    assert first.startswith(f"differs: first at {TAP} in step 1"), first
    assert "if nothing was rebuilt between the two, the engine is not deterministic" in first, first


def test_a_race_is_said_before_any_verdict_on_correctness(firstdiff, traced, again, tiny_folder):
    edit(again, 1, **{TAP: one_ulp})
    result = firstdiff("check", traced(), "--model", tiny_folder("llama"), "--beside", again)
    assert result.code == AGREES, str(result)
    first = result.stdout.splitlines()[0]
    assert first.startswith("differs") and TAP in first and "not deterministic" in first, str(result)
    report = firstdiff.check(traced(), tiny_folder("llama"), "--beside", again).json
    assert report["beside"]["diff"]["verdict"] == "non-deterministic"
    # one ulp in a key is rounding, but the cache that was recorded does not hold that key: a cache copies
    assert (report["beside"]["worse"], report["beside"]["other"]["first"]) == ("other", "layers.2.k_cache")


def test_another_environment_is_a_difference_and_no_race(firstdiff, traced, again):
    edit(again, 1, **{TAP: one_ulp})
    about = json.loads((again / "trace.json").read_text())
    edit_json(again, environment={**about["environment"], "torch": "1.0"})
    report = diff(firstdiff, traced(), again).json
    assert report["verdict"] == "agrees", report
    assert [d["key"] for d in report["circumstances"]["differing"]] == ["environment.torch"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_arithmetic_is_named_and_no_bug(dtype, attention, firstdiff, traced):
    result = diff(firstdiff, traced(), traced(dtype=dtype, attention=attention))
    report = result.json
    assert report["verdict"] == "other-arithmetic", str(result)
    assert result.code == AGREES
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert [h["activations"] for h in report["circumstances"]["held"]] == ["f32", name]
    assert all(h["declared"] for h in report["circumstances"]["held"])
    assert max(r["rel_l2"] for r in report["rows"]) < report["circumstances"]["explained"]
    text = firstdiff("diff", traced(), traced(dtype=dtype, attention=attention)).stdout
    assert f"this side holds f32, that side {name}" in text, text


def test_another_arithmetic_is_told_from_the_values_where_it_is_not_declared(firstdiff, traced, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(traced(dtype=torch.bfloat16), half)
    edit_json(half, arithmetic=None)
    report = diff(firstdiff, traced(), half).json
    assert report["verdict"] == "other-arithmetic", report
    held = report["circumstances"]["held"][1]
    assert held == {"profile": "bf16", "activations": "bf16", "weights": "bf16", "declared": False}


@pytest.mark.parametrize("known", [True, False], ids=["fingerprint", "no-fingerprint"])
def test_another_revision_of_the_weights_is_named(known, firstdiff, traced, again, tiny_folder, tmp_path):
    other = make(BY_NAME["llama"], tmp_path / "other", seed=99)
    trace = record(load(other), tmp_path / "trace", prompt_ids(12), 0)
    about = json.loads((trace / "trace.json").read_text())
    assert about["model"]["fingerprint"] != json.loads((again / "trace.json").read_text())["model"]["fingerprint"]
    if not known:
        for one in (trace, again):
            edit_json(one, model=None)
    result = diff(firstdiff, again, trace)
    assert result.code == DIVERGES, str(result)
    assert result.json["verdict"] == "other-weights" and result.json["circumstances"]["weights"] == "no"
    text = firstdiff("diff", again, trace).stdout
    assert "nothing here is a kernel bug until both run the same file" in text, text
    beside = firstdiff("check", again, "--model", tiny_folder("llama"), "--beside", trace)
    assert beside.stdout.startswith("other weights"), str(beside)
    if known:
        refused = firstdiff("check", trace, "--model", tiny_folder("llama"))
        assert refused.code == ERROR and "recorded with other weights" in refused.stderr, str(refused)


def test_the_recorder_writes_the_fingerprint_that_inspect_prints(firstdiff, traced, tiny_folder):
    for name in ("llama", "llama-bf16", "qwen2"):
        about = json.loads((traced(name) / "trace.json").read_text())
        printed = firstdiff("inspect", tiny_folder(name), "--format", "json").json["fingerprint"]
        assert about["model"]["fingerprint"] == printed


def test_weights_that_are_not_the_files_get_no_fingerprint(tiny_folder, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_folder("llama"))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    trace = record(model, tmp_path / "trace", prompt_ids(5), 0)
    assert "fingerprint" not in json.loads((trace / "trace.json").read_text())["model"]


@pytest.mark.parametrize("bug", [bugs.other_rope_theta, bugs.v_head_shifted_when_stored, bugs.attention_scale_missing])
def test_beside_a_broken_trace_the_other_side_is_worse(bug, firstdiff, traced, tiny_folder, tmp_path):
    model = load(tiny_folder("llama"), torch.bfloat16)
    with bug(model):
        broken = record(model, tmp_path / "broken", prompt_ids(12), STEPS)
    right, folder = traced(), tiny_folder("llama")
    report = firstdiff.check(right, folder, "--beside", broken)
    assert report.code == AGREES, str(report)
    beside = report.json["beside"]
    assert beside["worse"] == "other" and beside["this"]["verdict"] == "agrees"
    assert beside["other"]["verdict"] == "diverges"
    wrong = [row for row in beside["rows"] if row["worse"] != "neither"]
    assert wrong and all(row["worse"] == "other" for row in wrong)
    assert beside["other"]["logits"] > beside["this"]["logits"]
    assert "the other side is worse" in firstdiff("check", right, "--model", folder, "--beside", broken).stdout
    swapped = firstdiff.check(broken, folder, "--beside", right)
    assert swapped.code == DIVERGES and swapped.json["beside"]["worse"] == "this", str(swapped)


def test_two_right_traces_in_two_arithmetics_are_neither_worse(firstdiff, traced, tiny_folder):
    report = firstdiff.check(traced(), tiny_folder("llama"), "--beside", traced(dtype=torch.bfloat16)).json
    assert report["beside"]["worse"] == "neither" and report["beside"]["first"] is None
    assert report["beside"]["other"]["logits"] > 100 * report["beside"]["this"]["logits"]


def test_a_prompt_in_chunks_is_compared_row_by_row(firstdiff, tiny_folder, tmp_path):
    ids = ["--steps", STEPS, "--dtype", "f64"]
    firstdiff.trace(tiny_folder("qwen3"), tmp_path / "whole", prompt_ids(12), *ids)
    firstdiff.trace(tiny_folder("qwen3"), tmp_path / "chunks", prompt_ids(12), *ids, "--chunk", 5)
    result = diff(firstdiff, tmp_path / "whole", tmp_path / "chunks")
    report = result.json
    assert result.code == AGREES and report["verdict"] == "agrees", str(result)
    assert report["by_rows"] and "layers.*.attn_probs" in report["not_compared"]
    rows = {(r["step"], r["tap"]): r["elements"] for r in report["rows"]}
    assert rows[0, "layers.0.out"] == 12 * 64 and rows[0, "logits"] == 12 * 96


def test_a_wrong_row_is_found_whatever_the_chunks(firstdiff, tiny_folder, tmp_path):
    firstdiff.trace(tiny_folder("llama"), tmp_path / "whole", prompt_ids(12), "--steps", 1)
    firstdiff.trace(tiny_folder("llama"), tmp_path / "chunks", prompt_ids(12), "--steps", 1, "--chunk", 5)

    def negate(values):
        values[1] *= -1
        return values

    edit(tmp_path / "chunks", 1, layers__1__q_proj=negate)
    report = diff(firstdiff, tmp_path / "whole", tmp_path / "chunks").json
    assert (report["verdict"], report["first"]["tap"]) == ("differs", "layers.1.q_proj")
    assert report["first"]["worst"]["index"][0] == 6


def test_the_metrics_are_those_of_a_plain_loop(firstdiff, traced):
    a, b = traced(), traced(dtype=torch.bfloat16)
    report = diff(firstdiff, a, b).json
    x, y = (load_file(t / "step-000000.safetensors") for t in (a, b))
    for row in (r for r in report["rows"] if r["step"] == 0):
        p, q = x[row["tap"]].double().flatten(), y[row["tap"]].double().flatten()
        assert row["differ"] == int((p != q).sum())
        assert row["max_abs"] == float((p - q).abs().max())
        assert row["rel_l2"] == pytest.approx(float((p - q).norm() / p.norm()), rel=1e-9)
        assert row["cosine"] == pytest.approx(float(p @ q / p.norm() / q.norm()), rel=1e-9)


def test_results_do_not_depend_on_threads(firstdiff, traced):
    a, b = traced(), traced(dtype=torch.float16)
    assert diff(firstdiff, a, b, "--threads", 1).stdout == diff(firstdiff, a, b, "--threads", 3).stdout


def test_what_is_not_finite_is_found_and_printed(firstdiff, traced, again):
    def spoil(values):
        values.view(-1)[7] = torch.nan
        return values

    edit(again, 0, layers__1__mlp_act=spoil)
    edit_json(again, producer={"name": "another"})
    report = diff(firstdiff, traced(), again).json
    assert (report["verdict"], report["first"]["tap"]) == ("differs", "layers.1.mlp_act")
    assert report["first"]["worst"]["values"][1] is None
    assert firstdiff("diff", traced(), again).code == DIVERGES


def test_logits_alone_are_given_the_depth_of_a_model(firstdiff, traced, tiny_folder, tmp_path):
    ids = prompt_ids(12)
    for name, chunk in (("whole", 12), ("chunks", 5)):
        firstdiff.trace(tiny_folder("llama"), tmp_path / name, ids, "--taps", "logits", "--chunk", chunk)
    report = diff(firstdiff, tmp_path / "whole", tmp_path / "chunks").json
    deep = diff(firstdiff, traced(), tmp_path / "chunks").json
    assert report["rows"][0]["explained"] > deep["rows"][0]["explained"] > 0


def test_steps_of_one_side_only_are_said(firstdiff, traced, again):
    (again / f"step-{STEPS:06}.safetensors").unlink()
    assert diff(firstdiff, traced(), again).json["steps"] == [STEPS + 1, STEPS]
    text = firstdiff("diff", traced(), again).stdout
    assert any(line.startswith("steps ") for line in text.splitlines()), text


def test_traces_without_a_common_value_are_unmeasured(firstdiff, tiny_folder, tmp_path):
    for taps in ("logits", "embed"):
        firstdiff.trace(tiny_folder("llama"), tmp_path / taps, prompt_ids(5), "--steps", 0, "--taps", taps)
    result = firstdiff("diff", tmp_path / "logits", tmp_path / "embed")
    assert result.code == UNMEASURED and "record the same taps" in result.stdout, str(result)


def test_a_trace_without_steps_is_named_as_such(firstdiff, traced, again):
    for file in again.glob("step-*"):
        file.unlink()
    result = firstdiff("diff", traced(), again)
    assert result.code == UNMEASURED and "the second trace has no steps" in result.stdout, str(result)


def test_a_bos_at_the_front_of_one_trace_is_named(firstdiff, traced, tiny_folder, tmp_path):
    firstdiff.trace(tiny_folder("llama"), tmp_path / "bos", [1, *prompt_ids(12)], "--steps", 1)
    result = firstdiff("diff", traced(), tmp_path / "bos")
    assert result.code == ERROR and "the second has one token more at the front, 1: a BOS?" in result.stderr, str(result)


def test_the_sequences_of_two_batches_are_compared_by_their_prompts(firstdiff, tiny_folder, tmp_path):
    """The same engine with its batch in another order; then with one row wrong."""
    prompts, model = [prompt_ids(7), prompt_ids(7, seed=4)], load(tiny_folder("llama"))

    def batch(name, order):
        ids = torch.tensor([prompts[i] for i in order])
        with firstdiff_transformers.record(model, tmp_path / name, taps=["layers.*.out", "logits"]):
            model(ids, use_cache=True)
        return tmp_path / name

    a, b = batch("a", [0, 1]), batch("b", [1, 0])
    report = diff(firstdiff, a, b).json
    assert report["renumbered"] == [[0, 1], [1, 0]] and report["unpaired"] == [0, 0], report
    assert report["verdict"] in ("identical", "agrees") and report["rows"], report

    def negate(values):
        values[2] *= -1  # the third token of what is sequence 1 of the first trace
        return values

    edit(b, 0, layers__1__out=negate)
    report = diff(firstdiff, a, b).json
    assert (report["verdict"], report["first"]["tap"]) == ("differs", "layers.1.out"), report
    assert report["first"]["worst"]["index"][0] == 7 + 2


def test_other_prompts_and_other_models_are_refused(firstdiff, traced, tiny_folder, tmp_path):
    other = record(load(tiny_folder("llama")), tmp_path / "other", prompt_ids(12, seed=3), STEPS)
    result = diff(firstdiff, traced(), other)
    assert result.code == ERROR and "different tokens" in result.stderr, str(result)
    result = diff(firstdiff, traced("llama"), traced("llama-head-dim"))
    assert result.code == ERROR and "has shape" in result.stderr, str(result)
    result = firstdiff("check", traced(), "--model", tiny_folder("llama"), "--beside", tmp_path / "nothing")
    assert result.code == ERROR and "nothing" in result.stderr, str(result)


def test_check_says_that_a_trace_may_hold_other_weights(firstdiff, tiny_folder, tmp_path):
    other = make(BY_NAME["llama"], tmp_path / "revision", seed=77)
    trace = record(load(other), tmp_path / "trace", prompt_ids(12), 1)
    about = json.loads((trace / "trace.json").read_text())
    about["model"].pop("fingerprint", None)
    (trace / "trace.json").write_text(json.dumps(about))
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.findings[0]["tap"] == "embed", str(result)
    assert any("other weights" in note for note in result.json["notes"]), str(result)
