"""The independent engine that faults are planted in: right without them, and found out with any of them.

Its classes of bugs are one file each under crates/dev/python/engine/faults; this runs every one in float32 with all taps.
`python -m engine.verify` runs them in all arithmetics, with fewer taps, and in pairs.
"""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "crates" / "dev" / "python"))

from engine import selftest, verify  # noqa: E402
from engine.faults import FAULTS  # noqa: E402
from engine.record import record  # noqa: E402


@pytest.fixture(autouse=True)
def binary(firstdiff, monkeypatch):
    monkeypatch.setattr(selftest, "BINARY", firstdiff.binary)


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "qwen2-window", "qwen3"])
def test_without_a_fault_it_computes_what_transformers_does(name):
    assert selftest.against_transformers(name) < 1e-4


@pytest.mark.parametrize("arithmetic", ["f32", "bf16", "f16", "q8"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_without_a_fault_it_agrees(name, arithmetic, tmp_path):
    for part, (taps, chunk, batch) in enumerate(selftest.SETTINGS):
        recorded = record(name, arithmetic, tmp_path / str(part), taps=taps, chunk=chunk, batch=batch)
        result = selftest.check(recorded)
        assert result["verdict"] == "agrees", (taps, chunk, batch, result["findings"][:1])


@pytest.mark.parametrize("title", FAULTS)
def test_every_planted_fault_is_found_where_it_is(title, tmp_path):
    fault = FAULTS[title]
    arithmetic = "f32" if "f32" in fault.arithmetics else fault.arithmetics[0]
    line, found = verify.one(fault, arithmetic, "all", tmp_path / "trace")
    assert found, line
