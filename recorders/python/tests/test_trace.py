import json
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from firstdiff.trace import Raw, TraceRefused, Writer, write_safetensors

PRODUCER = {"name": "test", "version": "0"}


def test_every_dtype_and_shape_reads_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "f16": rng.standard_normal((3, 5)).astype(np.float16),
        "f32": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "f64": rng.standard_normal(7),
        "i64": np.arange(-2, 3),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(1.5).reshape(()),
        "transposed": rng.standard_normal((4, 6)).astype(np.float32).T,
        "big-endian": np.arange(3, dtype=">f4"),
    }
    bits = torch.randn(3, 5, dtype=torch.bfloat16)
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {**tensors, "bf16": Raw(bits.view(torch.int16).numpy(), "BF16", (3, 5))})
    assert torch.equal(load_torch(file)["bf16"], bits)
    back = load_torch(file)
    assert set(back) == {*tensors, "bf16"}
    for name, value in tensors.items():
        assert np.array_equal(back[name].numpy(), value), name
    assert back["f64"].dtype == torch.float64 and back["i64"].dtype == torch.int64


def test_a_trace_has_the_fixed_layout(tmp_path):
    with Writer(tmp_path / "t", producer=PRODUCER, stop_ids=[2], model={"family": "llama"}) as writer:
        writer.step([1, 2], {"embed": np.ones((2, 3), np.float32)}, positions=[0, 1], sampled=7)
        writer.step([7], {}, positions=[2], sequence=[0])
        assert json.loads((tmp_path / "t/trace.json").read_text())["complete"] is False
    assert sorted(os.listdir(tmp_path / "t")) == ["step-000000.safetensors", "step-000001.safetensors", "trace.json"]
    trace = json.loads((tmp_path / "t/trace.json").read_text())
    assert trace == {"format": "firstdiff.trace/1", "producer": PRODUCER, "stop_ids": [2],
                     "model": {"family": "llama"}, "complete": True}
    step = load_file(tmp_path / "t/step-000000.safetensors")
    assert step["token_ids"].tolist() == [1, 2] and step["sampled"].tolist() == [7]
    assert {name: value.dtype.name for name, value in step.items()} == {
        "token_ids": "int64", "positions": "int64", "sampled": "int64", "embed": "float32"}


def test_a_run_that_raises_stays_incomplete(tmp_path):
    with pytest.raises(KeyError):
        with Writer(tmp_path / "t", producer=PRODUCER):
            raise KeyError("engine")
    assert json.loads((tmp_path / "t/trace.json").read_text())["complete"] is False


def test_a_folder_with_other_files_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "trace.json").write_text('{"format": "something else"}')
    for overwrite in (False, True):
        with pytest.raises(TraceRefused, match="no trace"):
            Writer(tmp_path, producer=PRODUCER, overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["thesis.txt", "trace.json"]
    with pytest.raises(TraceRefused, match="is a file"):
        Writer(tmp_path / "thesis.txt", producer=PRODUCER)


def test_an_older_trace_is_replaced_only_when_asked_and_nothing_else_is(tmp_path):
    with Writer(tmp_path, producer=PRODUCER) as writer:
        for _ in range(3):
            writer.step([1], {})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-000009.safetensors.tmp").write_text("half")
    with pytest.raises(TraceRefused, match="overwrite=True"):
        Writer(tmp_path, producer=PRODUCER)
    with Writer(tmp_path, producer=PRODUCER, overwrite=True) as writer:
        writer.step([1], {})
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-000000.safetensors", "trace.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(token_ids=[1, 2], taps={}, positions=[0]), "positions has 1 rows"),
        (dict(token_ids=[1.5], taps={}), "integers"),
        (dict(token_ids=[[1]], taps={}), "integers"),
        (dict(token_ids=[1], taps={"positions": np.zeros(1)}), "reserved"),
        (dict(token_ids=[1], taps={"x": np.zeros(1, np.uint8)}), "dtype uint8"),
        (dict(token_ids=[1], taps={"x": Raw(b"abc", "BF16", (2,))}), "3 bytes"),
    ],
)
def test_a_malformed_step_is_refused_and_leaves_no_file(tmp_path, arguments, message):
    writer = Writer(tmp_path, producer=PRODUCER)
    with pytest.raises((ValueError, TypeError), match=message):
        writer.step(**arguments)
    assert os.listdir(tmp_path) == ["trace.json"]


def test_a_step_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    writer = Writer(tmp_path, producer=PRODUCER)
    writer.step([1], {})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        writer.step([2], {})
    assert sorted(os.listdir(tmp_path)) == ["step-000000.safetensors", "trace.json"]
