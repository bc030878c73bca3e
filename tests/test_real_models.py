"""Real GGUF files: what `run` says, against transformers in float32 on the same dequantised weights."""

import pytest
import torch
from recording import feed
from transformers import AutoTokenizer

pytestmark = pytest.mark.real_model

TOKENS = 64
TIE = 1e-4
PROMPTS = [
    "The capital of France is",
    "def quicksort(items):",
    "Once upon a time, in a village by the sea,",
    "Ingredients: 3 eggs, 250g flour,\n1 l milk.\n\nMethod:",
    "Der schnelle braune Fuchs sagte: „",
]
HAIKU = "Write a haiku about GPU computing"
MODELS = ["smollm2", "qwen", "gemma"]
TEMPLATED = ["smollm2", "qwen"]  # Gemma 3 270M is a base model without a chat template


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """The GGUF, and how to get it in transformers; one at a time, as each takes gigabytes."""
    return request.getfixturevalue(request.param)


def templated(test):
    return pytest.mark.parametrize("model", TEMPLATED, indirect=True)(test)


@pytest.fixture(scope="module")
def in_transformers(model):
    return model.to_transformers()


@pytest.fixture(scope="module")
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model.path.parent, gguf_file=model.path.name)


def first_difference(transformers_model, prompt_ids, tokens):
    """Where greedy decoding in transformers leaves `tokens`, with the gap between its two best logits there.

    Fed `tokens` themselves: up to the first difference that is the sequence transformers would have chosen itself.
    """
    rows = feed(transformers_model, [prompt_ids + tokens])[len(prompt_ids) - 1 : -1]
    for position, (row, token) in enumerate(zip(rows, tokens)):
        best = row.topk(2).values
        if int(row.argmax()) != token:
            return position, float(best[0] - row[token])
    return None


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_first_64_greedy_tokens_are_those_of_transformers(prompt, model, firstdiff, in_transformers, tokenizer):
    ran = firstdiff.run(model.path, prompt, "--raw", "-n", TOKENS, "--temperature", 0)
    assert ran["prompt_ids"] == tokenizer(prompt)["input_ids"]
    assert model.decode(ran["prompt_ids"]).removeprefix("<bos>") == prompt
    assert ran["stop"] == "stop-id" or len(ran["tokens"]) == TOKENS
    assert len(ran["margins"]) == len(ran["tokens"]) > 0
    assert ran["text"].strip() in model.decode(ran["tokens"])
    difference = first_difference(in_transformers, ran["prompt_ids"], ran["tokens"])
    if difference:
        position, gap = difference
        print(f"differs at token {position}: gap {gap:.2e}, margin by firstdiff {ran['margins'][position]:.2e}")
        assert gap < TIE, difference


@templated
def test_the_chat_prompt_is_the_rendered_template(model, firstdiff, tokenizer):
    messages = [{"role": "user", "content": HAIKU}]
    rendered = model.render_chat(messages)
    assert rendered == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ran = firstdiff.run(model.path, HAIKU, "-n", 1, "--temperature", 0)
    assert model.decode(ran["prompt_ids"]) == rendered
    assert ran["prompt_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@templated
def test_a_haiku_in_the_chat_template_is_what_transformers_writes(model, firstdiff, in_transformers):
    ran = firstdiff.run(model.path, HAIKU, "-n", 128, "--temperature", 0)
    print(ran["text"])
    assert len(ran["text"].split()) >= 5
    difference = first_difference(in_transformers, ran["prompt_ids"], ran["tokens"])
    assert difference is None or difference[1] < TIE, difference


def test_the_haiku_of_the_larger_model_stops_by_itself(qwen, firstdiff):
    """The smaller model repeats itself for ever at temperature 0, in transformers too."""
    ran = firstdiff.run(qwen.path, HAIKU, "-n", 128, "--temperature", 0)
    assert (ran["stop"], ran["stop_id"]) == ("stop-id", qwen.field("tokenizer.ggml.eos_token_id"))
    assert len(ran["text"].strip().splitlines()) == 3


def test_sampling_is_repeatable_by_its_seed(smollm2, firstdiff):
    run = lambda seed: firstdiff.run(smollm2.path, HAIKU, "-n", 16, "--temperature", 1, "--seed", seed)["tokens"]
    assert run(7) == run(7)
    assert len({tuple(run(seed)) for seed in range(3)}) > 1


def test_a_given_prompt_of_tokens_is_used_as_it_is(smollm2, firstdiff):
    ran = firstdiff.run(smollm2.path, None, "--tokens", "504,3575,282,4649,314", "-n", 4, "--temperature", 0)
    assert ran["prompt_ids"] == [504, 3575, 282, 4649, 314]
    assert len(ran["tokens"]) == 4


def test_what_short_sums_lose_of_long_prompts_is_rounding(smollm2, firstdiff, tmp_path):
    """In some heads one key takes nearly all of the weight. Added to it in f32, hundreds of others lose what is less than
    half of its last place: in all tokens alike, as a wrong factor would."""
    ids = [37 * i % 40_000 + 5 for i in range(700)]
    layers = ["layers.12.out", "layers.13.*", "layers.16.out", "layers.17.*"]
    firstdiff.trace(smollm2.path, tmp_path / "trace", ids, "--taps", ",".join(layers))
    found = firstdiff.check(tmp_path / "trace", smollm2.path, "--layers", "13,17").json
    assert found["verdict"] == "agrees", found["findings"]
    assert found["coverage"]["taps"] == 38
