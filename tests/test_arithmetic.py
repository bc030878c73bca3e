"""Arithmetic that is not a bug: shorter inputs of products, 8-bit floats, fused residuals, sums in parts.

Each is planted in transformers as a GPU kernel would do it, then declared, or left to be inferred where it can be. A bug in
every layer must not be explained away by a coarser guess.
"""

import json
import math
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from firstdiff_binary import AGREES, DIVERGES
from recording import record
from tiny import Tiny, load, make, prompt_ids

STEPS = 4
IDS = prompt_ids(24, seed=9)


def shorter(x, bits):
    """`x` with so many fraction bits, to nearest, ties to even."""
    drop = 23 - bits
    raw = x.view(torch.int32)
    return ((raw + (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)) & ~((1 << drop) - 1)).view(torch.float32)


def cut(x, bits):
    """`x` with what lies below so many fraction bits cut off, as tensor cores read float32."""
    return (x.view(torch.int32) & ~((1 << (23 - bits)) - 1)).view(torch.float32)


def scaled(x, dtype, block=None):
    """Through an 8-bit float, with one scale for each token or block of channels."""
    shape = x.shape
    x = x if block is None else x.reshape(*shape[:-1], -1, block)
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / torch.finfo(dtype).max
    return ((x / scale).to(dtype).float() * scale).reshape(shape)


LINEAR = F.linear


def products(inputs, weights=lambda w: w):
    return patch.object(F, "linear", lambda x, w, b=None: LINEAR(inputs(x), weights(w), b))


def louder(model, factor):
    """Every up_proj of the model, louder by a little: a bug in all layers alike."""
    stack = ExitStack()
    for layer in model.model.layers:
        hook = layer.mlp.up_proj.register_forward_hook(lambda _m, _a, out: out * factor)
        stack.callback(hook.remove)
    return stack


def declare(trace, **arithmetic):
    path = trace / "trace.json"
    about = json.loads(path.read_text())
    if arithmetic:
        about["arithmetic"].update(arithmetic)
    else:
        del about["arithmetic"]
    path.write_text(json.dumps(about))
    return trace


WAYS = {
    "tf32": (products(lambda x: shorter(x, 10), lambda w: shorter(w, 10)), {"matmul_inputs": "tf32"}),
    "tf32-cut-off": (products(lambda x: cut(x, 10), lambda w: cut(w, 10)), {"matmul_inputs": "tf32"}),
    "fp8-e4m3": (products(lambda x: scaled(x, torch.float8_e4m3fn)), {"matmul_inputs": "fp8-e4m3"}),
    "fp8-e5m2": (products(lambda x: scaled(x, torch.float8_e5m2)), {"matmul_inputs": "fp8-e5m2"}),
    "fp8-e4m3-16": (products(lambda x: scaled(x, torch.float8_e4m3fn, 16)), {"matmul_inputs": "fp8-e4m3-128"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", [True, False], ids=["all taps", "module outputs"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_declared_arithmetic_agrees(name, attention, way, firstdiff, tiny_folder, tmp_path):
    planted, keys = WAYS[way]
    with planted:
        trace = record(load(tiny_folder(name)), tmp_path / "trace", IDS, STEPS, attention=attention)
    given = firstdiff.check(trace, tiny_folder(name), "--arithmetic", "f32")
    assert given.code == DIVERGES, "float32 does not explain it"
    result = firstdiff.check(declare(trace, **keys), tiny_folder(name))
    assert result.code == AGREES, str(result)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_tf32_is_inferred_and_said_to_be(name, firstdiff, tiny_folder, tmp_path):
    with WAYS["tf32"][0]:
        trace = record(load(tiny_folder(name)), tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(declare(trace), tiny_folder(name))
    assert result.code == AGREES, str(result)
    assert result.json["arithmetic"]["profile"] == "tf32"
    assert "f32 leaves" in result.json["arithmetic"]["why"], str(result)


@pytest.mark.parametrize("factor", [1.0002, 1.001, 1.05])
def test_a_bug_in_every_layer_is_not_explained_away_by_a_coarser_guess(factor, firstdiff, tiny_folder, tmp_path):
    model = load(tiny_folder("llama"))
    with louder(model, factor):
        trace = record(model, tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(declare(trace), tiny_folder("llama"))
    assert result.code == DIVERGES, str(result)
    assert result.json["arithmetic"]["profile"] == "f32", str(result)
    assert result.findings[0]["tap"] == "layers.0.up_proj" and result.findings[0]["layers"] == [0, 1, 2, 3], str(result)


@pytest.mark.parametrize("kv_cache, dtype", [("fp8-e4m3", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_8_bit_cache_is_arithmetic_when_declared(kv_cache, dtype, attention, firstdiff, tiny_folder, tmp_path):
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def narrow(self, keys, values, *args, **kwargs):
        return update(self, keys.to(dtype).float(), values.to(dtype).float(), *args, **kwargs)

    with patch.object(DynamicLayer, "update", narrow):
        trace = record(load(tiny_folder("qwen2"), attention=attention), tmp_path / "trace", IDS, STEPS)
    assert firstdiff.check(trace, tiny_folder("qwen2")).code == DIVERGES
    result = firstdiff.check(declare(trace, kv_cache=kv_cache), tiny_folder("qwen2"))
    assert result.code == AGREES, str(result)


@pytest.mark.parametrize("arithmetic, complaint", [
    ({"matmul_inputs": "int4"}, "matmul_inputs"),
    ({"activations": "fp8-e4m3"}, "activations"),
    ({"split_sums": 0}, "split_sums"),
    ({"split_sums": "four"}, "split_sums"),
    ({"residual": "f31"}, "residual"),
    ({"residual": 16}, "residual"),
    ({"residual": "fp8-e4m3"}, "residual"),
    ({"accumulate": "fp8-e5m2"}, "accumulate"),
])
def test_a_spelling_that_is_not_understood_is_an_error(arithmetic, complaint, firstdiff, tiny_folder, tmp_path):
    trace = record(load(tiny_folder("llama")), tmp_path / "trace", IDS, 1, taps=["logits"])
    result = firstdiff.check(declare(trace, **arithmetic), tiny_folder("llama"))
    assert result.code == 2 and complaint in result.stderr, str(result)


def test_what_a_declaration_leaves_out_is_taken_on_and_said(firstdiff, tiny_folder, tmp_path):
    with WAYS["tf32"][0]:
        trace = record(load(tiny_folder("llama")), tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.code == AGREES and result.json["arithmetic"]["declared"], str(result)
    assert [taken["declare"] for taken in result.json["arithmetic"]["taken"]] == ['"matmul_inputs": "tf32"'], str(result)


def test_an_arithmetic_given_is_doubted_and_not_added_to(firstdiff, tiny_folder, tmp_path):
    with WAYS["tf32"][0]:
        trace = record(load(tiny_folder("llama")), tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(trace, tiny_folder("llama"), "--arithmetic", "f32")
    assert result.code == DIVERGES and result.json["arithmetic"]["profile"] == "f32", str(result)
    assert any("tf32 would leave 0" in note for note in result.json["notes"]), str(result)


def test_a_bug_beside_an_arithmetic_that_is_not_declared_is_found(firstdiff, tiny_folder, tmp_path):
    model = load(tiny_folder("llama"))
    with WAYS["tf32"][0], louder(model, 1.05):
        trace = record(model, tmp_path / "trace", IDS, STEPS)
    result = firstdiff.check(declare(trace), tiny_folder("llama"))
    assert result.json["arithmetic"]["profile"] == "tf32", str(result)
    assert result.findings[0]["tap"] == "layers.0.up_proj" and result.findings[0]["layers"] == [0, 1, 2, 3], str(result)


def weights_first(x, dim=-1, dtype=None):
    """A softmax as flash attention on tensor cores has it: weights are rounded to bf16, then divided by their sum."""
    x = x.float() * math.log2(math.e)
    weights = torch.exp2(x - x.amax(dim, keepdim=True).ceil()).bfloat16().float()
    return weights / weights.sum(dim, keepdim=True)


@pytest.mark.parametrize("heads", [1, 8])
def test_weights_that_are_rounded_before_they_are_divided_by_their_sum_agree(heads, firstdiff, tmp_path):
    # Rows of hundreds of keys, one of which often outweighs all others: its rounding is the factor of the rest.
    sizes = {"num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 32}
    folder = make(Tiny("long", "llama", {**sizes, "max_position_embeddings": 1024}), tmp_path / "model", seed=0)
    model, ids = load(folder, torch.bfloat16), prompt_ids(900, seed=0)
    with patch.object(F, "softmax", weights_first):
        trace = record(model, tmp_path / "trace", ids, 1)
    result = firstdiff.check(trace, folder)
    assert result.code == AGREES, str(result)
    with patch.object(F, "softmax", lambda *args, **kwargs: 1.01 * weights_first(*args, **kwargs)):
        trace = record(model, tmp_path / "louder", ids, 1)
    result = firstdiff.check(trace, folder)
    assert result.code == DIVERGES and result.findings[0]["tap"] == "layers.0.attn_probs", str(result)
