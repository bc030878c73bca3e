"""`python -m firstdiff.<engine>`: what people type, as they type it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from replay import make

SOURCE = Path(__file__).parents[1] / "src"
ENGINES = {"transformers": ["torch", "transformers"], "llama_cpp": ["llama_cpp"], "mlx_lm": ["mlx"], "onnx": ["onnx"]}
EXTRAS = {"transformers": "transformers", "llama_cpp": "llama-cpp", "mlx_lm": "mlx", "onnx": "onnx"}


def command(engine, *words, without=()):
    """Runs the command; the packages `without` cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r}));"
    run = f"import runpy; sys.argv[0] = 'firstdiff'; runpy.run_module('firstdiff.{engine}', run_name='__main__', alter_sys=True)"
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", hide + run, *map(str, words)], capture_output=True, text=True, env=env)


def inside(capfd, monkeypatch, engine, *words):
    """The same within this process, which has loaded its engine already."""
    module = importlib.import_module(f"firstdiff.{engine}")
    monkeypatch.setattr(sys, "argv", ["firstdiff", *map(str, words)])
    capfd.readouterr()
    try:
        module._main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    return subprocess.CompletedProcess(words, code, *capfd.readouterr())


def one_error(done):
    assert done.returncode == 2 and not done.stdout, done
    [line] = [line for line in done.stderr.splitlines() if line.startswith("firstdiff: error: ")]
    assert "Traceback" not in done.stderr and line == done.stderr.splitlines()[-1]
    return line.removeprefix("firstdiff: error: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    make("qwen3").save_pretrained(made)
    return made


def test_a_model_is_recorded_without_code(folder, tmp_path, read_trace, capfd, monkeypatch):
    words = [folder, "--tokens", "3,14,15,9", "--new", "3", "-o", tmp_path / "t", "--layers", "1", "--attention", "eager"]
    done = command("transformers", *words, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    trace = read_trace(tmp_path / "t")
    tokens = [step["token_ids"].tolist() for step in trace]
    assert tokens[0] == [3, 14, 15, 9] and len(tokens) == 3
    assert said[0] == f"generated: {tokens[1][0]},{tokens[2][0]},{int(trace[2]['sampled'])}"
    assert said[-1] == f"next: firstdiff check {tmp_path / 't'} --model {folder}"
    assert "for a prompt of 4 tokens and 3 generated (1 layer of" in done.stderr
    assert {"layers.1.attn_probs", "layers.1.out"} < trace[1].keys() and "layers.0.out" not in trace[1]
    assert trace.json["arithmetic"]["activations"] == "bf16" and trace.json["complete"] is True

    again = inside(capfd, monkeypatch, "transformers", *words)
    assert "already holds a trace" in one_error(again)
    done = inside(capfd, monkeypatch, "transformers", *words[:-4], "--overwrite", "--outputs", "--steps", "0", "--new", "5")
    assert done.returncode == 0 and len(read_trace(tmp_path / "t")) == 1
    assert not any(name.endswith("_proj") for name in read_trace(tmp_path / "t")[0])


def test_a_trace_that_max_bytes_ends_is_a_result_and_not_an_error(folder, tmp_path, read_trace, capfd, monkeypatch):
    words = [folder, "--tokens", "3,14", "--new", "9", "-o", tmp_path / "t", "--max-bytes", "60kB"]
    done = inside(capfd, monkeypatch, "transformers", *words)
    assert done.returncode == 0 and "recording stops after" in done.stderr
    assert 1 <= len(read_trace(tmp_path / "t")) < 9


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "the following arguments are required: MODEL"),
        (["{folder}", "-o", "{t}"], "one of the arguments --prompt --tokens is required"),
        (["{folder}", "-o", "{t}", "--tokens", "3,x"], "token ids are numbers with commas between them, not '3,x'"),
        (["{folder}", "-o", "{t}", "--tokens", "3,99999"], "token id 99999 is none of this model's"),
        (["{folder}", "-o", "{t}", "--tokens", "3", "--layers", "x"], "layers must be numbers from 0"),
        (["{folder}", "-o", "{t}", "--tokens", "3", "--taps", "qrope"], "no tap is called 'qrope'"),
        (["{folder}", "-o", "{t}", "--tokens", "3", "--max-bytes", "lots"], "max_bytes must be a size"),
        (["{t}/nowhere/at/all", "-o", "{t}", "--tokens", "3"], "does not exist"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(folder, tmp_path, words, says, capfd, monkeypatch):
    words = [word.format(folder=folder, t=tmp_path / "t") for word in words]
    assert says in one_error(inside(capfd, monkeypatch, "transformers", *words))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_package_says_what_to_install(engine):
    done = command(engine, "model", "--tokens", "1", "-o", "t", without=ENGINES[engine])
    assert f"pip install 'firstdiff[{EXTRAS[engine]}]'" in one_error(done)


def test_every_extra_that_an_error_names_is_there():
    text = next(file for folder in Path(__file__).parents if (file := folder / "pyproject.toml").is_file()).read_text()
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = {line.split("=")[0].strip() for line in extras.splitlines() if " = [" in line}
    assert {*EXTRAS.values(), "openvino", "vllm"} <= named


def test_llama_cpp_is_recorded_without_code(model_file, tmp_path, read_trace, capfd, monkeypatch):
    file = model_file("smollm2")
    done = command("llama_cpp", file, "--prompt", "Once upon", "--new", "2", "-o", tmp_path / "t", "--outputs", "--threads", "1")
    assert done.returncode == 0, done.stderr
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 2 and {"layers.29.out", "logits"} < trace[0].keys() and "layers.3.q_proj" not in trace[0]
    assert trace.json["prompt"] == "Once upon" and trace[0]["logits"].shape[0] == len(trace[0]["token_ids"])
    assert "is no file; llama.cpp runs GGUF files" in one_error(
        inside(capfd, monkeypatch, "llama_cpp", tmp_path / "none.gguf", "--tokens", "1", "-o", tmp_path / "u"))
