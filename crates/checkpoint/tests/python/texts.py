"""Texts that tokenizers are compared on. All are in composed form (NFC): see `test_tokenizer_against_llama_cpp`."""

import random
import unicodedata

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
