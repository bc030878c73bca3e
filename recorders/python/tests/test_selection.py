import json

import pytest
import torch
from replay import make

from firstdiff._selection import Selection, parse_size
from firstdiff._taps import split, tap_of, taps
from firstdiff.transformers import Recorder, RecorderWarning, record

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5, 35]])
TOKENS = {"token_ids", "positions", "sequence", "sampled"}


def generate(model, new=4):
    return model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=new, do_sample=False)


def test_layers_taps_and_steps_are_numbers_ranges_and_patterns():
    all_of_it = Selection()
    assert all_of_it.wants("layers.3.q_rope") and all_of_it.wants("logits", 10**6) and not all_of_it.is_past(10**6)
    some = Selection(layers="0-2, 7", taps=["*_rope", "layers.*.out", "logits"], steps="1,4-5")
    assert [n for n in range(9) if some.wants(f"layers.{n}.out")] == [0, 1, 2, 7]
    assert some.wants("layers.7.k_rope") and some.wants("logits")
    assert not some.wants("layers.0.q_proj") and not some.wants("embed")
    assert [n for n in range(8) if some.wants("logits", n)] == [1, 4, 5]
    assert [n for n in range(8) if some.is_past(n)] == [6, 7]
    assert Selection(taps="q_rope,out").wants_any(["embed", "layers.5.out"])
    assert not Selection(steps="2-").is_past(10**6) and not Selection(steps="2-").wants("logits", 1)
    assert Selection(layers=range(2)).wants("layers.1.out") and not Selection(layers=[0, 3]).wants("layers.1.out")
    assert Selection(layers=3).wants("layers.3.out")
    assert not Selection(taps=[]).wants("logits")


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(layers="0-"), None),
        (dict(layers="a"), "layers must be numbers"),
        (dict(layers="3-1"), "layers must be numbers"),
        (dict(steps=[-1]), "steps must be numbers"),
        (dict(steps=[]), "steps must be numbers"),
        (dict(taps="layer.*.out"), "no tap is called 'layer.*.out'"),
        (dict(taps=["logits", "qrope"]), "no tap is called 'qrope'"),
        (dict(max_bytes="much"), "max_bytes must be a size"),
        (dict(max_bytes=0), "max_bytes must be a size"),
    ],
)
def test_an_option_that_says_nothing_is_refused_with_what_to_write(wrong, says):
    if says is None:
        Selection(**wrong)
    else:
        with pytest.raises(ValueError) as error:
            Selection(**wrong)
        assert says in str(error.value)


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in (1234, "1234", "2kB", "1.5 MB", "3G", "1GiB")] == [
        1234, 1234, 2000, 1_500_000, 3_000_000_000, 1_000_000_000]  # fmt: skip


def test_the_size_of_a_tap_follows_from_its_axes():
    sizes = dict(T=5, K=8, d=64, H=4, Hkv=2, D=16, F=100, V=1000, n=3, E=8, k=2)
    of = lambda name: taps()[name].elements(sizes)
    assert (of("embed"), of("q_proj"), of("k_cache"), of("attn_scores")) == (5 * 64, 5 * 64, 8 * 2 * 16, 4 * 5 * 8)
    assert (of("qkv_proj"), of("gate_up_proj"), of("hc_attn_proj")) == (5 * 8 * 16, 5 * 200, 5 * (2 + 3) * 3)
    assert of("ssm_x") is None and of("comp_pool") is None and of("q_a_proj") is None
    everything = dict.fromkeys(["q rank", "new entries", *"TKdHDFVnEkrSCGNP", "Hkv", "Dr", "Dn", "Dv", "Hi", "Di", "Hk", "Dk", "Hv", "rank"], 2)
    assert all(tap.elements(everything) for tap in taps().values())


def test_other_programs_names_mean_taps():
    assert tap_of("self_attn.q_proj", 3) == "layers.3.q_proj" and tap_of("embed_tokens") == "embed"
    assert tap_of("self_attn.q_proj") is None and tap_of("embed_tokens", 0) is None and tap_of("nothing", 0) is None
    assert split("layers.12.q_rope") == (12, "q_rope") and split("logits") == (None, "logits")


def test_steps_that_are_not_asked_for_hold_their_tokens_and_the_last_one_ends_the_trace(tmp_path, read_trace):
    model = make("llama")
    plain = generate(model)
    with record(model, tmp_path / "t", steps="1-2", layers="1", taps=["out", "k_cache", "logits"]):
        assert torch.equal(generate(model), plain)
    trace = read_trace(tmp_path / "t")
    assert [set(step) - TOKENS for step in trace] == [set(), *2 * [{"layers.1.out", "layers.1.k_cache", "logits"}]]
    assert [int(step["sampled"]) for step in trace] == plain[0, 7:10].tolist()
    assert trace[0]["token_ids"].tolist() == PROMPT[0].tolist()
    assert trace.json["complete"] is True and "notes" not in trace.json


def test_a_trace_ends_at_a_whole_step_before_max_bytes_and_says_so_once(tmp_path, read_trace, capsys):
    model = make("llama")
    plain = generate(model)
    with record(model, tmp_path / "whole") as whole:
        generate(model)
    sizes = [file.stat().st_size for file in sorted((tmp_path / "whole").glob("step-*"))]
    assert whole.session.writer.bytes == sum(sizes)
    limit = sum(sizes[:2]) + sizes[2] // 2
    capsys.readouterr()
    with record(model, tmp_path / "t", max_bytes=limit):
        assert torch.equal(generate(model), plain)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "about" in said[0] and "recording stops after 2 steps" in said[1]
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 2 and trace.json["complete"] is False and "max_bytes" in trace.json["notes"][0]
    assert sum(file.stat().st_size for file in trace.files) <= limit
    with pytest.warns(RecorderWarning, match="recorded nothing.*the first step takes .* record fewer"):
        with Recorder(model, tmp_path / "none", max_bytes=1000):
            assert torch.equal(generate(model), plain)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_size_said_before_recording_is_the_traces_size(tmp_path, capsys, attention):
    model = make("qwen3", attention)
    recorder = Recorder(model, tmp_path / "t", layers="1")
    recorder.prompt, recorder.new = 7, 4
    with recorder:
        generate(model)
    said = capsys.readouterr().err
    assert "(1 layer of " in said and "for a prompt of 7 tokens and 4 generated" in said
    number, unit = said.split("about ")[1].split()[:2]
    tensors = 0
    for file in (tmp_path / "t").glob("step-*"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tensors += sum(b - a for name, one in header.items() if name not in TOKENS for a, b in [one["data_offsets"]])
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(tensors, rel=0.01)
