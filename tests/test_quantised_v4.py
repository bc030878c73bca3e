"""A DeepSeek-V4 in the release's layout, FP8 and FP4, gives exactly what its dequantised twin gives."""

import json

import pytest
import quantised as q
import tiny
import tiny_v4
import torch
from firstdiff_binary import AGREES
from safetensors.torch import load_file

IDS = tiny.prompt_ids(45)
SETTINGS = {**q.FP8, "scale_fmt": "ue8m0"}


def is_quantised(name):
    return bool(q.V4_FP8.search(name) or q.V4_FP4.search(name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("v4")
    source = tiny_v4.make(tiny_v4.TinyV4("v4-quantised", schedule="ratios"), root / "source")
    return q.quantise(source, root, q.as_released_v4, SETTINGS, is_quantised)


def test_fp8_and_fp4_in_the_releases_layout_give_the_logits_of_the_twin(firstdiff, folders, tmp_path):
    model, twin = folders
    types = {str(t.dtype) for n, t in load_file(model / "model.safetensors").items() if is_quantised(n)}
    assert types == {"torch.float8_e4m3fn", "torch.int8"}
    ours = [s["logits"] for s in firstdiff.trace(model, tmp_path / "a", IDS, "--steps", "3")]
    theirs = [s["logits"] for s in firstdiff.trace(twin, tmp_path / "b", IDS, "--steps", "3")]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    manifest = json.loads((tmp_path / "b" / "trace.json").read_text())
    del manifest["model"]["fingerprint"]
    (tmp_path / "b" / "trace.json").write_text(json.dumps(manifest))
    result = firstdiff.check(tmp_path / "b", model)
    assert result.code == AGREES, str(result)
    usage = {t["usage"] for t in firstdiff("inspect", model, "--format", "json").json["tensors"]}
    assert "unused" not in usage


def test_a_slice_of_it_and_parts_side_by_side(firstdiff, folders, tmp_path):
    model, _ = folders
    firstdiff.trace(model, tmp_path / "a", IDS, "--steps", "3")
    whole = firstdiff.check(tmp_path / "a", model)
    assert whole.code == AGREES, str(whole)
    assert firstdiff.check(tmp_path / "a", model, "--jobs", "3").stdout == whole.stdout
    part = firstdiff.check(tmp_path / "a", model, "--layers", "2,4")
    assert part.code == AGREES and part.json["coverage"]["layers"] == {"checked": [2, 4], "of": 5}, str(part)
