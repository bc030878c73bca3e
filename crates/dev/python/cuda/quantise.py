"""Encoders of GGUF's block formats, in torch: rows of weights to rows of bytes.

Scales are the plain choice (largest value of a block to the end of the range), without llama.cpp's search for better
ones: what is measured is an engine's reading of the blocks, not the quality of the quantisation.
"""

import torch

# Name: (number in the file, elements in a block, bytes in a block)
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2),
}


def _bytes(x):
    return x.contiguous().view(torch.uint8).reshape(x.shape[0], -1)


def _half(x):
    """The bytes of f16 scales, and the scales as a reader sees them."""
    stored = x.to(torch.float16)
    return _bytes(stored[:, None]), stored.float()[:, None]


def _inverse(d):
    return torch.where(d == 0, torch.zeros_like(d), 1 / d)


def _signed_extreme(x):
    """In each row, the value that lies furthest from 0, with its sign."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))[:, 0]


def _nibbles(q):
    """Two halves of a row of 32 in the low and high nibbles."""
    q = q.to(torch.uint8)
    return q[:, :16] | (q[:, 16:] << 4)


def _level(x, low, high):
    return x.round().clamp(low, high).to(torch.int32)


def q8_0(x):
    head, d = _half(x.abs().amax(1) / 127)
    return torch.cat([head, _bytes(_level(x * _inverse(d), -127, 127).to(torch.int8))], 1)


def q4_0(x):
    head, d = _half(_signed_extreme(x) / -8)
    return torch.cat([head, _nibbles(_level(x * _inverse(d) + 8, 0, 15))], 1)


def q4_1(x):
    low = x.amin(1)
    head, d = _half((x.amax(1) - low) / 15)
    tail, m = _half(low)
    return torch.cat([head, tail, _nibbles(_level((x - m) * _inverse(d), 0, 15))], 1)


def q5_0(x):
    head, d = _half(_signed_extreme(x) / -16)
    q = _level(x * _inverse(d) + 16, 0, 31)
    place = torch.arange(8, device=x.device, dtype=torch.int32)
    fifth = ((q >> 4).reshape(-1, 4, 8) << place).sum(2).to(torch.uint8)
    return torch.cat([head, fifth, _nibbles(q & 15)], 1)


def _k(x, top):
    """Scales and minima of eight groups of 32 in 12 bytes, and the levels of all elements."""
    groups = x.reshape(-1, 8, 32)
    low = groups.amin(2).clamp(max=0)
    scale, minimum = (groups.amax(2).clamp(min=0) - low) / top, -low
    d_bytes, d = _half(scale.amax(1) / 63)
    m_bytes, m = _half(minimum.amax(1) / 63)
    s, o = _level(scale * _inverse(d), 0, 63), _level(minimum * _inverse(m), 0, 63)
    step, offset = (d * s)[:, :, None], (m * o)[:, :, None]
    q = _level((groups + offset) * _inverse(step), 0, top)
    packed = torch.cat(
        [
            s[:, :4] | (s[:, 4:] >> 4) << 6,
            o[:, :4] | (o[:, 4:] >> 4) << 6,
            (s[:, 4:] & 15) | (o[:, 4:] & 15) << 4,
        ],
        1,
    )
    return torch.cat([d_bytes, m_bytes, packed.to(torch.uint8)], 1), q


def _k_nibbles(q):
    """32 bytes hold a group in their low nibbles and the next one in their high ones."""
    return (q[:, 0::2] | q[:, 1::2] << 4).to(torch.uint8).reshape(-1, 128)


def q4_k(x):
    head, q = _k(x, 15)
    return torch.cat([head, _k_nibbles(q)], 1)


def q5_k(x):
    head, q = _k(x, 31)
    group = torch.arange(8, device=x.device, dtype=torch.int32)[None, :, None]
    fifth = ((q >> 4) << group).sum(1).to(torch.uint8)
    return torch.cat([head, fifth, _k_nibbles(q & 15)], 1)


def q6_k(x):
    groups = x.reshape(-1, 16, 16)
    scale = _signed_extreme(groups.reshape(-1, 16)).reshape(-1, 16) / -32
    head, d = _half(_signed_extreme(scale) / -128)
    s = _level(scale * _inverse(d), -128, 127)
    q = _level(groups * _inverse((d * s)[:, :, None]), -32, 31) + 32
    # In each half of 128: four planes of 32.
    q = q.reshape(-1, 2, 4, 32)
    low = torch.cat([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], 2)
    plane = torch.tensor([0, 2, 4, 6], device=x.device, dtype=torch.int32)[None, None, :, None]
    high = ((q >> 4) << plane).sum(2)
    parts = [low.reshape(-1, 128).to(torch.uint8), high.reshape(-1, 64).to(torch.uint8), _bytes(s.to(torch.int8)), head]
    return torch.cat(parts, 1)


ENCODERS = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}


def encode(weight, kind, at_once=1 << 24):
    """The rows of a matrix as rows of bytes."""
    rows, columns = weight.shape
    if kind in ("F32", "F16", "BF16"):
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return _bytes(weight.to(dtype))
    _, block, size = TYPES[kind]
    assert columns % block == 0, f"{columns} columns are no multiple of {block}"
    out = torch.empty(rows, columns // block * size, dtype=torch.uint8)
    step = max(1, at_once // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step].float().reshape(-1, block)
        out[start : start + step] = ENCODERS[kind](part).reshape(-1, out.shape[1]).cpu()
    return out
