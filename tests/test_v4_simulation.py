"""What DeepSeek's own inference code simulates: a named variant of the model, never taken silently."""

import json

import bugs_v4 as bugs
import firstdiff.transformers
import pytest
import tiny_v4
import torch
from recording import feed, generate
from tiny import prompt_ids

LIMIT = 5e-5
TOKENS = 130
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def blocks(x, size, largest, floor, quantise):
    """Blocks of channels through a format, each by the smallest power of two that makes it fit."""
    parts = []
    for block in x.split(size, -1):
        scale = 2.0 ** torch.ceil(torch.log2(block.abs().amax(-1, keepdim=True).clamp(min=floor) / largest))
        parts.append(quantise((block / scale).clamp(-largest, largest)) * scale)
    return torch.cat(parts, -1)


def fp8(x, kept):
    through = lambda block: block.to(torch.float8_e4m3fn).to(block.dtype)
    return torch.cat([blocks(x[..., :-kept], 64, 448.0, 1e-4, through), x[..., -kept:]], -1)


def fp4(x):
    """Halfway goes to the even code: of two neighbours at the same distance, the one with the even number."""

    def nearest(block):
        distance = (block.abs().unsqueeze(-1) - E2M1).abs()
        odd = torch.arange(8) % 2
        return E2M1[(distance + odd * 1e-6).argmin(-1)] * block.sign()

    matrix = torch.ones(1, 1)
    while matrix.shape[0] < x.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return blocks(x @ matrix / x.shape[-1] ** 0.5, 32, 6.0, 1e-30, nearest)


def simulating(model):
    dim, rotated = model.config.head_dim, model.config.qk_rope_head_dim

    def change(kind, right, x, cos, sin):
        y = right(x, cos, sin)
        if kind == "index_query" or kind == "entry" and y.shape[-1] != dim:
            return fp4(y)
        return fp8(y, rotated) if kind in ("key", "entry") else y

    return bugs.rotations(change)


@pytest.fixture(scope="module")
def model_and_folder(tmp_path_factory):
    tiny = tiny_v4.BY_NAME["v4"]
    return tiny_v4.load(tiny), tiny_v4.make(tiny, tmp_path_factory.mktemp("v4") / "model")


@pytest.mark.parametrize("chunk", [TOKENS, 7, 1], ids=lambda n: f"chunks of {n}")
def test_logits_equal_those_of_an_engine_that_simulates_the_same(chunk, model_and_folder, firstdiff, tmp_path):
    model, folder = model_and_folder
    ids = prompt_ids(TOKENS, seed=5)
    with simulating(model):
        expected = feed(model, [ids]).double()
    options = ["--chunk", chunk, "--dtype", "f64", "--taps", "logits"]
    steps = firstdiff.trace(folder, tmp_path / "t", ids, *options, "--simulate", "deepseek")
    found = (torch.cat([step["logits"].double() for step in steps]) - expected).abs().amax(-1)
    assert float(found.max()) <= LIMIT, found
    plain = firstdiff.trace(folder, tmp_path / "plain", ids, *options)
    apart = torch.cat([step["logits"].double() for step in plain]) - expected
    assert float(apart.abs().max()) > 0.1, "the simulation changes the model"


# a recorder sees keys and entries after they went through the short format: not as `kv_rope` and `kv_entry`
TAPS = ["embed", "layers.*.kv_norm", "layers.*.comp_*", "layers.*.kv_entries", "layers.*.index_norm"]
TAPS += ["layers.*.index_q_proj", "layers.*.index_weights", "layers.*.index_scores", "layers.*.index_topk"]
TAPS += ["layers.*.attn_*", "layers.*.q_*", "layers.*.hc_*", "layers.*.mlp_*", "layers.*.out", "logits"]


def record(model, path, **arithmetic):
    with simulating(model), firstdiff.transformers.record(model, path, taps=TAPS):
        generate(model, prompt_ids(40, seed=5), 5)
    manifest = json.loads((path / "trace.json").read_text())
    manifest["arithmetic"] |= arithmetic
    (path / "trace.json").write_text(json.dumps(manifest))
    return path


def test_an_engine_that_declares_the_simulation_agrees(model_and_folder, firstdiff, tmp_path):
    model, folder = model_and_folder
    trace = record(model, tmp_path / "t", simulates="deepseek", matmul_inputs="as-stored")
    result = firstdiff.check(trace, folder)
    assert result.code == 0, str(result)
    assert "deepseek-sim" in result.json["arithmetic"]["profile"]


def test_it_is_never_taken_silently(model_and_folder, firstdiff, tmp_path):
    model, folder = model_and_folder
    result = firstdiff.check(record(model, tmp_path / "t"), folder)
    assert result.code == 1, str(result)


def test_other_simulations_and_other_families_are_refused(model_and_folder, firstdiff, tmp_path, tiny_folder):
    model, folder = model_and_folder
    result = firstdiff.check(record(model, tmp_path / "t", simulates="magic"), folder)
    assert result.code == 2 and "magic" in result.stderr and "deepseek" in result.stderr, str(result)
    result = firstdiff("trace", tiny_folder("llama"), tmp_path / "r", "--tokens", "1,2", "--simulate", "deepseek")
    assert result.code == 2 and "simulation" in result.stderr, str(result)
