"""Damaged, hostile and foreign traces: refused by file and name, or judged by the whole steps that are there."""

import json
import shutil
import struct

import damage
import pytest
import torch
from firstdiff_binary import AGREES, DIVERGES, ERROR, UNMEASURED
from recording import record
from safetensors.torch import load_file, save_file
from test_bad_input_models import MEMORY, SECONDS, assert_refused
from tiny import BY_NAME, Tiny, load, make, prompt_ids

STEPS = 3
STEP = "step-000001.safetensors"


@pytest.fixture(scope="module")
def recorded(tiny_folder, tmp_path_factory):
    """A right trace of the tiny llama, recorded once."""
    model = load(tiny_folder("llama"))
    return record(model, tmp_path_factory.mktemp("recorded") / "trace", prompt_ids(12), STEPS)


@pytest.fixture
def trace(recorded, tmp_path):
    return damage.copy(recorded, tmp_path / "trace")


@pytest.fixture
def check(firstdiff, tiny_folder):
    return lambda trace, model="llama": firstdiff.check(trace, tiny_folder(model), timeout=SECONDS, memory=MEMORY)


def edit_step(trace, step=STEP, **changes):
    """Changes tensors of one step; `...` removes one; dots in names are written `__`."""
    tensors = load_file(trace / step)
    for name, value in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if value is not ...:
            tensors[name] = value
    save_file(tensors, trace / step)


def test_the_trace_agrees_while_nothing_is_wrong_with_it(check, trace):
    result = check(trace)
    assert result.code == AGREES, str(result)


# ---- trace.json -----------------------------------------------------------------------------------------------------


def test_a_newer_version_is_refused_with_both_numbers(check, trace):
    damage.edit_json(trace / "trace.json", format="firstdiff.trace/2")
    assert_refused(check(trace), "trace.json", "2", "1")


@pytest.mark.parametrize("format", [..., 1, "", "other.trace/1", "firstdiff.trace/", "firstdiff.trace/x", "firstdiff.trace/99999999999999999999"])
def test_an_unknown_format_is_refused(format, check, trace):
    damage.edit_json(trace / "trace.json", format=format)
    assert_refused(check(trace), "trace.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000])
def test_a_manifest_that_is_no_json_object_is_refused(content, check, trace):
    (trace / "trace.json").write_bytes(content)
    assert_refused(check(trace), "trace.json")


def test_a_folder_without_a_manifest_is_no_trace(check, trace):
    (trace / "trace.json").unlink()
    assert_refused(check(trace), str(trace))


def test_a_trace_that_does_not_exist_is_named(check, tmp_path):
    assert_refused(check(tmp_path / "nowhere"), "nowhere")


@pytest.mark.parametrize("value", ["f33", 7, {"a": 1}])
def test_an_unknown_declared_arithmetic_is_refused_or_measured_instead(value, check, trace):
    manifest = json.loads((trace / "trace.json").read_text())
    damage.edit_json(trace / "trace.json", arithmetic={**manifest["arithmetic"], "activations": value})
    result = check(trace)
    if result.code == ERROR:
        assert_refused(result, "trace.json")
    else:
        assert result.code == AGREES, str(result)


def test_unknown_keys_are_ignored(check, trace):
    damage.edit_json(trace / "trace.json", weather="sunny", notes=["x"])
    assert check(trace).code == AGREES


# ---- step files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 50, 3000, -1])
def test_a_truncated_step_is_refused_by_name(keep, check, trace):
    damage.truncate(trace / STEP, keep)
    assert_refused(check(trace), STEP)


HEADERS = {
    "offsets outside": lambda h: h["layers.0.q_proj"].update(data_offsets=[1 << 60, (1 << 60) + 256]),
    "offsets overlapping": lambda h: h["layers.0.q_proj"].update(data_offsets=h["embed"]["data_offsets"]),
    "huge shape": lambda h: h["layers.0.q_proj"].update(shape=[1 << 60]),
    "wrapping shape": lambda h: h["layers.0.q_proj"].update(shape=[1 << 32, 1 << 32]),
    "unknown element type": lambda h: h["layers.0.q_proj"].update(dtype="F24"),
}


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS)
def test_a_hostile_step_header_is_refused_by_name(edit, check, trace):
    damage.edit_safetensors(trace / STEP, edit)
    assert_refused(check(trace), STEP)


@pytest.mark.parametrize("length", [0, 1 << 60, 2**64 - 1])
def test_a_step_header_of_absurd_length_is_refused(length, check, trace):
    damage.overwrite(trace / STEP, 0, struct.pack("<Q", length))
    assert_refused(check(trace), STEP)


@pytest.mark.parametrize("seed", range(15))
def test_flipped_bits_in_a_step_are_refused_or_found(seed, check, trace):
    """A flip in the data makes a tap wrong (or is too small to be more than rounding); one in the header is refused."""
    size = struct.unpack("<Q", (trace / STEP).read_bytes()[:8])[0]
    damage.flip(trace / STEP, [(seed * 7919) % (8 + size)], seed)
    result = check(trace)
    if result.code == ERROR:
        assert_refused(result, "step-")


WRONG_TENSORS = {
    "no token_ids": dict(token_ids=...),
    "token_ids as numbers with a point": dict(token_ids=torch.tensor([1.0])),
    "no tokens": dict(token_ids=torch.tensor([], dtype=torch.int64)),
    "a token id too large": dict(token_ids=torch.tensor([96])),
    "a token id far too large": dict(token_ids=torch.tensor([2**62])),
    "a negative token id": dict(token_ids=torch.tensor([-1])),
    "positions of another length": dict(positions=torch.tensor([12, 13])),
    "a negative position": dict(positions=torch.tensor([-1])),
    "a position beyond any model": dict(positions=torch.tensor([2**62])),
    "a tap of another length": dict(layers__0__q_proj=torch.zeros(2, 64)),
    "a tap of another width": dict(layers__0__q_proj=torch.zeros(1, 63)),
    "a tap without elements": dict(layers__0__q_proj=torch.zeros(1, 0)),
    "a tap of integers": dict(layers__0__q_proj=torch.zeros(1, 64, dtype=torch.int64)),
    "logits of a smaller vocabulary": dict(logits=torch.zeros(1, 92)),
    "scores over too many keys": dict(layers__0__attn_scores=torch.zeros(4, 1, 99)),
    "a layer the model does not have": dict(layers__9__q_proj=torch.zeros(1, 64)),
}


@pytest.mark.parametrize("changes", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused_by_file_and_name(changes, check, trace):
    edit_step(trace, **changes)
    name = next(iter(changes)).replace("__", ".")
    assert_refused(check(trace), STEP, name)


def test_a_missing_step_is_named(check, trace):
    (trace / STEP).unlink()
    assert_refused(check(trace), str(trace), "1")


def test_nothing_outside_the_folder_is_opened(check, trace, tmp_path):
    """A step that is a link to somewhere else may be read or refused, but must not break anything."""
    shutil.move(trace / STEP, tmp_path / "elsewhere")
    (trace / STEP).symlink_to("/dev/zero")
    assert check(trace).code == ERROR


# ---- other models' traces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["qwen3", "qwen2", "llama-head-dim", "llama-without-kv-heads", "qwen3-default-head-dim"])
def test_a_trace_of_a_model_with_other_shapes_or_taps_does_not_agree(other, check, trace):
    result = check(trace, other)
    if result.code == DIVERGES:
        assert result.findings[0]["step"] == 0
    else:
        assert_refused(result, "trace")


def without_fingerprint(trace):
    about = json.loads((trace / "trace.json").read_text())
    del about["model"]["fingerprint"]
    (trace / "trace.json").write_text(json.dumps(about))
    return trace


def test_a_trace_of_other_weights_is_refused_by_its_fingerprint(firstdiff, trace, tmp_path):
    other = make(BY_NAME["llama"], tmp_path / "other", seed=99)
    assert_refused(firstdiff.check(trace, other), "recorded with other weights")


def test_a_trace_of_other_weights_diverges_at_the_embedding(firstdiff, trace, tmp_path):
    other = make(BY_NAME["llama"], tmp_path / "other", seed=99)
    result = firstdiff.check(without_fingerprint(trace), other)
    assert result.code == DIVERGES, str(result)
    assert (result.findings[0]["step"], result.findings[0]["tap"]) == (0, "embed"), str(result)


def test_a_trace_of_a_smaller_vocabulary_is_refused_by_its_logits(firstdiff, trace, tmp_path):
    other = make(Tiny("llama-large-vocabulary", "llama", {"vocab_size": 128}), tmp_path / "other")
    assert_refused(firstdiff.check(without_fingerprint(trace), other), "logits")


def test_another_fingerprint_is_refused_with_both_values(check, trace):
    manifest = json.loads((trace / "trace.json").read_text())
    damage.edit_json(trace / "trace.json", model={**manifest["model"], "fingerprint": "0123456789abcdef"})
    assert_refused(check(trace), "0123456789abcdef")


# ---- values that are no numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tap", ["embed", "layers.0.q_proj", "layers.2.mlp_act", "logits"])
def test_a_tap_that_is_not_finite_where_its_inputs_are_is_the_finding(tap, value, check, trace):
    tensor = load_file(trace / STEP)[tap]
    tensor.view(-1)[3] = value
    edit_step(trace, **{tap.replace(".", "__"): tensor})
    result = check(trace)
    assert result.code == DIVERGES, str(result)
    first = result.findings[0]
    assert (first["step"], first["tap"]) == (1, tap), str(result)
    assert len(result.findings) == 1, str(result)


@pytest.mark.parametrize("tap", ["k_cache", "v_cache"])
def test_fewer_keys_than_attention_has_weights_for_are_refused(tap, check, trace):
    name = f"layers.1.{tap}"
    edit_step(trace, **{name.replace(".", "__"): load_file(trace / STEP)[name][-5:].clone()})
    assert_refused(check(trace), "step 1", name)


@pytest.mark.parametrize("rows", [slice(2, 5), slice(-1, None)], ids=["old", "newest"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_rows_of_the_cache_that_are_wrong_in_any_step_even_the_last_are_found(check, trace, step, rows):
    name = f"step-{step:06}.safetensors"
    tensor = load_file(trace / name)["layers.1.v_cache"]
    tensor[rows, 0] = torch.randn(tensor[rows, 0].shape, generator=torch.manual_seed(step))
    edit_step(trace, name, layers__1__v_cache=tensor)
    result = check(trace)
    assert result.code == DIVERGES, str(result)
    assert (result.findings[0]["step"], result.findings[0]["tap"]) == (step, "layers.1.v_cache"), str(result)


def test_nan_everywhere_is_one_finding_at_the_first_tap(check, trace):
    for path in trace.glob("step-*"):
        tensors = load_file(path)
        save_file({n: t if t.dtype == torch.int64 else t * float("nan") for n, t in tensors.items()}, path)
    result = check(trace)
    assert result.code == DIVERGES, str(result)
    assert (result.findings[0]["step"], result.findings[0]["tap"]) == (0, "embed"), str(result)


# ---- unfinished and empty -------------------------------------------------------------------------------------------


def killed(trace):
    """What a killed recorder leaves: whole steps, one under a temporary name, and no word of completeness."""
    last = trace / f"step-{STEPS:06}.safetensors"
    last.rename(trace / (last.name + ".tmp"))
    damage.truncate(trace / (last.name + ".tmp"), 1000)
    damage.edit_json(trace / "trace.json", complete=False)


def test_a_killed_recording_is_judged_by_its_whole_steps(check, trace):
    killed(trace)
    result = check(trace)
    assert result.code == AGREES, str(result)
    assert result.json["coverage"]["steps"] == STEPS


def test_a_killed_recording_still_shows_a_bug(check, trace):
    killed(trace)
    edit_step(trace, layers__1__up_proj=load_file(trace / STEP)["layers.1.up_proj"] * 1.1)
    result = check(trace)
    assert result.code == DIVERGES, str(result)
    assert (result.findings[0]["step"], result.findings[0]["tap"]) == (1, "layers.1.up_proj")


def test_a_trace_without_steps_is_unmeasured(check, trace):
    for path in trace.glob("step-*"):
        path.unlink()
    result = check(trace)
    assert result.code == UNMEASURED, str(result)
    assert result.json["verdict"] == "unmeasured"


def test_a_trace_with_token_ids_alone_is_unmeasured(check, trace):
    for path in trace.glob("step-*"):
        save_file({"token_ids": load_file(path)["token_ids"]}, path)
    result = check(trace)
    assert result.code == UNMEASURED, str(result)
    assert (result.json["coverage"]["taps"], result.json["coverage"]["elements"]) == (0, 0)


def test_taps_nobody_knows_are_not_enough(check, trace):
    for path in trace.glob("step-*"):
        save_file({"token_ids": load_file(path)["token_ids"], "my_own_tap": torch.zeros(3)}, path)
    assert check(trace).code in (UNMEASURED, ERROR)


def test_a_step_needs_only_token_ids_and_one_tap(check, trace):
    for path in trace.glob("step-*"):
        tensors = load_file(path)
        save_file({name: tensors[name] for name in ("token_ids", "logits")}, path)
    assert check(trace).code == AGREES


def test_the_model_and_the_trace_given_the_wrong_way_round_is_said(firstdiff, trace, tiny_folder):
    assert_refused(firstdiff.check(tiny_folder("llama"), trace, timeout=SECONDS), str(tiny_folder("llama")))
