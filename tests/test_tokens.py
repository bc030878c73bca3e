"""`firstdiff tokens`, and the tokens of a check: forks, sampling, loops, stop ids; on real generations of transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from firstdiff.transformers import record as record_transformers
from firstdiff_binary import AGREES, DIVERGES, ERROR, UNMEASURED
from safetensors.numpy import load_file, save_file
from tiny import load, prompt_ids

PROMPT = prompt_ids(12, seed=3)
STEPS = 24


def compare(firstdiff, a, b, *args):
    return firstdiff("tokens", a, b, "--format", "json", *args)


def run(model, prompts, steps, **options):
    """Every id is a token here: the padding that `generate` would infer from one is ruled out."""
    ids = torch.tensor(prompts)
    whole = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, max_new_tokens=steps, **whole, **options)


def generate(folder, path, **options):
    """A trace of transformers' own `generate`."""
    torch.manual_seed(5)
    model = load(folder)
    with record_transformers(model, path, taps=["logits"]):
        out = run(model, [PROMPT], STEPS, **options)
    return path, out[0, len(PROMPT) :].tolist()


def declare(trace, copy, **changes):
    """The same trace with other keys in its trace.json."""
    shutil.copytree(trace, copy)
    about = json.loads((copy / "trace.json").read_text())
    (copy / "trace.json").write_text(json.dumps({**about, **changes}))
    return copy


def engine(folder, rows, chosen, arithmetic="f32", prompt=(1, 2)):
    """A trace of an engine with these logits, one row a step."""
    folder.mkdir()
    about = {"format": "firstdiff.trace/1", "producer": {"name": "test"}, "arithmetic": {"activations": arithmetic}}
    (folder / "trace.json").write_text(json.dumps(about))
    fed = list(prompt)
    for number, (row, token) in enumerate(zip(rows, chosen)):
        arrays = {"token_ids": np.array(fed, np.int64), "sampled": np.array([token], np.int64)}
        arrays["logits"] = np.asarray(row, np.float32)[None]
        save_file(arrays, folder / f"step-{number:06}.safetensors")
        fed = [token]
    return folder


@pytest.fixture(scope="module")
def greedy(tiny_folder, tmp_path_factory):
    folder = tiny_folder("llama")
    return folder, *generate(folder, tmp_path_factory.mktemp("greedy") / "trace", do_sample=False)


def pair(tmp_path, everywhere, at_these, arithmetic):
    """Two engines whose logits differ by noise everywhere, and that part in a near tie of tokens 3 and 4."""
    generator = np.random.default_rng(4)
    exact = 2 * generator.standard_normal(3000)
    rows = []
    for best, other in ((3, 4), (4, 3)):
        row = exact + everywhere * generator.standard_normal(3000)
        row[[best, other]] = 9 + everywhere / 8 + at_these, 9
        rows.append(row)
    a = engine(tmp_path / "a", [rows[0]], [3], arithmetic)
    return a, engine(tmp_path / "b", [rows[1]], [4], arithmetic)


def test_a_near_tie_within_the_noise_between_two_engines_is_a_tie_flip(firstdiff, tmp_path):
    result = compare(firstdiff, *pair(tmp_path, everywhere=0.02, at_these=0, arithmetic="bf16"))
    assert result.code == AGREES, str(result)
    report = result.json
    assert report["kind"] == "tie flip" and report["fork"]["ids"] == [3, 4]
    assert report["margin"] < report["noise"]
    assert [top["id"] for top in report["top10"]["a"]][:2] == [3, 4]
    assert [top["id"] for top in report["top10"]["b"]][:2] == [4, 3]
    assert report["prompt"] == 2


def test_a_difference_at_the_two_tokens_alone_is_a_divergence(firstdiff, tmp_path):
    result = compare(firstdiff, *pair(tmp_path, everywhere=0.02, at_these=0.3, arithmetic="bf16"))
    assert result.code == DIVERGES and result.json["kind"] == "divergence", str(result)


def test_a_difference_everywhere_beyond_rounding_is_unmeasured_without_a_model(firstdiff, tmp_path):
    result = compare(firstdiff, *pair(tmp_path, everywhere=0.02, at_these=0, arithmetic="f32"))
    assert result.code == UNMEASURED and result.json["kind"] is None, str(result)
    assert "--model" in result.json["next"]


def test_the_model_says_which_side_left_it(firstdiff, greedy, tmp_path):
    folder, trace, tokens = greedy
    wrong = tmp_path / "wrong.json"
    changed = [*tokens[:9], (tokens[9] + 1) % 96, *tokens[10:]]
    wrong.write_text(json.dumps({"prompt_ids": PROMPT, "tokens": changed}))
    result = compare(firstdiff, trace, wrong, "--model", folder)
    assert result.code == DIVERGES, str(result)
    report = result.json
    assert (report["fork"]["index"], report["kind"], report["wrong"]) == (9, "divergence", ["b"])
    assert report["fork"]["reference"] == tokens[9]
    assert compare(firstdiff, wrong, trace, "--model", folder).json["wrong"] == ["a"]
    without = compare(firstdiff, trace, wrong)
    assert without.code == UNMEASURED, str(without)


def test_traces_runs_and_lists_of_the_same_tokens_agree(firstdiff, greedy, tmp_path):
    folder, trace, tokens = greedy
    ran = tmp_path / "run.json"
    result = firstdiff("run", folder, "--tokens", ",".join(map(str, PROMPT)), "-n", STEPS, "--format", "json")
    ran.write_text(result.stdout)
    generated = result.json["tokens"]
    assert generated == tokens[: len(generated)], "the reference may stop earlier, and chooses the same"
    files = {"all.txt": PROMPT + tokens, "output.txt": tokens}
    for name, ids in files.items():
        (tmp_path / name).write_text(" ".join(map(str, ids)))
    for other in (ran, *(tmp_path / name for name in files)):
        compared = compare(firstdiff, trace, other)
        assert compared.code == AGREES and compared.json["fork"] is None, str(compared)
        assert compared.json["prompt"] == len(PROMPT)
        assert compared.json["compared"] >= len(generated)


def test_other_prompts_are_not_compared(firstdiff, greedy, tmp_path):
    _, trace, tokens = greedy
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"prompt_ids": [*PROMPT[:4], 95, *PROMPT[5:]], "tokens": tokens}))
    result = compare(firstdiff, trace, other)
    assert result.code == UNMEASURED, str(result)
    assert any("differ first at 4" in note for note in result.json["notes"])


PENALTY = {"do_sample": False, "repetition_penalty": 1.5}


def test_a_penalty_that_is_applied_follows(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    trace, tokens = generate(folder, tmp_path / "trace", **PENALTY)
    plain, without = generate(folder, tmp_path / "plain", do_sample=False)
    assert tokens != without, "the penalty changes nothing here: nothing is tested"
    result = firstdiff.check(trace, folder)
    assert result.code == AGREES, str(result)
    assert result.json["tokens"]["compared"] == STEPS and not result.json["tokens"]["not_following"]


def test_a_penalty_that_is_declared_and_not_applied_is_named(firstdiff, greedy, tiny_folder, tmp_path):
    folder, trace, tokens = greedy
    claims = declare(trace, tmp_path / "claims", sampling=PENALTY)
    result = firstdiff.check(claims, folder)
    assert result.code == DIVERGES, str(result)
    first = result.json["tokens"]["not_following"][0]
    assert "repetition_penalty 1.5 was not applied" in first["why"] and first["chosen"] in tokens
    assert compare(firstdiff, claims, claims).code == DIVERGES


def test_a_penalty_that_is_applied_and_not_declared_does_not_follow(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    trace, _ = generate(folder, tmp_path / "trace", **PENALTY)
    silent = declare(trace, tmp_path / "silent", sampling={"do_sample": False})
    result = firstdiff.check(silent, folder)
    assert result.code == DIVERGES and result.json["tokens"]["not_following"], str(result)


DRAWN = {"do_sample": True, "temperature": 1.3, "top_k": 8, "top_p": 0.95}


def test_draws_follow_what_they_were_drawn_by_and_nothing_narrower(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    trace, _ = generate(folder, tmp_path / "trace", **DRAWN)
    right = firstdiff.check(trace, folder)
    assert right.code == AGREES, str(right)
    assert right.json["tokens"]["with_logits"] == STEPS and right.json["tokens"]["not_following"] == []
    for name, claim in {"top_k": 2, "top_p": 0.3, "min_p": 0.9}.items():
        claims = declare(trace, tmp_path / name, sampling={**DRAWN, name: claim})
        result = firstdiff.check(claims, folder)
        assert result.code == DIVERGES, str(result)
        assert f"{name} {claim} leaves it out" in result.json["tokens"]["not_following"][0]["why"]


def test_a_temperature_that_was_not_applied_shows_in_all_draws_together(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    trace, _ = generate(folder, tmp_path / "trace", do_sample=True, temperature=1.5, top_k=0)
    claims = declare(trace, tmp_path / "claims", sampling={"do_sample": True, "temperature": 0.2})
    result = firstdiff.check(claims, folder)
    assert result.code == DIVERGES, str(result)
    assert "too improbable" in result.json["tokens"]["not_following"][-1]["why"]


def test_a_stop_id_that_was_ignored_is_named_with_its_declaration(firstdiff, greedy, tmp_path):
    folder, trace, tokens = greedy
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [95, tokens[6]]}))
    result = compare(firstdiff, trace, trace, "--model", copy)
    assert result.code == DIVERGES, str(result)
    stop = result.json["stops"][0]
    assert stop["id"] == tokens[6] and stop["index"] == tokens.index(tokens[6])
    assert "generation_config.json eos_token_id" in stop["declared_by"]
    checked = firstdiff.check(trace, copy)
    assert checked.code == AGREES, "running on is no wrong value"
    assert checked.json["tokens"]["stops"][0]["id"] == tokens[6]


@pytest.mark.parametrize("spec", [{"family": "qwen3"}, {"fingerprint": "0123456789abcdef"}], ids=["family", "weights"])
def test_a_trace_of_another_model_is_not_judged_by_this_one(spec, firstdiff, greedy, tmp_path):
    folder, trace, _ = greedy
    other = declare(trace, tmp_path / "other", model=spec)
    result = compare(firstdiff, trace, other, "--model", folder)
    assert result.code == ERROR and next(iter(spec.values())) in result.stderr, str(result)
    assert compare(firstdiff, trace, other).code == AGREES, "without a model there is nothing to judge by"


def test_a_stop_id_at_the_end_was_heeded(firstdiff, greedy, tmp_path):
    folder, _, tokens = greedy
    last = next(i for i, t in enumerate(tokens) if tokens.index(t) == i and i >= 2)
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps({**json.loads((copy / "config.json").read_text()), "eos_token_id": tokens[last]}))
    stream = tmp_path / "stream.json"
    stream.write_text(json.dumps({"prompt_ids": PROMPT, "tokens": tokens[: last + 1]}))
    result = compare(firstdiff, stream, stream, "--model", copy)
    assert result.code == AGREES and result.json["stops"] == [], str(result)


def test_loops_are_reported_and_are_no_verdict(firstdiff, tmp_path):
    stream = tmp_path / "stream.json"
    stream.write_text(json.dumps({"prompt_ids": [1, 2], "tokens": [*range(10, 30), *[5, 6, 7] * 8]}))
    result = compare(firstdiff, stream, stream)
    assert result.code == AGREES, str(result)
    loops = result.json["loops"]
    assert [(found["side"], found["start"], found["period"], found["repeats"]) for found in loops] == [("a", 20, 3, 8), ("b", 20, 3, 8)]
    assert all(found["whose"] == "model" for found in loops)


def test_every_sequence_of_a_batch_is_judged(firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    model = load(folder)
    with record_transformers(model, tmp_path / "trace", taps=["logits"]):
        run(model, [PROMPT, PROMPT[::-1]], 6, do_sample=False)
    result = firstdiff.check(tmp_path / "trace", folder)
    assert result.code == AGREES, str(result)
    assert result.json["tokens"]["compared"] == 2 * 6


def decode(tiny_folder, folder, choose=None, feed=None, change=None, say=True, steps=10, sampling=None):
    """A right model behind a sampler and an input buffer of our own. `choose`: logits, history -> the next token; `feed`:
    step, tokens chosen so far -> what goes in; `change`: logits, history -> the logits that are recorded."""
    model, folder = load(tiny_folder("llama")), Path(folder)
    folder.mkdir()
    about = {"format": "firstdiff.trace/1", "producer": {"name": "test"}, "arithmetic": {"activations": "f32"}}
    (folder / "trace.json").write_text(json.dumps({**about, **({"sampling": sampling} if sampling else {})}))
    choose = choose or (lambda logits, _: int(logits.argmax()))
    fed, history, chosen, cache = list(PROMPT), [], [], None
    for number in range(steps):
        out = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
        cache, history, logits = out.past_key_values, history + fed, out.logits[0].clone()
        if change:
            logits[-1] = change(logits[-1], history)
        chosen.append(choose(out.logits[0, -1], history))
        arrays = {"token_ids": np.array(fed, np.int64), "logits": logits.numpy()}
        if say:
            arrays["sampled"] = np.array(chosen[-1:], np.int64)
        save_file(arrays, folder / f"step-{number:06}.safetensors")
        fed = [feed(number, chosen) if feed else chosen[-1]]
    return folder


def penalise(factor):
    """Repetition penalty as transformers defines it."""

    def change(logits, history):
        logits, seen = logits.clone(), torch.tensor(sorted(set(history)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        return logits

    return change


def test_a_token_that_goes_in_again_instead_of_the_chosen_one_is_a_wrong_input(firstdiff, tiny_folder, tmp_path):
    stale = decode(tiny_folder, tmp_path / "stale", feed=lambda step, chosen: chosen[-1 - (step == 4)])
    result = firstdiff.check(stale, tiny_folder("llama"))
    assert result.code == DIVERGES and not result.findings, str(result)
    wrong = [f for f in result.json["tokens"]["fed_otherwise"] if f["wrong"]]
    assert [f["step"] for f in wrong] == [5] and wrong[0]["fed"] != wrong[0]["chosen"], str(result)
    text = firstdiff("check", stale, "--model", tiny_folder("llama")).stdout
    assert text.startswith("diverges: a token went in that is not the one that was chosen"), text


def test_a_right_engine_that_is_given_its_tokens_agrees_and_it_is_said(firstdiff, tiny_folder, tmp_path):
    text = prompt_ids(10, seed=9)
    scored = decode(tiny_folder, tmp_path / "scored", feed=lambda step, _: text[step])
    result = firstdiff.check(scored, tiny_folder("llama"))
    assert result.code == AGREES, str(result)
    assert any("taken for given ones" in note for note in result.json["tokens"]["notes"]), str(result)
    silent = decode(tiny_folder, tmp_path / "silent", feed=lambda step, _: text[step], say=False)
    result = firstdiff.check(silent, tiny_folder("llama"))
    assert result.code == AGREES and result.json["tokens"]["unexplained"], str(result)


def test_a_broken_sampler_without_sampled_is_not_passed_over_in_silence(firstdiff, tiny_folder, tmp_path):
    few = decode(tiny_folder, tmp_path / "few", choose=lambda logits, _: int(logits[:40].argmax()), say=False)
    result = firstdiff.check(few, tiny_folder("llama"))
    unexplained = result.json["tokens"]["unexplained"]
    assert unexplained and all(u["would_choose"] >= 40 for u in unexplained), str(result)
    said = " ".join(result.json["tokens"]["notes"])
    assert "record `sampled`" in said and "is the best of the ids below" in said, str(result)
    spoken = decode(tiny_folder, tmp_path / "spoken", choose=lambda logits, _: int(logits[:40].argmax()))
    assert firstdiff.check(spoken, tiny_folder("llama")).code == DIVERGES


@pytest.mark.parametrize("change", ["temperature", "penalty"])
def test_logits_recorded_after_the_sampler_are_recognised(change, firstdiff, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    penalty = penalise(1.5)
    if change == "temperature":
        made = {"change": lambda logits, _: logits / 0.7, "sampling": {"do_sample": False, "temperature": 0.7}}
    else:
        choose = lambda logits, history: int(penalty(logits, history).argmax())
        made = {"change": penalty, "choose": choose, "sampling": {"do_sample": False, "repetition_penalty": 1.5}, "steps": 24}
    late = decode(tiny_folder, tmp_path / "late", **made)
    result = firstdiff.check(late, folder)
    notes = " ".join(result.json["notes"])
    if change == "temperature":
        assert result.code == AGREES and "recorded after temperature 0.7 was applied" in notes, str(result)
    else:
        assert "repetition_penalty 1.5" in notes and "applied" in notes, str(result)
    # The same changes without their declaration are another model's logits.
    bare = declare(late, tmp_path / "bare", sampling={"do_sample": False})
    result = firstdiff.check(bare, folder)
    assert result.code == DIVERGES and result.findings[0]["tap"] == "logits", str(result)


def test_a_penalty_that_counts_twice_is_named(firstdiff, tiny_folder, tmp_path):
    once, twice = penalise(1.5), penalise(1.5**2)
    made = {"sampling": {"do_sample": False, "repetition_penalty": 1.5}, "steps": 24}
    choose = lambda logits, history: int(twice(logits, history).argmax())
    folder = tiny_folder("llama")
    in_place = decode(tiny_folder, tmp_path / "in-place", change=once, choose=choose, **made)
    result = firstdiff.check(in_place, folder)
    assert result.code == DIVERGES and result.findings[0]["tap"] == "logits", str(result)
    assert any("counts twice, as a repetition_penalty of 2.25" in note for note in result.json["notes"]), str(result)
    apart = decode(tiny_folder, tmp_path / "apart", choose=choose, **made)
    result = firstdiff.check(apart, folder)
    assert result.code == DIVERGES and not result.findings, str(result)
    assert "repetition_penalty 1.5 is applied twice" in result.json["tokens"]["not_following"][0]["why"], str(result)


def test_a_penalty_for_each_occurrence_is_named(firstdiff, tiny_folder, tmp_path):
    def each_time(logits, history):
        logits = logits.clone()
        for token in history:
            logits[token] = logits[token] / 1.2 if logits[token] > 0 else logits[token] * 1.2
        return int(logits.argmax())

    sampling = {"do_sample": False, "repetition_penalty": 1.2}
    trace = decode(tiny_folder, tmp_path / "each", choose=each_time, sampling=sampling, steps=24)
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.code == DIVERGES, str(result)
    why = result.json["tokens"]["not_following"][0]["why"]
    assert "once for each occurrence of a token" in why and "all 24 choices follow" in why, why


def test_padded_logits_are_compared_without_their_padding(firstdiff, tiny_folder, tmp_path):
    trace = decode(tiny_folder, tmp_path / "trace", steps=4)
    for number in range(4):
        file = trace / f"step-{number:06}.safetensors"
        tensors = load_file(file)
        tensors["logits"] = np.pad(tensors["logits"], [(0, 0), (0, 32)], constant_values=99.0)
        save_file(tensors, file)
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.code == AGREES and result.json["tokens"]["compared"] == 4, str(result)
    assert any("32 columns of the logits beyond the vocabulary" in note for note in result.json["notes"]), str(result)
    tensors["sampled"] = np.array([100], np.int64)
    save_file(tensors, file)
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.code == DIVERGES and "column of padding" in result.json["tokens"]["not_following"][0]["why"], str(result)


def test_a_trace_without_steps_says_so(firstdiff, greedy, tmp_path):
    folder, trace, _ = greedy
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(trace / "trace.json", empty)
    result = firstdiff("check", empty, "--model", folder)
    assert result.code == UNMEASURED and "the trace has no steps" in result.stdout, str(result)
    result = firstdiff("tokens", trace, empty)
    assert result.code == UNMEASURED and "b is a trace without steps" in result.stdout, str(result)


def test_streams_are_paired_by_prompt_and_a_bos_is_named(firstdiff, tiny_folder, greedy, tmp_path):
    folder, trace, tokens = greedy
    model = load(folder)
    for name, prompts in {"a": [PROMPT, PROMPT[::-1]], "b": [PROMPT[::-1], PROMPT]}.items():
        with record_transformers(model, tmp_path / name, taps=["logits"]):
            run(model, prompts, 6, do_sample=False)
    result = compare(firstdiff, tmp_path / "a", tmp_path / "b")
    assert result.code == AGREES and result.json["fork"] is None, str(result)
    assert result.json["compared"] >= 10 and any("paired by their prompts" in n for n in result.json["notes"]), str(result)
    bos = tmp_path / "bos.json"
    bos.write_text(json.dumps({"prompt_ids": [1, *PROMPT], "tokens": tokens}))
    result = compare(firstdiff, trace, bos)
    assert any("b has one token more at the front, 1: a BOS?" in note for note in result.json["notes"]), str(result)
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"prompt_ids": PROMPT, "tokens": tokens[:-3]}))
    notes = compare(firstdiff, trace, short).json["notes"]
    assert any("a goes on for 3 tokens where b ends" in note for note in notes), notes


def test_choices_of_a_sequence_whose_beginning_was_not_recorded_are_not_compared_with_the_reference(firstdiff, tiny_folder, tmp_path):
    trace = decode(tiny_folder, tmp_path / "trace", steps=6)
    for number in range(6):
        file = trace / f"step-{number:06}.safetensors"
        if number == 0:
            file.unlink()
            continue
        tensors = load_file(file)
        tensors["positions"] = np.array([len(PROMPT) + number - 1], np.int64)
        del tensors["logits"]
        tensors["embed"] = load(tiny_folder("llama")).model.embed_tokens.weight[tensors["token_ids"]].detach().numpy()
        save_file(tensors, file)
        file.rename(trace / f"step-{number - 1:06}.safetensors")
    result = firstdiff.check(trace, tiny_folder("llama"))
    assert result.code == AGREES, str(result)
    assert any("starts at position 12" in note for note in result.json["tokens"]["notes"]), str(result)


def test_rows_that_do_not_fit_the_tokens_are_named(firstdiff, tiny_folder, greedy, tmp_path):
    folder, trace, _ = greedy
    copy = tmp_path / "copy"
    shutil.copytree(trace, copy)
    file = copy / "step-000000.safetensors"
    tensors = load_file(file)
    embed = np.zeros((len(PROMPT) + 1, 64), np.float32)
    save_file({**tensors, "embed": embed}, file)
    result = firstdiff("check", copy, "--model", folder)
    assert result.code == ERROR and "is a BOS token missing from token_ids?" in result.stderr, str(result)
    save_file({**tensors, "embed": np.zeros((2, len(PROMPT), 64), np.float32)}, file)
    result = firstdiff("check", copy, "--model", folder)
    assert result.code == ERROR and "a batch: flatten it" in result.stderr, str(result)


def test_a_missing_file_is_called_missing_and_help_says_what_files_may_be(firstdiff, tmp_path):
    result = firstdiff("tokens", tmp_path / "nothing.txt", tmp_path / "nothing.txt")
    assert result.code == ERROR and "there is no such file or folder" in result.stderr, str(result)
    said = firstdiff("tokens", "--help").stdout
    assert "[1, 2, 3]" in said and "1 2 3" in said and '"prompt_ids"' in said, said


@pytest.mark.parametrize("text", ["1,two", "[1, 2.5]", "[1,", '{"ids": [1]}', "1 -4"])
def test_a_file_that_is_no_list_of_ids_is_one_clear_error(text, firstdiff, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text(text)
    result = firstdiff("tokens", file, file)
    assert result.code == ERROR and str(file) in result.stderr and "JSON array" in result.stderr, str(result)
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_people_read_begins_with_the_verdict(firstdiff, tmp_path):
    text = firstdiff("tokens", *pair(tmp_path, everywhere=0.02, at_these=0, arithmetic="bf16")).stdout
    assert text.startswith("agrees: a tie at generated token 0"), text
    assert len(text.splitlines()) < 12


def test_a_run_that_was_drawn_at_random_is_not_judged(firstdiff, greedy, tmp_path):
    folder, trace, _ = greedy
    drawn = tmp_path / "drawn.json"
    ids = ",".join(map(str, PROMPT))
    drawn.write_text(firstdiff("run", folder, "--tokens", ids, "-n", 8, "--temperature", 2, "--format", "json").stdout)
    result = compare(firstdiff, trace, drawn, "--model", folder)
    assert result.code == UNMEASURED and "b draws" in result.json["fork"]["unjudged"], str(result)
