"""The numbers of `firstdiff diff`, computed with numpy: what a script does. Prints the seconds it took.

    python diff_numpy.py TRACE OTHER

For each tap: relative error, largest difference and where, cosine, how many elements differ, and a histogram of
distances in units in the last place where both store one format. Sums are held in float64. Pieces of 1 MiB elements.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

PIECE = 1 << 20
EDGES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
BITS = {"F32": np.int32, "BF16": np.int16}


def taps(file):
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    for name, info in header.items():
        if name.startswith("layers."):
            start, end = info["data_offsets"]
            bits = BITS[info["dtype"]]
            yield name, np.memmap(file, bits, "r", 8 + length + start, ((end - start) // np.dtype(bits).itemsize,))


def values(bits):
    if bits.dtype == np.int32:
        return bits.view(np.float32).astype(np.float64)
    return (bits.astype(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def ordinals(bits):
    wide = bits.astype(np.int64)
    top = np.iinfo(bits.dtype).max
    return np.where(wide < 0, -(wide & top), wide)


def compare(a, b):
    error = first = second = dot = largest = 0.0
    differ, worst, ulps = 0, None, np.zeros(13, np.int64)
    for start in range(0, a.size, PIECE):
        p, q = a[start:start + PIECE], b[start:start + PIECE]
        x, y = values(p), values(q)
        d = x - y
        error += d @ d
        first += x @ x
        second += y @ y
        dot += x @ y
        differ += np.count_nonzero(d)
        at = int(np.abs(d, out=d).argmax())
        if d[at] > largest:
            largest, worst = float(d[at]), (start + at, float(x[at]), float(y[at]))
        if p.dtype == q.dtype:
            distance = np.abs(ordinals(p) - ordinals(q))
            ulps += np.bincount(np.searchsorted(EDGES, distance), minlength=13)
    norm = np.sqrt(first * second)
    return np.sqrt(error / first), largest, dot / norm, differ, worst, ulps.tolist()


def main():
    begin = time.perf_counter()
    rows = []
    for file in sorted(Path(sys.argv[1]).glob("step-*.safetensors")):
        others = dict(taps(Path(sys.argv[2]) / file.name))
        rows += [(file.name, name, *compare(a, others[name])) for name, a in taps(file)]
    assert rows and all(np.isfinite(row[2]) for row in rows)
    if len(sys.argv) > 3:
        print(json.dumps([[str(v) for v in row] for row in rows[:3]]), file=sys.stderr)
    print(time.perf_counter() - begin)


main()
