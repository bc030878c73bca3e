"""Every way of splitting text, and SentencePiece, on vocabularies made here: token ids equal llama.cpp's.

The merges are learnt on whole lines, across words, so that each boundary which one side sees and the other does
not shows in the ids.
"""

import collections
import json
import subprocess

import pytest
from texts import TEXTS, random_texts

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

# Every name in src/tokenizer/pre.rs.
PRE_TOKENIZERS = [
    "gpt-2", "phi-2", "olmo", "jina-es", "jina-de", "mpt",
    "dbrx", "smaug-bpe",
    "default",
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
    "qwen2", "deepseek-r1-qwen", "megrez",
    "llama3", "llama-v3", "llama-bpe", "falcon3",
]  # fmt: skip


def learn_merges(lines, count):
    """The `count` most frequent pairs, one after the other."""
    words = [list(line) for line in lines]
    merges = []
    for _ in range(count):
        pairs = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def byte_characters():
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def writer(path, model):
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(1)
    out.add_context_length(64)
    out.add_embedding_length(32)
    out.add_feed_forward_length(32)
    out.add_head_count(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model(model)
    return out


def finish(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def compare(example, path, texts):
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run([example("tokenize"), path], input=lines.encode(), capture_output=True, check=True)
    ours = [json.loads(line) for line in done.stdout.decode().splitlines()]
    theirs = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    differing = [(t, a, b) for t, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {len(texts)} differ; the first: {differing[0]}"
    assert sum(map(len, ours)) < 0.9 * sum(len(text.encode()) for text in texts), "hardly anything was merged"


@pytest.fixture(scope="session")
def byte_merges():
    chars = byte_characters()
    texts = [text for text in TEXTS + random_texts(60, seed=3) if "<|" not in text]
    lines = ["".join(chars[byte] for byte in text.encode()) for text in texts]
    return learn_merges(lines, 500)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_text_is_split_as_llama_cpp_splits_it(example, tmp_path, byte_merges, pre):
    tokens = list(dict.fromkeys([*byte_characters().values(), *map("".join, byte_merges)]))
    tokens += ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    path = tmp_path / "model.gguf"
    out = writer(path, "gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([CONTROL if token.startswith("<|") and token.endswith("|>") else NORMAL for token in tokens])
    out.add_token_merges([" ".join(merge) for merge in byte_merges])
    finish(out)
    compare(example, path, TEXTS + random_texts(400))


@pytest.mark.parametrize("space_first", [True, False])
def test_sentencepiece_merges_as_llama_cpp_merges(example, tmp_path, space_first):
    lines = [text.replace(" ", "▁") for text in TEXTS[:20]]
    pieces = list(map("".join, learn_merges(lines, 300)))
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    # llama.cpp merges over characters that are no pieces; sentencepiece's own vocabularies have them all.
    single = sorted({c for line in lines for c in line} | {"▁"})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in single]
    tokens = special + bytes_ + pieces + single
    path = tmp_path / "model.gguf"
    out = writer(path, "llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    kinds = [UNKNOWN, *[CONTROL] * 4, *[BYTE] * 256, *[NORMAL] * (len(pieces) + len(single))]
    out.add_token_types(kinds)
    out.add_token_scores([0.0 if at < len(special) + 256 else -float(at) for at in range(len(tokens))])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_space_prefix(space_first)
    finish(out)
    compare(example, path, [text for text in TEXTS + random_texts(400) if text])
