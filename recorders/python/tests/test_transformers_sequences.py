"""Which tokens belong to which sequence: what is followed, and what ends the recording with one warning."""

import copy
import inspect
import threading
import warnings

import pytest
import torch
from replay import Replay, cache_of, cached, make, state_of
from transformers import DynamicCache, QuantizedCache, StaticCache

from firstdiff.transformers import RecorderWarning, record

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5]])
GREEDY = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def refused(tmp_path):
    """Runs something while it is recorded: the result is that without a recorder, and one warning has the words."""

    def run(model, action, words, steps=0):
        plain, before = action(), state_of(model)
        with pytest.warns(RecorderWarning, match=words) as caught:
            with record(model, tmp_path / "t"):
                result = action()
        assert [warning.category for warning in caught].count(RecorderWarning) == 1
        assert torch.equal(result, plain) and state_of(model) == before
        files = sorted(file.name for file in (tmp_path / "t").glob("*"))
        assert files == [f"step-{n:06d}.safetensors" for n in range(steps)] + ["trace.json"] * bool(steps)

    return run


def sequences(trace):
    return [step["sequence"].tolist() if "sequence" in step else [0] * len(step["token_ids"]) for step in trace]


def positions(trace):
    return [step["positions"].tolist() for step in trace]


def keys_belong_to_their_tokens(trace):
    """Every key of every step is the one that was recorded with its sequence's latest token at that position."""
    written = {}
    for step, numbers in zip(trace, sequences(trace)):
        for row, place in enumerate(zip(numbers, step["positions"].tolist())):
            written = {other: key for other, key in written.items() if other[0] != place[0] or other[1] < place[1]}
            written[place] = step["layers.1.k_rope"][row]
        held = step["layers.1.k_cache"]
        if "key_sequence" in step:
            places = list(zip(step["key_sequence"].tolist(), step["key_position"].tolist()))
        else:
            places = [(numbers[0], position) for position in range(len(held))]
        assert len(places) == len(held) and len(set(places)) == len(places)
        for place, key in zip(places, held):
            assert torch.equal(written[place], key), place


# ---- what is followed ----------------------------------------------------------------------------------------------


def test_a_cache_is_found_by_position_and_in_outputs_without_names(tmp_path, read_trace):
    model = make("llama")
    at = list(inspect.signature(model.forward).parameters).index(next(iter(cached(model, None))))
    with record(model, tmp_path / "t"):
        _, cache = model(PROMPT, return_dict=False)[:2]
        model(torch.tensor([[7]]), *[None] * (at - 1), cache)
    trace = read_trace(tmp_path / "t")
    assert positions(trace) == [list(range(6)), [6]] and sequences(trace)[1] == [0]
    replay = Replay(model)
    for step in trace:
        replay.check(step)


def test_a_prompt_in_chunks_is_one_sequence_and_only_its_last_chunk_chooses(tmp_path, read_trace):
    model = make("qwen2")
    with record(model, tmp_path / "t"):
        out = model.generate(PROMPT, prefill_chunk_size=4, **GREEDY)
    trace = read_trace(tmp_path / "t")
    assert positions(trace) == [[0, 1, 2, 3], [4, 5], [6], [7], [8]]
    assert [step["sampled"].item() if "sampled" in step else None for step in trace] == [None, *out[0, 6:].tolist()]
    keys_belong_to_their_tokens(trace)


def test_without_a_cache_every_call_is_a_sequence_of_its_own(tmp_path, read_trace):
    model = make("llama")
    with record(model, tmp_path / "t"):
        model.generate(PROMPT, use_cache=False, **GREEDY)
    trace = read_trace(tmp_path / "t")
    assert positions(trace) == [list(range(n)) for n in (6, 7, 8, 9)]
    assert sequences(trace) == [[number] * n for number, n in enumerate((6, 7, 8, 9))]


def test_rejected_drafts_are_rewinds(tmp_path, read_trace):
    model = make("llama")
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    plain = model.generate(prompt, **GREEDY)
    with record(model, tmp_path / "t"):
        drafted = model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(drafted, plain)
    trace = read_trace(tmp_path / "t")
    assert {number for numbers in sequences(trace) for number in numbers} == {0}
    assert any(later[0] <= earlier[-1] for earlier, later in zip(positions(trace), positions(trace)[1:])), "a rewind"
    keys_belong_to_their_tokens(trace)
    for step in trace:
        if "sampled" in step:
            assert step["sampled"].item() == plain[0, step["positions"][-1] + 1]


def test_a_cache_that_is_emptied_begins_a_new_sequence(tmp_path, read_trace):
    model = make("llama")
    cache = StaticCache(config=model.config, max_cache_len=16)
    with record(model, tmp_path / "t"):
        for ids in (PROMPT, PROMPT[:, :3]):
            model(ids, **cached(model, cache))
            cache.reset()
    assert sequences(read_trace(tmp_path / "t")) == [[0] * 6, [1] * 3]


def test_copies_of_a_prompts_cache_go_on_from_the_prompt(tmp_path, read_trace):
    model = make("llama")
    with record(model, tmp_path / "t"):
        prompt = cache_of(model(PROMPT))
        for token in (7, 8):
            ids = torch.cat([PROMPT, torch.tensor([[token]])], 1)
            model.generate(ids, **cached(model, copy.deepcopy(prompt)), **GREEDY)
    trace = read_trace(tmp_path / "t")
    assert positions(trace) == [list(range(6)), *[[6], [7], [8], [9]] * 2]
    keys_belong_to_their_tokens(trace)


def test_rows_that_change_places_keep_their_sequences(tmp_path, read_trace):
    model = make("qwen2")
    with record(model, tmp_path / "t"):
        cache = cache_of(model(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])))
        cache.batch_select_indices(torch.tensor([2, 0]))
        model(torch.tensor([[10], [11]]), **cached(model, cache))
    trace = read_trace(tmp_path / "t")
    assert sequences(trace)[1] == [2, 0] and positions(trace)[1] == [3, 3]
    assert trace[1]["key_sequence"].tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
    keys_belong_to_their_tokens(trace)


@pytest.mark.parametrize("pad", [0, 79])
def test_a_sequence_that_has_ended_chooses_nothing_more(tmp_path, read_trace, pad):
    model = make("llama")
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=pad)
    for first in range(80):  # until the first sequence alone would end after two tokens
        ids = torch.tensor([[first, 14, 15], [9, 26, 5]])
        free = model.generate(ids, eos_token_id=None, **how)
        stop = free[0, 4].item()
        if stop not in free[1, 3:] and stop != free[0, 3]:
            break
    with record(model, tmp_path / "t"):
        out = model.generate(ids, eos_token_id=stop, **how)
    assert out[0].tolist() == free[0, :5].tolist() + [pad] * 3
    chosen = [step["sampled"].tolist() for step in read_trace(tmp_path / "t")]
    assert chosen == [list(pair) for pair in zip(free[0, 3:5].tolist() + [-1] * 3, free[1, 3:].tolist())]


def test_logits_of_chosen_tokens_say_whose_they_are(tmp_path, read_trace):
    model = make("llama")
    with record(model, tmp_path / "t"):
        some = model(PROMPT, logits_to_keep=torch.tensor([1, -2])).logits
        last = model(PROMPT.view(2, 3), logits_to_keep=2).logits
    first, second = read_trace(tmp_path / "t")
    assert torch.equal(first["logits"], some[0]) and first["logits_rows"].tolist() == [1, 4]
    assert torch.equal(second["logits"], last.flatten(0, 1)) and second["logits_rows"].tolist() == [1, 2, 4, 5]


def test_tensors_in_another_format_than_most_are_declared(tmp_path, read_trace):
    model = make("llama", dtype=torch.bfloat16)
    head = model.lm_head.weight.float()
    model.lm_head.forward = lambda x: x.float() @ head.T
    with record(model, tmp_path / "t"):
        model(PROMPT)
    trace = read_trace(tmp_path / "t")
    assert trace.json["arithmetic"]["stored"] == {"logits": "f32"}
    assert trace[0]["logits"].dtype == torch.float32 and trace[0]["layers.0.out"].dtype == torch.bfloat16


# ---- several recorders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_recorders_of_one_model_see_the_same_and_end_in_any_order(tmp_path, read_trace, order, attention):
    model = make("qwen3", attention)
    before = state_of(model)
    outer = record(model, tmp_path / "outer")
    outer.__enter__()
    model.generate(PROMPT, **GREEDY)
    inner = record(model, tmp_path / "inner")
    inner.__enter__()
    model.generate(PROMPT, **GREEDY)
    first, second = (inner, outer) if order == "inner first" else (outer, inner)
    first.__exit__(None, None, None)
    model.generate(PROMPT, **GREEDY)
    second.__exit__(None, None, None)
    assert state_of(model) == before
    outside, inside = read_trace(tmp_path / "outer"), read_trace(tmp_path / "inner")
    assert (len(outside), len(inside)) == ((12, 4) if order == "inner first" else (8, 8))
    for step, twin in zip(list(outside)[4:8], inside):
        step.pop("sequence")
        assert step.keys() == twin.keys() and all(torch.equal(step[tap], twin[tap]) for tap in step)
    keys_belong_to_their_tokens(inside)


# ---- what a trace cannot tell --------------------------------------------------------------------------------------


def test_a_recorder_that_comes_after_the_prompt_says_so(refused):
    model = make("llama")
    caches = [cache_of(model(PROMPT)) for _ in range(2)]
    refused(model, lambda: model(torch.tensor([[7]]), **cached(model, caches.pop())).logits, "already holds 6 tokens")


@pytest.mark.parametrize(
    "given", [torch.arange(12, 18)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])], ids=["later", "packed prompts"]
)
def test_positions_that_the_empty_cache_contradicts_are_refused(refused, given):
    model = make("llama")
    refused(model, lambda: model(PROMPT, position_ids=given).logits, "empty key/value cache at positions")


def test_a_call_that_failed_halfway_leaves_a_cache_that_is_refused(refused):
    model = make("llama")

    def fails_once():
        cache = DynamicCache(config=model.config)
        model(PROMPT, **cached(model, cache))
        hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.tensor([[7]]), **cached(model, cache))
        hook.remove()
        with pytest.raises(RuntimeError):  # the layers' caches differ in length now
            model(torch.tensor([[7]]), **cached(model, cache))
        return torch.zeros(0)

    refused(model, fails_once, "of which 6 were recorded", steps=1)


def test_beams_are_refused_before_the_first_step(refused):
    model = make("llama")
    refused(model, lambda: model.generate(PROMPT, num_beams=3, **GREEDY), "num_beams=1")


def test_rows_copied_over_others_are_refused(refused):
    model = make("llama")

    def fork():
        cache = cache_of(model(torch.tensor([[1, 2, 3], [4, 5, 6]])))
        cache.reorder_cache(torch.tensor([1, 1]))
        return model(torch.tensor([[7], [8]]), **cached(model, cache)).logits

    refused(model, fork, "copied over others", steps=1)


def test_two_copies_of_a_cache_used_in_turn_are_refused(refused):
    model = make("llama")

    def turns():
        prompt = cache_of(model(PROMPT))
        one, other = copy.deepcopy(prompt), copy.deepcopy(prompt)
        return torch.cat([model(torch.tensor([[token]]), **cached(model, cache)).logits
                          for token, cache in ((7, one), (8, other), (9, one))])

    refused(model, turns, "another copy", steps=3)


def test_early_exits_are_refused(refused):
    model = make("llama", num_hidden_layers=3)
    refused(model, lambda: model.generate(PROMPT, assistant_early_exit=1, **GREEDY), "1 of its 3 layers")


def test_attention_changed_while_recorded_is_refused(refused):
    model = make("llama")

    def change():
        model.set_attn_implementation("sdpa")
        out = model(PROMPT).logits
        model.set_attn_implementation("eager")
        return out

    refused(model, change, "from eager to sdpa")


def test_quantised_caches_are_refused(refused, monkeypatch):
    from transformers import cache_utils

    class Halves(cache_utils.QuantizedLayer):
        """Stands for the packages that quantise: one decimal place."""

        def _quantize(self, tensor, axis):
            return (tensor * 10).round()

        def _dequantize(self, tensor):
            return tensor / 10

    monkeypatch.setattr(cache_utils, "QuantoQuantizedLayer", Halves)
    model = make("llama")

    def run():
        cache = QuantizedCache(backend="quanto", config=model.config)
        model(PROMPT, **cached(model, cache))
        return model(torch.tensor([[7]]), **cached(model, cache)).logits

    refused(model, run, "quantised")


@pytest.mark.parametrize("how", ["model.compile", "torch.compile", "forward", "a layer"])
def test_models_compiled_before_are_refused(refused, how):
    model = make("llama")
    called = model
    if how == "model.compile":
        model.compile(backend="eager")
    elif how == "torch.compile":
        called = torch.compile(model, backend="eager")
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model.model.layers[1].compile(backend="eager")
    called(PROMPT)
    refused(model, lambda: called(PROMPT).logits, "compile")
    torch._dynamo.reset()


def test_a_model_compiled_while_it_is_recorded_is_refused(refused):
    model = make("llama")
    ways = [model, torch.compile(model, backend="eager")]
    refused(model, lambda: ways.pop(0)(PROMPT).logits, "compiled while it was recorded")
    torch._dynamo.reset()


def test_two_threads_at_once_are_refused_and_written_steps_are_whole(tmp_path, read_trace):
    model = make("llama")
    plain = [model.generate(PROMPT + n, **GREEDY) for n in range(4)]
    results, together, met = {}, threading.Barrier(2, timeout=60), threading.Event()

    def pair(*_):
        if not met.is_set():
            together.wait()
            met.set()

    hook = model.model.layers[0].register_forward_pre_hook(pair)

    def run(n):
        with torch.no_grad():  # a setting of each thread
            results[n] = model.generate(PROMPT + n, **GREEDY)

    with pytest.warns(RecorderWarning, match="two threads") as caught:
        with record(model, tmp_path / "t"):
            threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
    hook.remove()
    assert [warning.category for warning in caught].count(RecorderWarning) == 1
    assert all(torch.equal(results[n], plain[n]) for n in range(2))
    assert not (tmp_path / "t").exists(), "both calls were inside the first step"


def test_one_thread_after_another_is_recorded(tmp_path, read_trace):
    model = make("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecorderWarning)
        with record(model, tmp_path / "t"):
            for n in range(2):
                thread = threading.Thread(target=lambda: model.generate(PROMPT, **GREEDY))
                thread.start()
                thread.join()
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 8 and all("sampled" in step for step in trace)
    keys_belong_to_their_tokens(trace)


def test_a_block_without_a_call_leaves_no_trace(tmp_path):
    model = make("llama")
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        with pytest.warns(RecorderWarning, match="no call of the model was seen"):
            with record(model, tmp_path / folder):
                pass
    assert not (tmp_path / "new").exists() and list((tmp_path / "mine").iterdir()) == []
