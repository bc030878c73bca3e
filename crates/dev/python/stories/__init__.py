"""Hard days of engine bring-up, rebuilt: each engine's trace, and what firstdiff must say of it.

`cargo dev stories` writes docs/STORIES.md from them; tests/test_stories.py holds firstdiff to them.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "recorders" / "python" / "src"), str(ROOT / "crates" / "dev" / "python")]

import bugs  # noqa: E402
import recording  # noqa: E402
import torch  # noqa: E402
from engine import record as record_engine  # noqa: E402
from engine.faults import FAULTS  # noqa: E402
from gguf_models import GgufModel  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

STEPS = 4
# Words of explanations that were believed for a while; the result must not offer them.
FALSE_LEADS = ("magnitude", "drift", "overflow", "precision")


@dataclass(frozen=True)
class Story:
    """One engine."""

    name: str
    title: str
    told: str  # what happened
    done: str  # what was done by hand
    build: Callable  # (folder for the trace, folder with the real models) -> what `check --model` takes
    causes: tuple  # (kind of tap, cause) of each finding, in order


def qwen(trace, models):
    """Qwen2.5-0.5B on its real weights, in transformers, with three bugs at once."""
    gguf = GgufModel(models / "qwen.gguf")
    model = gguf.to_transformers(torch.float32)
    with ExitStack() as planted, torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for module in (attention.q_proj, attention.k_proj, attention.v_proj):
                module.bias.zero_()
            attention.o_proj.weight.copy_(attention.o_proj.weight.T.clone())
        planted.enter_context(bugs.attention_function(model, first_channels))
        recording.record(model, trace, recording.REAL_PROMPTS["qwen"], STEPS)
    return gguf.path


def first_channels(module, q, k, v):
    """A thread kept its own channels of the query in registers, and no other thread's."""
    q = q.clone()
    q[..., 4:] = 0
    return q, k, v


def minimind(trace, models):
    """A model of MiniMind's shape with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=6400, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
                         num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-5, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
        folder = trace.parent / "minimind"
        model.save_pretrained(folder)
        with bugs.norm_overwrites_residual(model):
            recording.record(model, trace, list(range(40, 64)), STEPS)
    return folder


def planted(title):
    def build(trace, models):
        fault = FAULTS[title]
        return record_engine(fault.model, "bf16", trace, faults=[fault]).model

    return build


STORIES = (
    Story(
        "qwen",
        "Qwen2.5-0.5B says `componentWillMount`",
        "An engine in Rust and CUDA reads Qwen2.5-0.5B from a GGUF file, and repeats one word. Three mistakes lie on top of each "
        "other: the loader fills biases that it does not find with zeros, one projection is read transposed, and each thread of the "
        "attention kernel keeps its own few channels of the query in registers and never sees the others.",
        "Dumps on the host, printed scores, and an alarm at large queries and keys (\"Q should be about 8\"). The alarm was false: this "
        "model's biases make queries and keys large.",
        qwen,
        (("q_proj", "qkv-bias-missing"), ("attn_probs", "kernel-partial-vector-load"), ("attn_out", "kernel-strides-ignored")),
    ),
    Story(
        "minimind",
        "A port of MiniMind correlates 0.705",
        "A port to C++ gives logits that correlate with PyTorch's, 0.705, and are of no use. Its norm works in place: it writes over the "
        "residual stream that has to be added back after attention.",
        "Arrays dumped on both sides, root mean square errors, and a search by halves through the operations, by hand.",
        minimind,
        (("attn_resid", "residual-from-normed"),),
    ),
    Story(
        "qwen3-slot",
        "Qwen3 is right for a few tokens",
        "A decode kernel for Qwen3 gives the first tokens right, then others. A barrier's counters are reset inside the kernel, so one "
        "layer may read the newest key and value before they are written.",
        "Tokens compared, ten best logits compared, steps forced, a fence moved. It was put down to bf16 for a while.",
        planted("race-cross-block-visibility"),
        (("k_cache", "race-cross-block-visibility"),),
    ),
    Story(
        "qwen3-theta",
        "Qwen3 with another model's theta",
        "The same engine takes 10000 as the base of its rotary frequencies, where Qwen3 has 1000000: short prompts look good.",
        "A suspicion that \"it is RoPE\", and a comparison of constants.",
        planted("rope-theta-wrong"),
        (("q_rope", "rope-theta-wrong"),),
    ),
)  # fmt: skip
