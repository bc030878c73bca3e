"""`inspect`: what a model file is made of, and what looks wrong in it before anything runs."""

import damage
import pytest
import torch
from firstdiff_binary import AGREES, DIVERGES, ERROR
from safetensors.torch import load_file, save_file
from test_bad_input_models import assert_refused
from tiny import BY_NAME, CONFIGS

BIAS = "model.layers.1.self_attn.k_proj.bias"
WEIGHT = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return damage.copy(tiny_folder("qwen2"), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in {**tensors, **changes}.items() if t is not None}, path)


def inspected(firstdiff, folder):
    result = firstdiff("inspect", folder, "--format", "json")
    assert result.json["format"] == "firstdiff.inspect/1"
    return result


def said_of(result, name):
    """Everything in the report that names this tensor, as one text."""

    def walk(value):
        if isinstance(value, dict):
            if any(v == name for v in value.values() if isinstance(v, str)):
                yield value
            for key, v in value.items():
                if key == name:
                    yield {key: v}
                yield from walk(v)
        elif isinstance(value, list):
            for v in value:
                if v == name:
                    yield {"listed": v}
                yield from walk(v)
        elif isinstance(value, str) and name in value and value != name:
            yield {"text": value}

    return " ".join(str(part) for part in walk(result.json)).lower()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_sound_model_has_nothing_to_complain_about(config, firstdiff, tiny_folder):
    result = inspected(firstdiff, tiny_folder(config.name))
    assert result.code == AGREES, str(result)
    assert BY_NAME[config.name].family in result.stdout


def test_a_tensor_that_nothing_uses_is_listed(firstdiff, folder):
    edit(folder, **{"model.layers.0.self_attn.extra.weight": torch.randn(4, 4)})
    result = inspected(firstdiff, folder)
    assert "model.layers.0.self_attn.extra.weight" in result.stdout, str(result)
    assert "unused" in result.stdout


def test_a_missing_tensor_is_an_error_that_names_it(firstdiff, folder):
    edit(folder, **{WEIGHT: None})
    result = firstdiff("inspect", folder)
    assert_refused(result, WEIGHT)
    assert result.code == ERROR


FLAGGED = {
    "zero": (BIAS, lambda t: torch.zeros_like(t)),
    "constant": (BIAS, lambda t: torch.full_like(t, 0.25)),
    "nan": (WEIGHT, lambda t: t.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(float("nan")))),
    "infinite": (WEIGHT, lambda t: t.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(float("inf")))),
    "absurd": (WEIGHT, lambda t: t.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(1e29))),
}
WORDS = {"zero": ("zero",), "constant": ("constant",), "nan": ("nan", "finite"), "infinite": ("inf", "finite"), "absurd": ("1e29", "absurd", "large", "1e+29", "100000000000000")}


@pytest.mark.parametrize("fault", FLAGGED)
def test_weights_that_look_wrong_are_flagged_by_name(fault, firstdiff, folder):
    name, spoil = FLAGGED[fault]
    sound = said_of(inspected(firstdiff, folder), name)
    edit(folder, **{name: spoil(load_file(folder / "model.safetensors")[name])})
    result = inspected(firstdiff, folder)
    assert result.code in (AGREES, DIVERGES), str(result)
    said = said_of(result, name)
    assert said != sound, "the report says the same as of the sound model"
    assert any(word in said for word in WORDS[fault]), str(result)
    text = firstdiff("inspect", folder)
    assert name in text.stdout, str(text)


def test_check_warns_of_a_zero_filled_bias_before_anything_else(firstdiff, folder, tmp_path):
    """The file itself is wrong and the engine is not: `check` agrees and still says it."""
    from recording import record
    from tiny import load, prompt_ids

    edit(folder, **{BIAS: torch.zeros(32)})
    trace = record(load(folder), tmp_path / "trace", prompt_ids(8), 1)
    result = firstdiff("check", trace, "--model", folder)
    assert result.code == AGREES, str(result)
    assert BIAS in result.stdout + result.stderr


def test_config_fields_that_change_numerics_say_where_they_come_from(firstdiff, tiny_folder):
    result = inspected(firstdiff, tiny_folder("llama"))
    for key in ("rope_theta", "rms_norm_eps", "num_key_value_heads", "tie_word_embeddings"):
        assert key in result.stdout, str(result)


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2", "qwen"])
def test_real_models_are_inspected(name, request, firstdiff):
    result = inspected(firstdiff, request.getfixturevalue(name).path)
    assert result.code == AGREES, str(result)
