"""Right engines agree, whatever they round to: transformers in three dtypes and two attentions, and llama.cpp."""

from itertools import islice, product

import gguf
import pytest
import torch
from firstdiff_binary import AGREES, DIVERGES
from gguf_models import in_whole_blocks, write
from recording import REAL_PROMPTS, record
from tiny import BY_NAME, Tiny, load, make, prompt_ids, tensors_of

PROMPT, STEPS = 24, 16
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3"]
SETTINGS = [
    "llama-tied", "llama-linear", "llama-dynamic", "llama-llama3", "llama-yarn-factor", "llama-yarn-mscale",
    "llama-biases", "llama-head-dim", "llama-bf16", "qwen2-window", "qwen2-yarn", "qwen3-window", "qwen3-tied-biases",
    "qwen3_moe-mixed-v5", "qwen3_moe-window", "qwen3_moe-fused-bf16", "gemma3-linear-v5", "gemma3-caps",
]


def assert_agrees(result, steps=STEPS + 1):
    assert result.code == AGREES, str(result)
    report = result.json
    assert report["format"] == "firstdiff.check/1"
    assert report["verdict"] == "agrees", str(result)
    assert report["findings"] == [], str(result)
    assert report["coverage"]["steps"] == steps
    assert report["coverage"]["taps"] > 0 and report["coverage"]["elements"] > 0
    return report


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_agrees_with_its_own_model(name, dtype, attention, firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder(name)
    trace = record(load(folder, DTYPES[dtype], attention), tmp_path / "trace", prompt_ids(PROMPT), STEPS)
    report = assert_agrees(firstdiff.check(trace, folder))
    assert dtype in report["arithmetic"]["profile"]
    # everything there is was compared: all taps of four layers, 17 times
    per_layer = 19 if attention == "eager" else 17
    assert report["coverage"]["taps"] >= (STEPS + 1) * 4 * (per_layer - 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_agrees(name, dtype, firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder(name)
    trace = record(load(folder, DTYPES[dtype], "eager"), tmp_path / "trace", prompt_ids(PROMPT), STEPS)
    assert_agrees(firstdiff.check(trace, folder))


@pytest.mark.parametrize("seed", range(24))
def test_no_alarm_whatever_the_tokens(seed, firstdiff, tiny_folder, tmp_path):
    """Every mix of family, dtype and attention comes by at least once, each time with other tokens."""
    mixes = list(product(FAMILIES, DTYPES, ("eager", "sdpa")))
    name, dtype, attention = mixes[seed % len(mixes)]
    model = load(tiny_folder(name), DTYPES[dtype], attention)
    trace = record(model, tmp_path / "trace", prompt_ids(PROMPT, seed=100 + seed), STEPS)
    assert_agrees(firstdiff.check(trace, tiny_folder(name)))


@pytest.mark.parametrize("options", [{"attention": False}, {"taps": ["layers.*.out"]}, {"taps": ["logits"]}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_taps_agree_as_well(dtype, options, firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("qwen2")
    trace = record(load(folder, DTYPES[dtype], "sdpa"), tmp_path / "trace", prompt_ids(PROMPT), STEPS, **options)
    assert_agrees(firstdiff.check(trace, folder))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3"])
def test_a_trace_of_the_reference_itself_agrees(name, dtype, seed, firstdiff, tiny_folder, tmp_path):
    """Another engine than transformers: its float32 sums run in another order, which is arithmetic and no bug."""
    ids = prompt_ids(PROMPT, seed)
    firstdiff.trace(tiny_folder(name), tmp_path / "trace", ids, "--steps", STEPS, "--dtype", dtype)
    assert_agrees(firstdiff.check(tmp_path / "trace", tiny_folder(name)))


def test_sums_that_lean_to_one_side_in_every_row_agree(firstdiff, tmp_path):
    """Squares of bf16 numbers, added up in float32, lose their last bits downwards: over many wide rows that is a common factor."""
    config = {"hidden_size": 2048, "head_dim": 16, "num_hidden_layers": 1, "vocab_size": 1024, "max_position_embeddings": 1024}
    folder = make(Tiny("wide", "llama", config, stored=torch.bfloat16), tmp_path / "model")
    firstdiff.trace(folder, tmp_path / "trace", list(range(1024)), "--steps", 0)
    assert_agrees(firstdiff.check(tmp_path / "trace", folder), steps=1)


@pytest.mark.real_model
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_smollm2_in_transformers_agrees_with_its_gguf(dtype, attention, firstdiff, smollm2, smollm2_in_transformers, tmp_path):
    model = smollm2_in_transformers(DTYPES[dtype], attention)
    trace = record(model, tmp_path / "trace", REAL_PROMPTS["smollm2"], STEPS)
    assert_agrees(firstdiff.check(trace, smollm2.path))


@pytest.mark.real_model
@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("name", ["smollm2", "qwen", "gemma"])
def test_llama_cpp_agrees_for_its_8_bit_blocks_and_f16_cache_are_arithmetic(name, flash, request, firstdiff, tmp_path):
    from firstdiff.llama_cpp import record as record_llama_cpp
    from llama_cpp import Llama

    path = request.getfixturevalue(name).path
    llama = Llama(str(path), n_ctx=256, logits_all=True, flash_attn=flash, n_threads=2, verbose=False)
    with record_llama_cpp(llama, tmp_path / "trace") as recorder:
        chosen = list(islice(llama.generate(REAL_PROMPTS[name], temp=0.0), STEPS + 1))
    assert len(chosen) == STEPS + 1 and recorder.steps == STEPS + 1
    assert_agrees(firstdiff.check(tmp_path / "trace", path))


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0], ids=lambda k: k.name)
def test_llama_cpp_agrees_on_a_mixture_of_experts(kind, firstdiff, tiny_folder, tmp_path):
    from firstdiff.llama_cpp import record as record_llama_cpp
    from llama_cpp import Llama

    config, weights = in_whole_blocks(BY_NAME["qwen3_moe"].raw_config(), tensors_of(load(tiny_folder("qwen3_moe"))))
    path = write(tmp_path / "moe.gguf", config, weights, kind, says_no_tokenizer=True)
    llama = Llama(str(path), n_ctx=64, logits_all=True, n_threads=1, verbose=False)
    with record_llama_cpp(llama, tmp_path / "trace") as recorder:
        chosen = list(islice(llama.generate(prompt_ids(PROMPT), temp=0.0), STEPS + 1))
    assert len(chosen) == STEPS + 1 and recorder.steps == STEPS + 1
    report = assert_agrees(firstdiff.check(tmp_path / "trace", path))
    assert report["coverage"]["missing"] == [], "every tap is recorded"
    # and of a file with its experts in another order, the trace is none
    other = {n: t.flip(0) if ".experts." in n else t for n, t in weights.items()}
    result = firstdiff.check(tmp_path / "trace", write(tmp_path / "other.gguf", config, other, kind))
    assert result.code == DIVERGES and result.findings[0]["tap"] == "layers.0.experts_out", str(result)
    assert result.findings[0]["cause"]["id"] == "expert-index-wrong"
