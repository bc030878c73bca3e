"""firstdiff.h as C99, C++17, without threads and under sanitizers; what it wrote is read with the official library."""

import os
import re
import subprocess

import numpy as np
import pytest
from conftest import BUILDS, HERE, about, compiled, steps
from safetensors import safe_open

WRITER = 300_000  # bytes: less than one step of most cases, so that callers have to wait
ONE_LINE = "firstdiff: recording stopped after"


@pytest.fixture(params=[False, WRITER], ids=["written by the call", "writer thread"])
def writer(request):
    return request.param


def numbers(*shape, first=0):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + first


def paired(heads, turned):
    """Pairs 2i, 2i+1 of the first channels as i, i + n/2."""
    first = heads[..., :turned]
    return np.concatenate([first[..., 0::2], first[..., 1::2], heads[..., turned:]], axis=-1)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = np.asarray(value)
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert np.array_equal(found[name], value), name


def test_every_layout_comes_out_in_the_order_of_the_axes(record, writer, tmp_path):
    record("layouts", tmp_path / "t", writer=writer)
    (found,) = steps(tmp_path / "t")
    heads, wide = numbers(3, 4, 6), 0.5 + np.arange(10, dtype=np.float64)
    assert_same(found, {
        "token_ids": np.array([5, 6, 7], np.int64),
        "embed": numbers(3, 4),
        "layers.0.q_rope": heads,
        "layers.0.k_rope": numbers(4, 3, 6).transpose(1, 0, 2),
        "layers.0.v_proj": numbers(3, 3, 4, 6)[:, 2],
        "layers.1.q_rope": paired(heads, 6),
        "layers.1.k_rope": paired(heads, 4),
        "layers.1.q_proj": heads[:, :3, :4],
        "layers.0.out": wide.reshape(2, 5, 1),
        "layers.0.gate_proj": np.array([[4, 3, 2, 1, 0], [14, 13, 12, 11, 10]], np.float32),
        "layers.0.up_proj": np.array([[4, 6, 8, 10, 12]] * 2, np.float32),
        "layers.0.mlp_act": np.zeros((0, 5), np.float32),
        "layers.1.k_scale": np.float32(9),
        "layers.0.mlp_out": np.array([0x3F80, 0x4000, 0, 1, 2, 3, 0xFFFF], np.uint16),  # the bits of bfloat16
        "layers.1.up_proj": np.array([0x3F80, 0, 2, 0xFFFF], np.uint16),
        "layers.1.gate_proj": np.array([wide[[0, 3]], wide[[5, 8]]]),
    })
    assert about(tmp_path / "t")["complete"] is True


def test_pieces_at_an_offset_make_one_tensor(record, writer, tmp_path):
    record("pieces", tmp_path / "t", writer=writer)
    (found,) = steps(tmp_path / "t")
    whole = numbers(4, 10)
    taps = ["embed", "layers.0.out", "layers.1.out", "layers.0.mlp_act", "layers.1.mlp_act"]
    assert_same(found, {"token_ids": np.array([5, 6, 7, 8]), **dict.fromkeys(taps, whole)})


@pytest.mark.parametrize("which", range(18))
def test_a_wrong_call_stops_the_recording_and_not_the_engine(which, built, tmp_path):
    said = built("address-and-undefined")("refused", tmp_path / "t", which)
    assert said.count("\n") == 1 and said.startswith(ONE_LINE + " 1 steps"), said
    (found,) = steps(tmp_path / "t")
    assert found.keys() == {"token_ids", "layers.0.out"}
    assert about(tmp_path / "t")["complete"] is False


def test_rows_keys_and_the_run_are_described(record, tmp_path):
    record("described", tmp_path / "t")
    first, second = steps(tmp_path / "t")
    assert_same(first, {
        "token_ids": np.array([5, 6]), "positions": np.array([3, 0]), "sequence": np.array([0, 1]),
        "sampled": np.array([42, -1]), "logits_rows": np.array([1]), "fork": np.array([[1, 0, 2], [2, 1, 1]]),
        "key_sequence": np.array([0, 0, 1]), "key_position": np.array([2, 3, 0]), "layers.1.key_position": np.array([2, 3]),
        "logits": np.zeros((1, 8), np.float32),
    })
    assert_same(second, {"token_ids": np.array([9, 4]), "positions": np.array([4, 1]), "sequence": np.array([0, 1])})
    assert about(tmp_path / "t") == {
        "format": "firstdiff.trace/1", "producer": {"name": 'an "engine" \\ é ?\n', "version": "1.0"},
        "arithmetic": {"activations": "f32"}, "sampling": {"do_sample": False, "order": ["top_k", 1.5e-3, None, {}]},
        "model": {"family": "llama"}, "prompt": "another", "stop_ids": [2, 3], "complete": True,
    }


def names_by_step(folder):
    return [sorted(step.keys() - {"token_ids"}) for step in steps(folder)]


def test_the_environment_selects_layers_taps_and_steps(record, tmp_path):
    # the folder is made with those above it
    folder = tmp_path / "some" / "new" / "folder"
    said = record("selected", "-", FIRSTDIFF_TRACE=str(folder) + "/", FIRSTDIFF_LAYERS="0, 3-", FIRSTDIFF_TAPS="q_*, layers.?.out,z",
                  FIRSTDIFF_STEPS="1,3-4")
    taps = [f"layers.{layer}.{tap}" for layer in (0, 3, 4) for tap in ("out", "q_proj")]
    with_taps = sorted([*taps, "key_position", "sampled"])
    # a step that was not asked for has its tokens alone; after the last one that was nothing is written
    assert names_by_step(folder) == [["sampled"], with_taps, ["sampled"], with_taps, with_taps]
    assert about(folder)["complete"] is True
    assert said == "firstdiff: no tap matched 'z'\n"


def test_a_bound_on_bytes_ends_the_trace_with_a_whole_step(record, tmp_path):
    # a step has 2 * 8 + 8 + 8 bytes of integers, 32 of embed and 5 * 96 of layers: 544
    said = record("selected", "-", FIRSTDIFF_TRACE=str(tmp_path / "t"), FIRSTDIFF_TAPS="*", FIRSTDIFF_MAX_BYTES="1.7 kB")
    assert len(steps(tmp_path / "t")) == 3
    assert about(tmp_path / "t")["complete"] is False
    assert said == ("firstdiff: recording stops after 3 steps (1.6 kB): with the next one the trace would be larger than "
                    "1.7 kB. The trace is valid; the engine goes on\n")
    said = record("selected", "-", FIRSTDIFF_TRACE=str(tmp_path / "u"), FIRSTDIFF_TAPS="*", FIRSTDIFF_MAX_BYTES="500")
    assert "the first step takes more than 500 bytes; record fewer taps or layers" in said
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("wrong", [{"FIRSTDIFF_LAYERS": "a"}, {"FIRSTDIFF_STEPS": "3-1"}, {"FIRSTDIFF_MAX_BYTES": "12 apples"},
                                   {"FIRSTDIFF_TAPS": ","}, {"FIRSTDIFF_MAX_BYTES": "0"}, {"FIRSTDIFF_TRACE": ""}], ids=str)
def test_an_environment_that_says_nothing_records_nothing(wrong, built, tmp_path):
    said = built("address-and-undefined")("selected", "-", code=3, **{"FIRSTDIFF_TRACE": str(tmp_path / "t"), **wrong})
    assert said.startswith("firstdiff: not recording: ") == ("FIRSTDIFF_TRACE" not in wrong)
    assert not (tmp_path / "t").exists()


def test_tensors_come_from_a_device_by_its_copy(record, writer, tmp_path):
    record("copying", tmp_path / "t", writer=writer)
    (found,) = steps(tmp_path / "t")
    heads, large = numbers(3, 4, 6), np.arange(3_000_000, dtype=np.float32).reshape(600, 5000)
    assert_same(found, {
        "token_ids": np.array([5, 6, 7]), "layers.0.k_rope": numbers(4, 3, 6).transpose(1, 0, 2),
        "layers.0.v_proj": numbers(3, 3, 4, 6)[:, 2], "layers.1.q_rope": paired(heads, 6), "layers.0.out": large,
        "layers.1.out": large[::2], "layers.2.out": large[:, [0, 2400, 4800]],
        "layers.3.out": np.array([[0, 1, 2, 3], [6, 7, 8, 9]], np.float32),
        "layers.4.out": np.array([[2, 1, 0], [8, 7, 6]], np.float32),
    })


def test_a_copy_that_fails_ends_the_recording(record, writer, tmp_path):
    said = record("failing_copy", tmp_path / "t", writer=writer)
    assert said.count("\n") == 1 and "the device's copy function failed" in said
    assert len(steps(tmp_path / "t")) == 2 and about(tmp_path / "t")["complete"] is False


def test_what_a_captured_graph_copied_is_read_when_the_step_ends(record, writer, tmp_path):
    record("graphs", tmp_path / "t", writer=writer)
    first, second, third = steps(tmp_path / "t")
    assert_same(first, {"token_ids": np.array([5, 6, 7]), "logits": numbers(2, 3, first=80), "layers.0.out": numbers(3, 3),
                        "final_norm": numbers(3, 3, first=50)})
    assert_same(second, {"token_ids": np.array([5, 6, 7, 8]), "logits": numbers(2, 3, first=180),
                         "layers.0.out": numbers(4, 3, first=100), "final_norm": numbers(4, 3, first=150)})
    assert_same(third, {"token_ids": np.array([5]), "layers.0.out": numbers(1, 3, first=7), "final_norm": numbers(1, 3, first=150)})


def test_a_wait_that_fails_ends_the_recording(record, tmp_path):
    said = record("failing_wait", tmp_path / "t")
    assert said.count("\n") == 1 and "the device's wait function failed" in said
    assert len(steps(tmp_path / "t")) == 1


@pytest.mark.parametrize("limit", [1_000_000, 3_200_000])
def test_a_limit_on_the_size_of_files_ends_the_recording_and_not_the_process(limit, record, writer, tmp_path):
    """Past it, the system would end the process with a signal. One limit cuts a tensor, the other the whole file."""
    said = record("full", tmp_path / "t", writer=writer, file_limit=limit if limit < 3_000_000 else 3 << 20)
    whole = len(steps(tmp_path / "t"))
    assert whole == 2 or (writer and whole == 1)  # the thread may be a step behind
    assert said.count("\n") == 1 and f"cannot write step {whole} " in said and "File too large" in said
    assert about(tmp_path / "t")["complete"] is False


@pytest.mark.parametrize("room", [20_000_000, 5_000, 100])
def test_a_full_disk_ends_the_recording_with_whole_steps(room, record, writer, tmp_path):
    """Full within a tensor of the seventh step, within the first one, and before there is a trace."""
    said = record("full", tmp_path / "t", writer=writer, code=3 if room == 100 else 0, TEST_DISK=str(room))
    assert "No space left on device" in said
    if room < 20_000_000:
        assert not (tmp_path / "t").exists()
        return
    assert said.count("\n") == 1
    found = steps(tmp_path / "t")
    assert len(found) == 6
    assert all(np.array_equal(step["layers.2.out"], numbers(2, 1 << 17)) for step in found)
    assert about(tmp_path / "t")["complete"] is False


def test_a_process_killed_within_a_step_leaves_the_steps_before(record, tmp_path):
    record("killed", tmp_path / "t", code=-9)
    (cut,) = (tmp_path / "t").glob("step-000001.safetensors.*.tmp")
    cut.unlink()
    (found,) = steps(tmp_path / "t")
    assert found.keys() == {"token_ids", "layers.0.out"} and about(tmp_path / "t")["complete"] is False


def test_null_closed_twice_older_traces_and_children_write_nothing(record, writer, tmp_path):
    folder = tmp_path / "t"
    said = record("nothing", folder, writer=writer)
    assert names_by_step(folder) == [["layers.0.up_proj"]]
    assert about(folder)["complete"] is True
    for text in ("already holds a trace; name another folder or remove it", "step-000000.safetensors: Not a directory",
                 'arithmetic must be a JSON object such as {"key": "value"}, not {"activations": f32}', "not [1]",
                 "layers must be numbers from 0 and ranges, such as 0-3,7, not '3-1'", "not 'out,,q_rope'", "rank 2 is not one of 2",
                 "is no name of a tap", "no step was recorded, so"):
        assert text in said, said


def test_a_folder_that_holds_anything_is_left_as_it_is(record, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.txt").write_text("years of work")
    said = record("full", tmp_path / "t", code=3)
    assert said == f"firstdiff: not recording: {tmp_path}/t/thesis.txt is there already; name an empty or new folder\n"
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["thesis.txt"]


def test_ranks_write_folders_of_their_own(record, tmp_path):
    record("ranks", tmp_path / "t")
    for rank in range(2):
        part = tmp_path / "t" / f"rank-{rank}"
        (found,) = steps(part)
        assert_same(found, {"token_ids": np.array([5, 6]), "layers.0.up_proj": numbers(2, 4, first=10 * rank)})
        assert about(part)["rank"] == {"tp": [rank, 2]}


def test_a_header_that_outgrows_its_room_moves_the_data(record, writer, tmp_path):
    record("many", tmp_path / "t", writer=writer)
    for number, step in enumerate(steps(tmp_path / "t")):
        count = 2000 if number == 1 else 600
        assert len(step) == count + 1
        for layer in range(count):
            found = step[f"layers.{layer}.a_rather_long_name_of_a_tap"]
            size = 90000 if layer == 7 else 1
            assert np.array_equal(found, numbers(1, size, first=layer + number)), (number, layer)


def test_a_step_may_be_larger_than_four_gibibytes(built, writer, tmp_path):
    built("c99")("large", tmp_path / "t", writer=writer)
    file = tmp_path / "t" / "step-000000.safetensors"
    assert file.stat().st_size > 1 << 32 and file.stat().st_blocks * 512 < 1 << 24  # of holes
    with safe_open(file, "np") as step:
        last = step.get_slice("layers.0.out")[69_998:]
        assert np.array_equal(last, np.stack([np.zeros(16384, np.float32), numbers(16384)]))
        assert np.array_equal(step.get_tensor("layers.1.out"), numbers(1, 10))


@pytest.mark.parametrize("build", ["c99", "c++17"])
def test_the_writer_thread_takes_no_signals(build, built, tmp_path):
    built(build)("masked", tmp_path / "t", writer=WRITER)
    assert len(steps(tmp_path / "t")) == 1


@pytest.mark.parametrize("writer", [0, 1 << 20, 8 << 20])
def test_memory_stays_within_the_bound_of_the_writer_thread(writer, built, tmp_path):
    """ru_maxrss is in kB. Beside the bound: one chunk where the call writes, and what a thread's stack and the library take."""
    recorder = built("c99")
    recorder("bounded", tmp_path / "t", writer=writer)
    assert int(recorder.stdout) <= writer / 1024 + 1024 + 1024
    found = steps(tmp_path / "t")
    assert len(found) == 10 and all(np.array_equal(step["layers.3.out"], numbers(2, 1 << 18)) for step in found)


@pytest.mark.parametrize("build", [build for build in BUILDS if "without" not in build])
def test_eight_threads_record_one_step(build, built, writer, tmp_path):
    built(build)("threads", tmp_path / "t", writer=writer)
    found = steps(tmp_path / "t")
    assert len(found) == 5
    for step in found:
        assert len(step) == 322
        for layer in range(320):
            assert np.array_equal(step[f"layers.{layer}.up_proj"], numbers(4, 16, first=layer // 40 * 100 + layer % 40)), layer
        expected = numbers(64) + 39 + 100 * np.arange(8, dtype=np.float32)[:, None]
        assert np.array_equal(step["layers.0.out"], expected)


@pytest.mark.parametrize("build", ["c99", "address-and-undefined", "c99-without-threads"])
def test_the_example_of_the_readme_records(build, tmp_path):
    text = (HERE.parent / "README.md").read_text()
    source = tmp_path / "engine.c"
    source.write_text(text.split("```c\n")[1].split("```")[0])
    (tmp_path / "firstdiff.h").write_bytes((HERE.parent / "firstdiff.h").read_bytes())
    engine = compiled(tmp_path, build, source)
    for trace in ({}, {"FIRSTDIFF_TRACE": str(tmp_path / "t")}):
        done = subprocess.run([engine], capture_output=True, text=True, env={**os.environ, **trace})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (found,) = steps(tmp_path / "t")
    assert_same(found, {
        "token_ids": np.array([5, 6, 7]), "sampled": np.array([42]), "embed": np.zeros((3, 4), np.float32),
        "layers.0.q_rope": np.zeros((3, 2, 2), np.float32), "layers.0.out": np.zeros((3, 4), np.float32),
    })


def test_every_function_of_the_header_is_called_by_a_test():
    header = (HERE.parent / "firstdiff.h").read_text().split("#endif /* FIRSTDIFF_CUDA */")[0]
    declared = set(re.findall(r"\b(firstdiff_[a-z0-9_]*[a-z0-9])\(", header)) - {"firstdiff_cuda"}
    assert len(declared) > 20
    called = (HERE / "record.c").read_text()
    assert [name for name in sorted(declared) if f"{name}(" not in called] == []
