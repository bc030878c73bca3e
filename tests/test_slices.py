"""Models larger than memory: some layers checked from their shards alone, parts side by side, little kept in memory."""

import json
import shutil

import pytest
import tiny
import torch
from firstdiff_binary import AGREES, DIVERGES, ERROR
from recording import record
from safetensors.torch import load_file, save_file

IDS = tiny.prompt_ids(17)


@pytest.fixture(scope="module")
def sharded(tiny_folder, tmp_path_factory):
    """A Qwen3 with a shard for each layer and one for the rest, and its trace."""
    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path_factory.mktemp("sharded") / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard = lambda name: f"layer-{name.split('.')[2]}.safetensors" if ".layers." in name else "rest.safetensors"
    index = {name: shard(name) for name in tensors}
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    trace = record(tiny.load(tiny_folder("qwen3")), folder.parent / "trace", IDS, 2)
    return folder, trace


def without(folder, tmp_path, *shards):
    part = shutil.copytree(folder, tmp_path / "part")
    for shard in shards:
        (part / shard).unlink()
    return part


def test_some_layers_are_checked_from_their_shards_alone(firstdiff, sharded, tmp_path):
    folder, trace = sharded
    part = without(folder, tmp_path, "layer-0.safetensors", "layer-2.safetensors", "rest.safetensors")
    assert firstdiff.check(trace, part).code == ERROR, "without --layers every shard is needed"
    result = firstdiff.check(trace, part, "--layers", "1,3")
    assert result.code == AGREES, str(result)
    coverage = result.json["coverage"]
    assert coverage["layers"] == {"checked": [1, 3], "of": 4}
    assert result.json["tokens"] is None
    text = firstdiff("check", trace, "--model", part, "--layers", "1,3").stdout
    assert text.startswith("agrees, as far as 2 of 4 layers go (1, 3)"), text
    assert "nothing else" in text


def test_a_slice_compares_what_the_whole_compares_of_it(firstdiff, sharded):
    folder, trace = sharded
    whole = firstdiff.check(trace, folder).json["coverage"]
    each = [firstdiff.check(trace, folder, "--layers", str(layer)).json["coverage"] for layer in range(4)]
    rest = sum(part["taps"] for part in each)
    # embed, final_norm and logits of three steps belong to no layer.
    assert whole["taps"] - rest == 9


def test_a_shard_that_is_needed_is_named(firstdiff, sharded, tmp_path):
    folder, trace = sharded
    part = without(folder, tmp_path, "layer-2.safetensors")
    result = firstdiff.check(trace, part, "--layers", "1-2")
    assert result.code == ERROR
    for words in ("layers.2.", "layer-2.safetensors", "download it"):
        assert words in result.stderr, str(result)


def test_a_layer_without_its_recorded_input_says_what_to_record(firstdiff, sharded, tmp_path):
    folder, trace = sharded
    part = without(folder, tmp_path, "layer-2.safetensors")
    bare = shutil.copytree(trace, tmp_path / "bare")
    for file in bare.glob("step-*.safetensors"):
        step = load_file(file)
        save_file({n: t for n, t in step.items() if not n.startswith("layers.2.")}, file)
    result = firstdiff.check(bare, part, "--layers", "3")
    assert result.code == ERROR
    assert "layer-2.safetensors" in result.stderr and "record 'layers.2.out'" in result.stderr, str(result)
    # With the shard it is computed, and the verdict is about layer 3 alone.
    result = firstdiff.check(bare, folder, "--layers", "3")
    assert result.code == AGREES, str(result)
    assert result.json["coverage"]["layers"] == {"checked": [3], "of": 4}


def test_layers_that_the_model_does_not_have_are_refused(firstdiff, sharded):
    folder, trace = sharded
    result = firstdiff.check(trace, folder, "--layers", "2-4")
    assert result.code == ERROR and "layer 4" in result.stderr and "0 to 3" in result.stderr, str(result)


def broken(tiny_folder, tmp_path, fault):
    """A trace of an engine with something wrong."""
    folder = tiny_folder("qwen3")
    trace = record(tiny.load(folder), tmp_path / "trace", IDS, 2)
    files = sorted(trace.glob("step-*.safetensors"))
    for file in files:
        step = load_file(file)
        fault(step)
        save_file(step, file)
    return folder, trace


def nothing(step):
    pass


def scaled(step):
    for layer in range(4):
        step[f"layers.{layer}.up_proj"] = step[f"layers.{layer}.up_proj"] * 1.5


def not_finite(step):
    step["layers.1.q_proj"][0, 3] = torch.nan
    for name in ("layers.1.out", "layers.2.attn_norm", "layers.2.out", "layers.3.mlp_out"):
        step[name][0, 3] = torch.nan


def bare(step):
    for name in [n for n in step if n.endswith((".attn_norm", "_cache", "attn_scores", "attn_probs", ".gate_proj"))]:
        del step[name]


@pytest.mark.parametrize("fault, code", [(nothing, AGREES), (scaled, DIVERGES), (not_finite, DIVERGES), (bare, AGREES)])
def test_parts_side_by_side_give_the_same_result(firstdiff, tiny_folder, tmp_path, fault, code):
    folder, trace = broken(tiny_folder, tmp_path, fault)
    one = firstdiff.check(trace, folder)
    assert one.code == code, str(one)
    for jobs in ("2", "7"):
        many = firstdiff.check(trace, folder, "--jobs", jobs)
        assert (many.code, many.stdout) == (one.code, one.stdout)


def test_little_memory_changes_nothing(firstdiff, tiny_folder, tmp_path):
    folder, trace = broken(tiny_folder, tmp_path, scaled)
    plenty = firstdiff.check(trace, folder)
    little = firstdiff.check(trace, folder, "--memory", "64K", "--jobs", "2")
    assert little.stdout == plenty.stdout
