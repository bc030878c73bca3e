"""DeepSeek-V4: the reference against transformers, right engines, and every planted fault."""

import pytest
import tiny_v4
import torch
from firstdiff.transformers import record as record_transformers
from planted_v4 import BUGS, record
from recording import feed
from tiny import prompt_ids

LIMIT = 5e-5  # on the largest difference of any logit, whose standard deviation is 1.5
TOKENS = 130
IDS, STEPS = prompt_ids(40, seed=5), 9


@pytest.fixture(scope="session")
def v4_folder(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("v4"), {}

    def folder(name):
        if name not in made:
            made[name] = tiny_v4.make(tiny_v4.BY_NAME[name], root / name)
        return made[name]

    return folder


@pytest.mark.parametrize("chunk", [TOKENS, 1, 7, 33], ids=lambda n: f"chunks of {n}")
@pytest.mark.parametrize("config", [c for c in tiny_v4.CONFIGS if c.name != "v4-few-index-heads"], ids=lambda c: c.name)
def test_logits_equal_those_of_transformers(config, chunk, firstdiff, v4_folder, tmp_path, table):
    ids = prompt_ids(TOKENS, seed=5)
    model = tiny_v4.load(config)
    chunks = [ids[i : i + chunk] for i in range(0, TOKENS, chunk)]
    steps = firstdiff.trace(v4_folder(config.name), tmp_path / "t", ids, "--chunk", chunk, "--dtype", "f64", "--taps", "logits")
    rows = torch.cat([step["logits"].double() for step in steps])
    found = float((rows - feed(model, chunks).double()).abs().max())
    table.append([f"{config.name} in chunks of {chunk}", "f64", found, 0.0, 0.0, 0.0])
    assert rows.shape == (TOKENS, tiny_v4.VOCAB) and found <= LIMIT


def test_a_choice_that_rounding_decides_is_reported_and_followed(firstdiff, v4_folder, tmp_path):
    """With four index heads, all are cut off to zero now and then: entries tie, and torch picks another than we do."""
    name = "v4-few-index-heads"
    model = tiny_v4.load(tiny_v4.BY_NAME[name])
    with record_transformers(model, tmp_path / "t"):
        feed(model, [prompt_ids(TOKENS, seed=5)])
    result = firstdiff.check(tmp_path / "t", v4_folder(name))
    assert result.code == 0, str(result)
    ties = [a for a in result.json["ambiguous"] if a["tap"].endswith("index_topk")]
    assert ties and all(a["recorded"] for a in ties), "the engine's own choice was followed, and said so"
    # Where no choice of this trace is ambiguous, and none before it, the logits are the reference's.
    steps = firstdiff.trace(v4_folder(name), tmp_path / "r", prompt_ids(TOKENS, seed=5), "--dtype", "f64", "--taps", "logits")
    expected = feed(model, [prompt_ids(TOKENS, seed=5)]).double()
    apart = (steps[0]["logits"].double() - expected).abs().amax(-1) > LIMIT
    assert apart.nonzero().flatten().min() >= min(min(a["tokens"]) for a in ties)


@pytest.mark.parametrize("attention", [True, False], ids=["all taps", "module outputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["v4", "v4-sensitive"])
def test_a_right_engine_agrees(name, dtype, attention, firstdiff, v4_folder, tmp_path):
    model = tiny_v4.to_dtype(tiny_v4.load(tiny_v4.BY_NAME[name]), dtype)
    trace = record(model, tmp_path / "t", IDS, STEPS, attention=attention)
    result = firstdiff.check(trace, v4_folder(name))
    assert result.code == 0, str(result)
    kinds = {tap.rsplit(".", 1)[-1] for tap in result.json["coverage"]["missing"]}
    if attention:
        # rows that only the compressor itself keeps
        assert kinds == {"comp_kv_rows", "comp_gate_rows", "index_kv_rows", "index_gate_rows"}


def kind_of(tap):
    return tap.rsplit(".", 1)[-1]


@pytest.mark.parametrize("attention", [True, False], ids=["all taps", "module outputs"])
@pytest.mark.parametrize("bug", BUGS, ids=lambda b: f"{b.name} in {b.model}")
def test_a_planted_fault_is_found_where_it_is_and_named(bug, attention, firstdiff, v4_folder, tmp_path, table):
    trace = record(tiny_v4.load(tiny_v4.BY_NAME[bug.model]), tmp_path / "t", IDS, STEPS, bug, attention=attention)
    result = firstdiff.check(trace, v4_folder(bug.model))
    assert result.code == 1, str(result)
    assert kind_of(result.findings[0]["tap"]) in bug.first(not attention), str(result)
    assert {kind_of(tap) for f in result.findings for tap in f["taps"]} <= bug.taps(not attention), str(result)
    layers = {layer for f in result.findings for layer in f["layers"]}
    assert layers <= set(bug.layers) if bug.faint else layers == set(bug.layers), str(result)
    named = {f["cause"]["id"] if f["cause"] else None for f in result.findings}
    table.append([f"{bug.name} in {bug.model}, {'all' if attention else 'modules'}", str(named), 0.0, 0.0, 0.0, 0.0])
    assert named == {bug.cause}, str(result)
