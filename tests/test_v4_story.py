"""A DeepSeek-V4 kernel set as it was met: four faults at once, each found and named."""

import json

import bugs_v4 as bugs
import firstdiff.transformers
import pytest
import tiny_v4
import torch
from recording import generate
from tiny import prompt_ids
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

LAYER = 3
END = "<｜end▁of▁sentence｜>"


def without_sink(model):
    """And without the sink; one layer's kernel writes heads first, and tokens first are read."""

    def change(right, module, query, key, value, mask, scaling, **rest):
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores if mask is None else scores + mask
        probs = torch.softmax(scores, -1).to(value.dtype)
        out = probs @ value
        if module.layer_idx == LAYER and query.shape[2] > 1:
            return out.reshape(out.shape[0], out.shape[2], out.shape[1], -1), probs
        return out.transpose(1, 2).contiguous(), probs

    return bugs.attention(change)


def tokenizer(folder):
    vocabulary = {"<｜begin▁of▁sentence｜>": 0, END: 1, **{f"t{i}": i for i in range(2, tiny_v4.VOCAB)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="t2"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(token, special=True) for token in list(vocabulary)[:2]])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "add_bos_token": False}))


@pytest.fixture(scope="module")
def story(firstdiff, tmp_path_factory):
    root = tmp_path_factory.mktemp("story")
    tiny = tiny_v4.BY_NAME["v4"]
    folder = tiny_v4.make(tiny, root / "model")
    tokenizer(folder)
    model = tiny_v4.load(tiny)
    with bugs.without_entries(model), without_sink(model), bugs.first_row_scale(model):
        with recorded(model, root / "trace"):
            generate(model, prompt_ids(40, seed=5), 6)
    manifest = json.loads((root / "trace" / "trace.json").read_text())
    # `<|end_of_sentence|>` is no token: the engine converts it to nothing and stops at nothing
    manifest |= {"stop_ids": [], "sampling": {"stop": ["<|end_of_sentence|>"]}}
    (root / "trace" / "trace.json").write_text(json.dumps(manifest))
    result = firstdiff.check(root / "trace", folder)
    assert result.code == 1, str(result)
    return result


def recorded(model, path):
    return firstdiff.transformers.record(model, path)


def cause(story, tap):
    found = [f for f in story.findings if any(t.endswith(f".{tap}") for t in f["taps"])]
    assert len(found) == 1, str(story)
    return found[0]


def test_no_entry_was_attended_to(story):
    finding = cause(story, "visible_keys")
    assert finding["layers"] == [1, 2, 3, 4] and finding["cause"]["id"] == "entries-not-attended"


def test_the_sink_was_ignored(story):
    finding = cause(story, "attn_probs")
    assert finding["layers"] == [0, 1, 2, 3, 4] and finding["cause"]["id"] == "sink-ignored"


def test_one_layer_s_attention_kernel_is_wrong(story):
    finding = cause(story, "attn_heads")
    assert finding["layers"] == [LAYER] and finding["cause"]["id"] == "kernel-layout-alias"


def test_a_row_s_scale_was_read_as_one_number(story):
    finding = cause(story, "shared_gate_proj")
    assert finding["cause"]["id"] == "quant-row-scale-as-scalar"
    assert finding["steps"] == [0], "with one row the first row's scale is right"


def test_the_end_of_sentence_was_spelled_in_plain_bars(story):
    notes = " ".join(story.json["tokens"]["notes"])
    assert f"`<|end_of_sentence|>` is no token of this model; token 1 `{END}` looks like it" in notes
    assert "does not stop at 1" in notes


def test_nothing_else_is_found(story):
    assert len(story.findings) == 4
