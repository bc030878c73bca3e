"""Damaged, hostile and mismatched model files: one clear error that names the file, quickly, in little memory."""

import random
import re
import struct

import damage
import pytest
from damage import GIB, HUGE, infos_with, pair
from firstdiff_binary import AGREES, ERROR
from tiny import BY_NAME, make

SECONDS, MEMORY = 20, 4 * GIB
IDS = "1,2,3"


def traced(firstdiff, model, out):
    return firstdiff("trace", model, out, "--tokens", IDS, timeout=SECONDS, memory=MEMORY)


def assert_refused(result, *said):
    assert result.code == ERROR, str(result)
    assert len(re.findall(r"(?im)^error", result.stderr)) == 1, str(result)
    assert result.stdout == "", str(result)
    for words in said:
        assert str(words) in result.stderr, f"{words!r} is not said\n{result}"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return damage.copy(tiny_folder("llama"), tmp_path / "model")


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def test_the_handmade_gguf_is_read_when_nothing_is_wrong_with_it(firstdiff, tmp_path):
    result = traced(firstdiff, damage.gguf(tmp_path / "fine.gguf"), tmp_path / "out")
    assert result.code == AGREES, str(result)


def string(length, rest=b""):
    return struct.pack("<Q", length) + rest


ARCH = damage.SETTINGS[0]
QW = "blk__0__attn_q__weight"
HOSTILE_GGUF = {
    "magic": dict(magic=b"GGML"),
    "version": dict(version=99),
    "big-endian version": dict(version=3 << 24),
    "count of tensors": dict(counts=(HUGE, None)),
    "count of settings": dict(counts=(None, HUGE)),
    "more tensors than there are": dict(counts=(13, None)),
    "length of a key": dict(settings=[string(HUGE)]),
    "length of a key, wrapping": dict(settings=[string(2**64 - 4)]),
    "length of a string": dict(settings=[damage.text("general.name") + struct.pack("<I", 8) + string(HUGE)]),
    "length of an array": dict(settings=[damage.text("a") + struct.pack("<IIQ", 9, 4, HUGE)]),
    "array of strings": dict(settings=[damage.text("a") + struct.pack("<IIQ", 9, 8, HUGE)]),
    "arrays in arrays": dict(settings=[damage.text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000]),
    "type of a setting": dict(settings=[damage.text("a") + struct.pack("<I", 77)]),
    "key that is no text": dict(settings=[damage.text(b"\xff\xfe") + struct.pack("<II", 4, 1)]),
    "alignment of zero": dict(settings=[*damage.SETTINGS, pair("general.alignment", "u32", 0)]),
    "alignment of three": dict(settings=[*damage.SETTINGS, pair("general.alignment", "u32", 3)]),
    "no architecture": dict(settings=damage.SETTINGS[1:]),
    "unknown architecture": dict(settings=[pair("general.architecture", "string", "mamba"), *damage.SETTINGS[1:]]),
    "no settings but the architecture": dict(settings=[ARCH]),
    "number of dimensions": dict(infos=infos_with(**{QW: dict(dimensions=2**31)})),
    "five dimensions": dict(infos=infos_with(**{QW: dict(shape=[2, 2, 2, 2, 4])})),
    "huge shape": dict(infos=infos_with(**{QW: dict(shape=[HUGE, 1])})),
    "shape whose size wraps to a little": dict(infos=infos_with(**{QW: dict(shape=[2**32, 2**32])})),
    "empty shape": dict(infos=infos_with(**{QW: dict(shape=[0, 8])})),
    "offset outside": dict(infos=infos_with(**{QW: dict(offset=1 << 40)})),
    "offset that wraps": dict(infos=infos_with(**{QW: dict(offset=2**64 - 32)})),
    "offset not aligned": dict(infos=infos_with(**{QW: dict(offset=33)})),
    "overlapping tensors": dict(infos=infos_with(**{QW: dict(offset=0)})),
    "unknown element type": dict(infos=infos_with(**{QW: dict(kind=9999)})),
    "a type with code books": dict(infos=infos_with(**{QW: dict(kind=16)})),
    "rows that are no whole blocks": dict(infos=infos_with(**{QW: dict(kind=8)})),
    "the same tensor twice": dict(infos=infos_with() + [damage.info("output.weight", [8, 16])]),
    "a tensor missing": dict(infos=[i for i in infos_with() if b"attn_q" not in i]),
    "a tensor of another shape": dict(infos=infos_with(**{QW: dict(shape=[8, 4])})),
    "no data": dict(data=b""),
}


@pytest.mark.parametrize("parts", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_a_hostile_gguf_is_refused_by_name(parts, firstdiff, tmp_path):
    path = damage.gguf(tmp_path / "hostile.gguf", **parts)
    assert_refused(traced(firstdiff, path, tmp_path / "out"), "hostile.gguf")


SETTING_VALUES = {
    "block_count": [0, 2, 2**31],
    "attention.head_count": [0, 3, 2**31],
    "attention.head_count_kv": [0, 3, 2**31],
    "embedding_length": [0, 16, 2**31],
    "feed_forward_length": [0, 16, 2**31],
    "vocab_size": [0, 2**31],
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in SETTING_VALUES.items() for v in values])
def test_a_gguf_setting_that_does_not_fit_its_tensors_is_refused(key, value, firstdiff, tmp_path):
    kept = [s for s in damage.SETTINGS if not s.startswith(damage.text(f"llama.{key}"))]
    path = damage.gguf(tmp_path / "odd.gguf", settings=[*kept, pair(f"llama.{key}", "u32", value)])
    assert_refused(traced(firstdiff, path, tmp_path / "out"), "odd.gguf")


@pytest.mark.parametrize("keep", [0, 3, 4, 8, 23, 24, 60, 300, 700, 1000, 2000, -1])
def test_a_truncated_gguf_is_refused_by_name(keep, firstdiff, tmp_path):
    path = damage.gguf(tmp_path / "short.gguf")
    damage.truncate(path, keep)
    assert_refused(traced(firstdiff, path, tmp_path / "out"), "short.gguf")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_in_a_gguf_header_are_refused_or_harmless(seed, firstdiff, tmp_path):
    path = damage.gguf(tmp_path / "flipped.gguf")
    header = path.stat().st_size - damage.tensors()[1]
    rng = random.Random(seed)
    damage.flip(path, [rng.randrange(header) for _ in range(1 + seed % 3)], seed)
    result = traced(firstdiff, path, tmp_path / "out")
    if result.code != AGREES:
        assert_refused(result, "flipped.gguf")


# ---- safetensors ----------------------------------------------------------------------------------------------------

NORM = "model.norm.weight"
HOSTILE_HEADERS = {
    "offsets outside": lambda h: h[NORM].update(data_offsets=[HUGE, HUGE + 256]),
    "offsets backwards": lambda h: h[NORM].update(data_offsets=h[NORM]["data_offsets"][::-1]),
    "offsets overlapping": lambda h: h[NORM].update(data_offsets=[0, 256]),
    "offsets negative": lambda h: h[NORM].update(data_offsets=[-256, 0]),
    "huge shape": lambda h: h[NORM].update(shape=[HUGE]),
    "shape whose size wraps": lambda h: h[NORM].update(shape=[2**32, 2**32]),
    "shape too large for its bytes": lambda h: h[NORM].update(shape=[65]),
    "unknown element type": lambda h: h[NORM].update(dtype="F24"),
    "a hole where a tensor was": lambda h: h.pop(NORM),
    "no shape": lambda h: h[NORM].pop("shape"),
}


@pytest.mark.parametrize("edit", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
def test_a_hostile_safetensors_header_is_refused_by_name(edit, firstdiff, folder, tmp_path):
    damage.edit_safetensors(folder / "model.safetensors", edit)
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), "model.safetensors")


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
OTHER_TENSORS = {
    "another name": (NORM, lambda h: h.update({"model.morn.weight": h.pop(NORM)})),
    "another shape": (Q_PROJ, lambda h: h[Q_PROJ].update(shape=[32, 128])),
}


@pytest.mark.parametrize("tensor, edit", OTHER_TENSORS.values(), ids=OTHER_TENSORS)
def test_a_tensor_the_configuration_does_not_expect_is_named_with_its_folder(tensor, edit, firstdiff, folder, tmp_path):
    damage.edit_safetensors(folder / "model.safetensors", edit)
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), folder, tensor)


@pytest.mark.parametrize("length", [0, 1, 2**20, HUGE, 2**64 - 1])
def test_a_safetensors_header_of_absurd_length_is_refused(length, firstdiff, folder, tmp_path):
    damage.overwrite(folder / "model.safetensors", 0, struct.pack("<Q", length))
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), "model.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_truncated_safetensors_are_refused(keep, firstdiff, folder, tmp_path):
    damage.truncate(folder / "model.safetensors", keep)
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), "model.safetensors")


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_in_a_safetensors_header_are_refused_or_harmless(seed, firstdiff, folder, tmp_path):
    path = folder / "model.safetensors"
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    damage.flip(path, [random.Random(seed).randrange(8 + size)], seed)
    result = traced(firstdiff, folder, tmp_path / "out")
    if result.code != AGREES:
        assert_refused(result, "model")


@pytest.mark.parametrize("file", ["missing.safetensors", "../../../etc/passwd", "/etc/passwd", "sub/../../x.safetensors"])
def test_a_shard_index_cannot_point_at_missing_or_outside_files(file, firstdiff, tmp_path):
    folder = make(BY_NAME["llama-sharded"], tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00003.safetensors", file))
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), file)


# ---- config.json ----------------------------------------------------------------------------------------------------

WRONG_CONFIGS = {
    "no model_type": dict(model_type=...),
    "unknown model_type": dict(model_type="mamba2"),
    "model_type of the wrong kind": dict(model_type=7),
    "no sizes": dict(hidden_size=...),
    "text for a number": dict(hidden_size="64"),
    "negative": dict(num_hidden_layers=-1),
    "fraction": dict(hidden_size=64.5),
    "no layers": dict(num_hidden_layers=0),
    "more layers than tensors": dict(num_hidden_layers=5),
    "absurdly many layers": dict(num_hidden_layers=10**12),
    "beyond 64 bits": dict(num_hidden_layers=10**30),
    "no heads": dict(num_attention_heads=0),
    "kv heads that do not divide": dict(num_key_value_heads=3),
    "other vocabulary": dict(vocab_size=97),
    "other width": dict(hidden_size=128),
    "odd head size": dict(head_dim=15),
    "eps of zero": dict(rms_norm_eps=0),
    "negative eps": dict(rms_norm_eps=-1e-6),
    "theta of zero": dict(rope_theta=0),
    "theta of text": dict(rope_theta="10000"),
    "unknown activation": dict(hidden_act="swoosh"),
    "unknown rope": dict(rope_scaling={"rope_type": "longrope", "factor": 4.0}),
    "rope without its factor": dict(rope_scaling={"rope_type": "linear"}),
    "rope factor of zero": dict(rope_scaling={"rope_type": "linear", "factor": 0}),
    "rope scaling that is a list": dict(rope_scaling=[1]),
    "llama3 without its bounds": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
}


@pytest.mark.parametrize("changes", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_a_wrong_config_is_refused_by_file_and_key(changes, firstdiff, folder, tmp_path):
    damage.edit_json(folder / "config.json", **changes)
    result = traced(firstdiff, folder, tmp_path / "out")
    # a size that only disagrees with the weights is told by the first tensor that disagrees
    assert_refused(result, str(folder))
    assert any(said in result.stderr for said in (*changes, "tensor 'model.", "tensor 'lm_head.")), str(result)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000])
def test_a_config_that_is_no_json_object_is_refused(content, firstdiff, folder, tmp_path):
    (folder / "config.json").write_bytes(content)
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), "config.json")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_a_part_says_which(file, firstdiff, folder, tmp_path):
    (folder / file).unlink()
    assert_refused(traced(firstdiff, folder, tmp_path / "out"), "config.json" if file == "config.json" else "safetensors")


def test_a_model_that_does_not_exist_is_named(firstdiff, tmp_path):
    assert_refused(traced(firstdiff, tmp_path / "nowhere.gguf", tmp_path / "out"), "nowhere.gguf")


@pytest.mark.parametrize("ids", ["96", "-1", "1,2,99999999999", "1,,2", "x"])
def test_token_ids_that_the_model_does_not_have_are_refused(ids, firstdiff, folder, tmp_path):
    result = firstdiff("trace", folder, tmp_path / "out", f"--tokens={ids}", timeout=SECONDS, memory=MEMORY)
    assert_refused(result, re.search(r"96|-1|99999999999|x|''|1,,2", ids).group())


def test_no_half_written_trace_is_left_when_the_model_is_refused(firstdiff, folder, tmp_path):
    damage.truncate(folder / "model.safetensors", 5000)
    traced(firstdiff, folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
