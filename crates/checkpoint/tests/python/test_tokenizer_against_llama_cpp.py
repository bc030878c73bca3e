"""Token ids of GGUF models equal llama.cpp's, and chats render as transformers renders them.

Text is in composed form (NFC): llama.cpp does not compose, the models' own tokenizers do.
"""

import json
import random
import subprocess
import unicodedata

import pytest

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "",
    " ",
    "  ",
    "Hello, world!",
    " leading and trailing ",
    "don't I'LL we've SHE'D it's o'clock '' 'S",
    "1234567890 3.14159 1,000,000 0xDEADBEEF 10^6 v1.2.3 ²³ ½ ٣٤٥ १२३",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    "#include <stdio.h>\r\nint main(void) {\r\n\treturn 0;\r\n}\r\n",
    "for (let i = 0; i < n; ++i) { a[i] += `${b[i]}`; }",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x''y'; -- comment",
    "<div class=\"a b\">&nbsp;</div>",
    "Grüße aus Köln, naïve café, Ærøskøbing, İstanbul, ŁÓDŹ",
    "你好，世界！今天天气怎么样？《红楼梦》第一回",
    "こんにちは世界。カタカナとひらがな、漢字。",
    "안녕하세요 세계",
    "Привет, мир! Съешь ещё этих мягких булок.",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
    "😀😃🎉 👨‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ ☃",
    "a\nb\n\nc\n\n\nd \n e  \n\n  f\r\n\r\ng\t\th \t i",
    "\n", "\n\n", "\t", "\r\n", " \n ", "   x   y    z     ",
    "\u00a0non\u00a0breaking\u2003em\u200bzero\ufeffbom\u3000wide",
    "Special <|im_start|>user\nHi<|im_end|>\n<|endoftext|> and <|im_end|><|im_end|> <|not_a_token|>",
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>assistant\n",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), √2 ≈ 1.414",
    "𝕳𝖊𝖑𝖑𝖔 \U0001f9ff \U000e0041",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "https://example.org/a/b?c=d&e=%20f#g mail@example.org C:\\Users\\x\\y.txt",
    "...!!!???---===***___~~~```",
]


def random_texts(count, seed=11):
    """Texts of random characters, chosen from ranges that are split differently."""
    rng = random.Random(seed)
    pools = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", " \n\t\r",
        ".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+`~", "äöüßéèñçåøæ", "的一是不了人我在有他这", "абвгдежзий", "😀🎉👍🏽\u200d❤",
        "'s'll're", "½²٣१",
    ]
    texts = []
    for _ in range(count):
        pieces = ["".join(rng.choices(rng.choice(pools), k=rng.randint(1, 6))) for _ in range(rng.randint(1, 30))]
        texts.append(unicodedata.normalize("NFC", "".join(pieces)))
    return texts


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
