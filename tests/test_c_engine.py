"""The C engine of recorders/c/example, which records itself with firstdiff.h: it agrees, and its planted bug is found."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from firstdiff_binary import AGREES, DIVERGES, read_steps
from tiny import prompt_ids

EXAMPLE = Path(__file__).resolve().parents[1] / "recorders" / "c" / "example" / "llama.c"
PROMPT, GENERATED = 9, 6
CONFIGS = ["llama", "llama-tied", "llama-head-dim", "llama-without-kv-heads"]
TAPS_OF_A_LAYER = 19


@pytest.fixture(scope="session", params=["-O3 -march=native", "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"])
def engine(request, tmp_path_factory):
    """Runs the engine as users build it, and under sanitizers; returns the tokens and what it said."""
    program = tmp_path_factory.mktemp("engine") / "llama"
    warnings = "-std=c99 -pedantic -Wall -Wextra -Werror"
    command = [os.environ.get("CC", "cc"), *warnings.split(), *request.param.split(), str(EXAMPLE), "-o", str(program), "-lm", "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(model, trace, *options, prompt=PROMPT, **selection):
        recording = {"FIRSTDIFF_TRACE": str(trace)} if trace else {}
        command = [program, model, ",".join(map(str, prompt_ids(prompt))), str(GENERATED), *options]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **recording, **selection})
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.parametrize("name", CONFIGS)
def test_the_right_engine_agrees_and_computes_the_same_unrecorded(name, engine, firstdiff, tiny_folder, tmp_path):
    tokens, _ = engine(tiny_folder(name), tmp_path / "t")
    assert engine(tiny_folder(name), None) == (tokens, "")
    result = firstdiff.check(tmp_path / "t", tiny_folder(name))
    assert result.code == AGREES, str(result)
    assert result.json["coverage"]["taps"] == GENERATED * (3 + 4 * TAPS_OF_A_LAYER)
    assert result.json["tokens"]["compared"] == GENERATED


@pytest.mark.parametrize("selection", [{}, {"FIRSTDIFF_TAPS": "out,attn_heads,logits"}], ids=["all taps", "few"])
def test_the_planted_bug_is_located(selection, engine, firstdiff, tiny_folder, tmp_path):
    engine(tiny_folder("llama"), tmp_path / "t", "--bug", **selection)
    result = firstdiff.check(tmp_path / "t", tiny_folder("llama"))
    assert result.code == DIVERGES, str(result)
    finding = result.findings[0]
    assert finding["tap"] == ("layers.0.attn_heads" if selection else "layers.0.attn_scores"), str(result)
    assert finding["cause"]["id"] == "gqa-tile-vs-repeat", str(result)


def test_what_is_selected_agrees_too_and_its_size_was_said_before(engine, firstdiff, tiny_folder, tmp_path):
    _, said = engine(tiny_folder("llama"), tmp_path / "t", FIRSTDIFF_LAYERS="1-2", FIRSTDIFF_TAPS="q_rope,k_cache,*_scores,logits")
    steps = read_steps(tmp_path / "t")
    layers = [f"layers.{layer}.{tap}" for layer in (1, 2) for tap in ("q_rope", "k_cache", "attn_scores")]
    assert all(step.keys() == {"token_ids", "sampled", "logits", *layers} for step in steps)
    size = sum(4 * tensor.numel() for step in steps for name, tensor in step.items() if name not in ("token_ids", "sampled"))
    (about,) = re.findall(r"will take about ([\d.]+) kB\n", said)
    assert abs(float(about) * 1000 - size) <= 50, said
    result = firstdiff.check(tmp_path / "t", tiny_folder("llama"))
    assert result.code == AGREES, str(result)
