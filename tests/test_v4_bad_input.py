"""DeepSeek-V4 files that are not what the family can run: refused by name, with what would do."""

import json
import shutil

import pytest
import tiny_v4
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_v4.make(tiny_v4.BY_NAME["v4"], tmp_path_factory.mktemp("good"))


def changed(good, tmp_path, without=(), tensors=None, **settings):
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **settings}.items() if k not in without}
    (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        weights = load_file(folder / "model.safetensors")
        tensors(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


CASES = [
    ("schedule missing", {"without": ("layer_types",)}, ["layer_types", "compress_ratios"]),
    ("experts' schedule missing", {"without": ("mlp_layer_types",)}, ["mlp_layer_types", "num_hash_layers"]),
    ("unknown layer type", {"layer_types": ["full_attention"] * 5}, ["full_attention", "compressed_sparse_attention"]),
    ("too few layer types", {"layer_types": ["sliding_attention"]}, ["lists 1 layers of 5"]),
    ("unknown ratio", {"without": ("layer_types",), "compress_ratios": [0, 16, 4, 128, 4]}, ["has 16", "0, 4 or 128"]),
    ("unknown scoring", {"scoring_func": "relu"}, ["'relu'", "sqrtsoftplus"]),
    ("groups of experts", {"n_group": 4, "topk_group": 2}, ["n_group", "is 4", "one group"]),
    ("bias", {"attention_bias": True}, ["attention_bias"]),
    ("tied", {"tie_word_embeddings": True}, ["tie_word_embeddings"]),
    ("two key heads", {"num_key_value_heads": 2}, ["num_key_value_heads"]),
    ("groups", {"o_groups": 3}, ["o_groups", "4 heads"]),
    ("activation", {"hidden_act": "gelu"}, ["'gelu'"]),
    ("odd rotation", {"qk_rope_head_dim": 7}, ["7", "even"]),
    ("scaling", {"rope_scaling": {"type": "longrope"}}, ["longrope", "yarn"]),
    ("rate", {"compress_rates": {tiny_v4.C: 0, tiny_v4.H: 16}}, ["compress_rates"]),
    ("too many layers", {"num_hidden_layers": 9000}, ["num_hidden_layers"]),
    ("another architecture", {"model_type": "deepseek_v41"}, ["deepseek_v41", "different architecture"]),
    ("the same, nested", {"text_config": {"model_type": "deepseek_v41_text"}}, ["deepseek_v41", "different architecture"]),
    ("no sink", {"tensors": lambda w: w.pop("layers.2.attn.attn_sink")}, ["layers.2.attn.attn_sink", "missing"]),
    ("no expert", {"tensors": lambda w: w.pop("layers.3.ffn.experts.7.w2.weight")}, ["experts.7.w2.weight", "missing"]),
    ("no table", {"tensors": lambda w: w.pop("layers.1.ffn.gate.tid2eid")}, ["layers.1.ffn.gate.tid2eid"]),
    ("another head size", {"head_dim": 64}, ["layers.0.attn.kv_norm.weight", "[32]", "[64]"]),
]


@pytest.mark.parametrize("settings, words", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_wrong_is_named(settings, words, good, firstdiff, tmp_path):
    result = firstdiff("inspect", changed(good, tmp_path, **settings))
    assert result.code == 2, str(result)
    for word in words:
        assert word in result.stderr, str(result)


def test_tensors_of_the_prediction_block_are_listed_and_not_missed(good, firstdiff):
    result = firstdiff("inspect", good, "--format", "json")
    assert result.code == 0, str(result)
    assert "mtp.0.enorm.weight" in result.stdout
    assert "ignored       mtp.0.enorm.weight" in firstdiff("inspect", good).stdout
