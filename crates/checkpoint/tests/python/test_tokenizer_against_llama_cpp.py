"""Token ids of GGUF models equal llama.cpp's, and chats render as transformers renders them.

Text is in composed form (NFC): llama.cpp does not compose, the models' own tokenizers do.
"""

import json
import subprocess

import pytest
from texts import TEXTS, random_texts

llama_cpp = pytest.importorskip("llama_cpp")

def ask(program, model, lines, *mode):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([program, model, *mode], input=text.encode(), capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


@pytest.fixture(scope="module")
def llama(gguf_model):
    return llama_cpp.Llama(str(gguf_model), vocab_only=True, verbose=False)


def test_ids_are_those_of_llama_cpp(example, gguf_model, llama):
    texts = TEXTS + random_texts(2000)
    ours = ask(example("tokenize"), gguf_model, texts)
    theirs = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    differing = [(t, a, b) for t, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {len(texts)} differ; the first: {differing[0]}"


def test_decoding_gives_the_text_back(example, gguf_model):
    texts = TEXTS + random_texts(200)
    ids = ask(example("tokenize"), gguf_model, texts)
    assert ask(example("tokenize"), gguf_model, ids, "--decode") == texts


def test_special_tokens_around_a_text_are_those_of_llama_cpp(example, gguf_model, llama):
    ours = ask(example("tokenize"), gguf_model, ["Hello"], "--special")
    assert ours == [llama.tokenize(b"Hello", add_bos=llama._model.add_bos_token(), special=True)]


def test_chats_render_as_transformers_renders_them(example, gguf_model, llama):
    chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    chats = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 2 < 3 & 'x'?\n"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "你好"},
        ],
    ]
    template = llama.metadata["tokenizer.chat_template"]
    # bos and eos are written by neither model's template.
    theirs, _ = chat_utils.render_jinja_template(
        conversations=chats, chat_template=template, add_generation_prompt=True
    )
    assert ask(example("tokenize"), gguf_model, chats, "--chat") == theirs
