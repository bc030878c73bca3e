"""With taps missing, a finding names the segment: from the last right recorded tap to the first wrong one."""

import fnmatch

import pytest
from firstdiff_binary import DIVERGES, UNMEASURED
from planted import BUGS, LAYERS, PROMPT, STEPS, first_wrong, last_right, operation, kind_of
from recording import record
from tiny import BY_NAME, load, prompt_ids

IDS = prompt_ids(PROMPT, seed=5)
INSIDE_ATTENTION = ("q_rope", "k_rope", "k_cache", "v_cache", "attn_scores", "attn_probs")


def module_outputs(family):
    return lambda tap: kind_of(tap) not in INSIDE_ATTENTION and (family == "qwen3" or kind_of(tap) not in ("q_norm", "k_norm"))


def only(*globs):
    return lambda tap: any(fnmatch.fnmatch(tap, glob) for glob in globs)


def assert_segment(result, bug, recorded):
    tap = first_wrong(bug.full_tap, recorded)
    assert result.code == DIVERGES, str(result)
    first = result.findings[0]
    assert (first["tap"], first["segment"]) == (tap, [last_right(tap, recorded), tap]), str(result)
    assert first["step"] == bug.step, str(result)
    if tap.startswith("layers."):
        layers = first["layers"] if not bug.faint else list(bug.layers[: len(first["layers"])])
        assert layers and first["layers"] == layers and (bug.faint or layers == list(bug.layers)), str(result)
    return first


def recording(bug, tiny_folder, path, **options):
    folder = tiny_folder(bug.model)
    model = load(folder)
    with bug.plant(model):
        return record(model, path, IDS, STEPS, **options), folder


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_module_outputs_alone_name_the_modules_around_the_bug(bug, firstdiff, tiny_folder, tmp_path):
    trace, folder = recording(bug, tiny_folder, tmp_path / "trace", attention=False)
    recorded = module_outputs(BY_NAME[bug.model].family)
    first = assert_segment(firstdiff.check(trace, folder), bug, recorded)
    if recorded(bug.full_tap):
        assert first["op"] == operation(bug.full_tap)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.layers], ids=lambda bug: bug.name)
def test_layer_outputs_alone_name_the_layer(bug, firstdiff, tiny_folder, tmp_path):
    trace, folder = recording(bug, tiny_folder, tmp_path / "trace", taps=["layers.*.out"])
    assert_segment(firstdiff.check(trace, folder), bug, only("layers.*.out"))


@pytest.mark.parametrize("bug", [bug for bug in BUGS if not bug.layers], ids=lambda bug: bug.name)
def test_layer_outputs_and_logits_show_a_bug_after_the_last_layer(bug, firstdiff, tiny_folder, tmp_path):
    trace, folder = recording(bug, tiny_folder, tmp_path / "trace", taps=["layers.*.out", "logits"])
    first = assert_segment(firstdiff.check(trace, folder), bug, only("layers.*.out", "logits"))
    assert first["segment"] == [f"layers.{LAYERS - 1}.out", "logits"]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_logits_alone_name_the_whole_model(bug, firstdiff, tiny_folder, tmp_path):
    trace, folder = recording(bug, tiny_folder, tmp_path / "trace", taps=["logits"])
    first = assert_segment(firstdiff.check(trace, folder), bug, only("logits"))
    assert first["segment"] == ["token_ids", "logits"]


def test_a_trace_of_tokens_alone_is_unmeasured_and_says_what_to_record(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    trace = record(load(folder), tmp_path / "trace", IDS, STEPS, taps=[])
    result = firstdiff.check(trace, folder)
    assert result.code == UNMEASURED, str(result)
    assert result.json["verdict"] == "unmeasured"
    assert result.json["coverage"]["taps"] == 0
    text = firstdiff("check", trace, "--model", folder)
    assert text.code == UNMEASURED
    assert "logits" in text.stdout + text.stderr or "layers." in text.stdout + text.stderr
