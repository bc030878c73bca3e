"""MiniMind by its own configuration and by its exports, against tests/minimind.py."""

import json

import minimind
import pytest
import torch
from firstdiff_binary import AGREES
from test_parity import IDS, LIMIT, logits
from tiny import load


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("minimind")
    return lambda mini: minimind.make(mini, root / mini.name)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("mini", minimind.CONFIGS, ids=lambda mini: mini.name)
def test_logits_are_those_of_its_description(mini, dtype, firstdiff, folders, tmp_path, table):
    folder, expected = folders(mini), minimind.logits(mini, IDS)
    found = []
    for number, options in enumerate(([], ["--chunk", 1], ["--chunk", 7])):
        steps = firstdiff.trace(folder, tmp_path / str(number), IDS, *options, "--dtype", dtype, "--taps", "logits")
        found.append(float((logits(steps) - expected).abs().max()))
    table.append([mini.name, dtype, *found, found[0]])
    assert 0.5 < float(expected.std()), "logits of another size would make the limit mean something else"
    assert max(found) <= LIMIT, found


@pytest.mark.parametrize("mini", [m for m in minimind.CONFIGS if m.export], ids=lambda mini: mini.name)
def test_the_description_is_what_transformers_computes_of_the_export(mini, folders):
    model = load(folders(mini))
    assert float((model(torch.tensor([IDS])).logits[0].double() - minimind.logits(mini, IDS)).abs().max()) <= LIMIT


@pytest.mark.parametrize("name", ["minimind-3-moe", "minimind-2-moe"])
def test_a_trace_of_the_reference_itself_agrees(name, firstdiff, folders, tmp_path):
    folder = folders(next(m for m in minimind.CONFIGS if m.name == name))
    firstdiff.trace(folder, tmp_path / "trace", IDS, "--steps", 4, "--dtype", "f32")
    result = firstdiff.check(tmp_path / "trace", folder)
    assert result.code == AGREES, str(result)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scoring_func": "sigmoid"}, "scoring_func"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(change, says, firstdiff, tmp_path):
    mini = minimind.MiniMind("minimind-2-moe", False, {**minimind.MOE2, **change})
    folder = minimind.make(minimind.CONFIGS[5], tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(mini.settings()))
    result = firstdiff("inspect", folder)
    assert result.code == 2 and says in result.stderr, str(result)
