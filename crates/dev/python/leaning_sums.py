"""How far running float32 sums of squares lean to one side, in units of the bound that a norm's noise floor has.

    python crates/dev/python/leaning_sums.py

Numbers of few digits (bf16, float16), normal and uniform, at eight sizes between two powers of two: of every length the
largest mean error over 400 rows, and in brackets its deviation from row to row.
"""

import numpy as np

LENGTHS = (64, 256, 576, 896, 1024, 2048, 3072, 4096, 5120, 8192, 16384)
ROWS, ROUNDOFF = 400, 2.0**-24


def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def f16(x):
    return x.astype(np.float16).astype(np.float32)


def leaning(x):
    """(length, mean, deviation) of the relative error of every row's running sum, over u sqrt(3 n)."""
    squares = x * x
    total, exact = np.zeros(len(x), np.float32), np.zeros(len(x))
    for n, square in enumerate(squares.T, 1):
        total, exact = total + square, exact + square
        if n in LENGTHS:
            error = (total - exact) / exact / (ROUNDOFF * (3 * n) ** 0.5)
            yield n, error.mean(), error.std()


def main():
    rng = np.random.default_rng(0)
    for name, store in (("bf16", bf16), ("f16", f16), ("float32", np.float32)):
        for kind, draw in (("normal", rng.standard_normal), ("uniform", lambda shape: rng.uniform(-1, 1, shape))):
            worst = {}
            for size in range(8):
                for n, mean, spread in leaning(store(draw((ROWS, max(LENGTHS))) * 2 ** (size / 4))):
                    worst[n] = max(worst.get(n, (0, 0)), (mean, spread), key=lambda found: abs(found[0]))
            print(name, kind, " ".join(f"{n}: {mean:.2f} ({spread:.2f})" for n, (mean, spread) in worst.items()), flush=True)


if __name__ == "__main__":
    main()
