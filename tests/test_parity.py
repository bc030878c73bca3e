"""The reference against transformers in float32 with eager attention, on every tiny configuration."""

import filecmp

import gguf
import numpy as np
import pytest
import torch
from gguf_models import in_whole_blocks, write
from recording import feed
from tiny import BY_NAME, CONFIGS, PROMPT, load, prompt_ids, reset_rope, tensors_of

LIMIT = 5e-5  # on the largest difference of any logit, whose standard deviation is 1.5
CHUNK = 7
STEPS = 8
IDS = prompt_ids()


def logits(steps):
    rows = torch.cat([step["logits"].double() for step in steps])
    tokens = sum(step["token_ids"].numel() for step in steps)
    assert rows.shape[0] == tokens, "a logit row for every token"
    return rows


def calls(steps):
    return [step["token_ids"].tolist() for step in steps]


def difference(steps, model):
    """The same calls in transformers. Dynamic scaling depends on how the tokens were split, so the split is kept."""
    reset_rope(model)
    return float((logits(steps) - feed(model, calls(steps)).double()).abs().max())


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_logits_equal_those_of_transformers(config, dtype, firstdiff, tiny_folder, tmp_path, table):
    folder = tiny_folder(config.name)
    model = load(folder)
    kinds = {"prefill": [], "decode": ["--chunk", 1], "chunked": ["--chunk", CHUNK], "steps": ["--steps", STEPS]}
    expected_calls = {"prefill": [PROMPT], "decode": [1] * PROMPT, "chunked": [CHUNK] * 5 + [5], "steps": [PROMPT] + [1] * STEPS}
    found = {}
    for kind, options in kinds.items():
        steps = firstdiff.trace(folder, tmp_path / kind, IDS, *options, "--dtype", dtype, "--taps", "logits")
        assert [len(call) for call in calls(steps)] == expected_calls[kind]
        assert sum(calls(steps), [])[:PROMPT] == IDS
        found[kind] = difference(steps, model)
    table.append([config.name, dtype, *(found[kind] for kind in kinds)])
    assert max(found.values()) <= LIMIT, found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_greedy_steps_choose_the_largest_logit(config, firstdiff, tiny_folder, tmp_path):
    steps = firstdiff.trace(tiny_folder(config.name), tmp_path / "t", IDS, "--steps", STEPS, "--taps", "logits")
    for step, following in zip(steps, steps[1:]):
        assert following["token_ids"].tolist() == [int(step["logits"][-1].argmax())]


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3"])
def test_traces_are_the_same_bytes_whatever_the_number_of_threads(name, dtype, firstdiff, tiny_folder, tmp_path):
    traces = []
    for threads in (1, 2):
        traces.append(tmp_path / f"threads-{threads}")
        firstdiff.trace(tiny_folder(name), traces[-1], IDS, "--steps", 3, "--dtype", dtype, "--threads", threads)
    files = sorted(path.name for path in traces[0].glob("step-*"))
    assert len(files) == 4
    same, different, missing = filecmp.cmpfiles(*traces, files, shallow=False)
    assert (different, missing) == ([], []), "the order of additions depends on the threads"


KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q5_1], ids=lambda k: k.name)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biases", "qwen2", "qwen3", "gemma3", "gemma3-caps", "qwen3_moe"])
def test_a_gguf_gives_the_logits_of_its_dequantised_weights(name, kind, firstdiff, tiny_folder, tmp_path):
    model = load(tiny_folder(name))
    config = {k: v for k, v in BY_NAME[name].raw_config().items()}
    if name == "gemma3-caps":
        config.pop("attn_logit_softcapping")  # of Gemma 2; transformers does not use it in Gemma 3
    weights = tensors_of(model)
    if kind in (KINDS.Q8_0, KINDS.Q4_0, KINDS.Q5_1):
        config, weights = in_whole_blocks(config, weights)
    path = write(tmp_path / "tiny.gguf", config, weights, kind)
    steps = firstdiff.trace(path, tmp_path / "trace", IDS, "--steps", STEPS, "--dtype", "f64", "--taps", "logits")
    from gguf_models import GgufModel

    assert difference(steps, with_biases(GgufModel(path), config)) <= LIMIT


def with_biases(gguf_model, config):
    """Biases and head sizes that a GGUF shows by its tensors, and transformers wants said."""
    extra = {k: config[k] for k in ("attention_bias", "mlp_bias", "head_dim") if k in config}
    gguf_model.config.update(extra)
    return gguf_model.to_transformers()


def test_llama3_frequencies_come_from_the_file_s_divisors(firstdiff, tiny_folder, tmp_path):
    """Converters bake llama3 scaling into rope_freqs.weight and say nothing of it in the settings."""
    model = load(tiny_folder("llama-llama3"))
    config = BY_NAME["llama-llama3"].raw_config()
    unscaled = 1.0 / config["rope_theta"] ** (np.arange(0, 16, 2) / 16)
    divisors = unscaled / model.model.rotary_emb.inv_freq.double().numpy()
    path = write(tmp_path / "tiny.gguf", config, tensors_of(model), rope_freqs=divisors)
    steps = firstdiff.trace(path, tmp_path / "trace", IDS, "--dtype", "f64", "--taps", "logits")
    assert difference(steps, model) <= LIMIT
