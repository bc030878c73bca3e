"""Broken engines: `check` names the first wrong operation, in the right layers, at the right step."""

import pytest
import torch
from firstdiff_binary import DIVERGES
from planted import BUGS, BY_NAME, PROMPT, SMOLLM2_BUGS, STEPS, first_wrong, kind_of, operation
from recording import REAL_PROMPTS, record
from tiny import load, prompt_ids

IDS = prompt_ids(PROMPT, seed=5)
NOT_IN_SDPA = ("attn_scores", "attn_probs")


def assert_found(result, bug, tap):
    assert result.code == DIVERGES, str(result)
    report = result.json
    assert report["verdict"] == "diverges"
    first = report["findings"][0]
    found = {key: first[key] for key in ("step", "tap", "op", "layers")}
    expected = {"step": bug.step, "tap": tap, "op": operation(tap), "layers": list(bug.layers)}
    assert found == expected, str(result)
    assert first["segment"][-1] == tap
    assert first["ratio"] > 1
    # what is wrong is counted once: nothing downstream of it, and not once more a layer
    kinds = [kind_of(finding["tap"]) for finding in report["findings"]]
    assert set(kinds) <= {kind_of(tap), *bug.also}, str(result)
    assert len(kinds) == len(set(kinds)), str(result)
    return report


def recorded(attention):
    return lambda tap: not (attention == "sdpa" and kind_of(tap) in NOT_IN_SDPA)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found_where_it_is(bug, attention, firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder(bug.model)
    model = load(folder, attention=attention)
    with bug.plant(model):
        trace = record(model, tmp_path / "trace", IDS, STEPS)
    assert_found(firstdiff.check(trace, folder), bug, first_wrong(bug.full_tap, recorded(attention)))


@pytest.mark.real_model
@pytest.mark.parametrize("bug", SMOLLM2_BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found_under_bfloat16_in_smollm2(bug, firstdiff, smollm2, smollm2_in_transformers, tmp_path):
    model = smollm2_in_transformers(torch.bfloat16, "eager")
    with bug.plant(model):
        trace = record(model, tmp_path / "trace", REAL_PROMPTS["smollm2"], STEPS)
    assert_found(firstdiff.check(trace, smollm2.path), bug, bug.full_tap)


@pytest.mark.parametrize("attention, tap", [("eager", "attn_scores"), ("sdpa", "attn_heads")])
def test_a_stale_slot_shows_in_attention_when_the_cache_is_not_recorded(attention, tap, firstdiff, tiny_folder, tmp_path):
    bug = BY_NAME["stale_slot_at_one_decode_step"]
    folder = tiny_folder(bug.model)
    model = load(folder, attention=attention)
    kept = ["embed", "final_norm", "logits", "layers.*.[!kv]*", "layers.*.k_[!c]*", "layers.*.v_proj"]
    with bug.plant(model):
        trace = record(model, tmp_path / "trace", IDS, STEPS, taps=kept)
    result = firstdiff.check(trace, folder)
    assert result.code == DIVERGES, str(result)
    first = result.findings[0]
    assert (first["step"], first["tap"], first["op"]) == (bug.step, f"layers.0.{tap}", tap), str(result)
    assert first["layers"] == list(bug.layers)
    assert {kind_of(f["tap"]) for f in result.findings} <= {"attn_scores", "attn_heads"}, str(result)


def test_two_bugs_are_two_findings_each_at_its_own_place(firstdiff, tiny_folder, tmp_path):
    """The second is judged from the engine's own values: the first does not hide it, nor does it count again."""
    folder = tiny_folder("llama")
    model = load(folder)
    rows, gelu = BY_NAME["o_proj_rows_swapped_in_layer_2"], BY_NAME["up_proj_louder_in_layer_3"]
    with rows.plant(model), gelu.plant(model):
        trace = record(model, tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(trace, folder)
    assert result.code == DIVERGES
    assert [(f["tap"], f["layers"]) for f in result.findings] == [("layers.2.attn_out", [2]), ("layers.3.up_proj", [3])]
