"""What happens when the engine is wrong, when the engine fails, and when the recorder fails."""

import builtins
import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from replay import Replay, cached, make, state_of
from safetensors.torch import load_file
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama import modeling_llama

from firstdiff.trace import TraceRefused
from firstdiff.transformers import RecorderWarning, record

PROMPT = torch.tensor([[3, 14, 15, 9]])


def run(model):
    with torch.no_grad():
        return model.generate(PROMPT, max_new_tokens=3, do_sample=False, eos_token_id=None)


# ---- a wrong engine is recorded as it is -------------------------------------------------------------------------


def test_a_norm_that_overwrites_the_residual_is_seen_before_and_after(tmp_path, read_trace, monkeypatch):
    model = make("llama", num_hidden_layers=1)
    right = modeling_llama.LlamaRMSNorm.forward
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: x.copy_(right(self, x)))
    with record(model, tmp_path / "t"), torch.no_grad():
        model(PROMPT)
    step = read_trace(tmp_path / "t")[0]
    at = "layers.0."
    assert torch.equal(step["embed"], model.model.embed_tokens(PROMPT[0])), "taken before it was overwritten"
    assert torch.equal(step[at + "attn_resid"], step[at + "attn_norm"] + step[at + "attn_out"])
    assert torch.equal(step[at + "out"], step[at + "mlp_norm"] + step[at + "mlp_out"])
    assert not torch.equal(step[at + "mlp_norm"], step[at + "attn_resid"])


def test_a_stale_cache_slot_shows_in_k_cache_and_not_in_k_rope(tmp_path, read_trace, monkeypatch):
    model = make("llama")
    right = DynamicLayer.update

    def stale(self, key_states, value_states, *args, **kwargs):
        keys, values = right(self, key_states, value_states, *args, **kwargs)
        if key_states.shape[2] == 1:
            keys = keys.clone()
            keys[:, :, -1] = keys[:, :, -2]
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", stale)
    with record(model, tmp_path / "t"):
        run(model)
    step = read_trace(tmp_path / "t")[1]
    with pytest.raises(AssertionError, match="layers.0.k_cache: differs"):
        replay = Replay(model)
        replay.check(read_trace(tmp_path / "t")[0])
        replay.check(step)
    assert torch.equal(step["layers.0.k_cache"][-1], step["layers.0.k_cache"][-2])


def test_an_attention_that_forgets_the_scale_or_masks_in_place_shows_what_it_held(tmp_path, read_trace, monkeypatch):
    def unscaled(module, query, key, value, mask, scaling, **_):
        key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
        weights = query @ key.transpose(2, 3)
        weights += mask
        weights = weights.softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", unscaled)
    model = make("llama")
    with record(model, tmp_path / "t"), torch.no_grad():
        model(PROMPT)
    step = read_trace(tmp_path / "t")[0]
    q, k = step["layers.0.q_rope"].transpose(0, 1), step["layers.0.k_cache"].transpose(0, 1).repeat_interleave(2, 0)
    assert torch.equal(step["layers.0.attn_scores"], q @ k.transpose(1, 2))
    assert (step["layers.0.attn_scores"] > -1e9).all(), "before the mask"


def test_scores_are_seen_when_the_query_is_scaled_first(tmp_path, read_trace, monkeypatch):
    def scale_first(module, query, key, value, mask, scaling, **_):
        key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
        weights = (torch.matmul(query * scaling, key.transpose(2, 3)) + mask).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", scale_first)
    model = make("llama")
    with record(model, tmp_path / "t"), torch.no_grad():
        model(PROMPT)
    step = read_trace(tmp_path / "t")[0]
    scaling = model.model.layers[0].self_attn.scaling
    q, k = step["layers.0.q_rope"].transpose(0, 1), step["layers.0.k_cache"].transpose(0, 1).repeat_interleave(2, 0)
    assert torch.equal(step["layers.0.attn_scores"], (q * scaling) @ k.transpose(1, 2))


# ---- a failing engine --------------------------------------------------------------------------------------------


def test_the_engines_own_exception_comes_through_and_the_model_is_restored(tmp_path, read_trace):
    model = make("qwen2")
    before = state_of(model)
    cache = DynamicCache(config=model.config)
    with pytest.raises(RuntimeError, match="mine"):
        with record(model, tmp_path / "t"), torch.no_grad():
            model(PROMPT, **cached(model, cache))

            def explode(*_):
                raise RuntimeError("mine")

            handle = model.model.layers[1].mlp.register_forward_pre_hook(explode)
            try:
                model(PROMPT[:, :1], **cached(model, cache))
            finally:
                handle.remove()
                assert "update" not in vars(cache)
    assert state_of(model) == before
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 1 and trace.json["complete"] is False
    assert "update" not in vars(cache)


def test_recording_goes_on_after_an_exception_the_caller_handles(tmp_path, read_trace):
    model = make("qwen2")
    with record(model, tmp_path / "t"), torch.no_grad():
        model(PROMPT)
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]))
        model(PROMPT[:, :2])
    trace = read_trace(tmp_path / "t")
    assert [len(step["token_ids"]) for step in trace] == [4, 2] and trace.json["complete"] is True
    for step in trace:
        Replay(model).check(step)


def test_a_killed_engine_leaves_whole_steps_only(tmp_path):
    script = f"""
        import os, sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]!r}
        import torch
        from replay import make
        import firstdiff.trace, firstdiff.transformers
        writes, replace = [], os.replace
        def killed(old, new):
            writes.append(new)
            if len(writes) == 4: os._exit(9)   # trace.json, two steps, and in the middle of the third
            replace(old, new)
        os.replace = killed
        model = make("llama")
        with firstdiff.transformers.record(model, {str(tmp_path / "t")!r}), torch.no_grad():
            for _ in range(5): model(torch.tensor([[1, 2, 3]]))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == 9
    names = sorted(os.listdir(tmp_path / "t"))
    assert [name for name in names if name.endswith(".safetensors")] == [
        "step-000000.safetensors", "step-000001.safetensors"]
    for name in names[:2]:
        assert load_file(tmp_path / "t" / name)["token_ids"].tolist() == [1, 2, 3]
    assert json.loads((tmp_path / "t/trace.json").read_text())["complete"] is False


# ---- a failing recorder ------------------------------------------------------------------------------------------


def recorded_with_one_warning(model, path, match):
    plain, before = run(model), state_of(model)
    with pytest.warns(RecorderWarning, match=match) as caught:
        with record(model, path):
            assert torch.equal(run(model), plain)
    assert sum(issubclass(warning.category, RecorderWarning) for warning in caught) == 1
    assert state_of(model) == before


def test_a_full_disk_is_warned_about_once_and_the_result_is_untouched(tmp_path, read_trace, monkeypatch):
    real, opened = builtins.open, []

    def full(file, mode="r", *args, **kwargs):
        if "step-" in str(file) and "w" in mode:
            opened.append(file)
            if len(opened) > 1:
                raise OSError(28, "No space left on device")
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    recorded_with_one_warning(make("llama"), tmp_path / "t", "after 1 steps.*No space left")
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 1 and trace.json["complete"] is False and len(opened) == 2


def test_a_folder_that_cannot_be_made_is_warned_about_once(tmp_path):
    (tmp_path / "file").write_text("")
    recorded_with_one_warning(make("llama"), tmp_path / "file" / "t", "NotADirectoryError")


def test_a_failure_inside_a_hook_is_warned_about_once(tmp_path, monkeypatch):
    import firstdiff.transformers as recorder

    def broken(value):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(recorder, "_copy", broken)
    recorded_with_one_warning(make("qwen3"), tmp_path / "t", "MemoryError: no room")


def test_embeddings_instead_of_ids_end_the_recording_but_not_the_run(tmp_path, read_trace):
    model = make("llama")
    with pytest.warns(RecorderWarning, match="inputs_embeds"):
        with record(model, tmp_path / "t"), torch.no_grad():
            out = model(inputs_embeds=model.model.embed_tokens(PROMPT))
            model(PROMPT)
    with torch.no_grad():
        assert torch.equal(out.logits, model(PROMPT).logits)
    assert not (tmp_path / "t").exists()


def test_warnings_made_errors_do_not_break_the_engine_either(tmp_path):
    (tmp_path / "file").write_text("")
    model = make("llama")
    plain = run(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecorderWarning)
        with record(model, tmp_path / "file" / "t"):
            assert torch.equal(run(model), plain)


def test_misuse_is_refused_before_anything_runs(tmp_path):
    model = make("llama")
    before = state_of(model)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(TraceRefused):
        with record(model, tmp_path):
            pytest.fail("the block must not run")
    with pytest.raises(TypeError, match="llama, qwen2, qwen3"):
        with record(model.model, tmp_path / "t"):
            pytest.fail("the block must not run")
    assert state_of(model) == before


def test_a_model_that_lacks_a_module_is_warned_about_and_left_as_it_was(tmp_path):
    model = make("llama")
    layer = model.model.layers[1].mlp
    layer.renamed_proj, layer.up_proj = layer.up_proj, None
    del layer.up_proj
    before = state_of(model)
    with pytest.warns(RecorderWarning, match="up_proj"):
        with record(model, tmp_path / "t"):
            assert state_of(model) == before
    assert state_of(model) == before
