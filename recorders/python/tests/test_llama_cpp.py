import builtins

import numpy as np
import pytest
from ggml_arithmetic import Model, check_steps
from llama_cpp import Llama

import firstdiff.llama_cpp as recorder
from firstdiff import _ggml_taps
from firstdiff.llama_cpp import RecorderWarning, record

RESERVED = {"token_ids", "positions", "sequence", "sampled"}
TEXT = b"Once upon a time there was a small robot"


def load(path, **more):
    return Llama(path, **{**dict(n_ctx=256, n_threads=2, n_threads_batch=2, verbose=False), **more})


def greedy(llama, tokens, count):
    out = []
    for token in llama.generate(tokens, temp=0.0):
        out.append(token)
        if len(out) == count:
            return out


def numpy_steps(trace):
    return [{name: value.numpy() for name, value in step.items()} for step in trace]


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("name", ["smollm2", "qwen"])
def test_every_tap_is_its_operation_in_ggmls_arithmetic_and_outputs_do_not_change(
    tmp_path, read_trace, model_file, name, flash
):
    llama = load(model_file(name), flash_attn=flash, logits_all=True)
    tokens = llama.tokenize(TEXT)
    plain = greedy(llama, tokens, 3)
    scores = llama.scores[: llama.n_tokens].copy()
    with record(llama, tmp_path / "t"):
        assert greedy(llama, tokens, 3) == plain
        assert np.array_equal(llama.scores[: llama.n_tokens], scores)
    trace = read_trace(tmp_path / "t")
    steps = numpy_steps(trace)
    assert [step["token_ids"].tolist() for step in steps] == [tokens, plain[:1], plain[1:2]]
    assert [step["sampled"].tolist() for step in steps] == [[token] for token in plain]
    model, checked = Model(model_file(name)), None
    for step, rows in zip(steps, (scores[: len(tokens)], scores[len(tokens) : -1], scores[-1:])):
        taps = step.keys() - RESERVED
        assert np.array_equal(step["logits"], rows)
        checked = checked or check_steps(model, steps)
        assert checked == taps
        kinds = {tap.rsplit(".", 1)[-1] for tap in taps}
        assert ("attn_probs" in kinds) == ("attn_scores" in kinds) == (not flash)
        assert len(taps) == 3 + model.layers * (17 + 2 * (not flash))
    assert trace.json["complete"] is True and "notes" not in trace.json
    assert trace.json["model"]["family"] == model.arch
    assert trace.json["arithmetic"]["attention"] == ("ggml-flash" if flash else "ggml")
    assert trace.json["arithmetic"]["matmul_input_types"] == (
        {"q4_1": "q8_1", "q8_0": "q8_0"} if name == "smollm2"
        else {"q5_0": "q8_0", "q8_0": "q8_0", "q4_K": "q8_K", "q6_K": "q8_K"})
    assert llama.token_eos() in trace.json["stop_ids"]

    # the bounds can tell: V shifted by a feature, the queries of other tokens, rows of the product shifted
    for tap, spoil in (("v_cache", lambda x: np.roll(x, 1, -1)), ("q_rope", lambda x: x[::-1]),
                       ("gate_proj", lambda x: np.roll(x, 1, -1))):
        with pytest.raises(AssertionError, match="layers.1."):
            check_steps(model, [{**steps[0], f"layers.1.{tap}": spoil(steps[0][f"layers.1.{tap}"]).copy()}], layers=[1])


def test_without_logits_for_all_rows_the_end_of_the_last_layer_is_left_out(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    with record(llama, tmp_path / "t"):
        greedy(llama, llama.tokenize(TEXT), 2)
    trace = read_trace(tmp_path / "t")
    prompt, decode = trace
    missing = {tap.rsplit(".", 1)[1] for tap in decode.keys() - prompt.keys()}
    assert missing == {"attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "mlp_out", "out"}
    assert all(tap.startswith("layers.29.") for tap in decode.keys() - prompt.keys())
    assert prompt["logits"].shape == (1, 49152) and prompt["final_norm"].shape == (1, 576)
    assert "logits_all=True" in trace.json["notes"][0]


def test_a_prompt_longer_than_the_microbatch_is_one_step_per_graph(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"), n_batch=8, n_ubatch=4, logits_all=True)
    tokens = llama.tokenize(TEXT)
    with record(llama, tmp_path / "t"):
        out = greedy(llama, tokens, 1)
    steps = numpy_steps(read_trace(tmp_path / "t"))
    assert [len(step["token_ids"]) for step in steps] == [4, 4, 1]
    assert np.concatenate([step["token_ids"] for step in steps]).tolist() == tokens
    assert np.concatenate([step["positions"] for step in steps]).tolist() == list(range(9))
    assert ["sampled" in step for step in steps] == [False, False, True] and steps[2]["sampled"].tolist() == out
    model = Model(model_file("smollm2"))
    check_steps(model, steps, layers=[0, 7, 29])
    keys = np.concatenate([step["layers.3.k_rope"] for step in steps]).astype(np.float16)
    assert np.array_equal(steps[2]["layers.3.k_cache"], keys)


def test_the_callers_conversation_goes_on_after_recording(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    tokens = llama.tokenize(TEXT)
    llama.eval(tokens)
    context = llama._ctx
    with record(llama, tmp_path / "t"):
        assert llama.n_tokens == 0 and llama._ctx is not context
        llama.eval(tokens[:2])
    assert llama._ctx is context and llama.n_tokens == len(tokens) and "sample" not in vars(llama)
    assert llama.input_ids[: len(tokens)].tolist() == tokens
    after = llama.sample(temp=0.0)
    fresh = load(model_file("smollm2"))
    fresh.eval(tokens)
    assert fresh.sample(temp=0.0) == after


def test_a_reused_prefix_is_a_rewind_and_a_new_prompt_a_new_sequence(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"), logits_all=True)
    tokens = llama.tokenize(TEXT)
    with record(llama, tmp_path / "t"):
        llama.eval(tokens)
        greedy(llama, tokens[:4] + [100, 101], 1)
        greedy(llama, [9, 8, 7], 1)
    steps = numpy_steps(read_trace(tmp_path / "t"))
    assert [step["positions"].tolist() for step in steps] == [list(range(9)), [4, 5], [0, 1, 2]]
    assert [step.get("sequence", np.zeros(1)).tolist()[0] for step in steps] == [0, 0, 1]
    model = Model(model_file("smollm2"))
    check_steps(model, steps, layers=[0, 11, 29])
    assert np.array_equal(steps[1]["layers.0.k_cache"][:4], steps[0]["layers.0.k_cache"][:4])


def test_taps_are_chosen_by_glob(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    with record(llama, tmp_path / "t", taps=["layers.*.out", "logits", "layers.2.attn_*"]):
        llama.eval([1])
    step = read_trace(tmp_path / "t")[0]
    assert step.keys() - RESERVED == {f"layers.{n}.out" for n in range(30)} | {"logits"} | {
        f"layers.2.attn_{tap}" for tap in ("norm", "scores", "probs", "heads", "out", "resid")}


def test_a_full_disk_is_warned_about_once_and_the_result_is_untouched(tmp_path, model_file, monkeypatch):
    llama = load(model_file("smollm2"))
    tokens = llama.tokenize(TEXT)
    plain, real = greedy(llama, tokens, 4), builtins.open

    def full(file, mode="r", *args, **kwargs):
        if "step-000001" in str(file):
            raise OSError(28, "No space left on device")
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.warns(RecorderWarning, match="after 1 steps.*No space") as caught:
        with record(llama, tmp_path / "t"):
            assert greedy(llama, tokens, 4) == plain
    assert len([warning for warning in caught if warning.category is RecorderWarning]) == 1


def test_a_failure_inside_the_callback_leaves_the_result_untouched(tmp_path, model_file, monkeypatch):
    llama = load(model_file("smollm2"))
    tokens = llama.tokenize(TEXT)
    plain = greedy(llama, tokens, 4)

    def broken(*_):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(recorder.Evaluation, "take", broken)
    with pytest.warns(RecorderWarning, match="no room") as caught:
        with record(llama, tmp_path / "t"):
            assert greedy(llama, tokens, 4) == plain
    assert len([warning for warning in caught if warning.category is RecorderWarning]) == 1
    assert not (tmp_path / "t").exists(), "not one step was whole"


def test_a_second_recorder_is_refused_while_one_is_open(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    context = llama._ctx
    with record(llama, tmp_path / "t"):
        with pytest.raises(TypeError, match="being recorded already"):
            with record(llama, tmp_path / "other"):
                pytest.fail("the block must not run")
        llama.eval([1, 2])
    assert llama._ctx is context and len(read_trace(tmp_path / "t")) == 1 and not (tmp_path / "other").exists()


def test_an_interrupt_during_the_callback_reaches_the_caller(tmp_path, read_trace, model_file, monkeypatch):
    llama = load(model_file("smollm2"))
    context, taken, real = llama._ctx, [], recorder.Evaluation.take

    def interrupted(self, shown):
        taken.append(shown)
        if len(taken) == 700:
            raise KeyboardInterrupt
        return real(self, shown)

    monkeypatch.setattr(recorder.Evaluation, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with record(llama, tmp_path / "t"):
            for token in range(5):
                llama.eval([token])
    assert llama._ctx is context
    trace = read_trace(tmp_path / "t")
    assert trace.json["complete"] is False and len(trace) >= 1


def test_layer_outputs_alone_cut_the_graph_nowhere_else(tmp_path, read_trace, model_file, monkeypatch):
    llama = load(model_file("smollm2"))
    tokens, shown, real = llama.tokenize(TEXT), [], recorder.Evaluation.take
    plain = greedy(llama, tokens, 3)
    monkeypatch.setattr(recorder.Evaluation, "take", lambda self, one: (shown.append(one.node), real(self, one))[1])
    with record(llama, tmp_path / "t", taps="out"):
        assert greedy(llama, tokens, 3) == plain
    # the tokens and, at its end, which rows go on: beside the layers' outputs nothing was asked for
    kinds = {(node.kind, tuple(tap.split(".")[-1] for tap in node.taps)) for node in shown}
    assert kinds == {("tokens", ("embed",)), ("kept_rows", ()), ("rows", ("out",))}
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 3 and trace[1].keys() - RESERVED == {f"layers.{n}.out" for n in range(30)}
    assert len(trace.json["arithmetic"]["matmul_input_types"]) == 2  # known without the products


def test_keys_of_steps_that_were_not_asked_for_are_found_in_the_cache(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    tokens = llama.tokenize(TEXT)
    with record(llama, tmp_path / "all"):
        greedy(llama, tokens, 4)
    with record(llama, tmp_path / "one", steps=[2], layers="7"):
        greedy(llama, tokens, 4)
    whole, one = read_trace(tmp_path / "all"), read_trace(tmp_path / "one")
    assert len(one) == 3 and one[0].keys() | one[1].keys() <= RESERVED
    assert {tap for tap in whole[2] if tap.startswith("layers.7.")} == {tap for tap in one[2] if tap.startswith("layers.")}
    assert all(np.array_equal(value, whole[2][tap]) for tap, value in one[2].items())


def test_a_decode_that_fails_raises_and_leaves_no_step(tmp_path, read_trace, model_file):
    llama = load(model_file("smollm2"))
    with pytest.raises(RuntimeError, match="llama_decode"):
        with record(llama, tmp_path / "t"):
            llama.eval([1, 2])
            llama.eval([10**6])
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 1 and trace.json["complete"] is False


def test_a_library_with_another_tensor_layout_is_refused_before_anything_runs(tmp_path, model_file, monkeypatch):
    llama = load(model_file("smollm2"))
    monkeypatch.setattr(recorder._ggml, "_overhead", lambda: 1024)
    with pytest.raises(RuntimeError, match="another struct ggml_tensor"):
        with record(llama, tmp_path / "t"):
            pytest.fail("the block must not run")
    llama.metadata["general.architecture"] = "mamba"
    with pytest.raises(TypeError, match="llama, qwen2, qwen3"):
        with record(llama, tmp_path / "t"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "node, kind, taps",
    [
        (("MUL_MAT", "Qcur-3", "blk.3.attn_q.weight", "attn_norm-3"), "heads_in_rows", "q_proj"),
        (("ADD", "Qcur-3", "Qcur-3", "blk.3.attn_q.bias"), "heads_in_rows", "q_proj"),
        (("MUL", "Qcur_normed-3", "norm-3", "blk.3.attn_q_norm.weight"), "heads", "q_norm"),
        (("ROPE", "Qcur-3", "Qcur-3 (view)", "inp_pos"), "rotated", "q_rope"),
        (("MUL_MAT", "attn_out-3", "blk.3.attn_output.weight", "kqv_out-3"), "rows", "attn_out attn_heads"),
        (("MUL_MAT", "ffn_out-3", "blk.3.ffn_down.weight", "ffn_swiglu-3"), "rows", "mlp_out mlp_act"),
        (("MUL", "ffn_norm-3", "norm-3", "blk.3.ffn_norm.weight"), "rows", "mlp_norm"),
        (("MUL", "attn_post_norm-3", "norm-3", "blk.3.post_attention_norm.weight"), "rows", "attn_post_norm"),
        (("ADD", "l_out-3", "ffn_out-3", "ffn_inp-3"), "rows", "out"),
        (("ADD", "sa_out-3", "attn_post_norm-3", "l_out-2"), "rows", "attn_resid"),
        (("SOFT_MAX", "kq_soft_max-3", "kq-3", "KQ_mask"), "softmax", "attn_probs attn_scores"),
        (("MUL_MAT", "ffn_moe_logits-3", "blk.3.ffn_gate_inp.weight", "ffn_norm-3"), "rows", "router_logits"),
        (("SOFT_MAX", "ffn_moe_probs-3", "ffn_moe_logits-3", ""), "rows", "router_scores"),
        (("VIEW", "ffn_moe_topk-3", "ffn_moe_argsort-3", ""), "rows", "router_topk"),
        (("DIV", "ffn_moe_weights_norm-3", "a", "b"), "rows", "router_weights"),
        (("ADD", "ffn_moe_out-3", "a", "b"), "rows", "experts_out"),
        # nodes that bear a tap's name and are another operation's
        (("RESHAPE", "Qcur-3", "Qcur-3", ""), None, ""),
        (("RMS_NORM", "attn_norm-3", "l_out-2", ""), None, ""),
        (("MUL_MAT_ID", "ffn_moe_gate-3", "blk.3.ffn_gate_exps.weight", "a"), None, ""),
        (("ADD", "ffn_out-3", "a", "b"), None, ""),
    ],
)
def test_a_node_is_told_by_its_operation_its_weight_and_its_name(node, kind, taps):
    found = _ggml_taps.classify(*node)
    if kind is None:
        assert found is None
    else:
        assert found == (kind, tuple(f"layers.3.{tap}" for tap in taps.split()))
        assert kind in _ggml_taps._TAKES
