import pytest
import torch
from replay import Replay, cache_of, cached, expected_taps, make, state_of
from transformers import DynamicCache, StaticCache

from firstdiff.transformers import record

FAMILIES = ["llama", "qwen2", "qwen3"]
RESERVED = {"token_ids", "positions", "sequence", "sampled", "logits_rows", "key_sequence", "key_position"}
PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5, 35]])


def taps_of(step):
    return {name for name in step if name not in RESERVED}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_of_prefill_chunk_and_decode_equals_the_value_by_hand(tmp_path, read_trace, family, attention, dtype):
    model = make(family, attention, dtype)

    def drive():
        logits, cache = [], DynamicCache(config=model.config)
        with torch.no_grad():
            for chunk in (PROMPT[:, :3], PROMPT[:, 3:], torch.tensor([[7]]), torch.tensor([[11]])):
                logits.append(model(chunk, **cached(model, cache), use_cache=True).logits)
        return logits

    plain = drive()
    before = state_of(model)
    with record(model, tmp_path / "t"):
        recorded = drive()
    assert state_of(model) == before
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded))
    assert all(torch.equal(a, b) for a, b in zip(plain, drive()))

    trace, replay = read_trace(tmp_path / "t"), Replay(model)
    assert [step["token_ids"].tolist() for step in trace] == [[3, 14, 15], [9, 26, 5, 35], [7], [11]]
    assert [step["positions"].tolist() for step in trace] == [[0, 1, 2], [3, 4, 5, 6], [7], [8]]
    for step, logits in zip(trace, plain):
        assert taps_of(step) == expected_taps(model, attention == "eager")
        assert torch.equal(step["logits"], logits[0])
        assert "sampled" not in step and "sequence" not in step
        replay.check(step)
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert trace.json["complete"] is True
    assert trace.json["model"]["family"] == family
    assert trace.json["arithmetic"] == {"weights": name, "activations": name, "kv_cache": name, "attention": attention}
    assert trace.json["stop_ids"] == [79]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_is_recorded_with_each_sampled_token(tmp_path, read_trace, family, attention, cache):
    model = make(family, attention)
    how = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    if cache == "static":
        how["cache_implementation"] = "static"
    plain = model.generate(PROMPT, **how)
    with record(model, tmp_path / "t"):
        recorded = model.generate(PROMPT, **how)
    assert torch.equal(plain, recorded)
    trace = read_trace(tmp_path / "t")
    new = plain[0, PROMPT.shape[1]:].tolist()
    assert len(trace) == 5
    assert [step["sampled"].tolist() for step in trace] == [[token] for token in new]
    assert [step["token_ids"].tolist() for step in trace] == [PROMPT[0].tolist()] + [[token] for token in new[:-1]]
    # generate sizes a static cache by the longest sequence it may hold
    length = PROMPT.shape[1] + 5 if cache == "static" else None
    lengths = {length, length - 1} if length else {None}
    for candidate in lengths:
        try:
            replay = Replay(model, candidate)
            for step in trace:
                replay.check(step)
            break
        except AssertionError as error:
            failure = error
    else:
        raise failure
    assert trace[0]["logits"].shape == (1, 80)
    assert trace.json["sampling"]["do_sample"] is False


def test_a_static_cache_given_by_hand_is_cut_to_the_visible_keys(tmp_path, read_trace):
    model = make("qwen3")
    with record(model, tmp_path / "t"), torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=24)
        model(PROMPT, **cached(model, cache))
        model(torch.tensor([[8]]), **cached(model, cache))
    trace, replay = read_trace(tmp_path / "t"), Replay(model, 24)
    for step in trace:
        replay.check(step)
    assert trace[1]["layers.1.attn_probs"].shape == (4, 1, 8)
    assert trace[1]["layers.1.k_cache"].shape == (8, 2, 16)


def test_each_call_without_past_is_a_sequence_of_its_own(tmp_path, read_trace):
    model = make("llama")
    with record(model, tmp_path / "t"), torch.no_grad():
        cache = cache_of(model(PROMPT))
        other = cache_of(model(PROMPT[:, :2]))
        model(torch.tensor([[5]]), **cached(model, cache))
        model(torch.tensor([[6]]), **cached(model, other))
        model(PROMPT[:, :2], use_cache=False)
    sequences = [step["sequence"].tolist() if "sequence" in step else None for step in read_trace(tmp_path / "t")]
    assert sequences == [None, [1, 1], None, [1], [2, 2]]
    assert [step["positions"].tolist()[-1] for step in read_trace(tmp_path / "t")] == [6, 1, 7, 2, 1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_left_padded_batch_becomes_rows_without_padding(tmp_path, read_trace, attention, cache):
    model = make("qwen2", attention)
    ids = torch.tensor([[0, 0, 0, 21, 22], [31, 32, 33, 34, 35]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    how = dict(attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None)
    if cache == "static":
        how["cache_implementation"] = "static"
    plain = model.generate(ids, **how)
    with record(model, tmp_path / "t"):
        assert torch.equal(model.generate(ids, **how), plain)
    trace = read_trace(tmp_path / "t")
    first, second = trace[0], trace[1]
    assert first["token_ids"].tolist() == [21, 22, 31, 32, 33, 34, 35]
    assert first["positions"].tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert first["sequence"].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert second["token_ids"].tolist() == plain[:, 5].tolist()
    assert second["positions"].tolist() == [2, 5] and second["sequence"].tolist() == [0, 1]
    left_out = {"attn_scores", "attn_probs"}
    for step in trace:
        assert not any(tap.rsplit(".", 1)[-1] in left_out for tap in step)
        # operations on single rows are exact whatever the batch, and show that rows were not mixed up
        assert torch.equal(step["embed"], model.model.embed_tokens(step["token_ids"]))
        for n, layer in enumerate(model.model.layers):
            at, before = f"layers.{n}.", step["embed"] if n == 0 else step[f"layers.{n - 1}.out"]
            assert torch.equal(step[at + "attn_norm"], layer.input_layernorm(before))
            assert torch.equal(step[at + "attn_resid"], before + step[at + "attn_out"])
            act = layer.mlp.act_fn(step[at + "gate_proj"]) * step[at + "up_proj"]
            # exp is computed in vectors with a scalar tail, and where the tail falls depends on the rows:
            # one rounding each in exp, 1+exp, the quotient and the product
            assert ((step[at + "mlp_act"] - act).abs() <= 4 * torch.finfo().eps * act.abs()).all()
            assert torch.equal(step[at + "out"], step[at + "attn_resid"] + step[at + "mlp_out"])
            assert step[at + "q_rope"].shape == step[at + "attn_heads"].shape == (len(step["token_ids"]), 4, 12)
    # of each sequence its own keys, one sequence after the other
    assert first["key_sequence"].tolist() == first["sequence"].tolist()
    assert first["key_position"].tolist() == first["positions"].tolist()
    assert second["key_sequence"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert second["key_position"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    keys = torch.cat([first["layers.1.k_rope"][:2], second["layers.1.k_rope"][:1],
                      first["layers.1.k_rope"][2:], second["layers.1.k_rope"][1:]])
    assert torch.equal(second["layers.1.k_cache"], keys)
    # the logits are those of each sequence's last row, and so are the chosen tokens
    assert first["logits"].shape == second["logits"].shape == (2, 80)
    assert first["logits_rows"].tolist() == [1, 6] and "logits_rows" not in second
    assert [step["sampled"].tolist() for step in trace] == plain[:, 5:].T.tolist()
    assert ("notes" in trace.json) == (attention == "eager")  # scores and probabilities are left out


def test_padding_of_a_single_sequence_is_dropped_from_rows_and_keys(tmp_path, read_trace):
    model = make("llama")
    ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), PROMPT], 1)
    mask = (torch.arange(ids.shape[1]) >= 2).long()[None]
    with record(model, tmp_path / "t"):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, eos_token_id=None)
    first, second = read_trace(tmp_path / "t")
    assert first["token_ids"].tolist() == PROMPT[0].tolist() and first["positions"].tolist() == list(range(7))
    assert second["layers.0.attn_probs"].shape == (4, 1, 8) and second["layers.0.k_cache"].shape == (8, 2, 12)
    assert torch.equal(second["layers.0.k_cache"][:7], first["layers.0.k_rope"])
    assert [step["sampled"].item() for step in (first, second)] == out[0, -2:].tolist()
    # a padded query or key counted in would take probability away
    assert torch.allclose(first["layers.1.attn_probs"].sum(-1), torch.ones(4, 7), atol=8 * torch.finfo().eps, rtol=0)


def test_taps_are_chosen_by_glob_and_attention_can_be_left_alone(tmp_path, read_trace):
    model = make("qwen3")
    before = state_of(model)
    with torch.no_grad():
        with record(model, tmp_path / "a", taps=["layers.*.out", "logits"]):
            assert state_of(model)[2] == before[2], "no attention tap wanted: the attention function stays untouched"
            model(PROMPT)
        with record(model, tmp_path / "b", attention=False):
            model(PROMPT)
        with record(model, tmp_path / "c", taps="layers.1.attn_scores"):
            model(PROMPT)
        with record(model, tmp_path / "d"):
            model(PROMPT)
    everything = read_trace(tmp_path / "d")[0]
    assert taps_of(read_trace(tmp_path / "a")[0]) == {"layers.0.out", "layers.1.out", "logits"}
    assert taps_of(read_trace(tmp_path / "b")[0]) == expected_taps(model, eager=True, attention=False)
    assert taps_of(read_trace(tmp_path / "c")[0]) == {"layers.1.attn_scores"}
    for name in "abc":
        for tap, value in read_trace(tmp_path / name)[0].items():
            assert torch.equal(value, everything[tap]), tap


def test_logits_to_keep_records_the_last_rows(tmp_path, read_trace):
    model = make("llama")
    with record(model, tmp_path / "t"), torch.no_grad():
        out = model(PROMPT, logits_to_keep=2, return_dict=False)
    assert torch.equal(read_trace(tmp_path / "t")[0]["logits"], out[0][0])
    assert out[0].shape[1] == 2


def test_two_models_recorded_at_once_do_not_see_each_other(tmp_path, read_trace):
    one, two = make("llama"), make("llama", num_hidden_layers=1)
    before = state_of(one)
    first = record(one, tmp_path / "1")
    first.__enter__()
    with record(two, tmp_path / "2"), torch.no_grad():
        one(PROMPT)
        two(PROMPT[:, :3])
        first.__exit__(None, None, None)  # not the order of opening
        two(PROMPT[:, :4])
    assert state_of(one) == before
    Replay(one).check(read_trace(tmp_path / "1")[0])
    for step in read_trace(tmp_path / "2"):
        Replay(two).check(step)
    assert (len(read_trace(tmp_path / "1")), len(read_trace(tmp_path / "2"))) == (1, 2)


def test_the_prompt_text_is_kept_when_a_tokenizer_is_given(tmp_path, read_trace):
    class Tokenizer:
        def decode(self, ids):
            return " ".join(map(str, ids))

    with record(make("llama"), tmp_path / "t", tokenizer=Tokenizer()) as recorder, torch.no_grad():
        recorder.model(PROMPT)
        recorder.model(PROMPT[:, :1])
    assert read_trace(tmp_path / "t").json["prompt"] == "3 14 15 9 26 5 35"
