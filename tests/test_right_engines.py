"""Right engines of many arithmetics: `check` calls none of them wrong, whether trace.json says what they do or not.

The engines are those of `cargo dev bench verdicts` (crates/dev/python/verdicts/wide): here one trace of each.
`tests/data/engines` holds recordings of real ones.
"""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "crates" / "dev" / "python" / "verdicts"))

import listing  # noqa: E402
from engines import Engines  # noqa: E402
from wide.variants import VARIANTS  # noqa: E402


# These were called wrong once, by rules that no other trace here depends on.
ONCE_WRONG = (
    "qwen3#0 f16 · q8_0 cache · declared · plain · all · seed 5",  # blocks of 32 over heads of 16 channels
    "llama#1 f16 · f32 residual · undeclared · plain · modules · seed 11",  # additions that were not recorded
)


def one_of_each():
    """The first trace of each variant, declared and not, with a short prompt where it has one; and the traces above."""
    found, cases = {}, sorted(listing.cases("wide"), key=lambda case: case.prompt)
    for case in cases:
        found.setdefault((case.variant, case.declared), case)
    once = [case for case in cases if case.name in ONCE_WRONG]
    assert len(once) == len(ONCE_WRONG)
    return [*found.values(), *once]


def title(case):
    of = f"{case.variant}-{'declared' if case.declared else 'undeclared'}"
    return f"{of}-once-wrong" if case.name in ONCE_WRONG else of


@pytest.fixture(scope="module")
def engines(tmp_path_factory, models):
    return Engines(tmp_path_factory.mktemp("engines"), models)


@pytest.mark.parametrize("case", one_of_each(), ids=title)
def test_a_right_engine_is_not_called_wrong(case, engines, firstdiff, tmp_path):
    case.write(engines, tmp_path / "trace", True)
    result = firstdiff.check(tmp_path / "trace", case.path(engines))
    allowed = ("agrees", "unmeasured") if VARIANTS[case.variant].unmeasured else ("agrees",)
    assert result.code != 2 and result.json["verdict"] in allowed, str(result)


RECORDED = sorted(path.name for path in (ROOT / "tests" / "data" / "engines").iterdir())


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_of_a_real_engine_agrees_with_nothing_declared(name, firstdiff):
    folder = ROOT / "tests" / "data" / "engines" / name
    assert "arithmetic" not in json.loads((folder / "trace" / "trace.json").read_text())
    result = firstdiff.check(folder / "trace", folder / "model")
    assert result.code == 0 and result.json["verdict"] == "agrees", str(result)
