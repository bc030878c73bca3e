"""What a family does not support is refused by name, with what is supported."""

import json

import pytest
from firstdiff_binary import ERROR
from safetensors.torch import load_file, save_file
from tiny import make, BY_NAME

CHANGES = [
    ("qwen3_moe", {"model_type": "qwen9_moe"}, ("qwen9_moe", "qwen3_moe", "gemma3_text")),
    ("qwen3_moe", {"scoring_func": "sigmoid"}, ("scoring_func", "sigmoid", "softmax")),
    ("qwen3_moe", {"n_group": 2, "topk_group": 1}, ("n_group", "is 2", "one group")),
    ("qwen3_moe", {"num_experts_per_tok": 7}, ("num_experts_per_tok", "6 experts")),
    ("qwen3_moe", {"num_experts": 7}, ("experts.6.down_proj.weight", "missing")),
    ("qwen3_moe", {"mlp_only_layers": "all"}, ("mlp_only_layers",)),
    ("gemma3", {"layer_types": ["chunked_attention"] * 7}, ("layer_types", "chunked_attention", "sliding_attention")),
    ("gemma3", {"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
    ("gemma3", {"hidden_activation": "relu2"}, ("hidden_activation", "relu2", "gelu_pytorch_tanh")),
    ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, ("rope_parameters", "full_attention")),
]


@pytest.mark.parametrize(("name", "change", "says"), CHANGES, ids=lambda value: str(value)[:40])
def test_settings_that_are_not_supported(name, change, says, firstdiff, tmp_path):
    folder = make(BY_NAME[name], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    result = firstdiff("trace", folder, tmp_path / "out", "--tokens", "1,2")
    assert result.code == ERROR, str(result)
    for words in says:
        assert words in result.stderr, f"{words!r} is not said\n{result}"


def test_an_expert_that_is_missing_is_named(firstdiff, tmp_path):
    folder = make(BY_NAME["qwen3_moe"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    result = firstdiff("trace", folder, tmp_path / "out", "--tokens", "1,2")
    assert result.code == ERROR and name in result.stderr and "missing" in result.stderr, str(result)
