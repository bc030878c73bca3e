"""Which expert: compared first, with margins; replayed from the engine's own choice."""

import shutil

import pytest
import torch
from firstdiff_binary import AGREES, DIVERGES, ERROR
from recording import record
from safetensors.torch import load_file, save_file
from tiny import load, prompt_ids

STEP = "step-000000.safetensors"


@pytest.fixture(scope="module")
def recorded(tiny_folder, tmp_path_factory):
    """A right trace in bf16, and its model."""
    folder = tiny_folder("qwen3_moe")
    trace = tmp_path_factory.mktemp("choices") / "trace"
    return record(load(folder, torch.bfloat16, "eager"), trace, prompt_ids(24), 2), folder


def changed(recorded, out, change):
    trace = shutil.copytree(recorded, out)
    step = load_file(trace / STEP)
    change(step)
    save_file(step, trace / STEP)
    return trace


def test_another_expert_is_one_finding_and_what_follows_is_none(recorded, firstdiff, tmp_path):
    """Only the number is another one: the weights and the sum are still those of the right experts."""
    trace, folder = recorded

    def change(step):
        chosen = step["layers.1.router_topk"]
        unused = [next(e for e in range(6) if e not in row) for row in chosen.tolist()]
        chosen[5, 1] = unused[5]

    result = firstdiff.check(changed(trace, tmp_path / "t", change), folder)
    assert result.code == DIVERGES, str(result)
    first = result.findings[0]
    assert first["tap"] == "layers.1.router_topk" and first["choices"]["differing"] == 1, str(result)
    assert first["choices"]["preferred_by"] > 5 and "token 5" in first["where"]


def test_the_order_of_the_chosen_does_not_matter(recorded, firstdiff, tmp_path):
    trace, folder = recorded

    def change(step):
        for tap in ("router_topk", "router_weights"):
            step[f"layers.1.{tap}"] = step[f"layers.1.{tap}"].flip(-1).contiguous()

    result = firstdiff.check(changed(trace, tmp_path / "t", change), folder)
    assert result.code == AGREES, str(result)


@pytest.mark.parametrize("number", [6, -1, 99999])
def test_a_number_of_no_expert_is_a_finding(number, recorded, firstdiff, tmp_path):
    trace, folder = recorded

    def change(step):
        step["layers.1.router_topk"][3, 0] = number

    result = firstdiff.check(changed(trace, tmp_path / "t", change), folder)
    assert result.code == DIVERGES and result.findings[0]["tap"] == "layers.1.router_topk", str(result)


def test_a_tie_is_ambiguous_and_no_finding(recorded, firstdiff, tmp_path):
    """Two experts' logits made equal to the last bit, and the engine takes the one that the reference does not."""
    trace, folder = recorded

    found = []

    def change(step):
        logits, chosen = step["layers.1.router_logits"], step["layers.1.router_topk"]
        for row, (_, second) in enumerate(chosen.tolist()):
            third = max((e for e in range(6) if e not in chosen[row].tolist()), key=lambda e: float(logits[row, e]))
            if third > second:  # of equal ones the reference takes the first: the engine's is the other one
                logits[row, third], chosen[row, 1] = logits[row, second], third
                found.append(row)
                return

    report = firstdiff.check(changed(trace, tmp_path / "t", change), folder).json
    assert all(f["tap"] != "layers.1.router_topk" for f in report["findings"]), report["findings"]
    ambiguous = [a for a in report["ambiguous"] if a["tap"] == "layers.1.router_topk" and a["recorded"]]
    assert ambiguous[0]["tokens"] == found


def test_whole_numbers_where_values_are_measured_are_refused(recorded, firstdiff, tmp_path):
    trace, folder = recorded

    def change(step):
        step["layers.1.experts_out"] = step["layers.1.experts_out"].to(torch.int32)

    result = firstdiff.check(changed(trace, tmp_path / "t", change), folder)
    assert result.code == ERROR and "layers.1.experts_out" in result.stderr and "choice" in result.stderr, str(result)


def test_experts_are_judged_where_the_choice_is_not_recorded(recorded, firstdiff, tmp_path):
    trace, folder = recorded

    def change(step):
        for name in [n for n in step if "router_" in n]:
            del step[name]

    result = firstdiff.check(changed(trace, tmp_path / "t", change), folder)
    assert result.code == AGREES, str(result)
