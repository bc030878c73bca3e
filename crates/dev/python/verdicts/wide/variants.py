"""The right engines: a way to compute, what trace.json says of it, and where it is tried."""

from dataclasses import dataclass, replace

from . import caches
from .inputs import fp8, int8_token, shorter, tf32
from .models import FAMILIES, HIDDEN
from .way import STREAM, Way

DENSE = ("llama", "qwen2", "qwen3", "gemma3")
EVERY = (*DENSE, "qwen3_moe")
PLAIN = ("llama", "qwen2", "qwen3")  # gemma's norms have no place to differ in
HALF = ("bf16", "f16")
FLOATS = ("f32", "bf16", "f16")
TWO = ("all", "modules")
PROJECTED = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "gate_proj", "up_proj", "attn_norm", "mlp_norm")
INSIDE = ("q_proj", "k_proj", "q_norm", "k_norm", "attn_scores", "attn_probs", "gate_proj", "up_proj", "mlp_act", "attn_heads",
          "attn_out", "mlp_out", "attn_norm", "mlp_norm", "attn_resid", "out", "final_norm")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """`declared` are keys of trace.json's `arithmetic` beyond the formats; `says` what else the trace holds."""

    way: Way = Way()
    declared: tuple = ()
    families: tuple = EVERY
    stores: tuple = ("bf16",)
    taps: tuple = TWO
    runs: tuple = ("plain",)
    prompts: tuple = (24,)
    steps: int = 3
    seeds: int = 2
    says: tuple = ()
    last_rows: str = ""
    ring: tuple = None
    undeclared: bool = True
    unmeasured: bool = False  # whether comparing nothing is a right answer too


def stored(**formats):
    return ("stored", {f"layers.*.{kind}" if kind not in ("logits", "embed", "final_norm") else kind: format
                       for kind, format in formats.items()})  # fmt: skip


def of(kinds, format):
    return tuple((kind, format) for kind in kinds)


def massive(families, hidden, factors):
    return tuple(f"massive-{family}-{n}*{factor}.{where}" for n in hidden for family in families for factor, where in factors)


MASSIVE = massive(("llama", "qwen3"), HIDDEN, ((100, "token"), (250, "token"), (300, "all"), (250, "mlp")))
CALLS = ("chunked", "batch", "joining")

VARIANTS = {
    "eager": Variant(stores=FLOATS, runs=("plain", *CALLS, "again"), seeds=1),
    # ---- kernels
    "flash": Variant(Way(attention="flash"), stores=FLOATS, runs=("plain", "chunked")),
    "flash, blocks of 64": Variant(Way(attention="flash", block=64), prompts=(160, 600), families=("llama-long", "qwen3-long")),
    "split-KV": Variant(Way(attention="split", parts=4), stores=FLOATS),
    "split-KV, parts rounded": Variant(Way(attention="split", parts=4, parts_rounded=True), stores=HALF,
                                       runs=("plain", "batch")),
    "split-KV in 8, parts rounded": Variant(Way(attention="split", parts=8, parts_rounded=True), prompts=(160, 600),
                                            families=("llama-long", "qwen3-long")),
    "queries scaled first": Variant(Way(attention="scaled-first"), stores=HALF),
    "norm weight before the cast": Variant(Way(norm="before"), stores=HALF, families=PLAIN),
    "norm keeps its root": Variant(Way(norm="root"), stores=HALF, families=(*PLAIN, *MASSIVE[::5]), taps=("all", "outs"),
                                   seeds=3),
    "norm keeps its root's reciprocal": Variant(Way(norm="reciprocal"), stores=HALF, families=(*PLAIN, *MASSIVE[2::5]),
                                                taps=("all", "outs"), seeds=3),
    "experts in one kernel": Variant(Way(fused_experts=True, router="chosen"), families=("qwen3_moe",), stores=FLOATS,
                                     taps=("all", "modules", "outs", "no choice"), seeds=3),
    "serving kernels": Variant(Way(attention="flash", reads_sum=True, unread=STREAM, fused_activation=True, rotation="table",
                                   fused_experts=True, router="chosen"), (("residual", "f32"),), stores=HALF,
                               runs=("plain", *CALLS)),
    # ---- sums
    "sums split in 4": Variant(Way(splits=4), stores=FLOATS),
    "split sums rounded": Variant(Way(splits=4, splits_rounded=True), (("split_sums", 4),), stores=HALF),
    "sums in the activation type": Variant(Way(sums="store"), (("accumulate", "store"),), stores=HALF, seeds=2),
    **{f"tensor parallel {n}": Variant(Way(ranks=n), (("tensor_parallel", n),), stores=HALF,
                                       families=(*EVERY, "llama-biases", "llama-wide"), taps=("all", "modules", "outs"))
       for n in (2, 4, 8)},
    "tensor parallel 4, rounded at each hop": Variant(Way(ranks=4, reduce="hop"), (("tensor_parallel", 4),), stores=HALF),
    "tensor parallel 2, serving kernels": Variant(
        Way(ranks=2, attention="flash", unread=STREAM, fused_activation=True, rotation="table", fused_experts=True,
            router="chosen"), (("tensor_parallel", 2), ("residual", "f32")), runs=("plain", *CALLS)),
    # ---- the residual stream
    "f32 residual": Variant(Way(unread=STREAM), (("residual", "f32"),), stores=HALF),
    "f32 residual, massive channel": Variant(Way(unread=STREAM), (("residual", "f32"),), families=MASSIVE, stores=HALF,
                                             taps=("all", "modules", "outs")),
    "fused add and norm, massive channel": Variant(Way(reads_sum=True), (("residual", "f32"),), families=MASSIVE,
                                                   stores=HALF),
    "eager, massive channel": Variant(families=MASSIVE, stores=HALF, seeds=1),
    "f32 residual recorded": Variant(Way(stored=of((*STREAM, "embed"), "f32")),
                                     (("residual", "f32"), stored(embed="f32", attn_resid="f32", out="f32")), stores=HALF,
                                     families=(*DENSE, *MASSIVE[::6])),
    # ---- mixed formats
    "f32 logits": Variant(Way(stored=of(("logits", "logits_raw"), "f32")), (stored(logits="f32"),), stores=HALF,
                          taps=("all", "modules", "outs", "logits")),
    "f32 router scores": Variant(Way(stored=of(("router_scores",), "f32")), (stored(router_scores="f32"),),
                                 families=("qwen3_moe",), stores=HALF, seeds=4),
    "f32 router": Variant(Way(stored=of(("router_scores", "router_logits", "router_weights"), "f32")),
                          (stored(router_scores="f32", router_logits="f32", router_weights="f32"),),
                          families=("qwen3_moe",), stores=HALF, seeds=4),
    **{f"router scores in {format}": Variant(Way(stored=(("router_scores", format),)), (stored(router_scores=format),),
                                             families=("qwen3_moe", "ties"), stores=(format,)) for format in HALF},
    "f32 rotation": Variant(Way(rotation="f32", stored=of(("q_rope", "k_rope"), "f32")),
                            (stored(q_rope="f32", k_rope="f32"),), stores=HALF, taps=("all", "no cache")),
    "f32 attention": Variant(Way(stored=of(("attn_scores", "attn_probs"), "f32")),
                             (stored(attn_scores="f32", attn_probs="f32"),), stores=HALF, taps=("all", "no cache")),
    "f32 attention and logits": Variant(Way(stored=of(("attn_scores", "attn_probs", "logits", "logits_raw"), "f32")),
                                        (stored(attn_scores="f32", attn_probs="f32", logits="f32"),), stores=HALF,
                                        taps=("all",)),
    "wide before the cache": Variant(Way(stored=of((*PROJECTED, "q_rope", "k_rope"), "f32"), rotation="f32"),
                                     (stored(**dict(of((*PROJECTED, "q_rope", "k_rope"), "f32"))),), stores=HALF,
                                     families=DENSE, taps=("all", "no cache", "heads")),
    "wide before the cache, v alone": Variant(Way(stored=of(("v_proj",), "f32")), (stored(v_proj="f32"),), stores=HALF,
                                              families=DENSE, taps=("all", "heads")),
    "read before rounding": Variant(Way(unread=INSIDE), (("read", "unrounded"),), stores=HALF, families=DENSE,
                                    taps=("all", "modules", "outs")),
    "read before rounding, some": Variant(Way(unread=INSIDE[::2]), (("read", "unrounded"),), stores=("f16",), families=DENSE,
                                          taps=("all", "modules")),
    "bf16 products in f32": Variant(
        Way(all_inputs=shorter("bf16"), stored=of(("q_rope", "k_rope", "attn_heads"), "bf16"), recorded="f32", weights="f32"),
        (("matmul_inputs", "bf16"), stored(q_rope="bf16", k_rope="bf16", attn_heads="bf16"), ("kv_cache", "bf16")),
        stores=("f32",), families=DENSE, seeds=4),
    "bf16 products in f32, nothing else": Variant(Way(all_inputs=shorter("bf16"), weights="f32"), (("matmul_inputs", "bf16"),),
                                                  stores=("f32",), families=DENSE),
    "f16 products in f32": Variant(Way(all_inputs=shorter("f16"), weights="f32"), (("matmul_inputs", "f16"),), stores=("f32",),
                                   families=DENSE),
    "tf32": Variant(Way(all_inputs=tf32), (("matmul_inputs", "tf32"),), stores=("f32",), families=EVERY),
    "bf16 recorded in f32": Variant(Way(recorded="f32"), stores=HALF, families=DENSE),
    # ---- caches
    **{f"{name} cache": Variant(Way(cache=caches.Plain(name)), (("kv_cache", name),), stores=stores, families=DENSE,
                                taps=("all", "no cache", "modules"), runs=("plain", "chunked"), seeds=1)
       for name, stores in (("f16", ("f32", "bf16")), ("bf16", ("f32",)), ("fp8-e4m3", FLOATS), ("fp8-e5m2", FLOATS))},
    **{f"fp8-{kind} cache, a scale a {over}": Variant(
        Way(cache=caches.Scaled(f"fp8-{kind}", over)), (("kv_cache", f"fp8-{kind}"),), stores=("f32", "bf16"), families=DENSE,
        says=("scales",) if over == "tensor" else (), taps=("all", "modules"), seeds=1)
       for kind in ("e4m3", "e5m2") for over in ("tensor", "token", "token-head")},
    **{f"q{bits}_0 cache": Variant(Way(cache=caches.Blocks(bits)), (("kv_cache", f"q{bits}_0"),), stores=("f32", "f16"),
                                   families=("llama", "qwen3", "llama-wide", "qwen3-wide"), taps=("all", "no cache", "modules"),
                                   seeds=1)
       for bits in (8, 4)},
    **{f"int8 cache, {'affine ' * affine}{group}": Variant(
        Way(cache=caches.Integers(group, affine, "f16" if affine else "f32")), (("kv_cache", "int8"), ("kv_group", group)),
        stores=("f32", "bf16"), families=("llama-wide", "qwen3-wide"), taps=("all", "no cache", "modules"), seeds=1)
       for affine in (False, True) for group in ("head", "token", 32, 64)},
    "int8 cache, read in bf16": Variant(Way(cache=caches.Widened(caches.Integers("head"), "bf16")),
                                        (("kv_cache", "int8"), ("kv_group", "head")), families=("llama-wide", "qwen3-wide"),
                                        taps=("all", "no cache")),
    # ---- 8-bit inputs
    "fp8 inputs, a scale a token": Variant(Way(inputs=fp8(), weights="file"),
                                           (("matmul_inputs", "fp8-e4m3"), ("weights", "file")), stores=HALF,
                                           families=("fp8-tensor", "fp8-channel"), taps=("all", "modules", "outs"), seeds=3),
    "fp8 inputs, groups of 128": Variant(Way(inputs=fp8(group=128), weights="file"),
                                         (("matmul_inputs", "fp8-e4m3-128"), ("weights", "file")), stores=HALF,
                                         families=("fp8-128",), taps=("all", "modules", "outs"), seeds=3),
    "fp8 weights, inputs as they are": Variant(Way(weights="file"), (("weights", "file"),), stores=HALF,
                                               families=("fp8-tensor", "fp8-channel", "fp8-128"), seeds=2),
    "int8 inputs, a scale a token": Variant(Way(inputs=int8_token), (("matmul_inputs", "int8-token"),), stores=("f32", "bf16"),
                                            families=PLAIN, undeclared=False),
    # ---- sequences
    "prefix": Variant(runs=("prefix", "prefix_in_batch"), stores=FLOATS, taps=("no cache", "modules", "outs", "logits"),
                      unmeasured=True, seeds=1),
    "prefix, caches recorded": Variant(runs=("prefix",), stores=FLOATS, taps=("all",), seeds=2),
    "prefix, keys said": Variant(runs=("prefix", "prefix_in_batch"), stores=FLOATS, taps=("all",), says=("keys",), seeds=1),
    "fork": Variant(runs=("fork",), stores=FLOATS, taps=("no cache", "modules", "outs"), says=("fork",), seeds=1),
    "fork, not said": Variant(runs=("fork",), stores=("bf16",), taps=("no cache", "modules", "outs"), unmeasured=True),
    "batch, keys said": Variant(runs=("batch", "joining", "fork"), stores=FLOATS, taps=("all",),
                                says=("keys", "sampled", "fork"), seeds=1),
    "batch, last rows": Variant(runs=("batch", "joining"), stores=FLOATS, taps=("all", "modules", "logits"), last_rows="each",
                                seeds=1),
    "batch, rows said": Variant(runs=("batch", "joining"), stores=("f32", "bf16"), taps=("all", "modules", "logits"),
                                last_rows="said", seeds=1),
    "ring": Variant(runs=("plain",), stores=FLOATS, families=(*PLAIN, "qwen3_moe"), ring=(20, 4), prompts=(17,), steps=9,
                    taps=("all",), says=("keys",), seeds=2),
    "ring of a window": Variant(runs=("plain", "chunked"), stores=FLOATS, families=("qwen2-window", "qwen3-window"),
                                ring=(1000, 0), steps=9, taps=("all",), says=("keys",), seeds=2),
    "ring of a window, not said": Variant(runs=("plain", "chunked"), stores=FLOATS, families=("qwen2-window", "qwen3-window"),
                                          ring=(1000, 0), steps=9, taps=("heads", "modules"), seeds=2),
    # ---- choices
    "router ties": Variant(families=("ties", "ties-3"), stores=HALF, taps=("all", "modules", "no choice", "outs", "logits"),
                           seeds=3),
    "router ties, serving kernels": Variant(Way(fused_experts=True, router="chosen", attention="flash"),
                                            families=("ties", "ties-3"), stores=HALF, taps=("all", "no choice", "outs"),
                                            seeds=2),
    # ---- long prompts
    "long": Variant(prompts=(160, 600), families=("llama-long", "qwen3-long"), stores=FLOATS, taps=("all", "outs"),
                    runs=("plain", "chunked"), seeds=1, steps=2),
    "long, fp8 cache": Variant(Way(cache=caches.Plain("fp8-e4m3"), attention="flash", block=64), (("kv_cache", "fp8-e4m3"),),
                               prompts=(300, 600), families=("llama-long", "qwen3-long"), taps=("all", "modules"), steps=2),
}  # fmt: skip


def in_format(variant, store):
    """The variant's way with results in `store`."""
    way = variant.way
    return replace(way, store=store, sums=store if way.sums == "store" else way.sums)


def arithmetic(variant, store):
    """What trace.json declares."""
    way = in_format(variant, store)
    said = {"activations": store, "weights": way.weight_format, "accumulate": "f32", "kv_cache": store}
    for key, value in variant.declared:
        value = store if value == "store" else value
        said[key] = {**said[key], **value} if isinstance(said.get(key), dict) else value
    return said


assert all(family.split("*")[0] in FAMILIES for variant in VARIANTS.values() for family in variant.families)
