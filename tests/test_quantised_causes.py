"""Weights whose scales are tensors of their own, decoded wrongly by the second engine: located, and named."""

import sys
from pathlib import Path

import pytest
from firstdiff_binary import AGREES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "crates" / "dev" / "python"))

from engine import record  # noqa: E402
from engine.faults import FAULTS  # noqa: E402
from engine.models import SCALED  # noqa: E402
from engine.record import kind_of  # noqa: E402

PLANTED = [title for title, fault in FAULTS.items() if fault.model in SCALED]
ARITHMETICS = ["f32", "bf16"]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("model", SCALED)
def test_a_right_engine_agrees(model, arithmetic, firstdiff, tmp_path):
    recorded = record(model, arithmetic, tmp_path / "trace")
    result = firstdiff.check(recorded.trace, recorded.model)
    assert result.code == AGREES, str(result)


@pytest.mark.parametrize("taps", ["all", "modules"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("title", PLANTED)
def test_a_misread_weight_is_found_where_it_is_and_named(title, arithmetic, taps, firstdiff, tmp_path):
    fault = FAULTS[title]
    recorded = record(fault.model, arithmetic, tmp_path / "trace", faults=[fault], taps=taps)
    result = firstdiff.check(recorded.trace, recorded.model)
    assert kind_of(result.findings[0]["tap"]) in fault.first, str(result)
    for finding in result.findings:
        cause = finding["cause"]
        names = [cause["id"], *(equal["id"] for equal in cause["equal"])] if cause else []
        assert fault.id in names, str(result)


def test_every_format_is_misread_in_dense_layers_and_in_experts():
    models = {FAULTS[title].model for title in PLANTED}
    assert {model.removesuffix("-modelopt") for model in models} == {
        f"{family}-{format}" for family in ("qwen3", "qwen3_moe") for format in ("fp8", "mxfp4", "nvfp4")
    }
