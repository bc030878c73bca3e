"""llama.cpp's CPU arithmetic in numpy, and every recorded tap checked against its own operation in it.

Each bound is a count of f32 roundings: a sum of n blocks of exact products carries at most about n of them, each at
most 2^-24 of the sum of magnitudes. They are far below what a wrong weight, row, head or key would do.
"""

import gguf
import numpy as np

U = 2.0**-24  # half a unit in the last place of f32


class Model:
    """Dequantised weights and the few sizes needed, by the `gguf` package."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        field = lambda name: reader.fields[name].contents()
        self._recent = {}
        arch = self.arch = field("general.architecture")
        self.layers = field(f"{arch}.block_count")
        self.heads, self.kv = field(f"{arch}.attention.head_count"), field(f"{arch}.attention.head_count_kv")
        self.size = field(f"{arch}.embedding_length") // self.heads
        self.eps = field(f"{arch}.attention.layer_norm_rms_epsilon")
        self.theta = field(f"{arch}.rope.freq_base")

    def weight(self, name, rows=slice(None)):
        if not isinstance(rows, slice):
            return self._dequantised(name, rows)
        key = (name, rows.start, rows.stop)
        if key not in self._recent:
            while len(self._recent) >= 20:  # about one layer: a whole model in f64 would not fit a small machine
                del self._recent[next(iter(self._recent))]
            self._recent[key] = self._dequantised(name, rows)
        return self._recent[key]

    def _dequantised(self, name, rows):
        tensor = self.tensors[name]
        value = gguf.quants.dequantize(np.ascontiguousarray(tensor.data[rows]), tensor.tensor_type)
        return value.astype(np.float64)

    def product(self, x, name):
        """y and its bound, for x as the CPU backend multiplies it with this weight's type."""
        x = x.astype(np.float32)
        count = self.tensors[f"{name}.weight"].data.shape[0]
        # a vocabulary's rows in f64 at once would not fit a small machine
        parts = [self._product(x, f"{name}.weight", slice(at, at + 8192)) for at in range(0, count, 8192)]
        y, bound = (np.concatenate(part, 1) for part in zip(*parts))
        if f"{name}.bias" in self.tensors:
            y = y + self.weight(f"{name}.bias")
            bound = bound + U * np.abs(y)
        return y, bound

    def _product(self, x, name, rows):
        tensor, weight = self.tensors[name], self.weight(name, rows)
        kind, magnitude = tensor.tensor_type.name, np.abs(weight)
        if kind in ("Q4_K", "Q6_K"):
            rounded = q8_k(x)
            y = rounded @ weight.T
        else:
            quants, scales = q8_blocks(x)
            rounded = (quants * f16(scales)).reshape(x.shape)
            y = rounded @ weight.T
            if kind == "Q4_1":
                # the offset meets the block's sum, which q8_1 keeps apart, rounded to f16
                blocks = np.array(tensor.data[rows]).reshape(len(weight), -1, 20)
                offsets = blocks[:, :, 2:4].copy().view(np.float16)[:, :, 0].astype(np.float64)
                sums = f16((scales * quants.sum(1, keepdims=True).astype(np.float32)).astype(np.float32))
                exact = (quants * f16(scales)).sum(1, keepdims=True)
                y = y + (sums - exact).reshape(len(x), -1) @ offsets.T
                # quants and offset are summed apart, and may cancel
                each = np.repeat(offsets, 32, 1)
                magnitude = np.abs(weight - each) + np.abs(each)
        return y, (x.shape[1] / 32 + 16) * U * (np.abs(rounded).astype(np.float32) @ magnitude.astype(np.float32).T)

    def half_split(self, rows, heads):
        """Undoes the llama converter's order of query and key features (last axis)."""
        order = np.arange(self.size).reshape(-1, 2).T.reshape(-1)
        return rows.reshape(-1, heads, self.size)[:, :, order].reshape(rows.shape) if self.arch == "llama" else rows


def f16(x):
    return x.astype(np.float16).astype(np.float64)


def q8_blocks(x):
    blocks = x.reshape(-1, 32)
    top = np.abs(blocks).max(1, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    return np.rint(blocks * inverse).astype(np.float64), (top / np.float32(127)).astype(np.float32)


def q8_k(x):
    blocks = x.reshape(-1, 256)
    top = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)][:, None]
    scale = np.where(top != 0, np.float32(-127) / np.where(top != 0, top, 1), 0).astype(np.float32)
    quants = np.minimum(127, np.rint(scale * blocks)).astype(np.float64)
    back = np.where(scale != 0, np.float32(1) / np.where(scale != 0, scale, 1), 0).astype(np.float64)
    return (quants * back).reshape(x.shape)


def check_steps(model, steps, layers=None):
    """Asserts that each tap is its operation on the taps before it; returns the names that were checked."""
    checked = set()
    for n in [None, *(range(model.layers) if layers is None else layers)]:  # a layer's weights serve all steps
        for step in steps:
            _check(model, step, n, checked)
    last = np.concatenate([step["final_norm"] for step in steps])
    y, bound = model.product(last, "output" if "output.weight" in model.tensors else "token_embd")
    held = np.concatenate([step["logits"] for step in steps])
    assert held.shape == y.shape and (np.abs(held - y) <= bound).all(), "logits"
    return checked | {"logits"}


def _check(model, step, n, checked):
    """Layer n of one step, or what is before and after the layers."""
    rows, positions = len(step["token_ids"]), step["positions"]
    heads, kv, size = model.heads, model.kv, model.size

    def close(tap, value, bound):
        held = step[tap].astype(np.float64)
        assert held.shape == value.shape, f"{tap}: shape {held.shape}, by hand {value.shape}"
        over = np.abs(held - value) - bound
        assert over.max() <= 0, f"{tap}: off by {np.abs(held - value).max()}, bound {np.max(bound)}"
        checked.add(tap)

    def norm(tap, x, weight):
        x = x.astype(np.float64)
        y = x / np.sqrt((x * x).mean(-1, keepdims=True) + model.eps) * model.weight(weight)
        close(tap, y, 8 * U * np.abs(y))

    def linear(tap, x, name, order=None):
        y, bound = model.product(x.reshape(rows, -1), name)
        close(tap, *((model.half_split(y, order), model.half_split(bound, order)) if order else (y, bound)))

    def add(tap, a, b):
        close(tap, (a + b).astype(np.float64), 0.0)

    def rotate(tap, x, count):
        x = x.reshape(rows, count, size).astype(np.float64)
        index = np.arange(size // 2)
        angle = (positions[:, None] * model.theta ** (-2 * index / size))[:, None]
        a, b = x[..., : size // 2], x[..., size // 2 :]
        y = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
        # ggml multiplies the angle up from pair to pair: one more rounding of it at each
        error = 2 * ((index + 2) * angle + 4) * U * (np.abs(a) + np.abs(b))
        close(tap, y, np.concatenate([error, error], -1))

    if n is None:
        close("embed", model.weight("token_embd.weight", step["token_ids"]), 0.0)
        norm("final_norm", step[f"layers.{model.layers - 1}.out"], "output_norm.weight")
        return
    residual = step[f"layers.{n - 1}.out"] if n else step["embed"]
    at, block = f"layers.{n}.", f"blk.{n}."
    get = lambda tap: step[at + tap]
    norm(at + "attn_norm", residual, block + "attn_norm.weight")
    linear(at + "q_proj", get("attn_norm"), block + "attn_q", heads)
    linear(at + "k_proj", get("attn_norm"), block + "attn_k", kv)
    linear(at + "v_proj", get("attn_norm"), block + "attn_v")
    rotate(at + "q_rope", get("q_proj"), heads)
    rotate(at + "k_rope", get("k_proj"), kv)
    keys, values = get("k_cache"), get("v_cache")
    assert keys.dtype == values.dtype == np.float16 and len(keys) == positions[-1] + 1
    assert np.array_equal(keys[positions], get("k_rope").astype(np.float16)), f"{at}k_cache"
    new = get("v_proj").reshape(rows, kv, size).astype(np.float16)
    assert np.array_equal(values[positions], new), f"{at}v_cache"
    checked.update((at + "k_cache", at + "v_cache"))
    keys, values = (np.repeat(x.astype(np.float64), heads // kv, 1) for x in (keys, values))
    q = f16(get("q_rope"))
    scores = np.einsum("qhd,khd->hqk", q, keys) * size**-0.5
    seen = np.arange(len(keys))[None] <= positions[:, None]
    if at + "attn_scores" in step:
        close(at + "attn_scores", scores,
              size * U * np.einsum("qhd,khd->hqk", np.abs(q), np.abs(keys)) * size**-0.5)
        scores = get("attn_scores").astype(np.float64)
    probs = np.where(seen, np.exp(scores - np.where(seen, scores, -np.inf).max(-1, keepdims=True)), 0)
    probs /= probs.sum(-1, keepdims=True)
    if at + "attn_probs" in step:
        close(at + "attn_probs", probs, (16 + len(keys) + 4 * np.abs(scores).max(-1, keepdims=True)) * U * probs)
        probs = f16(get("attn_probs"))
        unit = U
    else:
        unit = 2.0**-11  # flash attention adds the values up in f16
    close(at + "attn_heads", np.einsum("hqk,khd->qhd", probs, values),
          (len(keys) + 4) * unit * np.einsum("hqk,khd->qhd", probs, np.abs(values)))
    linear(at + "attn_out", get("attn_heads"), block + "attn_output")
    add(at + "attn_resid", residual, get("attn_out"))
    norm(at + "mlp_norm", get("attn_resid"), block + "ffn_norm.weight")
    linear(at + "gate_proj", get("mlp_norm"), block + "ffn_gate")
    linear(at + "up_proj", get("mlp_norm"), block + "ffn_up")
    gate = get("gate_proj").astype(np.float64)
    act = gate / (1 + np.exp(-gate)) * get("up_proj")
    close(at + "mlp_act", act, 16 * U * np.abs(act))
    linear(at + "mlp_out", get("mlp_act"), block + "ffn_down")
    add(at + "out", get("attn_resid"), get("mlp_out"))
